"""The bridge: the encoder's final state becomes the decoder's first.

Encoder and decoder may differ in depth, width and number of directions, so the state is copied
where it fits and mapped where it does not.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from seq2seq_ext.models.config import Seq2SeqConfig
from seq2seq_ext.models.encoder import EncoderOutput
from seq2seq_ext.models.state import DecoderState


class Bridge(nn.Module):
    """Initial decoder state from an encoder's output; see ``Seq2SeqConfig.bridge``.

    ``h_0 = tanh(V s + b)``, where ``s`` is the context vector or the states of all encoder layers
    side by side (Cho et al. 2014, appendix: ``h_0' = tanh(V c)``). An LSTM's cell state has no
    bound, so its map has no tanh. ``bridge_nonlinearity`` names others.
    """

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        self.config = config
        self.kind = config.resolved_bridge
        self.hidden: nn.Linear | None = None
        self.cell: nn.Linear | None = None
        if self.kind in ("copy", "zeros"):
            return
        input_size = (
            config.resolved_context_size
            if self.kind == "context"
            else config.encoder_state_layers * config.encoder_state_size
        )
        output_size = config.decoder_num_layers * config.decoder_hidden_size
        self.hidden = nn.Linear(input_size, output_size)
        if config.cell == "lstm":
            self.cell = nn.Linear(input_size, output_size)

    def forward(self, encoded: EncoderOutput) -> DecoderState:
        """The decoder's state before its first token."""
        if self.kind == "zeros":
            config, batch = self.config, encoded.context.size(0)
            h = encoded.h.new_zeros(config.decoder_num_layers, batch, config.decoder_hidden_size)
            return DecoderState(h, h if config.cell == "lstm" else None, encoded.context)
        if self.hidden is None:
            return DecoderState(encoded.h, encoded.c, encoded.context)
        if self.kind == "context":
            h_input = c_input = encoded.context
        else:
            h_input = _rows(encoded.h)
            c_input = h_input if encoded.c is None else _rows(encoded.c)
        h = self.hidden(h_input)
        c = None if self.cell is None else self.cell(c_input)
        if self.config.bridge_nonlinearity == "tanh":
            h = torch.tanh(h)
        elif self.config.bridge_nonlinearity == "relu":
            h, c = torch.relu(h), None if c is None else torch.relu(c)
        return DecoderState(
            self._layers(h), None if c is None else self._layers(c), encoded.context
        )

    def _layers(self, rows: Tensor) -> Tensor:
        """(B, layers * H) -> (layers, B, H)."""
        sizes = (self.config.decoder_num_layers, self.config.decoder_hidden_size)
        layers = rows.view(rows.size(0), *sizes)
        return layers.transpose(0, 1).contiguous()


def _rows(state: Tensor) -> Tensor:
    """(layers, B, S) -> (B, layers * S)."""
    return state.transpose(0, 1).flatten(1)
