"""From sources to targets in one call.

Reading a source and searching for its target are an operator each (`encoding`, `decoding`). Where
nothing stands between them, as in a model whose decoder begins where its encoder ended and reads
nothing else of it, they are one (``csrc/cpu/translation.cpp``), with the same results: a short
source spends more time on the way from one to the other than in either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from seq2seq_ext.decoder.packed import (
    NOTHING,
    STEPS_OF_A_SEARCH,
    PackedDecoder,
    search_arguments,
)
from seq2seq_ext.generation.options import GenerationOptions
from seq2seq_ext.generation.output import GenerationOutput
from seq2seq_ext.generation.processors import SpecialTokens
from seq2seq_ext.kernels import translate_op
from seq2seq_ext.models import decoding, encoding
from seq2seq_ext.models.bridge import Bridge
from seq2seq_ext.models.decoder import Decoder
from seq2seq_ext.models.encoder import Encoder
from seq2seq_ext.models.slots import Slots, slots_of, weights_of
from seq2seq_ext.packed import Packed

if TYPE_CHECKING:
    from seq2seq_ext.models.seq2seq import Seq2Seq

__all__ = ["translate"]


def translate(
    model: Seq2Seq, source: Tensor, lengths: Tensor | None, options: GenerationOptions
) -> GenerationOutput | None:
    """What the search finds; None where the model has more to do, or an argument is wrong.

    Args:
        model: whose weights are kept packed, as those of `decoding.step`.
        source, lengths: as `Seq2Seq.start` takes them.
        options: how to search.
    """
    config = model.config
    if not decoding.is_one_call(config, options):
        return None
    if type(source) is not Tensor or source.dim() != 2:
        return None
    found = weights_of(model, _ModelSlots)
    if found is None or not found[0].direct:
        return None
    slots, weights = found
    if weights[0].dtype not in (torch.float32, torch.float64):
        return None
    arguments = search_arguments(options, SpecialTokens.of(config))
    try:
        made = slots.packed.translate(weights, source, lengths, arguments)
    except (RuntimeError, TypeError):
        return None
    return None if made is None else decoding.output_of(made, options)


class _ModelSlots(Slots):
    """A model's weights: those of its encoder, then those of its decoder."""

    def __init__(self, model: Seq2Seq) -> None:
        config, encoder, decoder = model.config, model.encoder, model.decoder
        if (type(encoder), type(decoder), type(model.bridge)) != (Encoder, Decoder, Bridge):
            raise KeyError("encoder, decoder or bridge")
        self.encoder = slots_of(encoder, encoding.EncoderSlots)
        self.direct = (
            model.bridge.kind == "copy"
            and encoder.upper is None
            and self.encoder.rnn._variant is None
            and config.decoding_is_fused
            and config.attention == "none"
            and not config.context_every_step
            and decoder.maxout is None
        )
        self.decoder = slots_of(decoder, decoding.DecoderSlots)
        names = [f"encoder.{name}" for name in encoding.names_of(encoder)]
        self.split = len(names)
        for name in decoding.names_of(decoder):
            names.append(name and f"decoder.{name}")
        super().__init__(model, names, NOTHING, ["bridge", "encoder.dropout", "decoder.dropout"])
        self._packed: _PackedModel | None = None

    @property
    def packed(self) -> _PackedModel:
        encoder, decoder, packed = self.encoder.packed, self.decoder.packed, self._packed
        if packed is None or packed.encoder is not encoder or packed.decoder is not decoder:
            packed = self._packed = _PackedModel(self, encoder, decoder)
        return packed


class _PackedModel(Packed[tuple["Tensor | None", "Tensor | None", Tensor]]):
    """The blocks of both sides, which calls of either alone share."""

    def __init__(
        self, slots: _ModelSlots, encoder: encoding.PackedEncoder | None, decoder: PackedDecoder
    ) -> None:
        super().__init__(decoder.dtype)
        self.encoder, self.decoder = encoder, decoder
        self._slots = slots
        self._read = 0  # steps of the encoder so far

    def _pack(
        self, weights: list[Tensor], options: tuple[int, ...], dtype: torch.dtype | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor]:
        slots = self._slots
        read: tuple[Tensor | None, Tensor | None] = (None, None)
        of_encoder, of_decoder = weights[: slots.split], weights[slots.split :]
        if self.encoder is not None:
            read = self.encoder.make(of_encoder, slots.encoder.layout()).block
        return *read, self.decoder.make(of_decoder, slots.decoder.layout().packing()).block

    def translate(
        self,
        weights: list[Tensor],
        source: Tensor,
        lengths: Tensor | None,
        search: tuple[Any, ...],
    ) -> tuple[Tensor, ...] | None:
        """What ``translate`` answers; None where weights are computed in each call.

        Args:
            weights: the model's, as they are now.
            source, lengths: as `Seq2Seq.start` takes them.
            search: the arguments of the search.
        """
        slots, read = self._slots, self._read
        self._read = read + source.size(-1) + 1
        embedding, *layers = weights[: slots.split]
        of_decoder = weights[slots.split :]
        encoder, decoder = slots.encoder.arguments(), slots.decoder.layout().arguments()
        checked = self.decoder.checked(STEPS_OF_A_SEARCH)

        def call(
            blocks: tuple[Tensor | None, Tensor | None, Tensor] | None, turn: int
        ) -> tuple[Tensor, ...] | None:
            if blocks is None:
                return None
            *of_layers, block = blocks
            made = translate_op(
                source,
                lengths,
                embedding,
                layers,
                *encoder,
                *of_layers,
                read,
                of_decoder,
                block,
                turn,
                checked,
                *decoder,
                *search,
            )
            return cast("tuple[Tensor, ...]", made)

        return self.run(weights, (), checked, call)
