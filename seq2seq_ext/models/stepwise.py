"""Decoder steps that the fused operator does not know: one call of the layers for each of them.

Same mathematics as `seq2seq_ext.decoder.attention_decoder`, with the attention and the attentional
vector left to the modules, so that any kind of either works. Slower: every step passes through
Python, forward and backward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from seq2seq_ext.models.attention import Attention
from seq2seq_ext.models.layers import RecurrentStack
from seq2seq_ext.models.state import DecoderState, Memory

__all__ = ["AttendedSteps", "attend_step_by_step"]


class AttendedSteps(NamedTuple):
    """What T steps of a decoder that attends gave.

    Args:
        features: (T, B, .), what the output layer reads.
        z: (T, B, H), outputs of the last layer.
        context: (T, B, C).
        alignments: (T, B, heads, S).
        state: after each row's last step.
    """

    features: Tensor
    z: Tensor
    context: Tensor
    alignments: Tensor
    state: DecoderState


def attend_step_by_step(
    stack: RecurrentStack,
    attention: Attention,
    combine: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    state: DecoderState,
    memory: Memory,
    *,
    query_first: bool,
    combined_feeds: bool,
    lengths: Tensor | None = None,
) -> AttendedSteps:
    """Run all steps.

    Args:
        stack: the layers, whose first reads x and, behind it, what it is fed.
        attention: gives contexts and alignments of queries (1, B, H).
        combine: from z and context to features.
        x: (T, B, .).
        state: before the first step.
        memory: what is attended to.
        query_first: whether a step attends by the z before it, and is fed its own context.
        combined_feeds: whether a step is fed the features of the one before, not its context.
        lengths: int64 (B,), how many steps of each row count; None: all.
    """
    T, B = x.shape[:2]
    h, c, coverage = state.h, state.c, state.coverage
    if attention.coverage is not None and coverage is None:
        coverage = x.new_zeros(B, memory.keys.size(1))
    width = stack.rnn.input_size - x.size(2)
    feed = x.new_zeros(B, width) if state.feed is None or query_first else state.feed
    kept: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    for t in range(T):
        running = None if lengths is None else (lengths > t).to(x.device)[:, None]

        def hold(new: Tensor, old: Tensor, running: Tensor | None = running) -> Tensor:
            """`new` for rows that still run, `old` for the others."""
            return new if running is None else torch.where(running, new, old)

        if query_first:
            context, alignments = attention(h[-1:], memory, coverage)
            feed = hold(context[0], feed)
        step = torch.cat((x[t], feed), dim=-1)[None]
        z, (h, c) = stack(step, (h, c), None if running is None else running[:, 0].long())
        if not query_first:
            context, alignments = attention(z, memory, coverage)
        features = combine(z, context)
        if not query_first:
            feed = hold((features if combined_feeds else context)[0], feed)
        if coverage is not None:
            coverage = hold(coverage + alignments[0, :, 0], coverage)
        parts = (features, z, context, alignments.flatten(2))
        kept.append(tuple(hold(part[0], torch.zeros_like(part[0])) for part in parts))  # type: ignore[arg-type]
    features, z, context, flat = (torch.stack(steps) for steps in zip(*kept, strict=True))
    alignments = flat.view(T, B, attention.heads, -1)
    return AttendedSteps(
        features,
        z,
        context,
        alignments,
        state._replace(h=h, c=c, feed=feed, coverage=coverage, alignments=alignments[-1].mean(1)),
    )
