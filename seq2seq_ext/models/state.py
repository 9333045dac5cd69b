"""The decoder's memory between two steps, and helpers on token tensors shared by the models."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from seq2seq_ext.models.config import Seq2SeqConfig


class Memory(NamedTuple):
    """What a decoder attends to, all on one device, so that no step moves anything to it.

    Args:
        keys: (M, S, A).
        values: (M, S, C).
        lengths: int64 (M,).
        rows: int64 (B,), which of the M sources each row of the batch reads; None: its own.
            Hypotheses of one source share its keys and values.
        tokens: int64 (M, S), the sources', ``<pad>`` past the end, for a decoder that copies.
        extended_size: the vocabulary and the sources' unknown tokens, for such a decoder; else 0.
    """

    keys: Tensor
    values: Tensor
    lengths: Tensor
    rows: Tensor | None = None
    tokens: Tensor | None = None
    extended_size: int = 0

    def select(self, rows: Tensor) -> Memory:
        """The memory of the given rows of the batch, of which nothing is copied."""
        return self._replace(rows=rows if self.rows is None else self.rows[rows])

    def gathered(self) -> tuple[Tensor, Tensor, Tensor]:
        """Keys, values and lengths with a row for each of the batch."""
        if self.rows is None:
            return self.keys, self.values, self.lengths
        return self.keys[self.rows], self.values[self.rows], self.lengths[self.rows]

    def source_tokens(self) -> Tensor:
        """The sources' tokens with a row for each of the batch: int64 (B, S)."""
        if self.tokens is None:
            raise ValueError("memory must hold tokens for a decoder that copies, got None")
        return self.tokens if self.rows is None else self.tokens[self.rows]


class DecoderState(NamedTuple):
    """What a decoder carries from one token to the next.

    Args:
        h: hidden states, ``(num_layers, B, hidden_size)``.
        c: cell states of an LSTM, ``(num_layers, B, hidden_size)``, None for the other cells.
        context: the context vectors, ``(B, context_size)``; they never change.
        memory: with attention, what is attended to; it never changes.
        feed: what attention hands to the next step, ``(B, feed_size)``; None before the first step
            stands for zeros.
        coverage: the sum of all alignments so far, ``(B, S)``; None as for ``feed``.
        alignments: those of the latest step, the mean of all heads, ``(B, S)``.
    """

    h: Tensor
    c: Tensor | None
    context: Tensor
    memory: Memory | None = None
    feed: Tensor | None = None
    coverage: Tensor | None = None
    alignments: Tensor | None = None

    def select(self, rows: Tensor) -> DecoderState:
        """The state of the given rows, in their order; a row may come more than once.

        Args:
            rows: int64 ``(N,)``, indices into the batch.
        """

        def of(tensor: Tensor | None, axis: int = 0) -> Tensor | None:
            return None if tensor is None else tensor.index_select(axis, rows)

        return DecoderState(
            self.h.index_select(1, rows),
            of(self.c, 1),
            self.context.index_select(0, rows),
            None if self.memory is None else self.memory.select(rows),
            of(self.feed),
            of(self.coverage),
            of(self.alignments),
        )


def check_tokens(name: str, tokens: Tensor, vocab_size: int) -> None:
    """Raise where `tokens` is no int64 ``(B, T)`` tensor, naming the argument.

    Ids are compared with the vocabulary on the CPU alone: on a GPU the comparison would wait for
    the device, and the embedding checks there. A compiled or exported graph has no such branch
    either; its embedding checks, or the runtime's.
    """
    if tokens.dim() != 2:
        raise ValueError(f"{name} must be 2-D (batch, time), got shape {tuple(tokens.shape)}")
    if tokens.dtype != torch.int64:
        raise TypeError(f"{name} must be int64, got {tokens.dtype}")
    if torch.compiler.is_compiling():
        return
    if tokens.device.type == "cpu" and tokens.numel():
        low, high = (int(bound) for bound in torch.aminmax(tokens))
        if low < 0 or high >= vocab_size:
            raise ValueError(
                f"{name} must hold ids in [0, {vocab_size}), got {low if low < 0 else high}"
            )


def resolve_lengths(name: str, lengths: Tensor | None, tokens: Tensor, pad_token_id: int) -> Tensor:
    """The rows' lengths as int64 ``(B,)``, read off the padding where they are not given.

    Raises:
        ValueError: if `lengths` has another shape than ``(B,)`` or leaves ``[0, T]``.
        TypeError: if `lengths` holds no integers.
    """
    batch, time = tokens.shape
    if lengths is None:
        position = torch.arange(1, time + 1, device=tokens.device)
        return ((tokens != pad_token_id) * position).amax(1) if time else tokens.new_zeros(batch)
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise TypeError(f"{name} must hold integers, got {lengths.dtype}")
    if lengths.shape != (batch,):
        raise ValueError(f"{name} must have shape ({batch},), got {tuple(lengths.shape)}")
    if not torch.compiler.is_compiling() and lengths.device.type == "cpu" and batch:
        low, high = (int(bound) for bound in torch.aminmax(lengths))
        if low < 0 or high > time:
            raise ValueError(f"{name} must be in [0, {time}], got {low if low < 0 else high}")
    return lengths.to(torch.int64)


def padding_mask(lengths: Tensor, time: int) -> Tensor:
    """True past the end of each row: bool ``(B, time)`` on the device of `lengths`."""
    return torch.arange(time, device=lengths.device) >= lengths[:, None]


def with_eos(tokens: Tensor, lengths: Tensor, config: Seq2SeqConfig) -> tuple[Tensor, Tensor]:
    """Rows (B, T + 1) with ``</s>`` behind each, and their lengths."""
    longer = functional.pad(tokens, (0, 1), value=config.pad_token_id)
    ends = lengths[:, None].to(tokens.device)
    return longer.scatter(1, ends, config.eos_token_id), lengths + 1


def reverse_rows(tokens: Tensor, lengths: Tensor) -> Tensor:
    """Each row's first ``length`` tokens back to front, its padding left in place.

    Args:
        tokens: ``(B, T)``, or ``(B, T, features)``.
        lengths: int64 ``(B,)``.

    Example:
        >>> reverse_rows(torch.tensor([[5, 6, 7], [8, 9, 0]]), torch.tensor([3, 2]))
        tensor([[7, 6, 5],
                [9, 8, 0]])
    """
    position = torch.arange(tokens.size(1), device=tokens.device)
    mirrored = lengths.to(tokens.device)[:, None] - 1 - position
    index = torch.where(mirrored < 0, position, mirrored)
    index = index.view(*index.shape, *[1] * (tokens.dim() - 2))
    return tokens.gather(1, index.expand_as(tokens))
