"""Train, dev and test sets that never share a word.

Where a pair goes depends on a hash of its words, so it stays there in every version of a list,
on every machine and in every order. Pairs that share a word, say ``datum -> data`` and
``data -> datas``, go together: a word of a test pair is in no training pair, on neither side.
Where the targets are not of the sources' kind, pairs of one source alone go together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

Pair = tuple[str, str]


class Split(NamedTuple):
    """Three lists of pairs."""

    train: list[Pair]
    dev: list[Pair]
    test: list[Pair]


def stable_hash(text: str) -> float:
    """A number in [0, 1) that depends on the text alone: the first 8 bytes of its SHA-256.

    Example:
        >>> round(stable_hash("goose"), 6) == round(stable_hash("goose"), 6)
        True
    """
    digest = hashlib.sha256(text.encode()).digest()
    # 53 bits, as many as a float holds, so that the quotient cannot round up to 1.
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def split_pairs(
    pairs: Sequence[Pair], *, dev: float = 0.05, test: float = 0.1, join_targets: bool = True
) -> Split:
    """Split pairs by a stable hash, pairs with a common word together.

    Args:
        pairs: ``(source, target)`` words.
        dev: expected share of the dev set.
        test: expected share of the test set.
        join_targets: False lets pairs go together by their source alone, so that one target may be
            in two sets.

    Raises:
        ValueError: if a share is negative or the two leave nothing to train on.
    """
    if dev < 0 or test < 0 or dev + test >= 1:
        raise ValueError(
            f"dev and test must be at least 0 and sum to less than 1, got {dev} and {test}"
        )
    groups = _Groups()
    if join_targets:
        for source, target in pairs:
            groups.join(source, target)
    split = Split([], [], [])
    for pair in pairs:
        position = stable_hash(groups.first_word(pair[0]))
        if position < test:
            split.test.append(pair)
        elif position < test + dev:
            split.dev.append(pair)
        else:
            split.train.append(pair)
    return split


def merge_targets(pairs: Sequence[Pair]) -> tuple[list[Pair], list[tuple[str, ...]]]:
    """Each source once with its first target, and all targets of each.

    Example:
        >>> merge_targets([("dove", "D AH V"), ("dove", "D OW V"), ("ox", "AA K S")])
        ([('dove', 'D AH V'), ('ox', 'AA K S')], [('D AH V', 'D OW V'), ('AA K S',)])
    """
    targets: dict[str, dict[str, None]] = {}
    for source, target in pairs:
        targets.setdefault(source, {})[target] = None
    references = [tuple(each) for each in targets.values()]
    return [(source, each[0]) for source, each in zip(targets, references, strict=True)], references


class _Groups:
    """Words joined into groups (union-find with path halving), each known by its first word."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def first_word(self, word: str) -> str:
        """The alphabetically first word of the word's group."""
        parent = self._parent
        parent.setdefault(word, word)
        while parent[word] != word:
            parent[word] = parent[parent[word]]
            word = parent[word]
        return word

    def join(self, left: str, right: str) -> None:
        """Make one group of the groups of two words."""
        first, second = sorted((self.first_word(left), self.first_word(right)))
        self._parent[second] = first
