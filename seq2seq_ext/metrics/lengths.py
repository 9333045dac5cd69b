"""Exact match apart by the length of the source."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from typing import NamedTuple

from seq2seq_ext.metrics.accuracy import hits


class LengthBucket(NamedTuple):
    """The texts whose sources are of about one length.

    Args:
        lengths: the shortest and the longest of them.
        texts: how many.
        exact_match: share of them that equal their reference, in [0, 1].
    """

    lengths: tuple[int, int]
    texts: int
    exact_match: float


def by_length(
    sources: Sequence[Sized],
    predictions: Sequence[str],
    references: Sequence[str] | Sequence[Sequence[str]],
    *,
    at_least: int = 30,
) -> list[LengthBucket]:
    """Exact match in buckets of neighbouring lengths.

    Args:
        sources, predictions, references: equally many; sources are texts, or their tokens, by whose
            number they are grouped; a reference may be several texts, of which
            any is right.
        at_least: a bucket takes the next length in until it holds so many; the last one may hold
            fewer where there is no other.

    Raises:
        ValueError: if the three differ in length or are empty, or `at_least` is not positive.

    Example:
        >>> by_length(["ox", "fox", "cow"], ["oxen", "foxs", "cows"], ["oxen", "foxes", "cows"],
        ...           at_least=1)
        [LengthBucket(lengths=(2, 2), texts=1, exact_match=1.0), \
LengthBucket(lengths=(3, 3), texts=2, exact_match=0.5)]
    """
    if not len(sources) == len(predictions) == len(references):
        raise ValueError(
            "sources, predictions and references must be equally many, got "
            f"{len(sources)}, {len(predictions)} and {len(references)}"
        )
    if not sources:
        raise ValueError("sources must not be empty")
    if at_least < 1:
        raise ValueError(f"at_least must be positive, got {at_least}")
    right: dict[int, list[bool]] = {}
    for source, hit in zip(sources, hits(predictions, references), strict=True):
        right.setdefault(len(source), []).append(hit)
    groups: list[tuple[int, int, list[bool]]] = []
    for length in sorted(right):
        if groups and len(groups[-1][2]) < at_least:
            low, _, before = groups.pop()
            groups.append((low, length, before + right[length]))
        else:
            groups.append((length, length, right[length]))
    if len(groups) > 1 and len(groups[-1][2]) < at_least:
        _, high, last = groups.pop()
        low, _, before = groups.pop()
        groups.append((low, high, before + last))
    return [
        LengthBucket((low, high), len(hits), sum(hits) / len(hits)) for low, high, hits in groups
    ]
