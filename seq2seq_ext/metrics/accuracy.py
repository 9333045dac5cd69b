"""Exact match of whole texts, and token accuracy position by position."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def exact_match(
    predictions: Sequence[str], references: Sequence[str] | Sequence[Sequence[str]]
) -> float:
    """Share of the predictions that equal their reference, in [0, 1].

    Args:
        predictions: N texts.
        references: as many, each a text, or several of which any is right.

    Raises:
        ValueError: if the two differ in length or are empty.

    Example:
        >>> exact_match(["cats", "oxes"], ["cats", "oxen"])
        0.5
        >>> exact_match(["cats", "oxes"], [("cats",), ("oxen", "oxes")])
        1.0
    """
    return sum(hits(predictions, references)) / len(references)


def hits(
    predictions: Sequence[str], references: Sequence[str] | Sequence[Sequence[str]]
) -> list[bool]:
    """Which of the predictions are right; arguments and errors are those of `exact_match`."""
    if len(predictions) != len(references):
        raise ValueError(
            f"predictions and references must be equally many, got {len(predictions)} and "
            f"{len(references)}"
        )
    if not references:
        raise ValueError("references must not be empty")
    return [
        prediction == right if isinstance(right, str) else prediction in right
        for prediction, right in zip(predictions, references, strict=True)
    ]


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
