"""Steps and searches of a decoder in one call each, and what they read of the model.

`seq2seq_ext.generation` has every search and option in Python, over steps. A step of a decoder on
the CPU that has nothing out of the ordinary is one call (``csrc/cpu/decoding.h``), and so are
greedy and beam search without further options (``csrc/cpu/search.h``), with the same results.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from seq2seq_ext import transforms
from seq2seq_ext.decoder.packed import DecoderWeights, PackedDecoder, Sources
from seq2seq_ext.generation.options import GenerationOptions
from seq2seq_ext.generation.output import GenerationOutput
from seq2seq_ext.kernels import autocast_is_on
from seq2seq_ext.models.decoder import Decoder
from seq2seq_ext.models.state import DecoderState

__all__ = ["search", "step"]

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
    weights = _weights(decoder, state)
    if weights is None:
        return None
    config, memory = decoder.config, state.memory
    found = _packed(decoder).step(
        weights,
        _sources(decoder, state, weights.layers[0]),
        tokens,
        (state.h, state.c, state.feed, state.coverage),
        None if memory is None else memory.rows,
    )
    if found is None:
        return None
    logits, h, c, feed, coverage, alignments = found
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
    if config.target_vocab_size <= _SPECIAL_TOKENS or not all(
        getattr(options, name) == value for name, value in _IN_PYTHON.items()
    ):
        return None
    if options.return_attention and decoder.attention is None:
        return None
    weights = _weights(decoder, state)
    if weights is None:
        return None
    found = _packed(decoder).search(
        weights,
        _sources(decoder, state, weights.layers[0]),
        (state.h, state.c),
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


def _packed(decoder: Decoder) -> PackedDecoder:
    layers = decoder.stack.rnn._packed
    dtype, checks_all = (None, True) if layers is None else (layers.dtype, False)
    packed: PackedDecoder | None = decoder.__dict__.get("_packed")
    if packed is None or (packed.dtype, packed.checks_all) != (dtype, checks_all):
        packed = decoder.__dict__["_packed"] = PackedDecoder(dtype, checks_all)
    return packed


def _weights(decoder: Decoder, state: DecoderState) -> DecoderWeights | None:
    """The decoder's weights; None where its modules have to be called."""
    config, attention = decoder.config, decoder.attention
    rnn, embedding = decoder.stack.rnn, decoder.embedding.weight
    if (
        torch.is_grad_enabled()
        or type(decoder) is not Decoder
        or not config.decoding_is_fused
        or (decoder.training and config.dropout)
        or embedding.device.type != "cpu"
        or embedding.dtype not in (torch.float32, torch.float64)
        or state.h.dtype != embedding.dtype
        or autocast_is_on()
        or transforms.watched()
    ):
        return None
    modules: list[nn.Module] = [decoder.embedding, rnn]
    head: dict[str, Tensor | None] = {}

    def read(module: nn.Module | None, weight: str, bias: str | None = None) -> None:
        if module is None:
            return
        assert isinstance(module, nn.Linear)
        modules.append(module)
        head[weight] = module.weight
        if bias is not None:
            head[bias] = module.bias

    heads, scale = 1, 1.0
    if attention is not None:
        heads, scale = attention.heads, attention.scale
        read(attention.query, "w_query")
        head["v"], head["gain"], head["w_coverage"] = (
            attention.v,
            attention.gain,
            attention.coverage,
        )
    read(decoder.combine, "w_out", "b_out")
    if decoder.maxout is not None:
        read(decoder.maxout.from_state, "w_state", "b_state")
        read(decoder.maxout.from_token, "w_token")
        if attention is not None:
            read(decoder.maxout.from_context, "w_context")
    last = decoder.output
    if isinstance(last, nn.Sequential):
        read(last[0], "w_rank")
        last = last[1]
    read(last, "w_vocab", "b_vocab")
    if any(module._forward_hooks or module._forward_pre_hooks for module in modules):
        return None
    return DecoderWeights(
        rnn._cell,
        embedding,
        rnn._current_weights(),
        head,
        config.resolved_context_size if config.context_every_step else 0,
        heads,
        decoder.stack.residual,
        config.attention_query == "previous",
        scale,
    )


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
