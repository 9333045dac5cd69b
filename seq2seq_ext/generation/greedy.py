"""Greedy search: the best next token, again and again, until every row has ended.

The search sees a model through two callables and a state that can select rows; it knows nothing of
encoders or cells. Rows that have ended leave the batch, so that the last long row does not pay for
those that ended long ago.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor


class SearchState(Protocol):
    """What a search needs of a decoder's state."""

    def select(self: StateT, rows: Tensor) -> StateT:
        """The state of the given rows (int64 indices into the batch), in their order."""
        ...


StateT = TypeVar("StateT", bound=SearchState)


class GenerationOutput(NamedTuple):
    """Sequences and how they were reached.

    Args:
        sequences: int64 ``(B, U)``, the tokens after ``<s>``, ``</s>`` included where it came,
            ``<pad>`` after it; U is the longest row's length.
        lengths: int64 ``(B,)``, tokens of each row, ``</s>`` included.
        sequences_scores: float32 ``(B,)``, log-probability of each sequence in nats, or None.
    """

    sequences: Tensor
    lengths: Tensor
    sequences_scores: Tensor | None


def greedy_search(
    step: Callable[[Tensor, StateT], tuple[Tensor, StateT]],
    state: StateT,
    batch_size: int,
    *,
    bos_token_id: int,
    eos_token_id: int,
    pad_token_id: int,
    max_new_tokens: int,
    min_new_tokens: int = 0,
    output_scores: bool = False,
    device: torch.device | str | None = None,
) -> GenerationOutput:
    """Take the most probable token at every step.

    Args:
        step: from int64 ``(N,)`` tokens and the state of N rows to logits ``(N, V)`` and the next
            state.
        state: the state of all rows before the first token.
        batch_size: B.
        bos_token_id: every row's first input.
        eos_token_id: ends a row.
        pad_token_id: fills a row past its end; neither it nor `bos_token_id` is ever generated.
        max_new_tokens: ends every row that has not ended before.
        min_new_tokens: tokens before which `eos_token_id` is not taken.
        output_scores: whether to sum the log-probabilities. They are the model's own, before any
            token is ruled out.
        device: where the tokens live.
    """
    sequences = torch.full(
        (batch_size, max_new_tokens), pad_token_id, dtype=torch.int64, device=device
    )
    lengths = torch.zeros(batch_size, dtype=torch.int64, device=device)
    scores = torch.zeros(batch_size, device=device) if output_scores else None
    rows = torch.arange(batch_size, device=device)
    tokens = torch.full((batch_size,), bos_token_id, dtype=torch.int64, device=device)

    for t in range(max_new_tokens):
        if rows.numel() == 0:
            break
        logits, state = step(tokens, state)
        if scores is not None:
            # Before the ban: the score is the model's own probability of what was chosen.
            log_probabilities = logits.float().log_softmax(-1)
        logits[:, (pad_token_id, bos_token_id)] = float("-inf")
        if t < min_new_tokens:
            logits[:, eos_token_id] = float("-inf")
        tokens = logits.argmax(-1)
        sequences[rows, t] = tokens
        lengths[rows] = t + 1
        if scores is not None:
            scores[rows] += log_probabilities.gather(1, tokens[:, None])[:, 0]
        active = (tokens != eos_token_id).nonzero()[:, 0]
        if active.numel() < rows.numel():
            rows, tokens, state = rows[active], tokens[active], state.select(active)

    longest = int(lengths.max()) if batch_size else 0
    return GenerationOutput(sequences[:, :longest], lengths, scores)
