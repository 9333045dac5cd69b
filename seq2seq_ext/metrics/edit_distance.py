"""Edit distances of many pairs at once, and the error rates made of them.

Levenshtein's table is filled row by row for all pairs together. Within a row an insertion reads its
left neighbour, ``row[j] = min(above[j], row[j - 1] + 1)``, which unrolled is a running minimum of
``above[j] - j``: so a row is a few operations on a tensor, whatever its length.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

# Pairs in one table; of the same order as what a core's cache holds at usual lengths.
_CHUNK = 4096


def edit_distances(
    outputs: Sequence[Sequence[Hashable]], references: Sequence[Sequence[Hashable]]
) -> Tensor:
    """Fewest insertions, deletions and substitutions that turn each output into its reference.

    Args:
        outputs: N sequences of tokens, or texts, whose tokens are characters.
        references: as many.

    Returns:
        int64 ``(N,)``.

    Raises:
        ValueError: if the two differ in number.

    Example:
        >>> edit_distances(["kitten", ""], ["sitting", "ox"])
        tensor([3, 2])
    """
    if len(outputs) != len(references):
        raise ValueError(
            f"outputs and references must be equally many, got {len(outputs)} and {len(references)}"
        )
    distances = torch.zeros(len(outputs), dtype=torch.int64)
    # Of about equal length in a chunk, so that little of a table is padding.
    order = sorted(range(len(outputs)), key=lambda i: (len(references[i]), len(outputs[i])))
    for first in range(0, len(order), _CHUNK):
        rows = order[first : first + _CHUNK]
        ids: dict[Hashable, int] = {}
        padded = [_padded([side[i] for i in rows], ids) for side in (outputs, references)]
        distances[rows] = _table(*padded[0], *padded[1])
    return distances


def error_rate(
    outputs: Sequence[Sequence[Hashable]],
    references: Sequence[Sequence[Sequence[Hashable]]],
) -> float:
    """Edits over the references' tokens: CER of characters, WER of words, PER of phonemes.

    Each output is held against the nearest of its references: the one of the fewest edits, of
    several such the longest. Edits and tokens are summed over all outputs before they are divided;
    insertions count, so that the rate can be above 1.

    Args:
        outputs: N sequences of tokens, or texts.
        references: of each output at least one.

    Raises:
        ValueError: if the two differ in number or are empty, or an output has no reference.

    Example:
        >>> error_rate(["HH AH L".split()], [["HH AH L OW".split(), "HH EH L OW".split()]])
        0.25
    """
    edits, tokens = nearest(outputs, references)
    return int(edits.sum()) / max(1, int(tokens.sum()))


def nearest(
    outputs: Sequence[Sequence[Hashable]],
    references: Sequence[Sequence[Sequence[Hashable]]],
) -> tuple[Tensor, Tensor]:
    """Edits to the nearest reference of each output, and that one's tokens: int64 ``(N,)`` each.

    The arguments and errors are those of `error_rate`.
    """
    if not outputs or len(outputs) != len(references) or not all(references):
        raise ValueError(
            "outputs must be at least one, and references as many with at least one each, got "
            f"{len(outputs)} and {[len(each) for each in references][:10]}"
        )
    flat = [reference for each in references for reference in each]
    repeated = [output for output, each in zip(outputs, references, strict=True) for _ in each]
    index = torch.arange(len(outputs)).repeat_interleave(torch.tensor(list(map(len, references))))
    distances = edit_distances(repeated, flat)
    lengths = torch.tensor([len(reference) for reference in flat])
    # One number that orders by edits, then by length, longest first.
    span = int(lengths.max()) + 1
    keys = distances * span + (span - 1 - lengths)
    least = torch.full((len(outputs),), torch.iinfo(torch.int64).max)
    least = least.scatter_reduce(0, index, keys, "amin")
    return least // span, span - 1 - least % span


def _padded(rows: Sequence[Sequence[Hashable]], ids: dict[Hashable, int]) -> tuple[Tensor, Tensor]:
    """Rows as numbers from 0 on, equal for equal tokens, filled up with -1; and their lengths."""
    numbers = [torch.tensor([ids.setdefault(t, len(ids)) for t in row]).long() for row in rows]
    padded = torch.nn.utils.rnn.pad_sequence(numbers, batch_first=True, padding_value=-1)
    return padded, torch.tensor([len(row) for row in rows])


def _table(
    outputs: Tensor, output_lengths: Tensor, references: Tensor, reference_lengths: Tensor
) -> Tensor:
    positions = torch.arange(references.size(1) + 1)
    row = positions.expand(len(outputs), -1)
    for i in range(outputs.size(1)):
        differs = (references != outputs[:, i : i + 1]).long()
        above = torch.minimum(row[:, 1:] + 1, row[:, :-1] + differs)
        above = torch.cat((row[:, :1] + 1, above), 1)
        following = (above - positions).cummin(1).values + positions
        row = torch.where((output_lengths > i)[:, None], following, row)
    return row.gather(1, reference_lengths[:, None])[:, 0]
