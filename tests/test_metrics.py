"""Edit distances and error rates, against their definitions."""

from __future__ import annotations

import functools
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from seq2seq_ext.metrics import edit_distance, edit_distances, error_rate, exact_match, nearest

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
