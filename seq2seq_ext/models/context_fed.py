r"""The layers above a decoder's first, all of which read what the first one attended to.

.. math::
    x^{(l)}_t = [z^{(l-1)}_t; c_t], \quad
    z^{(l)}_t = f(h^{(l)}_{t-1}, x^{(l)}_t) \;[+\, z^{(l-1)}_t]

The decoder of GNMT (Wu et al. 2016, arXiv 1609.08144) as NVIDIA's GNMT v2 has it: the query of step
t is the first layer's state of step t, so that no step waits for the context of another, and each
layer runs over all steps in one call.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from seq2seq_ext.models.config import Seq2SeqConfig
from seq2seq_ext.models.layers import RecurrentStack

__all__ = ["ContextFedStack"]


class ContextFedStack(nn.Module):
    """Layers 1 to L-1 of a decoder of L layers.

    Args:
        config: reads the ``decoder_*`` fields, ``residual`` (counted from layer 0) and ``dropout``,
            which acts on all that a layer reads, the context too.
    """

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        self.residual = config.residual
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(
            RecurrentStack(
                config,
                input_size=config.decoder_hidden_size + config.attended_size,
                hidden_size=config.decoder_hidden_size,
                num_layers=1,
            )
            for _ in range(1, config.decoder_num_layers)
        )

    def forward(
        self,
        z: Tensor,
        context: Tensor,
        state: tuple[Tensor, Tensor | None],
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor | None]]:
        """Run the layers.

        Args:
            z: (T, B, H), the first layer's outputs.
            context: (T, B, C).
            state: initial h and c, (L-1, B, H); c None but for an LSTM.
            lengths: int64 (B,); None where every row is full.

        Returns:
            The last layer's outputs (T, B, H) and the final state.
        """
        h, c = state
        h_n: list[Tensor] = []
        c_n: list[Tensor] = []
        for index, layer in enumerate(self.layers):
            own = slice(index, index + 1)
            below = self.dropout(torch.cat((z, context), dim=-1))
            y, (h_last, c_last) = layer(below, (h[own], None if c is None else c[own]), lengths)
            z = y + z if self.residual and index + 1 >= self.residual else y
            h_n.append(h_last)
            if c_last is not None:
                c_n.append(c_last)
        return z, (torch.cat(h_n), torch.cat(c_n) if c_n else None)
