"""The encoder in one call, from tokens to the states of its layers, and what it reads of the model.

`Encoder` reads a source by a dozen small operators and a stack of layers. Where its layers are the
plain ones, it is on the CPU, and nothing follows the call, they are one operator
(``csrc/cpu/encoder.cpp``), with the same results.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor

from seq2seq_ext.kernels import CELLS, encoder_read_op, prepack_tokens_op
from seq2seq_ext.models.slots import Slots, slots_of, unusual
from seq2seq_ext.ops import PackedLayers
from seq2seq_ext.packed import Packed

if TYPE_CHECKING:
    from seq2seq_ext.models.encoder import Encoder

__all__ = ["EncoderSlots", "names_of", "read"]

Result = TypeVar("Result")


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
    if unusual(encoder) or type(source) is not Tensor:
        return None
    try:
        slots = slots_of(encoder, EncoderSlots)
        weights = slots.read()
    except KeyError:  # pruned or parametrized
        return None
    if slots.hooked() or slots.rnn._variant is not None or not weights[0].is_cpu:
        return None

    def call(*arguments: Any) -> tuple[Tensor, ...]:
        return cast("tuple[Tensor, ...]", encoder_read_op(*arguments))

    try:
        return slots.run(weights, source, lengths, call)
    except (RuntimeError, TypeError):
        return None


class EncoderSlots(Slots):
    """The weights of an encoder's embedding and first layers, and what is packed of them."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__(encoder, names_of(encoder), modules=["dropout"])
        self.rnn = encoder.stack.rnn
        self._config = encoder.config
        self._packed: PackedEncoder | None = None

    def run(
        self,
        weights: list[Tensor],
        source: Tensor,
        lengths: Tensor | None,
        call: Callable[..., Result],
    ) -> Result:
        """What `call` answers, which is given the arguments of ``encoder_read``.

        Args:
            weights: what `read` answered.
            source, lengths: as for `Encoder.forward`.
            call: as for `seq2seq_ext.packed.Packed.run`.
        """
        config, rnn = self._config, self.rnn
        options = (CELLS.index(rnn._cell), rnn.num_layers, rnn.bidirectional)
        eos = config.eos_token_id if config.source_eos else None
        embedding, *layers = weights
        tokens = (config.pad_token_id, eos, config.reverse_source)

        def with_block(block: tuple[Tensor, Tensor | None] | None, turn: int) -> Result:
            packed = (None, None) if block is None else block
            return call(source, lengths, embedding, layers, *options, *tokens, *packed, turn)

        if rnn._packed is None:
            return with_block(None, 0)
        if self._packed is None or self._packed.layers is not rnn._packed:
            self._packed = PackedEncoder(rnn._packed)
        return self._packed.run(weights, options, source.size(-1), with_block)


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
