"""Stacks of layers with variants: what stands around the operator's single direction of one layer.

The input's part of the gates is a matrix product over all steps, by torch, normalized where layer
normalization is wanted.  Masks that last for a whole call are drawn here; noise that differs from
step to step is the kernels', from a seed that is drawn here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn.functional import dropout, layer_norm, linear

from seq2seq_ext import transforms
from seq2seq_ext.kernels import autocast_is_on, linear_op, prepack_matrix_op
from seq2seq_ext.packed import Packed
from seq2seq_ext.variants import Variant, reference
from seq2seq_ext.variants.operator import CELLS, pack, recurrence
from seq2seq_ext.variants.reference import GATES

__all__ = ["Direction", "PackedStack", "Stack"]


# y, h_n, c_n and c of every step.
Outputs = tuple[Tensor, Tensor, Tensor | None, Tensor | None]


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


class PackedDirection(NamedTuple):
    """The matrices of a direction, packed."""

    w_ih: Tensor | None = None  # None where it is kept in its own dtype: torch multiplies it then
    recurrent: Sequence[Tensor] = ()  # as the operator takes them


class PackedStack(Packed[list[PackedDirection]]):
    """The matrices of layers with variants; their vectors are read as they are."""

    def _pack(
        self, weights: list[Tensor], options: tuple[int, ...], dtype: torch.dtype | None
    ) -> list[PackedDirection]:
        """Of ``Stack.matrices``; ``options`` are the cell's number and those of a direction."""
        cell, each = options
        blocks = []
        for i in range(0, len(weights), each):
            w_ih, w_hh, *w_hr = weights[i : i + each]
            blocks.append(
                PackedDirection(
                    None if dtype is None else prepack_matrix_op(w_ih, dtype),
                    pack(w_hh, w_hr[0] if w_hr else None, CELLS[cell], dtype),
                )
            )
        return blocks


