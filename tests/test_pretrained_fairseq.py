"""`load_fairseq` against fairseq's mathematics in plain torch, and against fairseq where it is."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from pretrained_cases import PlainFairseq

from seq2seq_ext.pretrained import PretrainedModel, load_fairseq
from seq2seq_ext.pretrained.fairseq import read_dictionary

WORDS = ["the", "@@er", "ox", "ran", "madeupword0000"]
THEIR_IDS = ["<s>", "<pad>", "</s>", "<unk>", *WORDS]
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "one_layer": {"layers": 1, "share": True, "embed": 6},
    "bidirectional": {"bidirectional": True, "decoder_hidden": 12},
    "projected": {"bidirectional": True, "layers": 3},
    "projected_narrow": {"encoder_hidden": 4, "out_embed": 3},
    "out_embed_shared": {"out_embed": 5, "share": True},
}
each_case = pytest.mark.parametrize("case", CASES)


def plain(case: str) -> PlainFairseq:
    torch.manual_seed(1)
    return PlainFairseq(vocab_size=len(THEIR_IDS), **CASES[case]).eval()


def save(folder: Path, tensors: Any, **entries: Any) -> tuple[Path, Path, Path]:
    """A checkpoint as fairseq's trainer writes it, and its dictionaries."""
    cfg = {"_name": None, "model": argparse.Namespace(arch="lstm", dropout=0.1)}
    path = folder / "checkpoint_best.pt"
    torch.save({"args": None, "cfg": cfg, "model": tensors} | entries, path)
    dictionary = folder / "dict.txt"
    dictionary.write_text("".join(f"{word} {9 - i}\n" for i, word in enumerate(WORDS)))
    return path, dictionary, dictionary


def logits_of(loaded: PretrainedModel, source: list[str], written: list[str]) -> torch.Tensor:
    """(len(written) + 1, V) in the order of their ids."""
    ids, lengths = loaded.encode([source])
    inputs = [2, *loaded.target_vocabulary.convert_tokens_to_ids(written)]
    state = loaded.model.start(ids, lengths)
    logits, _ = loaded.model.decoder(torch.tensor([inputs]), state)
    order = [loaded.target_vocabulary.to_list().index(token) for token in THEIR_IDS]
    return logits[0][:, order]


SOURCE, WRITTEN = ["the", "ox", "flew", "ran"], ["ran", "@@er", "the"]
THEIR_SOURCE = [4, 6, 3, 7, 2]  # unknown words, </s> at the end
THEIR_INPUTS = [2, 7, 5, 4]  # begins with </s>


@each_case
def test_logits_are_those_of_fairseqs_mathematics(case: str, tmp_path: Path) -> None:
    theirs = plain(case)
    loaded = load_fairseq(*save(tmp_path, theirs.state_dict()))
    found = logits_of(loaded, SOURCE, WRITTEN)
    torch.testing.assert_close(found, theirs(THEIR_SOURCE, THEIR_INPUTS), rtol=1e-5, atol=1e-5)


@each_case
def test_logits_are_those_of_fairseq(case: str, tmp_path: Path) -> None:
    lstm = pytest.importorskip("fairseq.models.lstm", reason="fairseq is not installed")
    dictionary = pytest.importorskip("fairseq.data").Dictionary()
    for word in WORDS:
        dictionary.add_symbol(word)
    assert dictionary.symbols == THEIR_IDS
    settings = CASES[case]
    embed, hidden = settings.get("embed", 5), settings.get("encoder_hidden", 6)
    layers = settings.get("layers", 2)
    encoder = lstm.LSTMEncoder(
        dictionary,
        embed_dim=embed,
        hidden_size=hidden,
        num_layers=layers,
        bidirectional=settings.get("bidirectional", False),
    )
    decoder = lstm.LSTMDecoder(
        dictionary,
        embed_dim=embed,
        hidden_size=settings.get("decoder_hidden", 6),
        out_embed_dim=settings.get("out_embed", settings.get("decoder_hidden", 6)),
        num_layers=layers,
        encoder_output_units=encoder.output_units,
        share_input_output_embed=settings.get("share", False),
    )
    theirs = lstm.LSTMModel(encoder, decoder).eval()
    theirs.load_state_dict(plain(case).state_dict(), strict=True)
    loaded = load_fairseq(*save(tmp_path, theirs.state_dict()))
    source = torch.tensor([THEIR_SOURCE])
    expected, _ = theirs(source, torch.tensor([source.size(1)]), torch.tensor([THEIR_INPUTS]))
    found = logits_of(loaded, SOURCE, WRITTEN)
    torch.testing.assert_close(found, expected[0], rtol=1e-5, atol=1e-5)


