"""Edit distances, error rates and corpus scores, against their definitions."""

from __future__ import annotations

import functools
import importlib.util
import json
import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from seq2seq_ext.data.extras import MissingExtraError
from seq2seq_ext.metrics import (
    bleu,
    chrf,
    edit_distance,
    edit_distances,
    error_rate,
    exact_match,
    nearest,
    score,
)
from seq2seq_ext.metrics.tables import as_markdown

texts = st.lists(st.integers(0, 2), max_size=7)


@functools.cache
def by_definition(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    if not a or not b:
        return len(a) + len(b)
    return min(
        by_definition(a[1:], b) + 1,
        by_definition(a, b[1:]) + 1,
        by_definition(a[1:], b[1:]) + (a[0] != b[0]),
    )


@given(st.lists(st.tuples(texts, texts), max_size=12))
def test_edit_distances_are_those_of_the_definition(
    pairs: list[tuple[list[int], list[int]]],
) -> None:
    outputs, references = [a for a, _ in pairs], [b for _, b in pairs]
    wanted = [by_definition(tuple(a), tuple(b)) for a, b in pairs]
    assert edit_distances(outputs, references).tolist() == wanted


def test_many_pairs_are_worked_off_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(0)
    sides = [
        ["".join(chance.choices("abc", k=chance.randrange(9))) for _ in range(50)] for _ in "xy"
    ]
    whole = edit_distances(*sides)
    monkeypatch.setattr(edit_distance, "_CHUNK", 7)
    assert torch.equal(edit_distances(*sides), whole)


def test_the_nearest_reference_counts_the_longest_of_equals() -> None:
    edits, tokens = nearest(["abc", "xy"], [["abd", "abcde", "abcd"], ["xy"]])
    assert edits.tolist() == [1, 0]
    assert tokens.tolist() == [4, 2]
    assert error_rate(["abc", "xy"], [["abd", "abcde", "abcd"], ["xy"]]) == pytest.approx(1 / 6)
    assert error_rate(["aaaa"], [["b"]]) == 4.0
    assert error_rate(["", "a"], [[""], [""]]) == 1.0


@pytest.mark.parametrize(("outputs", "references"), [([], []), (["a"], []), (["a"], [[]])])
def test_rates_over_nothing_are_refused(outputs: list[str], references: list[list[str]]) -> None:
    with pytest.raises(ValueError, match="references as many with at least one each"):
        error_rate(outputs, references)


def test_distances_of_unequal_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="equally many, got 1 and 2"):
        edit_distances(["a"], ["a", "b"])


def test_any_reference_is_a_match() -> None:
    assert exact_match(["a", "b"], [("x", "a"), ("c",)]) == 0.5
    # A text is one reference, not its characters.
    assert exact_match(["a"], ["abc"]) == 0.0


# Corpus scores, and all figures at once

needs_sacrebleu = pytest.mark.skipif(
    importlib.util.find_spec("sacrebleu") is None, reason="needs the extra [train]: sacrebleu"
)


@needs_sacrebleu
def test_bleu_is_counted_as_its_paper_counts() -> None:
    # Of "a b c d e" against "a b c d f": 4/5 words, 3/4, 2/3 and 1/2 of the n-grams; equal lengths.
    found = bleu(["a b c d e"], [["a b c d f"]])
    assert found.score == pytest.approx(100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)
    assert "nrefs:1" in found.signature
    assert "version:" in found.signature
    # One word less: the brevity penalty of 4 against 5.
    assert bleu(["a b c d"], [["a b c d f"]]).score == pytest.approx(100 * math.exp(1 - 5 / 4))


@needs_sacrebleu
def test_references_need_not_be_equally_many() -> None:
    several = bleu(["the cat sat on it", "two"], [["a", "the cat sat on it"], ["two"]])
    assert several.score == pytest.approx(100)
    assert "nrefs:var" in several.signature
    assert chrf(["oxen", "b"], [["ox", "oxen"], ["b"]]).score == pytest.approx(100)
    with pytest.raises(ValueError, match="references as many with at least one each"):
        bleu(["a"], [[]])


def test_sacrebleu_that_is_missing_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"'sacrebleu'.*seq2seq_ext\[train\]"):
        bleu(["a"], [["a"]])


def test_the_oracle_chooses_the_best_candidate_of_each() -> None:
    found = score(
        ["aa", "b", "cc"],
        [["A X", "A Y"], ["B B", "B C", "Q"], ["C C C C"]],
        [["A Y"], ["B D", "B C E"], ["C", "C C"]],
        error_names=("WER", "PER"),
    )
    assert found.oracle is not None
    assert found.oracle.candidates == 3
    assert found.oracle.exact_match == pytest.approx(1 / 3)
    # 0 of 2; of "B C" 1 of "B C E" or of "B D", the longer counts: 1 of 3; 2 of 2.
    assert found.oracle.token_error_rate == pytest.approx((0 + 1 + 2) / (2 + 3 + 2))
    # First candidates: 1 of 2; "B B" to "B D" 1 of 2; 2 of 2.
    assert found.error_rates == {"WER": 1.0, "PER": pytest.approx(4 / 6)}
    assert found.edit_distance == pytest.approx(4 / 3)
    # At their place, the end counted: A; B, end; C.
    assert found.token_accuracy == pytest.approx((2 + 2 + 1) / (3 + 3 + 2))
    assert found.bleu is None
    assert found.chrf is None
    assert [bucket.texts for bucket in found.by_length] == [3]
    assert json.loads(json.dumps(found.to_dict()))["oracle"]["candidates"] == 3


@needs_sacrebleu
def test_texts_have_rates_of_characters_and_of_words() -> None:
    found = score([["x"]] * 2, [["the cat"], ["a"]], [["the hat"], ["a b"]], tokenize=list)
    assert found.error_rates["CER"] == pytest.approx(3 / 10)
    assert found.error_rates["WER"] == pytest.approx(2 / 4)
    assert found.error_rates["sequence error rate"] == 1.0
    assert found.oracle is None
    assert found.bleu is not None
    assert found.chrf is not None
    single = score([["x"]], [["oxes"]], [["oxen"]], tokenize=list)
    assert single.bleu is None, "single words have no 4-grams"
    table = as_markdown(found, {"beams": "1"})
    assert "| CER | 30.00% |" in table
    # Bars of signatures do not end a cell.
    assert all(line.replace("\\|", "").count("|") in (0, 3, 4) for line in table.splitlines())


def test_scores_of_unequal_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="equally many, got 1, 2 and 1"):
        score([["a"]], [["b"], ["c"]], [["d"]])
    with pytest.raises(ValueError, match="at least one text of each source"):
        score([["a"]], [[]], [["d"]])
