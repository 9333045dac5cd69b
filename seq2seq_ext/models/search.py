"""Which searches of a model run in one call, and what they read of it.

`seq2seq_ext.generation` has every search and option in Python; the usual ones, over a decoder on
the CPU that has nothing out of the ordinary, run in ``csrc/cpu/search.h``, with the same results.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from seq2seq_ext.decoder.search import DecoderWeights, PackedDecoder, Sources
from seq2seq_ext.generation.options import GenerationOptions
from seq2seq_ext.generation.output import GenerationOutput
from seq2seq_ext.kernels import autocast_is_on
from seq2seq_ext.models.config import Seq2SeqConfig
from seq2seq_ext.models.decoder import Decoder
from seq2seq_ext.models.state import DecoderState

__all__ = ["search"]

# Options that change scores or choose otherwise, and the value with which they do nothing.
_IN_PYTHON = {
    "do_sample": False,
    "coverage_penalty": 0.0,
    "num_beam_groups": 1,
    "no_repeat_ngram_size": 0,
    "repetition_penalty": 1.0,
    "prefix_allowed_tokens_fn": None,
}
_SPECIAL_TOKENS = 3


def search(
    decoder: Decoder, state: DecoderState, options: GenerationOptions
) -> GenerationOutput | None:
    """What the search finds; None where it has to run in Python.

    Args:
        decoder: whose weights are packed for it. They stay packed, and are packed anew on any
            change; those of a prepacked decoder as `seq2seq_ext.prepack` says, in its dtype.
        state: of all sources, before the first token.
        options: how to search.
    """
    if not _is_plain(decoder, state, options):
        return None
    config = decoder.config
    weights = _weights(decoder)
    found = _packed(decoder).search(
        weights,
        _sources(decoder, state, weights.layers[0]),
        options,
        (config.pad_token_id, config.bos_token_id, config.eos_token_id),
    )
    if found is None:
        return None
    sequences, lengths, scores, alignments = found
    return GenerationOutput(
        sequences,
        lengths,
        scores.float() if options.output_scores else None,
        alignments if options.return_attention else None,
    )


def _is_plain(decoder: Decoder, state: DecoderState, options: GenerationOptions) -> bool:
    weight = decoder.embedding.weight
    return (
        type(decoder) is Decoder
        and decoder.config.search_is_fused
        and not weight.is_cuda
        and weight.dtype in (torch.float32, torch.float64)
        and weight.device.type == state.h.device.type == "cpu"
        and state.h.dtype == weight.dtype
        and decoder.config.target_vocab_size > _SPECIAL_TOKENS
        and not (decoder.training and decoder.config.dropout)
        and not (options.return_attention and decoder.attention is None)
        and all(getattr(options, name) == value for name, value in _IN_PYTHON.items())
        and not autocast_is_on()
        and not torch.compiler.is_compiling()
        and not any(
            module._forward_hooks or module._forward_pre_hooks for module in decoder.modules()
        )
    )


def _packed(decoder: Decoder) -> PackedDecoder:
    layers = decoder.stack.rnn._packed
    dtype = None if layers is None else layers.dtype
    packed: PackedDecoder | None = decoder.__dict__.get("_search")
    if packed is None or packed.serves != (dtype, layers is None):
        packed = decoder.__dict__["_search"] = PackedDecoder(dtype, layers is None)
    return packed


def _weights(decoder: Decoder) -> DecoderWeights:
    config, stack, attention = decoder.config, decoder.stack, decoder.attention
    head: dict[str, Tensor | None] = {}
    heads, scale = 1, 1.0
    if attention is not None:
        heads, scale = attention.heads, attention.scale
        head["w_query"] = None if attention.query is None else attention.query.weight
        head["v"], head["gain"] = attention.v, attention.gain
        head["w_coverage"] = attention.coverage
    if decoder.combine is not None:
        head["w_out"], head["b_out"] = decoder.combine.weight, decoder.combine.bias
    if decoder.maxout is not None:
        of_state = decoder.maxout.from_state
        head["w_state"], head["b_state"] = of_state.weight, of_state.bias
        head["w_token"] = decoder.maxout.from_token.weight
        if attention is not None:
            head["w_context"] = decoder.maxout.from_context.weight
    last = decoder.output
    if isinstance(last, nn.Sequential):
        head["w_rank"], last = last[0].weight, last[1]
    assert isinstance(last, nn.Linear)
    head["w_vocab"], head["b_vocab"] = last.weight, last.bias
    return DecoderWeights(
        stack.rnn._cell,
        decoder.embedding.weight,
        stack.rnn._current_weights(),
        head,
        _source_features(config),
        heads,
        stack.residual,
        config.attention_query == "previous",
        scale,
    )


def _source_features(config: Seq2SeqConfig) -> int:
    return config.resolved_context_size if config.context_every_step else 0


def _sources(decoder: Decoder, state: DecoderState, w_ih: Tensor) -> Sources:
    config, memory = decoder.config, state.memory
    gates = pieces = None
    if config.context_every_step:
        first = config.target_embedding_size
        columns = w_ih[:, first : first + _source_features(config)]
        gates = linear(state.context, columns)
    if decoder.maxout is not None and memory is None:
        pieces = decoder.maxout.from_context(state.context)
    if memory is None:
        return Sources(state.h, state.c, gates, pieces, None, None, None)
    return Sources(state.h, state.c, gates, pieces, memory.keys, memory.values, memory.lengths)
