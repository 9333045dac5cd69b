"""The operator ``rnn`` composed: a matrix product and a ``recurrence`` per layer and direction.

``rnn`` is the shorter way, and that of all ordinary calls.  This one is for what cannot be asked of
``rnn``: derivatives of derivatives, function transforms, forward mode.  Sizes are those of
:mod:`seq2seq_ext.ops`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from seq2seq_ext.kernels import CELLS, LSTM
from seq2seq_ext.variants.operator import recurrence
from seq2seq_ext.variants.stack import Direction, gates_of

__all__ = ["rnn"]


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