@dataclass
class Stack:
    """Layers with variants, as a layer has them at the time of a call.

    Args:
        directions: the weights, layer by layer.
        cell: as for :func:`seq2seq_ext.variants.operator.recurrence`.
        num_directions: D.
        variant: the settings.
        training: whether noise is drawn.
        sizes: features of h and of c in the state of each layer, where these differ; None where
            they do not.
        h_0, c_0: learnt initial states, sized as :attr:`state_size` with B = 1.
        packed: the matrices once more, for calls that need no gradient.
        masks: for each direction what h is multiplied by on its way to the gates, (B, P), where
            that has been drawn.
    """

    directions: Sequence[Direction]
    cell: str
    num_directions: int
    variant: Variant
    training: bool
    sizes: Sequence[tuple[int, int]] | None = None
    h_0: Tensor | None = None
    c_0: Tensor | None = None
    packed: PackedStack | None = None
    masks: Sequence[Tensor] | None = None

    def drawn(self, batch_size: int) -> Stack:
        """The same after drawing what lasts for a whole call, for a call of each step."""
        variant = self.variant
        if not self.training or not (variant.weight_drop or variant.state_dropout):
            return self
        directions = [
            w._replace(w_hh=_dropped(w.w_hh, variant.weight_drop)) if variant.weight_drop else w
            for w in self.directions
        ]
        masks = None
        if variant.state_dropout:
            masks = [self._new_mask(w.w_hh, w, batch_size) for w in directions]
        return replace(
            self,
            directions=directions,
            variant=replace(variant, weight_drop=0.0),
            masks=masks,
            packed=None,
        )

    def to(self, dtype: torch.dtype) -> Stack:
        """The same with all weights and learnt states in another dtype, nothing packed."""

        def as_dtype(weight: Tensor | None) -> Tensor | None:
            return None if weight is None else weight.to(dtype)

        return replace(
            self,
            directions=[Direction(*map(as_dtype, w)) for w in self.directions],  # type: ignore[arg-type]
            h_0=as_dtype(self.h_0),
            c_0=as_dtype(self.c_0),
            packed=None,
            masks=None if self.masks is None else [mask.to(dtype) for mask in self.masks],
        )

    @property
    def matrices(self) -> list[Tensor]:
        """What :class:`PackedStack` packs: w_ih, w_hh and any w_hr of each direction."""
        return [m for w in self.directions for m in (w.w_ih, w.w_hh, w.w_hr) if m is not None]

    @property
    def packing(self) -> tuple[int, int]:
        """What else it wants to know: the cell's number, and the matrices of a direction."""
        return CELLS.index(self.cell), 2 if self.directions[0].w_hr is None else 3

    @property
    def state_size(self) -> tuple[int, int, int]:
        """Rows of a state (..., B, ...), and its features of h and of c.

        L*D, P (H of a GRU, projected or not) and H; where layers differ in size, D and the sums of
        theirs: the states of all layers stand side by side.
        """
        if self.sizes is not None:
            return (self.num_directions, *(sum(size) for size in zip(*self.sizes, strict=True)))
        w = self.directions[0]
        H = w.w_hh.size(0) // GATES[self.cell]
        return len(self.directions), H if self.projects_state else w.w_hh.size(1), H

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

    @property
    def projects_state(self) -> bool:
        """Whether this is a GRU with a projection: its state has H units, its output P.

        To the operator that state is c, and h what is made of it.
        """
        return self.cell == "gru" and self.directions[0].w_hr is not None

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
    ) -> Outputs:
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
        arguments = (x, h_0, c_0, between, lengths, batch_sizes, resets)
        if self.packed is None or not x.is_cpu:
            return self._run(None, 0, *arguments)
        if autocast_is_on():  # the weights that are kept are what they are
            with torch.autocast("cpu", enabled=False):
                return self._run_packed(self.packed, *arguments)
        return self._run_packed(self.packed, *arguments)

    def _run_packed(
        self, packed: PackedStack, x: Tensor, h_0: Tensor | None, c_0: Tensor | None, *rest: Any
    ) -> Outputs:
        if not self._needs_no_parameters(x, h_0, c_0):
            return self._run(None, 0, x, h_0, c_0, *rest)
        batch_sizes = rest[2]
        return packed.run(
            self.matrices,
            self.packing,
            x.size(0) if batch_sizes is None else batch_sizes.numel(),
            lambda blocks, turn: self._run(blocks, turn, x, h_0, c_0, *rest),
        )

    def _needs_no_parameters(self, *inputs: Tensor | None) -> bool:
        """Whether a call of these inputs may read packed weights instead."""
        if transforms.watched():
            return False
        if self.training and self.variant.weight_drop > 0:  # new weights in each call
            return False
        if not torch.is_grad_enabled():
            return True
        weights = (t for w in self.directions for t in w)
        return not any(
            t is not None and t.requires_grad for t in (*inputs, self.h_0, self.c_0, *weights)
        )

    def _run(
        self,
        packed: Sequence[PackedDirection] | None,
        turn: int,
        x: Tensor,
        h_0: Tensor | None,
        c_0: Tensor | None,
        between: float,
        lengths: Tensor | None,
        batch_sizes: Tensor | None,
        resets: Tensor | None,
    ) -> Outputs:
        """The same, from packed matrices where they are given, after calls of ``turn`` steps."""
        variant, training, D = self.variant, self.training, self.num_directions
        zoneout_h, zoneout_c = variant.zoneout_h, variant.zoneout_c
        projects_state = self.projects_state
        if projects_state:
            zoneout_h, zoneout_c = 0.0, zoneout_h
        seed = None
        if training and variant.noisy:
            seed = torch.randint(2**62, (1,), device=x.device)
        weights_drop = training and variant.weight_drop > 0
        # In gradients of w_ih 0 * NaN would bring the padding back.  Lengths on the CPU would wait
        # for a GPU: beside those, what stands there has to be finite.
        if lengths is not None and lengths.device == x.device:
            inside = torch.arange(x.size(0), device=x.device)[:, None] < lengths
            x = torch.where(inside[..., None], x, 0)
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
                w, h, c = self.directions[index], first_h[index], first_c[index]
                if projects_state and h is not None:
                    h, c = self._projected(w, h), h
                block = PackedDirection() if packed is None else packed[index]
                gates, b_hn = gates_of(x, w, self.cell, block.w_ih, turn)
                y, all_c, h_last, c_last = recurrence(
                    gates,
                    _dropped(w.w_hh, variant.weight_drop) if weights_drop else w.w_hh,
                    cell=self.cell,
                    reverse=index % D == 1,
                    b_hn=b_hn,
                    w_hr=w.w_hr,
                    h_0=h,
                    c_0=c,
                    h_mask=self._state_mask(index, gates, w, h),
                    peephole=w.peephole,
                    norm_hh=w.norm_hh,
                    norm_c=w.norm_c,
                    bias_c=w.bias_c,
                    seed=seed,
                    lengths=lengths,
                    batch_sizes=batch_sizes,
                    resets=resets,
                    hard_sigmoid=variant.hard_sigmoid,
                    zoneout_h=zoneout_h,
                    zoneout_c=zoneout_c,
                    candidate_dropout=variant.candidate_dropout if training else 0.0,
                    cell_clip=variant.cell_clip or 0.0,
                    proj_clip=variant.proj_clip or 0.0,
                    stream=index,
                    return_cells=variant.return_cells and layer == count - 1,
                    packed=block.recurrent,
                    turn=turn,
                )
                outputs.append(y)
                if projects_state:
                    h_last, c_last = cast("Tensor", c_last), None
                h_n.append(h_last)
                if c_last is not None:
                    c_n.append(c_last)
                if all_c is not None:
                    cells.append(all_c)
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

    def _projected(self, w: Direction, state: Tensor) -> Tensor:
        limit, h = self.variant.proj_clip, linear(state, cast("Tensor", w.w_hr))
        return h if limit is None else h.clamp(-limit, limit)

    def _state_mask(
        self, index: int, gates: Tensor, w: Direction, h: Tensor | None
    ) -> Tensor | None:
        """What h is multiplied by on its way to the gates: the same for a whole call."""
        if self.masks is not None:
            return self.masks[index]
        if not self.training or not self.variant.state_dropout:
            return None
        B = gates.size(1) if h is None else h.size(0)
        return self._new_mask(gates, w, B)

    def _new_mask(self, like: Tensor, w: Direction, batch_size: int) -> Tensor:
        return dropout(like.new_ones(batch_size, w.w_hh.size(1)), self.variant.state_dropout)


