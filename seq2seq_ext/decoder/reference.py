r"""The attention decoder in plain torch: the executable specification.

A step of a decoder with layers :math:`l` over a source with keys :math:`k_j` and values
:math:`v_j`:

.. math::
    z_0 &= \mathrm{cell}_0(x_t + b_0 + W_0 f), \quad z_l = \mathrm{cell}_l(b_l + W_l z_{l-1}) \\
    e_j &= s \langle W_q z, k_j \rangle \quad\text{or}\quad
        \langle v, \tanh(W_q z + k_j + w\, u_j) \rangle \\
    \alpha &= \mathrm{softmax}(e), \quad c = \sum_j \alpha_j v_j, \quad
    a = \tanh(W_c [c; z] + b_c)

With ``query_first`` (Bahdanau, Cho & Bengio 2015, https://arxiv.org/abs/1409.0473) the query is z
of the step before and the feed f is the context of this step.  Else (Luong, Pham & Manning 2015,
https://arxiv.org/abs/1508.04025) the query is this step's z, and the feed is what the step before
ended with: the attentional vector a (input feeding), or the context.  :math:`u`, the coverage, is
the sum of the alignments before the step (See, Liu & Manning 2017,
https://arxiv.org/abs/1704.04368).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from seq2seq_ext.variants.reference import recurrence

__all__ = ["attention_decoder"]


def attention_decoder(
    x: Tensor,
    weights: list[Tensor],
    keys: Tensor,
    values: Tensor,
    *,
    cell: str,
    bias: Tensor | None = None,
    b_hn: Tensor | None = None,
    h_0: Tensor | None = None,
    c_0: Tensor | None = None,
    feed_0: Tensor | None = None,
    coverage_0: Tensor | None = None,
    w_query: Tensor | None = None,
    v: Tensor | None = None,
    w_coverage: Tensor | None = None,
    w_out: Tensor | None = None,
    b_out: Tensor | None = None,
    dropout_mask: Tensor | None = None,
    lengths: Tensor | None = None,
    source_lengths: Tensor | None = None,
    memory: Tensor | None = None,
    heads: int = 1,
    residual: int = 0,
    query_first: bool = False,
    scale: float = 1.0,
) -> tuple[Tensor | None, ...]:
    """All steps; arguments and results as those of :func:`seq2seq_ext.decoder.attention_decoder`.

    >>> z, context, alignments, *_ = attention_decoder(
    ...     torch.zeros(5, 2, 4), [torch.zeros(4, 3), torch.zeros(4, 4)],
    ...     torch.zeros(2, 7, 4), torch.zeros(2, 7, 3), cell="rnn_tanh")
    >>> z.shape, context.shape, alignments.shape
    (torch.Size([5, 2, 4]), torch.Size([5, 2, 3]), torch.Size([5, 2, 1, 7]))
    """
    T, B = x.shape[:2]
    L, H = len(weights) // 2, weights[1].size(1)
    if source_lengths is not None:
        source_lengths = source_lengths.to(x.device)
    if memory is not None:
        memory = memory.to(x.device)
        keys, values = keys[memory], values[memory]
        source_lengths = None if source_lengths is None else source_lengths[memory]
    S, A, C = *keys.shape[1:], values.size(2)
    there = x.new_ones(B, S, dtype=torch.bool)
    if source_lengths is not None:
        there = torch.arange(S, device=x.device) < source_lengths[:, None]
    running = x.new_ones(T, B, dtype=torch.bool)
    if lengths is not None:
        running = torch.arange(T, device=x.device)[:, None] < lengths.to(x.device)

    lstm = cell == "lstm"
    h = list(x.new_zeros(L, B, H) if h_0 is None else h_0)
    c = list(x.new_zeros(L, B, H) if c_0 is None else c_0)
    z = h[-1]
    feed = x.new_zeros(B, C if w_out is None else w_out.size(0)) if feed_0 is None else feed_0
    coverage = x.new_zeros(B, S) if coverage_0 is None else coverage_0

    def attend(z: Tensor, coverage: Tensor) -> tuple[Tensor, Tensor]:
        query = z if w_query is None else linear(z, w_query)
        if v is None:
            split = query.view(B, heads, A // heads), keys.reshape(B, S, heads, A // heads)
            energies = scale * torch.einsum("bna,bsna->bns", *split)
        else:
            sums = query[:, None] + keys
            if w_coverage is not None:
                sums = sums + coverage[..., None] * w_coverage
            energies = (torch.tanh(sums) @ v)[:, None]
        energies = energies.masked_fill(~there[:, None], -torch.inf)
        # A source of no positions gives no alignment.
        lowest = energies.new_full((B, heads, 1), torch.finfo(x.dtype).min)
        highest = torch.cat([energies, lowest], 2).amax(2, keepdim=True).detach()
        powers = torch.exp(energies - highest)
        total = powers.sum(2, keepdim=True)
        alignments = powers / torch.where(total > 0, total, 1)
        context = torch.einsum("bns,bsnc->bnc", alignments, values.reshape(B, S, heads, C // heads))
        return alignments, context.flatten(1)

    kept: dict[str, list[Tensor]] = {"z": [], "context": [], "alignments": [], "attentional": []}
    for t in range(T):
        now = running[t, :, None]

        def put(name: str, value: Tensor, now: Tensor = now) -> None:
            kept[name].append(torch.where(now.view(-1, *[1] * (value.dim() - 1)), value, 0))

        if query_first:
            alignments, context = attend(z, coverage)
            feed = torch.where(now, context, feed)
        below = feed
        for layer in range(L):
            w_in, w_hh = weights[2 * layer : 2 * layer + 2]
            if layer > 0 and dropout_mask is not None:
                below = below * dropout_mask[layer - 1, t]
            gates = linear(below, w_in, None if bias is None else bias[layer])
            gates = gates + x[t] if layer == 0 else gates
            _, _, h_new, c_new = recurrence(
                gates[None],
                w_hh,
                cell=cell,
                b_hn=None if b_hn is None else b_hn[layer],
                h_0=h[layer],
                c_0=c[layer] if lstm else None,
            )
            h[layer] = torch.where(now, h_new, h[layer])
            if c_new is not None:
                c[layer] = torch.where(now, c_new, c[layer])
            below = h_new + below if residual and layer >= residual else h_new
        z = torch.where(now, below, z)
        if not query_first:
            alignments, context = attend(z, coverage)
        put("z", z)
        put("context", context)
        put("alignments", alignments)
        if w_out is not None:
            attentional = torch.tanh(linear(torch.cat([context, z], 1), w_out, b_out))
            put("attentional", attentional)
        if not query_first:
            feed = torch.where(now, context if w_out is None else attentional, feed)
        coverage = torch.where(now, coverage + alignments[:, 0], coverage)
    stacked = {name: torch.stack(steps) if steps else None for name, steps in kept.items()}
    return (
        stacked["z"],
        stacked["context"],
        stacked["alignments"],
        stacked["attentional"],
        torch.stack(h),
        torch.stack(c) if lstm else None,
        feed,
        coverage if w_coverage is not None else None,
    )
