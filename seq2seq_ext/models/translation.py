"""From sources to targets in one call.

Reading a source and searching for its target are an operator each (`encoding`, `decoding`). Where
nothing stands between them, as in a model whose decoder begins where its encoder ended and reads
nothing else of it, they are one (``csrc/cpu/translation.cpp``), with the same results: a short
source spends more time on the way from one to the other than in either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from seq2seq_ext.decoder.packed import NOTHING
from seq2seq_ext.generation.options import GenerationOptions
from seq2seq_ext.generation.output import GenerationOutput
from seq2seq_ext.models import decoding, encoding
from seq2seq_ext.models.bridge import Bridge
from seq2seq_ext.models.decoder import Decoder
from seq2seq_ext.models.encoder import Encoder
from seq2seq_ext.models.slots import Slots, slots_of, unusual

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
    if unusual(model) or not decoding.is_one_call(config, options) or type(source) is not Tensor:
        return None
    try:
        slots = slots_of(model, _ModelSlots)
        if not slots.direct or slots.hooked():
            return None
        weights = slots.read()
    except KeyError:  # pruned or parametrized
        return None
    of_encoder, of_decoder = weights[: slots.split], weights[slots.split :]
    encoder, decoder = slots.encoder, slots.decoder
    if not weights[0].is_cpu or weights[0].dtype not in (torch.float32, torch.float64):
        return None
    special = (config.pad_token_id, config.bos_token_id, config.eos_token_id)

    def call(*read: Any) -> tuple[Tensor, ...] | None:
        return decoder.packed.translate(decoder.layout(), of_decoder, read, options, special)

    try:
        made = encoder.run(of_encoder, source, lengths, call)
    except (RuntimeError, TypeError):
        return None
    return None if made is None else decoding.output_of(made, options)


class _ModelSlots(Slots):
    """A model's weights: those of its encoder, then those of its decoder."""

    def __init__(self, model: Seq2Seq) -> None:
        config, encoder, decoder = model.config, model.encoder, model.decoder
        self.encoder = slots_of(encoder, encoding.EncoderSlots)
        self.direct = (
            (type(encoder), type(decoder), type(model.bridge)) == (Encoder, Decoder, Bridge)
            and model.bridge.kind == "copy"
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
