"""Pictures: they are drawn, hold what they are given, and say what is wrong with it."""

from __future__ import annotations

import pytest
import torch

from seq2seq_ext.metrics import LengthBucket, by_length

pytest.importorskip("matplotlib", reason="pictures need the extra [plot]")

from seq2seq_ext.plots import accuracy_by_length_as_png, attention_as_png
from seq2seq_ext.plots.figures import font_families, spelled

PNG = b"\x89PNG\r\n\x1a\n"


def test_an_alignment_is_drawn() -> None:
    alignments = torch.eye(5)
    picture = attention_as_png(list("abc"), ["x", "é", "</s>"], alignments)
    assert picture.startswith(PNG)
    assert picture != attention_as_png(list("abc"), ["x", "é", "</s>"], alignments.flip(1))


def test_what_stands_behind_the_tokens_is_cut_off() -> None:
    alignments = torch.rand(3, 4)
    wider = torch.nn.functional.pad(alignments, (0, 3, 0, 2), value=1.0)
    sides = list("abcd"), list("xyz")
    assert attention_as_png(*sides, alignments) == attention_as_png(*sides, wider)


@pytest.mark.parametrize("shape", [(2, 4), (3, 3), (3,), (1, 3, 4)])
def test_too_few_alignments_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"alignments must be at least \(3, 4\)"):
        attention_as_png(list("abcd"), list("xyz"), torch.zeros(shape))


def test_no_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one token"):
        attention_as_png([], ["x"], torch.zeros(1, 1))


def test_blanks_are_seen() -> None:
    assert spelled(["a", " ", "\t"]) == ["a", "␣", "␣"]


def test_fonts_for_korean_are_looked_for() -> None:
    assert font_families("naïve") == ["DejaVu Sans"]
    assert len(font_families("서울")) <= 2


def test_accuracy_is_drawn() -> None:
    one = [LengthBucket((1, 1), 3, 1.0), LengthBucket((2, 4), 5, 0.2)]
    other = [LengthBucket((1, 1), 3, 0.5), LengthBucket((2, 4), 5, 0.4)]
    picture = accuracy_by_length_as_png({"one": one, "other": other}, "both")
    assert picture.startswith(PNG)
    assert picture != accuracy_by_length_as_png({"one": one, "other": one}, "both")
    for wrong in ({}, {"none": []}, {"one": one, "other": other[:1]}):
        with pytest.raises(ValueError, match="at least one bucket, and the same lengths"):
            accuracy_by_length_as_png(wrong, "nothing")


def test_buckets_hold_enough_texts() -> None:
    sources = ["a"] * 4 + ["ab"] * 1 + ["abc"] * 2 + ["abcdef"] * 2
    right = [True, True, False, False, True, True, False, True, True]
    predictions = ["y" if hit else "n" for hit in right]
    found = by_length(sources, predictions, ["y"] * 9, at_least=3)
    assert found == [((1, 1), 4, 0.5), ((2, 6), 5, 0.8)]
    assert sum(bucket.texts for bucket in found) == 9
    assert by_length(sources, predictions, ["y"] * 9, at_least=1)[1] == ((2, 2), 1, 1.0)
    assert by_length(sources, predictions, ["y"] * 9, at_least=99) == [((1, 6), 9, 6 / 9)]


def test_wrong_texts_are_refused() -> None:
    with pytest.raises(ValueError, match="equally many, got 1, 2 and 1"):
        by_length(["a"], ["b", "c"], ["d"])
    with pytest.raises(ValueError, match="not be empty"):
        by_length([], [], [])
    with pytest.raises(ValueError, match="at_least must be positive, got 0"):
        by_length(["a"], ["b"], ["c"], at_least=0)
