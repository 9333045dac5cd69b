"""The encoder in one call, from tokens to the states of its layers, and what it reads of the model.

`Encoder` reads a source by a dozen small operators and a stack of layers. Where its layers are the
plain ones, it is on the CPU, and nothing follows the call, they are one operator
(``csrc/cpu/encoder.cpp``), with the same results.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from seq2seq_ext.kernels import CELLS, encoder_read_op, prepack_tokens_op
from seq2seq_ext.models.layers import RecurrentStack
from seq2seq_ext.models.slots import Slots, weights_of
from seq2seq_ext.ops import PackedLayers
from seq2seq_ext.packed import Packed

if TYPE_CHECKING:
    from seq2seq_ext.models.encoder import Encoder

__all__ = ["EncoderSlots", "names_of", "read"]


def read(encoder: Encoder, source: Tensor, lengths: Tensor | None) -> tuple[Tensor, ...] | None:
    """What the first layers make of the sources; None where modules have to be called.

    It is also None where an argument is wrong: those who check it have better words.

    Args:
        encoder: whose embedding and ``stack`` are run.
        source, lengths: as `Encoder.forward` takes them.

    Returns:
        Outputs (T, B, D*H), h and c (L*D, B, H), c empty but for an LSTM, and how many steps each
        row took: int64 (B,).
    """
    if type(source) is not Tensor or source.dim() != 2:
        return None
    found = weights_of(encoder, EncoderSlots)
    if found is None or found[0].rnn._variant is not None:
        return None
    slots, weights = found

    embedding, *layers = weights
    arguments = slots.arguments()

    def call(block: tuple[Tensor, Tensor | None] | None, turn: int) -> tuple[Tensor, ...]:
        packed = (None, None) if block is None else block
        made = encoder_read_op(source, lengths, embedding, layers, *arguments, *packed, turn)
        return cast("tuple[Tensor, ...]", made)

    try:
        if slots.packed is None:
            return call(None, 0)
        return slots.packed.run(weights, slots.layout(), source.size(-1), call)
    except (RuntimeError, TypeError):
        return None


class EncoderSlots(Slots):
    """The weights of an encoder's embedding and first layers, and what is packed of them."""

    def __init__(self, encoder: Encoder) -> None:
        if type(encoder.stack) is not RecurrentStack:
            raise KeyError("stack")
        super().__init__(encoder, names_of(encoder), modules=["dropout"])
        self.rnn = encoder.stack.rnn
        self._config = encoder.config
        self._packed: PackedEncoder | None = None

    @property
    def packed(self) -> PackedEncoder | None:
        """Of prepacked layers; made anew where `prepack` was called again."""
        layers, packed = self.rnn._packed, self._packed
        if layers is None:
            return None
        if packed is None or packed.layers is not layers:
            packed = self._packed = PackedEncoder(layers)
        return packed

    def layout(self) -> tuple[int, int, bool]:
        """cell, num_layers and bidirectional, as the operators take them."""
        rnn = self.rnn
        return CELLS.index(rnn._cell), rnn.num_layers, rnn.bidirectional

    def arguments(self) -> tuple[Any, ...]:
        """Those of ``encoder_read`` between the weights and what is packed of them."""
        config = self._config
        eos = config.eos_token_id if config.source_eos else None
        return *self.layout(), config.pad_token_id, eos, config.reverse_source


class PackedEncoder(Packed[tuple[Tensor, "Tensor | None"]]):
    """The block of prepacked layers, and what the first of them makes of each token.

    Args:
        layers: theirs, which calls of the layers alone share.
    """

    def __init__(self, layers: PackedLayers) -> None:
        super().__init__(layers.dtype)
        self.layers = layers

    def _pack(
        self, weights: list[Tensor], options: tuple[int, ...], dtype: torch.dtype | None
    ) -> tuple[Tensor, Tensor | None]:
        embedding, *of_layers = weights
        block = self.layers.make(of_layers, options).block
        if embedding.dtype not in (torch.float32, torch.float64):
            return block, None
        return block, prepack_tokens_op(embedding, of_layers, block, *options)


def names_of(encoder: Encoder) -> list[str]:
    """Names of these weights, the embedding's first."""
    layers = encoder.stack.rnn._flat_weights_names
    return ["embedding.weight", *(f"stack.rnn.{name}" for name in layers)]
