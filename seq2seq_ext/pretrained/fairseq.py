"""LSTM models of fairseq (``--arch lstm``), from their checkpoints and dictionaries.

fairseq's decoder is Luong's with input feeding: energies ``<W z, m_j>``, an attentional vector
``tanh(W_c [c; z])`` that the next step reads, and, where ``--decoder-out-embed-dim`` differs from
the state, a linear map before the output layer. Encoder states of another size than the decoder's
are mapped without a nonlinearity, every layer by the same matrix. Sources end with ``</s>``, and
decoding begins with ``</s>`` too: the row of ``<s>`` in the decoder's embedding becomes that one.

After fairseq 0.12.2, ``fairseq/models/lstm.py`` and ``fairseq/data/dictionary.py``.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from seq2seq_ext.generation import GenerationOptions
from seq2seq_ext.models import Seq2SeqConfig
from seq2seq_ext.pretrained.loaded import PretrainedModel
from seq2seq_ext.pretrained.tokens import reordered
from seq2seq_ext.pretrained.weights import (
    Weights,
    filled,
    num_layers,
    read_checkpoint,
    rows,
    take_layers,
)

_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")  # in the order of their ids
_OUR_ORDER = ("<pad>", "<unk>", "<s>", "</s>")
_ENCODER = "encoder.lstm.{name}_l{layer}{suffix}"
_DECODER = "decoder.layers.{layer}.{name}"


def load_fairseq(
    path: str | os.PathLike[str],
    source_dictionary: str | os.PathLike[str],
    target_dictionary: str | os.PathLike[str],
) -> PretrainedModel:
    """Read an LSTM model of fairseq.

    Args:
        path: the checkpoint, ``checkpoint_best.pt``.
        source_dictionary: ``dict.SRC.txt`` of the binarized data: a token and its count a line.
        target_dictionary: ``dict.TGT.txt``.

    Returns:
        The model. Shared embeddings are copied, since the decoder's first input is an own row
        here.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if the checkpoint is of another architecture, has no attention or an adaptive
            softmax, or does not fit the dictionaries, or a token of these holds a blank.
    """
    weights = Weights(_tensors(path), str(path))
    source, source_rows = reordered(
        read_dictionary(source_dictionary), _OUR_ORDER, source_dictionary
    )
    target, target_rows = reordered(
        read_dictionary(target_dictionary), _OUR_ORDER, target_dictionary
    )
    if "decoder.attention.input_proj.weight" not in weights:
        raise ValueError(f"{path} must be an LSTM model with attention, got {sorted(weights.left)}")
    source_features = weights.shape("encoder.embed_tokens.weight")[1]
    target_features = weights.shape("decoder.embed_tokens.weight")[1]
    encoder_size = weights.shape(_ENCODER.format(name="weight_hh", layer=0, suffix=""))[1]
    decoder_size = weights.shape(_DECODER.format(name="weight_hh", layer=0))[1]
    both = _ENCODER.format(name="weight_hh", layer=0, suffix="_reverse") in weights
    memory = encoder_size * (2 if both else 1)
    layers = num_layers(weights, _DECODER)
    mapped = "decoder.encoder_hidden_proj.weight" in weights
    rank = None
    if "decoder.additional_fc.weight" in weights:
        rank = weights.shape("decoder.additional_fc.weight")[0]
    config = Seq2SeqConfig(
        source_vocab_size=len(source),
        target_vocab_size=len(target),
        source_eos=True,
        cell="lstm",
        source_embedding_size=source_features,
        target_embedding_size=target_features,
        encoder_hidden_size=encoder_size,
        decoder_hidden_size=decoder_size,
        encoder_num_layers=num_layers(weights, _ENCODER),
        decoder_num_layers=layers,
        bidirectional=both,
        bridge="dense" if mapped else "copy",
        bridge_nonlinearity="none" if mapped else "tanh",
        output_rank=rank,
        attention="general",
        input_feeding=True,
    )

    encoder = take_layers(
        weights,
        _ENCODER,
        gates=4,
        input_size=source_features,
        hidden_size=encoder_size,
        bidirectional=both,
    )
    decoder = take_layers(
        weights,
        _DECODER,
        gates=4,
        input_size=target_features + decoder_size,
        hidden_size=decoder_size,
    )
    theirs = weights.take("decoder.embed_tokens.weight", len(target), target_features)
    start = _SPECIAL.index("</s>")
    first_inputs = [start if i == target.bos_token_id else row for i, row in enumerate(target_rows)]
    tensors = {f"encoder.stack.rnn.{name}": tensor for name, tensor in encoder.items()}
    tensors |= {f"decoder.stack.rnn.{name}": tensor for name, tensor in decoder.items()}
    tensors |= {
        "encoder.embedding.weight": rows(
            weights.take("encoder.embed_tokens.weight", len(source), source_features), source_rows
        ),
        "decoder.embedding.weight": rows(theirs, first_inputs),
        "decoder.attention.key.weight": weights.take(
            "decoder.attention.input_proj.weight", memory, decoder_size
        ).t(),
        "decoder.combine.weight": weights.take(
            "decoder.attention.output_proj.weight", decoder_size, memory + decoder_size
        ),
        "decoder.combine.bias": torch.zeros(decoder_size),
    }
    if mapped:
        for ours, name in (("hidden", "encoder_hidden_proj"), ("cell", "encoder_cell_proj")):
            matrix = weights.take(f"decoder.{name}.weight", decoder_size, memory)
            bias = weights.take(f"decoder.{name}.bias", decoder_size)
            tensors[f"bridge.{ours}.weight"] = torch.kron(torch.eye(layers), matrix)
            tensors[f"bridge.{ours}.bias"] = bias.repeat(layers)

    last, bias = theirs, torch.zeros(len(target))  # the output layer of shared embeddings
    if "decoder.fc_out.weight" in weights:
        last = weights.take("decoder.fc_out.weight", len(target), rank or decoder_size)
        bias = weights.take("decoder.fc_out.bias", len(target))
    if rank is None:
        ours = "decoder.output"
    else:
        ours = "decoder.output.1"
        tensors["decoder.output.0.weight"] = weights.take(
            "decoder.additional_fc.weight", rank, decoder_size
        )
        # The first map has no bias here: W (V z + a) + b = W V z + (W a + b).
        bias = bias + last @ weights.take("decoder.additional_fc.bias", rank)
    tensors[f"{ours}.weight"], tensors[f"{ours}.bias"] = (
        rows(last, target_rows),
        rows(bias, target_rows),
    )
    weights.finish()
    return PretrainedModel(
        model=filled(config, tensors),
        source_vocabulary=source,
        target_vocabulary=target,
        options=GenerationOptions(num_beams=5, max_new_tokens=200),
    )


def read_dictionary(path: str | os.PathLike[str]) -> list[str]:
    """The tokens of a dictionary of fairseq in the order of their ids, special ones in front.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a line is no token and count, or a token comes twice.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"path must be a file, got {path}")
    tokens = list(_SPECIAL)
    seen = set(tokens)
    with Path(path).open(encoding="utf-8", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            token, _, count = line.rstrip().rpartition(" ")
            overwrites = count == "#fairseq:overwrite"
            if overwrites:
                token, _, count = token.rpartition(" ")
            if not token or not count.isdecimal():
                raise ValueError(f"line {number} of {path} must be a token and its count")
            if token in seen and not overwrites:
                raise ValueError(f"line {number} of {path} has {token!r}, which was there before")
            seen.add(token)
            tokens.append(token)
    return tokens


def _tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    tensors = read_checkpoint(path).get("model")
    if not isinstance(tensors, dict) or not all(isinstance(x, Tensor) for x in tensors.values()):
        raise ValueError(f"{path} must hold the weights of a model of fairseq under 'model'")
    return tensors
