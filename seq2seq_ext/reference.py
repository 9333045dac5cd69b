r"""The mathematics of every recurrent layer in plain torch: the executable specification.

One function per cell computes one time step exactly as its paper writes it; :func:`rnn` carries a
stack of such cells over a batch of sequences.  Nothing here is fast and nothing is fused, so that
it can be read beside the papers and differentiated as often as wanted; the compiled operator is
tested against it, in float64, and has the same arguments.

The setting is the encoder-decoder of Cho et al. (2014, https://arxiv.org/abs/1406.1078).  An
encoder reads :math:`x_1 \dots x_T`, one symbol a step, into a hidden state (their equation 1)

.. math:: h_t = f(h_{t-1}, x_t)

and the last one is the summary :math:`c` of the whole input.  A decoder is a second recurrence
that is fed its own previous symbol and that summary (their equation 3)

.. math:: h_t = f(h_{t-1}, y_{t-1}, c), \qquad
          P(y_t \mid y_{t-1}, \dots, y_1, c) = g(h_t, y_{t-1}, c)

and both are trained to maximise :math:`\frac1N \sum_n \log p_\theta(y_n \mid x_n)` (equation 4).
This module supplies :math:`f`: :func:`rnn_cell`, :func:`lstm_cell`, :func:`gru_cell`.

Shapes use T time steps, B sequences, I input features, H hidden units, P = ``proj_size`` or H,
L layers and D directions (1 or 2).  Parameters have the layout of ``torch.nn``: the rows of the
gates are stacked, ``w_ih`` is (G*H, I) and ``w_hh`` (G*H, P) with G gates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

__all__ = ["gru_cell", "lstm_cell", "rnn", "rnn_cell"]


def rnn_cell(
    x: Tensor,
    h: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    nonlinearity: str = "tanh",
) -> Tensor:
    r"""One step of the simple recurrent network of Elman (1990, *Finding structure in time*).

    .. math:: h' = \phi(W_{ih} x + b_{ih} + W_{hh} h + b_{hh})

    with :math:`\phi` the hyperbolic tangent, or :math:`\max(0, \cdot)` for ``"relu"``.

    Args:
        x: input of the step, (B, I).
        h: hidden state before the step, (B, H).
        w_ih, w_hh: (H, I) and (H, H).
        b_ih, b_hh: (H,) each, or None.
        nonlinearity: ``"tanh"`` or ``"relu"``.

    Returns:
        The hidden state after the step, (B, H).

    >>> rnn_cell(torch.ones(1, 2), torch.zeros(1, 1), torch.ones(1, 2), torch.ones(1, 1),
    ...          nonlinearity="relu")
    tensor([[2.]])
    """
    total = linear(x, w_ih, b_ih) + linear(h, w_hh, b_hh)
    return torch.tanh(total) if nonlinearity == "tanh" else torch.relu(total)


def lstm_cell(
    x: Tensor,
    h: Tensor,
    c: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    w_hr: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""One step of the long short-term memory.

    Hochreiter & Schmidhuber (1997, *Neural Computation* 9:8) keep a cell state that an input gate
    writes and an output gate reads; the forget gate that lets it decay is from Gers, Schmidhuber &
    Cummins (2000, *Neural Computation* 12:10):

    .. math::
        \begin{aligned}
        i &= \sigma(W_{ii} x + b_{ii} + W_{hi} h + b_{hi}) \\
        f &= \sigma(W_{if} x + b_{if} + W_{hf} h + b_{hf}) \\
        g &= \tanh(W_{ig} x + b_{ig} + W_{hg} h + b_{hg}) \\
        o &= \sigma(W_{io} x + b_{io} + W_{ho} h + b_{ho}) \\
        c' &= f \odot c + i \odot g \\
        h' &= o \odot \tanh(c')
        \end{aligned}

    and, where ``w_hr`` is given, the recurrent projection of Sak, Senior & Beaufays (2014,
    https://arxiv.org/abs/1402.1128): :math:`h' \leftarrow W_{hr} h'`.

    Args:
        x: input of the step, (B, I).
        h: hidden state before the step, (B, P).
        c: cell state before the step, (B, H).
        w_ih, w_hh: (4H, I) and (4H, P), the rows of i, f, g, o one below the other.
        b_ih, b_hh: (4H,) each, or None.
        w_hr: (P, H), or None.

    Returns:
        The hidden state (B, P) and the cell state (B, H) after the step.
    """
    i, f, g, o = (linear(x, w_ih, b_ih) + linear(h, w_hh, b_hh)).chunk(4, dim=-1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(c)
    return (h if w_hr is None else linear(h, w_hr)), c


def gru_cell(
    x: Tensor,
    h: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    reset_after: bool = True,
) -> Tensor:
    r"""One step of the gated recurrent unit of Cho et al. (2014, https://arxiv.org/abs/1406.1078).

    A reset gate r lets the candidate n forget the past, an update gate z chooses between the two
    (their equations 5 to 8):

    .. math::
        \begin{aligned}
        r &= \sigma(W_{ir} x + b_{ir} + W_{hr} h + b_{hr}) \\
        z &= \sigma(W_{iz} x + b_{iz} + W_{hz} h + b_{hz}) \\
        n &= \tanh(W_{in} x + b_{in} + W_{hn} (r \odot h) + b_{hn})
             && \text{(reset before: the paper)} \\
        n &= \tanh(W_{in} x + b_{in} + r \odot (W_{hn} h + b_{hn}))
             && \text{(reset after: torch.nn, cuDNN)} \\
        h' &= (1 - z) \odot n + z \odot h
        \end{aligned}

    Args:
        x: input of the step, (B, I).
        h: hidden state before the step, (B, H).
        w_ih, w_hh: (3H, I) and (3H, H), the rows of r, z, n one below the other.
        b_ih, b_hh: (3H,) each, or None.
        reset_after: whether r is applied after the product with :math:`W_{hn}` or before it.

    Returns:
        The hidden state after the step, (B, H).
    """
    x_r, x_z, x_n = linear(x, w_ih, b_ih).chunk(3, dim=-1)
    w_rz, w_n = w_hh.tensor_split([2 * h.shape[-1]])
    b_rz, b_n = (None, None) if b_hh is None else b_hh.tensor_split([2 * h.shape[-1]])
    h_r, h_z = linear(h, w_rz, b_rz).chunk(2, dim=-1)
    r = torch.sigmoid(x_r + h_r)
    z = torch.sigmoid(x_z + h_z)
    h_n = r * linear(h, w_n, b_n) if reset_after else linear(r * h, w_n, b_n)
    n = torch.tanh(x_n + h_n)
    return (1 - z) * n + z * h


def rnn(
    x: Tensor,
    h_0: Tensor,
    c_0: Tensor | None,
    weights: Sequence[Tensor],
    *,
    cell: str,
    num_layers: int,
    bidirectional: bool,
    lengths: Tensor | None = None,
    batch_sizes: Tensor | None = None,
    resets: Tensor | None = None,
    dropout_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """A stack of recurrent layers over a batch of sequences.

    Args:
        x: (T, B, I); or, with ``batch_sizes``, the packed rows (N, I) of sequences that are
            sorted by falling length.
        h_0: hidden state before the first step, (L*D, B, P).
        c_0: cell state before the first step, (L*D, B, H), for ``"lstm"``; None for the others.
        weights: per layer, per direction: ``w_ih`` (G*H, features of the layer's input),
            ``w_hh`` (G*H, P), then ``b_ih`` and ``b_hh`` (G*H,) unless without biases, then
            ``w_hr`` (P, H) for a projected LSTM.  The order of ``torch.nn``.
        cell: ``"lstm"``, ``"gru"``, ``"gru_reset_before"``, ``"rnn_tanh"`` or ``"rnn_relu"``.
        num_layers: L.
        bidirectional: whether a second direction reads each sequence from its end.
        lengths: steps of each sequence, int64 (B,) on the CPU, 0 to T.  Steps past the end yield
            output 0 and leave the state as it is; what ``x`` holds there plays no part.
        batch_sizes: sequences still running at each step, int64 (T,) on the CPU, as in
            :class:`torch.nn.utils.rnn.PackedSequence`.
        resets: bool (T, B), or packed (N,).  Where true, the state that enters that step is zero,
            in each direction's own order of reading.
        dropout_mask: (L-1, T, B, D*P), or packed (L-1, N, D*P).  Layer l's output is multiplied
            by entry l before it enters layer l+1.

    Returns:
        The last layer's output (T, B, D*P), or packed (N, D*P); the hidden state after each
        sequence's last step (L*D, B, P); and the cell state (L*D, B, H), or None.

    Raises:
        ValueError: if ``cell`` is unknown, or ``lengths``, ``batch_sizes``, ``resets`` or
            ``dropout_mask`` are of a wrong shape, dtype or value.
        RuntimeError: if there is no time step, or the states or weights do not fit.
    """
    if cell not in _CELLS:
        raise ValueError(f"cell must be one of {', '.join(_CELLS)}, got {cell!r}")
    D = 2 if bidirectional else 1
    per_direction = _check_weights(x, h_0, c_0, weights, cell, num_layers, D)

    if batch_sizes is not None:
        if lengths is not None:
            raise ValueError("lengths and batch_sizes exclude each other, got both")
        time, row, lengths = _unpack(batch_sizes, x.shape[0], h_0.shape[1])

        def dense(packed: Tensor) -> Tensor:
            grid = packed.new_zeros((len(batch_sizes), h_0.shape[1], *packed.shape[1:]))
            return grid.index_put((time, row), packed)

        if resets is not None:
            resets = dense(_checked(resets, "resets", (x.shape[0],), torch.bool))
        if dropout_mask is not None:
            packed_size = (num_layers - 1, x.shape[0], D * h_0.shape[2])
            _checked(dropout_mask, "dropout_mask", packed_size, x.dtype)
            dropout_mask = torch.stack([dense(mask) for mask in dropout_mask])
        output, h_last, c_last = rnn(
            dense(x),
            h_0,
            c_0,
            weights,
            cell=cell,
            num_layers=num_layers,
            bidirectional=bidirectional,
            lengths=lengths,
            resets=resets,
            dropout_mask=dropout_mask,
        )
        return output[time, row], h_last, c_last

    T, B = x.shape[:2]
    if T == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
    if resets is not None:
        _checked(resets, "resets", (T, B), torch.bool)
    if dropout_mask is not None:
        size = (num_layers - 1, T, B, D * h_0.shape[2])
        _checked(dropout_mask, "dropout_mask", size, x.dtype)
    running = None
    if lengths is not None:
        _check_lengths(lengths, T, B)
        running = torch.arange(T, device=x.device)[:, None] < lengths.to(x.device)  # (T, B)
        # Not merely unused: in the gradient 0 * NaN would bring the padding back.
        x = torch.where(running[..., None], x, x.new_zeros(()))

    h_n: list[Tensor] = []
    c_n: list[Tensor] = []
    for layer in range(num_layers):
        if layer > 0 and dropout_mask is not None:
            x = x * dropout_mask[layer - 1]
        outputs = []
        for direction in range(D):
            k = layer * D + direction
            y, h, c = _one_direction(
                cell,
                x,
                h_0[k],
                None if c_0 is None else c_0[k],
                weights[k * per_direction : (k + 1) * per_direction],
                running,
                resets,
                reverse=direction == 1,
            )
            outputs.append(y)
            h_n.append(h)
            if c is not None:
                c_n.append(c)
        x = torch.cat(outputs, dim=-1)
    return x, torch.stack(h_n), torch.stack(c_n) if c_n else None


def _one_direction(
    cell: str,
    x: Tensor,
    h: Tensor,
    c: Tensor | None,
    weights: Sequence[Tensor],
    running: Tensor | None,
    resets: Tensor | None,
    *,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """One layer in one direction: from (T, B, I) to (T, B, P) and the last state."""
    step = _CELLS[cell].step
    zero = x.new_zeros(())
    outputs: list[Tensor] = []
    for t in reversed(range(len(x))) if reverse else range(len(x)):
        h_in, c_in = h, c
        if resets is not None:
            h_in = torch.where(resets[t, :, None], zero, h)
            c_in = None if c is None else torch.where(resets[t, :, None], zero, c)
        h_out, c_out = step(x[t], h_in, c_in, weights)
        if running is None:
            h, c = h_out, c_out
            outputs.append(h_out)
        else:
            now = running[t, :, None]
            h = torch.where(now, h_out, h)
            c = torch.where(now, c_out, c) if c is not None and c_out is not None else None
            outputs.append(torch.where(now, h_out, zero))
    return torch.stack(outputs[::-1] if reverse else outputs), h, c


# What tells the cells apart: the number of gates, and one step on (x, h, c, weights).

_Step = Callable[
    [Tensor, Tensor, "Tensor | None", Sequence[Tensor]], "tuple[Tensor, Tensor | None]"
]


class _Cell(NamedTuple):
    gates: int
    step: _Step


def _lstm_step(
    x: Tensor, h: Tensor, c: Tensor | None, weights: Sequence[Tensor]
) -> tuple[Tensor, Tensor | None]:
    assert c is not None  # _check_weights asks an LSTM for c_0
    if len(weights) == 3:  # projected, without biases
        w_ih, w_hh, w_hr = weights
        return lstm_cell(x, h, c, w_ih, w_hh, w_hr=w_hr)
    return lstm_cell(x, h, c, *weights)


def _step_without_cell_state(function: Callable[..., Tensor], **options: object) -> _Step:
    def step(
        x: Tensor, h: Tensor, c: Tensor | None, weights: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        return function(x, h, *weights, **options), None

    return step


_CELLS = {
    "lstm": _Cell(4, _lstm_step),
    "gru": _Cell(3, _step_without_cell_state(gru_cell)),
    "gru_reset_before": _Cell(3, _step_without_cell_state(gru_cell, reset_after=False)),
    "rnn_tanh": _Cell(1, _step_without_cell_state(rnn_cell)),
    "rnn_relu": _Cell(1, _step_without_cell_state(rnn_cell, nonlinearity="relu")),
}


# Checks.  They stand here once more than in the operator so that the specification says, by
# itself, which calls have a meaning.


def _checked(tensor: Tensor, name: str, size: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if tensor.shape != size or tensor.dtype != dtype:
        raise ValueError(
            f"{name} must be {dtype} of size {size}, got {tensor.dtype} of size "
            f"{tuple(tensor.shape)}"
        )
    return tensor


def _check_lengths(lengths: Tensor, T: int, B: int) -> None:
    _checked(lengths, "lengths", (B,), torch.int64)
    if B > 0 and not 0 <= int(lengths.min()) <= int(lengths.max()) <= T:
        raise ValueError(
            f"lengths must lie between 0 and the {T} time steps of the input, got values from "
            f"{int(lengths.min())} to {int(lengths.max())}"
        )


def _unpack(batch_sizes: Tensor, N: int, B: int) -> tuple[Tensor, Tensor, Tensor]:
    """The time (N,) and the sequence (N,) of each packed row, and the sequences' lengths (B,)."""
    _checked(batch_sizes, "batch_sizes", (len(batch_sizes),), torch.int64)
    sizes = batch_sizes.tolist()
    if not sizes:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
    if sizes != sorted(sizes, reverse=True) or sizes[-1] < 1 or sizes[0] != B or sum(sizes) != N:
        raise ValueError(
            f"batch_sizes must fall from the {B} sequences of the hidden state to no less than 1 "
            f"and sum to the {N} rows of the packed input, got {sizes}"
        )
    time = torch.arange(len(sizes)).repeat_interleave(batch_sizes)
    row = torch.cat([torch.arange(size) for size in sizes])
    lengths = (batch_sizes[:, None] > torch.arange(B)).sum(dim=0)
    return time, row, lengths


def _check_weights(
    x: Tensor,
    h_0: Tensor,
    c_0: Tensor | None,
    weights: Sequence[Tensor],
    cell: str,
    num_layers: int,
    D: int,
) -> int:
    """The number of weights per layer and direction, once all sizes are found to fit together."""
    G = _CELLS[cell].gates
    per_direction, rest = divmod(len(weights), num_layers * D)
    if rest or per_direction not in ((2, 3, 4, 5) if cell == "lstm" else (2, 4)):
        raise RuntimeError(
            f"weights must hold 2 or 4 tensors (an LSTM with projection 3 or 5) for each of "
            f"{num_layers * D} layers and directions, got {len(weights)} tensors"
        )
    for index, weight in enumerate(weights):
        if not isinstance(weight, Tensor):
            raise TypeError(f"weights[{index}] must be a Tensor, got {type(weight).__name__}")
    H, P = weights[0].shape[0] // G, h_0.shape[-1]
    expected: dict[str, tuple[Tensor, tuple[int, ...]]] = {}
    B = x.shape[1] if x.dim() == 3 else h_0.shape[1]
    expected["h_0"] = (h_0, (num_layers * D, B, P))
    if cell == "lstm":
        if c_0 is None:
            raise RuntimeError("c_0 must be given for an lstm, got None")
        expected["c_0"] = (c_0, (*h_0.shape[:2], H))
    elif c_0 is not None:
        raise RuntimeError(f"c_0 must be None for {cell}, got a tensor")
    for k in range(num_layers * D):
        features = x.shape[-1] if k < D else D * P
        sizes: list[tuple[int, ...]] = [(G * H, features), (G * H, P)]
        if per_direction >= 4:
            sizes += [(G * H,), (G * H,)]
        if per_direction % 2:
            sizes += [(P, H)]
        for j, size in enumerate(sizes):
            expected[f"weights[{k * per_direction + j}]"] = (weights[k * per_direction + j], size)
    for name, (tensor, size) in expected.items():
        if tensor.shape != size:
            raise RuntimeError(f"Expected {name} size {size}, got {list(tensor.shape)}")
        if tensor.layout is not torch.strided:
            raise RuntimeError(f"Expected {name} to be dense, got {tensor.layout}")
        if tensor.dtype != x.dtype:
            raise RuntimeError(f"Expected {name} dtype {x.dtype}, got {tensor.dtype}")
    if P != H and not per_direction % 2:
        raise RuntimeError(f"Expected h_0 to have {H} features, got {P}")
    return per_direction
