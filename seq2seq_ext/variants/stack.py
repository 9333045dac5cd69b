"""Stacks of layers with variants: what stands around the operator's single direction of one layer.

The input's part of the gates is a matrix product over all steps, by torch, normalized where layer
normalization is wanted.  Masks that last for a whole call are drawn here; noise that differs from
step to step is the kernels', from a seed that is drawn here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import dropout, layer_norm, linear

from seq2seq_ext import transforms
from seq2seq_ext.variants import Variant, reference
from seq2seq_ext.variants.operator import recurrence
from seq2seq_ext.variants.reference import GATES

__all__ = ["Direction", "Stack"]


class Direction(NamedTuple):
    """The weights of one direction of one layer; for sizes see :class:`seq2seq_ext.LSTM`."""

    w_ih: Tensor
    w_hh: Tensor
    b_ih: Tensor | None = None
    b_hh: Tensor | None = None
    w_hr: Tensor | None = None
    peephole: Tensor | None = None  # (3, H) of i, f, o; coupled (2, H)
    norm_ih: Tensor | None = None  # (G*H,)
    norm_hh: Tensor | None = None  # (G*H,)
    norm_c: Tensor | None = None  # (H,)
    bias_c: Tensor | None = None  # (H,)


@dataclass
class Stack:
    """Layers with variants, as a layer has them at the time of a call.

    Args:
        directions: the weights, layer by layer.
        cell: as for :func:`seq2seq_ext.variants.operator.recurrence`.
        num_directions: D.
        variant: the settings.
        training: whether noise is drawn.
        sizes: P and H of each layer, where these differ; None where they do not.
        h_0, c_0: learnt initial states, sized as :attr:`state_size` with B = 1.
    """

    directions: Sequence[Direction]
    cell: str
    num_directions: int
    variant: Variant
    training: bool
    sizes: Sequence[tuple[int, int]] | None = None
    h_0: Tensor | None = None
    c_0: Tensor | None = None

    def to(self, dtype: torch.dtype) -> Stack:
        """The same with all weights and learnt states in another dtype."""

        def cast(weight: Tensor | None) -> Tensor | None:
            return None if weight is None else weight.to(dtype)

        return replace(
            self,
            directions=[Direction(*map(cast, w)) for w in self.directions],  # type: ignore[arg-type]
            h_0=cast(self.h_0),
            c_0=cast(self.c_0),
        )

    @property
    def state_size(self) -> tuple[int, int, int]:
        """Rows of a state (..., B, ...), and its features of h and of c.

        L*D, P and H; where layers differ in size, D and the sums of theirs: the states of all
        layers stand side by side.
        """
        if self.sizes is not None:
            return (self.num_directions, *(sum(size) for size in zip(*self.sizes, strict=True)))
        w = self.directions[0]
        H = w.w_hh.size(0) // GATES[self.cell]
        return len(self.directions), w.w_hh.size(1), H

    def initial_state(self, B: int, needed: bool) -> tuple[Tensor | None, Tensor | None]:
        """The learnt state for B sequences, or None; zeros instead where one is ``needed``."""
        rows, P, H = self.state_size
        if self.h_0 is not None:
            c = None if self.c_0 is None else self.c_0.expand(-1, B, -1)
            return self.h_0.expand(-1, B, -1), c
        if not needed:
            return None, None
        w = self.directions[0].w_ih
        return w.new_zeros(rows, B, P), w.new_zeros(rows, B, H) if self.has_cell else None

    @property
    def has_cell(self) -> bool:
        return self.cell in ("lstm", "coupled_lstm")

    def _per_direction(self, state: Tensor | None, features: int) -> Sequence[Tensor | None]:
        """A state of :attr:`state_size` as one for each layer and direction."""
        if state is None:
            return [None] * len(self.directions)
        if self.sizes is None:
            return state.unbind(0)
        widths = [size[features] for size in self.sizes]
        layers = state.split(widths, dim=2)  # type: ignore[no-untyped-call]
        return [direction for layer in layers for direction in layer.unbind(0)]

    def _together(self, states: Sequence[Tensor]) -> Tensor:
        if self.sizes is None:
            return torch.stack(list(states))
        D = self.num_directions
        layers = [torch.stack(list(states[i : i + D])) for i in range(0, len(states), D)]
        return torch.cat(layers, dim=2)

    def run(
        self,
        x: Tensor,
        h_0: Tensor | None,
        c_0: Tensor | None,
        between: float = 0.0,
        lengths: Tensor | None = None,
        batch_sizes: Tensor | None = None,
        resets: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Run all layers.

        Args:
            x: (T, B, I); with ``batch_sizes`` (N, I).
            h_0, c_0: the state before the first step, sized as :attr:`state_size` says; None for
                zeros, which with ``batch_sizes`` h_0 must not be.
            between: probability of dropping an element of the output of every layer but the last.
            lengths, batch_sizes, resets: as for :func:`seq2seq_ext.reference.rnn`.

        Returns:
            ``y, h_n, c_n, cells``: the last layer's output; the last states; and, with
            ``return_cells``, c of every step of the last layer, side by side as in ``y``.
        """
        variant, training, D = self.variant, self.training, self.num_directions
        seed = None
        if training and variant.noisy:
            seed = torch.randint(2**62, (1,), device=x.device)
        weights_drop = training and variant.weight_drop > 0
        first_h, first_c = self._per_direction(h_0, 0), self._per_direction(c_0, 1)
        h_n: list[Tensor] = []
        c_n: list[Tensor] = []
        cells: list[Tensor] = []
        count = len(self.directions) // D
        for layer in range(count):
            if layer > 0 and between:
                x = dropout(x, between)
            outputs, cells = [], []
            for index in range(layer * D, layer * D + D):
                w, h = self.directions[index], first_h[index]
                gates, b_hn = gates_of(x, w, self.cell)
                y, c, h_last, c_last = recurrence(
                    gates,
                    dropout(w.w_hh, variant.weight_drop) if weights_drop else w.w_hh,
                    cell=self.cell,
                    reverse=index % D == 1,
                    b_hn=b_hn,
                    w_hr=w.w_hr,
                    h_0=h,
                    c_0=first_c[index],
                    h_mask=self._state_mask(gates, w, h),
                    peephole=w.peephole,
                    norm_hh=w.norm_hh,
                    norm_c=w.norm_c,
                    bias_c=w.bias_c,
                    seed=seed,
                    lengths=lengths,
                    batch_sizes=batch_sizes,
                    resets=resets,
                    hard_sigmoid=variant.hard_sigmoid,
                    zoneout_h=variant.zoneout_h,
                    zoneout_c=variant.zoneout_c,
                    candidate_dropout=variant.candidate_dropout if training else 0.0,
                    cell_clip=variant.cell_clip or 0.0,
                    proj_clip=variant.proj_clip or 0.0,
                    stream=index,
                    return_cells=variant.return_cells and layer == count - 1,
                )
                outputs.append(y)
                h_n.append(h_last)
                if c_last is not None:
                    c_n.append(c_last)
                if c is not None:
                    cells.append(c)
            y = torch.cat(outputs, -1) if D > 1 else outputs[0]
            first = variant.first_residual
            if first is not None and layer >= first and x.size(-1) == y.size(-1):
                y = y + x
            x = y
        return (
            x,
            self._together(h_n),
            self._together(c_n) if c_n else None,
            torch.cat(cells, -1) if cells else None,
        )

    def _state_mask(self, gates: Tensor, w: Direction, h: Tensor | None) -> Tensor | None:
        """What h is multiplied by on its way to the gates: the same for a whole call."""
        if not self.training or not self.variant.state_dropout:
            return None
        B = gates.size(1) if h is None else h.size(0)
        return dropout(gates.new_ones(B, w.w_hh.size(1)), self.variant.state_dropout)


def biases_of(
    b_ih: Tensor | None, b_hh: Tensor | None, cell: str
) -> tuple[Tensor | None, Tensor | None]:
    """Both biases of the gates in one but for b_hn of a GRU, which is the second."""
    if b_ih is None or b_hh is None:
        return b_ih, None
    if cell != "gru":
        return b_ih + b_hh, None
    H = b_hh.size(0) // 3
    b_hn = b_hh[2 * H :]
    return b_ih + torch.cat([b_hh[: 2 * H], torch.zeros_like(b_hn)]), b_hn


def gates_of(x: Tensor, w: Direction, cell: str) -> tuple[Tensor, Tensor | None]:
    """The input's part of the gates with all biases but b_hn of a GRU, which is the second."""
    bias, b_hn = biases_of(w.b_ih, w.b_hh, cell)
    if w.norm_ih is None:
        return linear(x, w.w_ih, bias), b_hn
    gates = linear(x, w.w_ih)
    if transforms.active():
        return reference.layer_norm(gates, w.norm_ih, bias), b_hn
    normed = layer_norm(gates, gates.shape[-1:], w.norm_ih, bias)
    # Autocast may have made it one of float32.
    return normed if normed.dtype == gates.dtype else normed.to(gates.dtype), b_hn
