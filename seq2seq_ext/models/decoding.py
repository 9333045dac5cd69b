"""Steps and searches of a decoder in one call each, and what they read of the model.

`seq2seq_ext.generation` has every search and option in Python, over steps. A step of a decoder on
the CPU that has nothing out of the ordinary is one call (``csrc/cpu/decoding.h``), and so are
greedy and beam search without further options (``csrc/cpu/search.h``), with the same results.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from seq2seq_ext.decoder.packed import HEAD, NOTHING, DecoderLayout, PackedDecoder, Sources
from seq2seq_ext.generation.options import GenerationOptions
from seq2seq_ext.generation.output import GenerationOutput
from seq2seq_ext.generation.processors import SpecialTokens
from seq2seq_ext.models.config import Seq2SeqConfig
from seq2seq_ext.models.decoder import Decoder
from seq2seq_ext.models.layers import RecurrentStack
from seq2seq_ext.models.slots import Slots, weights_of
from seq2seq_ext.models.state import DecoderState

__all__ = ["DecoderSlots", "is_one_call", "names_of", "output_of", "search", "step"]

_SPECIAL_TOKENS = 3


def step(
    decoder: Decoder, tokens: Tensor, state: DecoderState
) -> tuple[Tensor, DecoderState] | None:
    """What `Decoder.step` answers; None where it has to be put together of modules.

    Args:
        decoder: whose weights are packed for it. They stay packed, and are packed anew on any
            change; those of a prepacked decoder as `seq2seq_ext.prepack` says, in its dtype.
        tokens: int64 (N,).
        state: of N rows.
    """
    found = _found(decoder, state)
    if found is None:
        return None
    slots, weights = found
    config, memory = decoder.config, state.memory
    made = slots.packed.step(
        slots.layout(),
        weights,
        _sources(decoder, state, weights[1]),
        tokens,
        (state.h, state.c, state.feed, state.coverage),
        None if memory is None else memory.rows,
    )
    if made is None:
        return None
    logits, h, c, feed, coverage, alignments = made
    return logits, state._replace(
        h=h,
        c=None if state.c is None else c,
        feed=feed if config.feeds_back else state.feed,
        coverage=coverage if config.coverage else state.coverage,
        alignments=state.alignments if memory is None else alignments,
    )


def search(
    decoder: Decoder, state: DecoderState, options: GenerationOptions
) -> GenerationOutput | None:
    """What the search finds; None where it has to run in Python.

    Args:
        decoder: as for `step`.
        state: of all sources, before the first token.
        options: how to search.
    """
    config = decoder.config
    if not is_one_call(config, options):
        return None
    found = _found(decoder, state)
    if found is None:
        return None
    slots, weights = found
    made = slots.packed.search(
        slots.layout(),
        weights,
        _sources(decoder, state, weights[1]),
        (state.h, state.c),
        options,
        SpecialTokens.of(config),
    )
    if made is None:
        return None
    return output_of(made, options)


def is_one_call(config: Seq2SeqConfig, options: GenerationOptions) -> bool:
    """Whether there is an operator for the search."""
    return (
        config.target_vocab_size > _SPECIAL_TOKENS
        and options.is_plain
        and not (options.return_attention and config.attention == "none")
    )


def output_of(made: tuple[Tensor, ...], options: GenerationOptions) -> GenerationOutput:
    """What an operator found, as `generate` returns it."""
    sequences, lengths, scores, alignments = made
    return GenerationOutput(
        sequences,
        lengths,
        scores.float() if options.output_scores else None,
        alignments if options.return_attention else None,
    )


class DecoderSlots(Slots):
    """A decoder's weights, how they are put together, and what is packed of them."""

    def __init__(self, decoder: Decoder) -> None:
        if type(decoder.stack) is not RecurrentStack:
            raise KeyError("stack")
        super().__init__(decoder, names_of(decoder), NOTHING, ["dropout"])
        self._config = decoder.config
        self._stack, self._rnn = decoder.stack, decoder.stack.rnn
        self._attention = decoder.attention
        self._packed: PackedDecoder | None = None

    @property
    def packed(self) -> PackedDecoder:
        """In the dtype of the prepacked layers; made anew where `prepack` was called again."""
        layers, packed = self._rnn._packed, self._packed
        dtype, checks_all = (None, True) if layers is None else (layers.dtype, False)
        if packed is None or packed.dtype != dtype or packed.checks_all != checks_all:
            packed = self._packed = PackedDecoder(dtype, checks_all)
        return packed

    def layout(self) -> DecoderLayout:
        config, attention = self._config, self._attention
        return DecoderLayout(
            self._rnn._cell,
            config.decoder_num_layers,
            config.resolved_context_size if config.context_every_step else 0,
            1 if attention is None else attention.heads,
            self._stack.residual,
            config.attention_query == "previous",
            1.0 if attention is None else attention.scale,
        )


def _found(decoder: Decoder, state: DecoderState) -> tuple[DecoderSlots, list[Tensor]] | None:
    """The decoder's weights; None where its modules have to be called."""
    if type(decoder) is not Decoder or not decoder.config.decoding_is_fused:
        return None
    found = weights_of(decoder, DecoderSlots)
    if found is None:
        return None
    dtype = found[1][0].dtype
    known = dtype in (torch.float32, torch.float64)
    return found if known and state.h.dtype == dtype else None


def names_of(decoder: Decoder) -> list[str]:
    """Names of the decoder's weights, in the order of `seq2seq_ext.decoder.packed`."""
    attention, maxout, last = decoder.attention, decoder.maxout, "output"
    head: dict[str, str] = {}
    if attention is not None:
        if attention.query is not None:
            head["w_query"] = "attention.query.weight"
        for name, own in {"v": "v", "gain": "gain", "w_coverage": "coverage"}.items():
            if getattr(attention, own) is not None:
                head[name] = f"attention.{own}"
    if decoder.combine is not None:
        head |= {"w_out": "combine.weight", "b_out": "combine.bias"}
    if maxout is not None:
        head |= {
            "w_state": "maxout.from_state.weight",
            "b_state": "maxout.from_state.bias",
            "w_token": "maxout.from_token.weight",
        }
        if attention is not None:
            head["w_context"] = "maxout.from_context.weight"
    if isinstance(decoder.output, nn.Sequential):
        head["w_rank"], last = "output.0.weight", "output.1"
    head |= {"w_vocab": f"{last}.weight", "b_vocab": f"{last}.bias"}
    return [
        "embedding.weight",
        *(f"stack.rnn.{name}" for name in decoder.stack.rnn._flat_weights_names),
        *(head.get(name, "") for name in HEAD),
    ]


def _sources(decoder: Decoder, state: DecoderState, w_ih: Tensor) -> Sources:
    config, memory = decoder.config, state.memory
    gates = pieces = None
    if config.context_every_step:
        first = config.target_embedding_size
        gates = linear(state.context, w_ih[:, first : first + config.resolved_context_size])
    if memory is None:
        if decoder.maxout is not None:
            pieces = decoder.maxout.from_context(state.context)
        return Sources(gates, pieces, None, None, None)
    return Sources(gates, pieces, memory.keys, memory.values, memory.lengths)
