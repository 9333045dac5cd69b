r"""The variants of a recurrent cell in plain torch: the executable specification.

:func:`recurrence` carries one direction of one layer over a batch of sequences, given the input's
part of the gates, :math:`x_t = W_{ih} \cdot + b_{ih}` with whatever normalization it had.  Each
variant is one line of a step.

Zoneout (Krueger et al. 2016, https://arxiv.org/abs/1606.01305) keeps a unit's old value with the
probability of its rate; while evaluating, its expectation.  Layer normalization (Ba, Kiros & Hinton
2016, https://arxiv.org/abs/1607.06450) takes mean and variance over all gates of the recurrent
sums, and over the cell before its tanh.  Peepholes (Gers & Schmidhuber 2000, *Recurrent nets that
time and count*) let i and f see the cell before the step, o the one after it.  A coupled LSTM
(Greff et al. 2015, https://arxiv.org/abs/1503.04069) has i = 1 - f.  Recurrent dropout multiplies h
on its way to the gates by one mask per sequence (Gal & Ghahramani 2015,
https://arxiv.org/abs/1512.05287), or drops candidates step by step (Semeniuta, Severyn & Barth
2016, https://arxiv.org/abs/1603.05118).

A projection makes h of a cell's H units, :math:`h = W_{hr} \cdot` (Sak, Senior & Beaufays 2014,
https://arxiv.org/abs/1402.1128).  A GRU keeps a part of its state in every step, which a projection
would not leave as it is: with one, as in Kaldi's pgru-layer (Cheng et al. 2018, *Output-gate
projected gated recurrent unit for speech recognition*), its H units are a state c of their own,

.. math:: c_t = (1 - z_t) \odot n_t + z_t \odot c_{t-1}, \quad h_t = W_{hr} c_t,

and the gates read h.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from seq2seq_ext.variants import noise

__all__ = ["GATES", "layer_norm", "recurrence", "steps"]

GATES = {
    "lstm": 4,
    "coupled_lstm": 3,
    "gru": 3,
    "gru_reset_before": 3,
    "rnn_tanh": 1,
    "rnn_relu": 1,
}


def recurrence(
    x: Tensor,
    w_hh: Tensor,
    *,
    cell: str,
    reverse: bool = False,
    b_hn: Tensor | None = None,
    w_hr: Tensor | None = None,
    h_0: Tensor | None = None,
    c_0: Tensor | None = None,
    h_mask: Tensor | None = None,
    peephole: Tensor | None = None,
    norm_hh: Tensor | None = None,
    norm_c: Tensor | None = None,
    bias_c: Tensor | None = None,
    seed: Tensor | None = None,
    lengths: Tensor | None = None,
    batch_sizes: Tensor | None = None,
    resets: Tensor | None = None,
    hard_sigmoid: bool = False,
    zoneout_h: float = 0.0,
    zoneout_c: float = 0.0,
    candidate_dropout: float = 0.0,
    cell_clip: float = 0.0,
    proj_clip: float = 0.0,
    stream: int = 0,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    """One direction of one layer; the arguments are those of the compiled operator.

    Args:
        x: the input's part of the gates, biases included, (T, B, G*H); with ``batch_sizes``
            (N, G*H).
        w_hh: (G*H, P).
        cell: ``"lstm"`` (gates i, f, g, o), ``"coupled_lstm"`` (f, g, o), ``"gru"``,
            ``"gru_reset_before"`` (r, z, n), ``"rnn_tanh"`` or ``"rnn_relu"``.
        reverse: whether each sequence is read from its end.
        b_hn: (H,), for ``"gru"`` only: what is added to ``W_hn h`` before the reset gate.
        w_hr: (P, H), a projection, for all but ``"gru_reset_before"``.
        h_0, c_0: (B, P) and, for LSTMs and GRUs with ``w_hr``, (B, H); None: zeros.
        h_mask: (B, P), what h is multiplied by before ``w_hh``.
        peephole: (3, H), the weights of i, f and o; coupled (2, H), of f and o.
        norm_hh: (G*H,), gains of the normalized ``W_hh h``; None: no normalization.  With
            ``"gru_reset_before"`` the two products are normalized apart.
        norm_c, bias_c: (H,), gains and biases of the normalized cell.
        seed: int64 (1,), of noise; None: expectations in its place.
        lengths, batch_sizes, resets: as for :func:`seq2seq_ext.reference.rnn`.
        hard_sigmoid: whether gates are ``min(max(x/6 + 1/2, 0), 1)``.
        zoneout_h, zoneout_c, candidate_dropout: probabilities.
        cell_clip, proj_clip: largest magnitudes of c and of the projected h; 0: any.
        stream: of noise, a number of its own for every layer and direction.

    Returns:
        ``y, cells, h_n, c_n``: h of every step, shaped like ``x`` with P features, c of every step
        with H, and the state after the last one, (B, P) and (B, H).  Without c the second and the
        last are None.

    >>> y, cells, h_n, c_n = recurrence(torch.zeros(5, 2, 12), torch.zeros(12, 3), cell="lstm")
    >>> y.shape, h_n.shape
    (torch.Size([5, 2, 3]), torch.Size([2, 3]))
    """
    return steps(**locals())[:4]  # with every argument


def steps(
    x: Tensor,
    w_hh: Tensor,
    *,
    cell: str,
    reverse: bool,
    b_hn: Tensor | None,
    w_hr: Tensor | None,
    h_0: Tensor | None,
    c_0: Tensor | None,
    h_mask: Tensor | None,
    peephole: Tensor | None,
    norm_hh: Tensor | None,
    norm_c: Tensor | None,
    bias_c: Tensor | None,
    seed: Tensor | None,
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    resets: Tensor | None,
    hard_sigmoid: bool,
    zoneout_h: float,
    zoneout_c: float,
    candidate_dropout: float,
    cell_clip: float,
    proj_clip: float,
    stream: int,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None, Tensor]:
    """What :func:`recurrence` returns, and what ``w_hh`` multiplied, (rows, P).

    ``b_hn`` may have a row for each of ``x``.
    """
    if batch_sizes is not None:
        sizes = batch_sizes.tolist()
        running = torch.arange(sizes[0])[None, :] < batch_sizes[:, None]  # (T, B)
        running = running.to(x.device)

        def dense(packed: Tensor) -> Tensor:
            grid = packed.new_zeros((*running.shape, *packed.shape[1:]))
            return grid.index_put((running,), packed)

        x = dense(x)
        b_hn = dense(b_hn) if b_hn is not None and b_hn.dim() > 1 else b_hn
        resets = None if resets is None else dense(resets)
    elif lengths is not None:
        running = torch.arange(x.size(0), device=x.device)[:, None] < lengths.to(x.device)
        x = torch.where(running[..., None], x, 0)  # in the gradient 0 * NaN would bring it back
    else:
        running = x.new_ones(x.shape[:2], dtype=torch.bool)

    G = GATES[cell]
    T, B, H = *x.shape[:2], x.shape[2] // G
    P = w_hh.shape[1]
    lstm, projected_gru = cell in ("lstm", "coupled_lstm"), cell == "gru" and w_hr is not None
    h = x.new_zeros(B, P) if h_0 is None else h_0
    c = x.new_zeros(B, H) if c_0 is None else c_0
    sigma = _hard_sigmoid if hard_sigmoid else torch.sigmoid
    keep_h, keep_c, candidate_mask = _masks(
        x, seed, stream, T, B, H, zoneout_h, zoneout_c, candidate_dropout
    )

    def norm(sums: Tensor, first: int = 0) -> Tensor:
        if norm_hh is None:
            return sums
        gain = norm_hh[first * H : first * H + sums.shape[1]]
        return layer_norm(sums, gain)

    def clip(value: Tensor, limit: float) -> Tensor:
        return value.clamp(-limit, limit) if limit else value

    outputs: list[Tensor] = []
    cells: list[Tensor] = []
    inputs: list[Tensor] = []
    for t in reversed(range(T)) if reverse else range(T):
        now = running[t, :, None]
        h_old, c_old = h, c
        if resets is not None:
            h_old = torch.where(resets[t, :, None], 0, h)
            c_old = torch.where(resets[t, :, None], 0, c)
        h_in = h_old if h_mask is None else h_old * h_mask
        c_raw = c_old
        if lstm:
            gates = list((x[t] + norm(linear(h_in, w_hh))).chunk(G, dim=1))
            see = [x.new_zeros(())] * 3 if peephole is None else list(peephole)
            f = sigma(gates[-3] + see[-2] * c_old)
            i = 1 - f if cell == "coupled_lstm" else sigma(gates[0] + see[0] * c_old)
            c_raw = clip(f * c_old + i * candidate_mask[t] * torch.tanh(gates[-2]), cell_clip)
            o = sigma(gates[-1] + see[-1] * c_raw)
            seen = c_raw if norm_c is None else layer_norm(c_raw, norm_c, bias_c)
            h_raw = o * torch.tanh(seen)
        elif cell == "gru":
            x_r, x_z, x_n = x[t].chunk(3, dim=1)
            h_r, h_z, h_n = norm(linear(h_in, w_hh)).chunk(3, dim=1)
            r, z = sigma(x_r + h_r), sigma(x_z + h_z)
            if b_hn is not None:
                h_n = h_n + (b_hn[t] if b_hn.dim() > 1 else b_hn)
            n = candidate_mask[t] * torch.tanh(x_n + r * h_n)
            h_raw = c_raw = (1 - z) * n + z * (c_old if projected_gru else h_old)
        elif cell == "gru_reset_before":
            x_r, x_z, x_n = x[t].chunk(3, dim=1)
            h_r, h_z = norm(linear(h_in, w_hh[: 2 * H])).chunk(2, dim=1)
            r, z = sigma(x_r + h_r), sigma(x_z + h_z)
            h_n = norm(linear(r * h_in, w_hh[2 * H :]), first=2)
            n = candidate_mask[t] * torch.tanh(x_n + h_n)
            h_raw = (1 - z) * n + z * h_old
        else:
            total = x[t] + norm(linear(h_in, w_hh))
            h_raw = torch.relu(total) if cell == "rnn_relu" else torch.tanh(total)
        c_new = (1 - keep_c[t]) * c_raw + keep_c[t] * c_old
        if projected_gru:
            h_raw = c_new
        if w_hr is not None:
            h_raw = clip(linear(h_raw, w_hr), proj_clip)
        share = keep_h[t, :, :P]
        h = torch.where(now, (1 - share) * h_raw + share * h_old, h)
        c = torch.where(now, c_new, c)
        outputs.append(torch.where(now, h, 0))
        cells.append(torch.where(now, c, 0))
        inputs.append(torch.where(now, h_in, 0))
    if reverse:
        for rows in (outputs, cells, inputs):
            rows.reverse()
    y, all_c, all_in = torch.stack(outputs), torch.stack(cells), torch.stack(inputs)
    if batch_sizes is not None:
        y, all_c, all_in = y[running], all_c[running], all_in[running]
    all_in = all_in.reshape(-1, P)
    return (y, all_c, h, c, all_in) if lstm or projected_gru else (y, None, h, None, all_in)


def layer_norm(x: Tensor, gain: Tensor, bias: Tensor | None = None) -> Tensor:
    """Layer normalization over the last axis.

    Of simple operators: ``torch.nn.functional.layer_norm`` is wrong in reverse over forward mode.
    """
    dtype = x.dtype
    if dtype in (torch.float16, torch.bfloat16):  # whose range a derivative of the root leaves
        x = x.float()
    x = x - x.mean(-1, keepdim=True)
    x = x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * gain
    return (x if bias is None else x + bias).to(dtype)


def _hard_sigmoid(x: Tensor) -> Tensor:
    return (x / 6 + 0.5).clamp(0, 1)  # torch's own takes 1/6 in float32


def _masks(
    x: Tensor,
    seed: Tensor | None,
    stream: int,
    T: int,
    B: int,
    H: int,
    zoneout_h: float,
    zoneout_c: float,
    candidate_dropout: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The shares of h and of c that are kept, and the factors of the candidates, (T, B, H)."""
    if seed is None:
        one = x.new_ones(T, B, H)
        return zoneout_h * one, zoneout_c * one, one
    h, c, candidate = noise.draw(seed, stream, T, B, H)
    kept = (candidate >= int(candidate_dropout * 2**32)).to(x.dtype)
    return (
        (h < int(zoneout_h * 2**32)).to(x.dtype),
        (c < int(zoneout_c * 2**32)).to(x.dtype),
        kept / (1 - candidate_dropout),
    )
