"""The operator ``rnn`` composed: a matrix product and a ``recurrence`` per layer and direction.

``rnn`` is the shorter way, and that of all ordinary calls.  This one is for what cannot be asked of
``rnn``: derivatives of derivatives, function transforms, forward mode.  :func:`gradients` is its
backward pass alone, of what an ordinary call left.  Sizes are those of :mod:`seq2seq_ext.ops`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from seq2seq_ext.kernels import CELLS, LSTM, RESERVE_SLOTS, UNIT_PADDING
from seq2seq_ext.variants.operator import recurrence, recurrence_gradients
from seq2seq_ext.variants.stack import Direction, gates_of

__all__ = ["gradients", "rnn"]


def rnn(
    x: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    weights: Sequence[Tensor],
    cell: int,
    num_layers: int = 1,
    bidirectional: bool = False,
    lengths: Tensor | None = None,
    batch_sizes: Tensor | None = None,
    resets: Tensor | None = None,
    dropout_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """``y, h_n, c_n`` of the operator ``rnn``, whose arguments these are."""
    if x.dim() == 2 and batch_sizes is None:  # one step
        first_h, first_c = (None if t is None else t.unsqueeze(0) for t in (h_0, c_0))
        y, _, c_n = rnn(x.unsqueeze(0), first_h, first_c, weights, cell)
        return y[0], y.new_empty(0), c_n[0] if cell == LSTM else c_n
    D = 2 if bidirectional else 1
    per_direction = len(weights) // (num_layers * D)
    h_n: list[Tensor] = []
    c_n_: list[Tensor] = []
    for layer in range(num_layers):
        if layer > 0 and dropout_mask is not None:
            x = x * dropout_mask[layer - 1]
        outputs = []
        for k in range(layer * D, layer * D + D):
            w = weights[k * per_direction : (k + 1) * per_direction]
            b_ih, b_hh = w[2:4] if per_direction >= 4 else (None, None)
            w_hr = w[-1] if per_direction % 2 else None
            direction = Direction(w[0], w[1], b_ih, b_hh, w_hr)
            gates, b_hn = gates_of(x, direction, CELLS[cell])
            y, _, h, c = recurrence(
                gates,
                w[1],
                cell=CELLS[cell],
                reverse=k % D == 1,
                b_hn=b_hn,
                w_hr=w_hr,
                h_0=None if h_0 is None else h_0[k],
                c_0=None if c_0 is None else c_0[k],
                lengths=lengths,
                batch_sizes=batch_sizes,
                resets=resets,
            )
            outputs.append(y)
            h_n.append(h)
            if c is not None:
                c_n_.append(c)
        x = torch.cat(outputs, dim=-1) if D > 1 else outputs[0]
    return x, torch.stack(h_n), torch.stack(c_n_) if c_n_ else x.new_empty(0)


def gradients(
    x: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    weights: Sequence[Tensor],
    y: Tensor,
    reserve: Tensor,
    cotangents: Sequence[Tensor | None],
    cell: int,
    num_layers: int,
    bidirectional: bool,
    input_grad: bool,
    weight_grad: bool,
    resets: Tensor | None = None,
    dropout_mask: Tensor | None = None,
) -> tuple[Tensor | None, Tensor, Tensor | None, list[Tensor]]:
    """Gradients of ``rnn`` by x, h_0, c_0 and the weights, which can be differentiated once.

    Of an LSTM, GRU or RNN without projection, and of sequences of T steps each.  What forward
    computed they read in its results ``y`` and ``reserve``.  So a derivative of theirs reaches
    forward by gradients of these two, which are ``cotangents`` of another call.

    Args:
        cotangents: of y, h_n, c_n and reserve, each of which may be None.
        input_grad, weight_grad: whether those of x and of the weights are wanted.

    Returns:
        Gradients of x, None if not wanted; of h_0 and of c_0, whether these were given or not, None
        for a cell without c; and of the weights, none if not wanted.
    """
    D, (T, B, _) = 2 if bidirectional else 1, x.shape
    H, per_direction = y.size(-1) // D, len(weights) // (num_layers * D)
    sizes = (RESERVE_SLOTS[cell], num_layers, D, T, B, H)
    slots, outputs = _parts(reserve, *sizes)
    d_output, d_h_n, d_c_n, d_reserve = cotangents
    d_slots, d_outputs = (None, None) if d_reserve is None else _parts(d_reserve, *sizes)
    outputs = [*outputs, y]
    d_h_0: list[Tensor] = []  # these three from the last direction on
    d_c_0: list[Tensor] = []
    d_weights: list[Tensor] = []
    for layer in reversed(range(num_layers)):
        x_layer = outputs[layer - 1] if layer else x
        mask = dropout_mask[layer - 1] if layer and dropout_mask is not None else None
        rows = (x_layer if mask is None else x_layer * mask).flatten(0, 1)
        d_rows = None
        for d in reversed(range(D)):
            k, units = layer * D + d, slice(d * H, d * H + H)
            h, c, of_h_n, of_c_n, of_slots = (
                None if each is None else each[k] for each in (h_0, c_0, d_h_n, d_c_n, d_slots)
            )
            step, h_in = _kept(slots[k], outputs[layer][..., units], h, c, cell, d == 1, resets)
            d_gates, d_sum, of_h_0, of_c_0 = recurrence_gradients(
                weights[k * per_direction + 1],
                None if d_output is None else d_output[..., units],
                of_h_n,
                of_c_n,
                None if of_slots is None else pad(of_slots, (0, 0, 0, 1)),
                step,
                h_in,
                cell=CELLS[cell],
                reverse=d == 1,
                h_0=h,
                c_0=c,
                resets=resets,
            )
            d_h_0.append(of_h_0)
            d_c_0.append(of_c_0)
            if weight_grad:
                if per_direction > 2:
                    of_b_ih = d_gates.sum(0)
                    of_b_hh = of_b_ih if d_sum is d_gates else d_sum.sum(0)
                    d_weights += of_b_hh, of_b_ih
                d_weights += d_sum.t() @ h_in.flatten(0, 1), d_gates.t() @ rows
            if layer or input_grad:
                of_rows = d_gates @ weights[k * per_direction]
                d_rows = of_rows if d_rows is None else d_rows + of_rows
        if d_rows is None:
            d_output = None
            break
        d_output = d_rows.view_as(x_layer)
        if mask is not None:
            d_output = d_output * mask
        if layer and d_outputs is not None:
            d_output = d_output + d_outputs[layer - 1]
    return (
        d_output,
        torch.stack(d_h_0[::-1]),
        torch.stack(d_c_0[::-1]) if cell == LSTM else None,
        d_weights[::-1],
    )


def _parts(
    reserve: Tensor, slots: int, num_layers: int, D: int, T: int, B: int, H: int
) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Slots of each direction, (T, B, slots, H), and the outputs of all layers but the last."""
    padded = (H + UNIT_PADDING - 1) // UNIT_PADDING * UNIT_PADDING
    directions, inner = num_layers * D, num_layers - 1
    parts = torch.split(reserve, [T * B * slots * padded] * directions + [T * B * D * H] * inner)
    return (
        [part.view(T, B, slots, padded)[..., :H] for part in parts[:directions]],
        [part.view(T, B, D * H) for part in parts[directions:]],
    )


def _kept(
    slots: Tensor,
    y: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    cell: int,
    reverse: bool,
    resets: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """``step`` (T, B, slots, H) and ``h_in`` (T, B, H) of a ``recurrence``."""

    def entering(first: Tensor | None, leaving: Tensor) -> Tensor:
        first = torch.zeros_like(leaving[:1]) if first is None else first[None]
        states = torch.cat([leaving[1:], first] if reverse else [first, leaving[:-1]])
        return states if resets is None else torch.where(resets[..., None], 0, states)

    h_in, kept = entering(h_0, y), slots.unbind(2)
    if not kept:  # an RNN
        return y.unsqueeze(2), h_in
    last = entering(c_0, kept[-1]) if cell == LSTM else h_in
    return torch.stack([*kept, last], dim=2), h_in