def _dropped(weight: Tensor, p: float) -> Tensor:
    """What ``dropout`` does, whose numbers take torch twice as long on the CPU."""
    kept = torch.rand_like(weight, dtype=torch.float32).ge_(p).div_(1 - p)
    return weight * kept.to(weight.dtype)


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


def gates_of(
    x: Tensor, w: Direction, cell: str, packed: Tensor | None = None, turn: int = 0
) -> tuple[Tensor, Tensor | None]:
    """The input's part of the gates with all biases but b_hn of a GRU, which is the second.

    ``packed`` is w_ih as the operator ``linear`` takes it, ``turn`` the steps that it has served.
    """

    def product(bias: Tensor | None = None) -> Tensor:
        if packed is None:
            return linear(x, w.w_ih, bias)
        return cast("Tensor", linear_op(x, w.w_ih, bias, packed, turn))

    bias, b_hn = biases_of(w.b_ih, w.b_hh, cell)
    if w.norm_ih is None:
        return product(bias), b_hn
    gates = product()
    if transforms.active():
        return reference.layer_norm(gates, w.norm_ih, bias), b_hn
    normed = layer_norm(gates, gates.shape[-1:], w.norm_ih, bias)
    # Autocast may have made it one of float32.
    return normed if normed.dtype == gates.dtype else normed.to(gates.dtype), b_hn