def test_greedy_search_is_fairseqs(tmp_path: Path) -> None:
    theirs = plain("projected")
    with torch.no_grad():
        theirs.decoder.fc_out.weight *= 20  # or everything is as probable
        theirs.decoder.fc_out.bias[2] -= 3
    loaded = load_fairseq(*save(tmp_path, theirs.state_dict()))
    expected, inputs = [], [2]
    for _ in range(12):
        logits = theirs(THEIR_SOURCE, inputs)[-1]
        logits[:2] = -torch.inf  # neither <s> nor <pad>
        inputs.append(int(logits.argmax()))
        if inputs[-1] == 2:
            break
        expected.append(THEIR_IDS[inputs[-1]])
    assert len(expected) > 3
    assert loaded.generate([SOURCE, ["ox"]], num_beams=1, max_new_tokens=12)[0] == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoder.attention.input_proj.weight": None}, "must be an LSTM model with attention"),
        ({"decoder.adaptive_softmax.head.weight": 3}, "parts unknown: ['decoder.adaptive_softmax"),
        ({"encoder.embed_tokens.weight": 3}, "must have shape (9, 5), got (3, 5)"),
    ],
)
def test_other_checkpoints_are_refused(
    change: dict[str, int | None], message: str, tmp_path: Path
) -> None:
    tensors: dict[str, Any] = dict(plain("plain").state_dict())
    for name, rows in change.items():
        tensors.pop(name, None)
        if rows is not None:
            tensors[name] = torch.ones(rows, 5)
    with pytest.raises(ValueError, match=re.escape(message)):
        load_fairseq(*save(tmp_path, tensors))


def test_files_that_are_no_checkpoint_are_refused(tmp_path: Path) -> None:
    path, dictionary, _ = save(tmp_path, {"a": 3})
    with pytest.raises(ValueError, match="must hold the weights of a model of fairseq"):
        load_fairseq(path, dictionary, dictionary)
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is no checkpoint of plain values"):
        load_fairseq(path, dictionary, dictionary)
    with pytest.raises(FileNotFoundError, match="path must be a file"):
        load_fairseq(tmp_path / "missing.pt", dictionary, dictionary)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    path, dictionary, _ = save(tmp_path, plain("plain").state_dict(), task_state=Code())
    with pytest.raises(ValueError, match="is no checkpoint of plain values"):
        load_fairseq(path, dictionary, dictionary)
    assert not (tmp_path / "ran").exists()


def test_dictionaries_are_read_as_fairseq_does(tmp_path: Path) -> None:
    path = tmp_path / "dict.txt"
    path.write_text("the 5\na b 3\n\u2581ox 1\n")
    assert read_dictionary(path) == [*THEIR_IDS[:4], "the", "a b", "\u2581ox"]
    for text, message in {
        "the\n": "line 1 .* must be a token and its count",
        "the 5\nox x\n": "line 2 .* must be a token and its count",
        "the 5\nthe 5\n": "line 2 .* has 'the', which was there before",
        "<s> 5\n": "line 1 .* has '<s>', which was there before",
    }.items():
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_dictionary(path)
