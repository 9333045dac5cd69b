r"""Attention: what a decoder reads of the encoder's outputs, step by step.

Of a query :math:`z`, a state of the decoder, and the encoder's outputs :math:`m_j`, alignments
:math:`\alpha = \mathrm{softmax}(e)` weigh the context :math:`c = \sum_j \alpha_j m_j`.  The
energies:

================== ======================================= =====================================
``dot``            :math:`\langle z, m_j \rangle`          Luong, Pham & Manning 2015
``general``        :math:`\langle z, W m_j \rangle`        the same
``additive``       :math:`\langle v, \tanh(U z + W m_j)`   Bahdanau, Cho & Bengio 2015
                   :math:`\rangle`
``normalized_additive`` the same with :math:`g v / |v|`    Salimans & Kingma 2016, as in GNMT
                   for v, and a bias
``multi_head``     :math:`\langle U_i z, W_i m_j \rangle / Vaswani et al. 2017, but for the last
                   \sqrt{d}` for each head i               map, which what reads the context has
``local_p``        those of ``general``, in a window       Luong, Pham & Manning 2015
================== ======================================= =====================================

Of local_p, the window's centre :math:`p = S \sigma(\langle v_p, \tanh(W_p z) \rangle)` among S
positions, counted from 0, is predicted; outputs further than D from it have no energy, and the
softmax of the others is multiplied by :math:`\exp(-(j - p)^2 / (2 (D/2)^2))`, so that alignments
need not sum up to 1 (equations 9 and 10).

arXiv 1508.04025, 1409.0473, 1602.07868, 1706.03762; coverage: See, Liu & Manning 2017, 1704.04368.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from seq2seq_ext.models.config import Seq2SeqConfig
from seq2seq_ext.models.encoder import EncoderOutput
from seq2seq_ext.models.state import Memory, padding_mask, reverse_rows

__all__ = ["Attention"]


class Attention(nn.Module):
    """The energies of ``config.attention``, and what they are formed of.

    Args:
        config: reads ``attention*``, ``coverage`` and the sizes of the states.

    Example:
        >>> config = Seq2SeqConfig(source_vocab_size=9, target_vocab_size=9, attention="additive")
        >>> memory = Memory(torch.zeros(2, 7, 256), torch.zeros(2, 7, 256), torch.tensor([7, 3]))
        >>> context, alignments = Attention(config)(torch.zeros(5, 2, 256), memory)
        >>> context.shape, alignments[0, 1, 0, 2:4]
        (torch.Size([5, 2, 256]), tensor([0.3333, 0.0000], grad_fn=<SliceBackward0>))
    """

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        self.kind = config.attention
        self.heads = config.attention_heads
        self.reversed = config.reverse_source
        memory, hidden = config.encoder_state_size, config.decoder_hidden_size
        size = config.resolved_attention_size
        additive = self.kind in ("additive", "normalized_additive")
        self.key: nn.Linear | None = None
        if self.kind != "dot":
            self.key = nn.Linear(memory, size, bias=self.kind == "normalized_additive")
        self.query = None
        if additive or self.kind == "multi_head":
            self.query = nn.Linear(hidden, size, bias=False)
        # Of products of queries and keys.
        self.scale = math.sqrt(self.heads / size) if self.kind == "multi_head" else 1.0
        self.value = nn.Linear(memory, size, bias=False) if self.kind == "multi_head" else None
        bound = 1 / math.sqrt(size)

        def vector(wanted: bool) -> nn.Parameter | None:
            return nn.Parameter(torch.empty(size).uniform_(-bound, bound)) if wanted else None

        self.v = vector(additive)
        self.gain: nn.Parameter | None = None
        if self.kind == "normalized_additive":
            self.gain = nn.Parameter(torch.tensor(bound * math.sqrt(size / 3)))
        self.coverage = vector(config.coverage)
        self.window = config.attention_window
        self.position: nn.Linear | None = None
        self.v_position = vector(self.kind == "local_p")
        if self.kind == "local_p":
            self.position = nn.Linear(hidden, size, bias=False)

    def remember(self, encoded: EncoderOutput) -> Memory:
        """Keys and values of an encoder's outputs, in the order of the source's tokens."""
        outputs = encoded.outputs
        if self.reversed:
            outputs = reverse_rows(outputs, encoded.lengths)
        keys = outputs if self.key is None else self.key(outputs)
        values = outputs if self.value is None else self.value(outputs)
        return Memory(keys, values, encoded.lengths.to(keys.device))

    def energies(self) -> dict[str, Any]:
        """How energies come about, as arguments of `seq2seq_ext.decoder.attention_decoder`."""
        v = self.v
        if v is not None and self.gain is not None:
            v = self.gain * v / v.norm()
        return {
            "w_query": None if self.query is None else self.query.weight,
            "v": v,
            "w_coverage": self.coverage,
            "heads": self.heads,
            "scale": self.scale,
        }

    def forward(
        self, queries: Tensor, memory: Memory, coverage: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Contexts of queries that do not depend on each other, all in one.

        Args:
            queries: (T, B, hidden).
            memory: of the B rows.
            coverage: (B, S), what additive energies with coverage see beside the keys.

        Returns:
            Contexts (T, B, C) and alignments (T, B, heads, S), zero behind a source's end.
        """
        keys, values, lengths = memory.gathered()
        (T, B), (S, A) = queries.shape[:2], keys.shape[1:]
        how = self.energies()
        asked = queries if self.query is None else self.query(queries)
        if how["v"] is None:
            split = (
                asked.view(T, B, self.heads, A // self.heads),
                keys.reshape(B, S, self.heads, A // self.heads),
            )
            energies = how["scale"] * torch.einsum("tbna,bsna->tbns", *split)
        else:
            if coverage is not None and self.coverage is not None:
                keys = keys + coverage[..., None] * self.coverage
            # A step at a time: all sums at once would take T times the room of the keys.
            steps = [torch.tanh(query[:, None] + keys) @ how["v"] for query in asked]
            energies = torch.stack(steps)[:, :, None]
        behind = padding_mask(lengths, keys.size(1))[:, None]
        near: Tensor | None = None
        if self.kind == "local_p":
            distance = self._distances(queries, lengths, keys.size(1))
            near = torch.exp(-2 * (distance / self.window).square())
            behind = behind | (distance.abs() > self.window)
        lowest = torch.finfo(energies.dtype).min
        alignments = energies.masked_fill(behind, lowest).softmax(-1).masked_fill(behind, 0)
        if near is not None:
            alignments = alignments * near
        split_values = values.reshape(B, S, self.heads, values.size(2) // self.heads)
        contexts = torch.einsum("tbns,bsnc->tbnc", alignments, split_values)
        return contexts.flatten(2), alignments

    def _distances(self, queries: Tensor, lengths: Tensor, positions: int) -> Tensor:
        """Of all positions from the predicted one: (T, B, 1, S)."""
        assert self.position is not None
        assert self.v_position is not None
        part = torch.sigmoid(torch.tanh(self.position(queries)) @ self.v_position)
        centre = part * lengths.to(part)
        return torch.arange(positions, device=part.device) - centre[..., None, None]
