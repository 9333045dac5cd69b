"""What every search returns."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class GenerationOutput(NamedTuple):
    """Sequences and how they were reached.

    R rows stand for every source, best first in a beam search: row ``b * num_return_sequences + i``
    is the i-th of source b, and R = B * num_return_sequences. Where fewer sequences exist than were
    asked for, the missing rows have length 0 and the score -inf.

    Args:
        sequences: int64 ``(R, U)``, the tokens after ``<s>``, ``</s>`` included where it came,
            ``<pad>`` after it; U is the longest row's length.
        lengths: int64 ``(R,)``, tokens of each row, ``</s>`` included.
        sequences_scores: float32 ``(R,)``, or None: the log-probability of each sequence in nats
            as the model itself gives it, before any token is ruled out; after a beam search
            divided by the length penalty, with the coverage penalty added.
        alignments: ``(R, U, S)``, or None: the attention over the source when each token was
            written; 0 past a row's end.
    """

    sequences: Tensor
    lengths: Tensor
    sequences_scores: Tensor | None
    alignments: Tensor | None = None
