"""Embeddings that are tied, and embeddings whose vectors come from a file."""

from __future__ import annotations

import copy
import gzip
from pathlib import Path

import pytest
import torch
from torch import nn

from seq2seq_ext.data import Vocabulary
from seq2seq_ext.models import Seq2Seq, Seq2SeqConfig
from seq2seq_ext.models.embeddings import read_token_vectors, set_embeddings
from seq2seq_ext.training import Run, load_run, save_run

TIED = {
    "decoder": {"target_embedding_size": 8, "decoder_hidden_size": 8},
    "all": {"source_embedding_size": 6, "target_embedding_size": 6, "output_rank": 6},
}
each_tie = pytest.mark.parametrize("ties", TIED)


def tied_model(ties: str) -> Seq2Seq:
    sizes = {"source_vocab_size": 8, "target_vocab_size": 8, "encoder_hidden_size": 8}
    return Seq2Seq(Seq2SeqConfig(**(sizes | TIED[ties]), tie_embeddings=ties))


def last_matrix(model: Seq2Seq) -> nn.Parameter:
    output = model.decoder.output
    last = output[1] if isinstance(output, nn.Sequential) else output
    assert isinstance(last, nn.Linear)
    return last.weight


@each_tie
def test_tied_matrices_are_one_parameter_also_in_a_copy(ties: str) -> None:
    model = tied_model(ties)
    for tied in (model, copy.deepcopy(model), model.double()):
        weight = tied.decoder.embedding.weight
        assert last_matrix(tied) is weight
        assert (tied.encoder.embedding.weight is weight) == (ties == "all")
    free = Seq2Seq(Seq2SeqConfig(**(vars(model.config) | {"tie_embeddings": "none"})))
    spared = sum(p.numel() for p in free.parameters()) - sum(p.numel() for p in model.parameters())
    assert spared == (1 if ties == "decoder" else 2) * weight.numel()
    assert (weight[0] == 0).all()


@each_tie
def test_the_gradient_of_a_tied_matrix_is_the_sum_over_its_places(ties: str) -> None:
    model = tied_model(ties).double()
    free = Seq2Seq(Seq2SeqConfig(**(vars(model.config) | {"tie_embeddings": "none"}))).double()
    free.load_state_dict(model.state_dict())
    source, target = torch.tensor([[4, 5, 6], [7, 4, 0]]), torch.tensor([[6, 5, 3], [7, 3, 0]])
    for each in (model, free):
        each(source, target).loss.backward()
    expected = last_matrix(free).grad + free.decoder.embedding.weight.grad
    if ties == "all":
        expected = expected + free.encoder.embedding.weight.grad
    torch.testing.assert_close(model.decoder.embedding.weight.grad, expected)


@each_tie
def test_a_run_keeps_tied_matrices_once(ties: str, tmp_path: Path) -> None:
    model, vocabulary = tied_model(ties), Vocabulary("abcd")
    save_run(tmp_path, Run(model, vocabulary, vocabulary))
    safetensors = pytest.importorskip("safetensors")
    with safetensors.safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert set(model.tied_weights).isdisjoint(file.keys())
    loaded = load_run(tmp_path).model
    assert last_matrix(loaded) is loaded.decoder.embedding.weight
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


# Vectors from files

TOKENS = ["<pad>", "the", "ox", "new york", "missing"]
GLOVE = "ox 1 2 3\nthe 0.5 -1 2e-1\nnew york 7 8 9\nother 0 0 0\nox 9 9 9\n"


@pytest.mark.parametrize("kind", ["glove", "word2vec", "trailing", "windows", "gz"])
def test_vectors_are_those_of_the_file(kind: str, tmp_path: Path) -> None:
    text = GLOVE
    if kind == "word2vec":
        text = "5 3\n" + GLOVE
    elif kind in ("trailing", "windows"):
        text = GLOVE.replace("\n", " \n" if kind == "trailing" else "\r\n")
    path = tmp_path / ("vectors.txt.gz" if kind == "gz" else "vectors.txt")
    path.write_bytes(gzip.compress(text.encode()) if kind == "gz" else text.encode())
    vectors, found = read_token_vectors(path, TOKENS)
    assert found.tolist() == [False, True, True, True, False]
    expected = [[0, 0, 0], [0.5, -1, 0.2], [1, 2, 3], [7, 8, 9], [0, 0, 0]]
    torch.testing.assert_close(vectors, torch.tensor(expected))


@pytest.mark.parametrize(
    ("text", "size", "message"),
    [
        ("ox 1 2\nthe 1\n", None, "line 2 must be a token and 2 numbers, got 1"),
        ("ox 1 2\nthe 1 b\n", None, "line 2: could not convert string to float: 'b'"),
        ("ox 1 nan\n", None, "line 1 must hold finite numbers"),
        ("other 1 2\n", None, "has a vector for none of the 5 tokens"),
        ("", None, "has a vector for none of the 5 tokens"),
        ("ox\n", None, "line 1 must be a token and its vector"),
        ("9 4\nox 1 2 3 4\n", 3, "size must be 4 as line 1 says, got 3"),
        (b"ox 1 2\n\xff\xfe 1 2\n", None, "holds no vectors of tokens: 'utf-8'"),
    ],
)
def test_bad_files_are_named_with_the_line(
    text: str | bytes, size: int | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "vectors.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message) as caught:
        read_token_vectors(path, TOKENS, size=size)
    assert str(path) in str(caught.value)


def test_files_that_are_not_there_or_cut_off(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="path must be a file"):
        read_token_vectors(tmp_path / "missing.txt", TOKENS)
    cut = tmp_path / "cut.txt.gz"
    cut.write_bytes(gzip.compress(GLOVE.encode() * 100)[:-12])
    with pytest.raises(ValueError, match="holds no vectors of tokens"):
        read_token_vectors(cut, TOKENS)


def test_only_found_rows_are_written_and_pad_stays_zero() -> None:
    model = tied_model("all")
    before = model.decoder.embedding.weight.detach().clone()
    vectors = torch.randn(8, 6)
    found = torch.tensor([True, False, False, True, True, False, False, True])
    set_embeddings(model.encoder.embedding, vectors, found)
    after = last_matrix(model)
    assert torch.equal(after[[3, 4, 7]], vectors[[3, 4, 7]])
    assert torch.equal(after[[0, 1, 2, 5, 6]], before[[0, 1, 2, 5, 6]])
    assert after.requires_grad


def test_frozen_embeddings_are_not_trained() -> None:
    model = tied_model("decoder")
    set_embeddings(model.encoder.embedding, torch.randn(8, 64), freeze=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = model.encoder.embedding.weight.clone()
    model(torch.tensor([[4, 5]]), torch.tensor([[5, 3]])).loss.backward()
    optimizer.step()
    assert torch.equal(model.encoder.embedding.weight, before)


@pytest.mark.parametrize(
    ("vectors", "found", "error", "message"),
    [
        (torch.ones(3, 2, dtype=torch.int64), None, TypeError, "vectors must be floating"),
        (torch.ones(2, 2), None, ValueError, r"vectors must have shape \(3, 2\), got \(2, 2\)"),
        (torch.ones(3, 2), torch.ones(3), TypeError, "found must hold bools"),
        (torch.ones(3, 2), torch.ones(2) > 0, ValueError, r"found must have shape \(3,\)"),
    ],
)
def test_wrong_vectors_are_named(
    vectors: torch.Tensor, found: torch.Tensor | None, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        set_embeddings(nn.Embedding(3, 2), vectors, found)
