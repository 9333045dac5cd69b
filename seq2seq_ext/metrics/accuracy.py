"""Exact match of whole texts, and token accuracy position by position."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def exact_match(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Share of the predictions that equal their reference, in [0, 1].

    Raises:
        ValueError: if the two differ in length or are empty.

    Example:
        >>> exact_match(["cats", "oxes"], ["cats", "oxen"])
        0.5
    """
    if len(predictions) != len(references):
        raise ValueError(
            f"predictions and references must be equally many, got {len(predictions)} and "
            f"{len(references)}"
        )
    if not references:
        raise ValueError("references must not be empty")
    same = sum(p == r for p, r in zip(predictions, references, strict=True))
    return same / len(references)


def count_correct_tokens(predicted: Tensor, target: Tensor, target_lengths: Tensor) -> Tensor:
    """How many of the target's tokens stand at the same position of the prediction.

    Args:
        predicted: int64 ``(B, P)``; a prediction shorter than its target is wrong where it is
            missing, what it has beyond the target's end is not counted.
        target: int64 ``(B, U)``.
        target_lengths: int64 ``(B,)``.

    Returns:
        A scalar int64 tensor; divide it by ``target_lengths.sum()`` for the token accuracy.

    Example:
        >>> target = torch.tensor([[5, 6, 3], [7, 3, 0]])
        >>> predicted = torch.tensor([[5, 6, 6, 3], [7, 3, 0, 0]])
        >>> count_correct_tokens(predicted, target, torch.tensor([3, 2]))
        tensor(4)
    """
    width = min(predicted.size(1), target.size(1))
    inside = torch.arange(width, device=target.device) < target_lengths[:, None]
    return ((predicted[:, :width] == target[:, :width]) & inside).sum()
