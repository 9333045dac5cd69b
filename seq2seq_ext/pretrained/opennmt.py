"""LSTM and GRU models of OpenNMT-py 3 (``encoder_type: rnn`` or ``brnn``), from their checkpoints.

OpenNMT's decoder is Luong's: energies ``<z, m_j>`` or ``<W z, m_j>``, an attentional vector
``tanh(W_o [c; z])``, and with ``input_feed`` the next step reads it. ``mlp`` has additive energies
with a bias, and a bias and no tanh in that vector. Its bridge maps the encoder's
final states, flattened to rows of layers times units, with ReLU; of a bidirectional encoder that
makes two rows, which the same matrix maps. Sources carry no ``</s>``; ``<pad>`` is ``<blank>``.

After OpenNMT-py 3.5.1: ``encoders/rnn_encoder.py``, ``decoders/decoder.py``,
``modules/global_attention.py``, ``models/model_saver.py``, ``inputters/inputter.py``.
"""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seq2seq_ext.data.extras import require
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

# Its decoders hand an nn.RNN the state of an LSTM, so that such a model never ran.
_CELLS = {"LSTM": ("lstm", 4), "GRU": ("gru", 3)}
_OUR_ORDER = ("<blank>", "<unk>", "<s>", "</s>")
_EMBEDDING = "{}.embeddings.make_embedding.emb_luts.0.weight"
_ENCODER = "encoder.rnn.{name}_l{layer}{suffix}"
_INPUT_FEED = "decoder.rnn.layers.{layer}.{name}"
_STANDARD = "decoder.rnn.{name}_l{layer}"


def load_opennmt(path: str | os.PathLike[str]) -> PretrainedModel:
    """Read a recurrent model of OpenNMT-py.

    Args:
        path: the checkpoint, ``model_step_10000.pt``; where it was saved in the format
            safetensors, that file has to lie beside it.

    Returns:
        The model. Embeddings that are shared there are tied here where the first input of the
        decoder is ``<s>``, and copied where not.

    Raises:
        FileNotFoundError: if a file is missing.
        MissingExtraError: if the weights are in safetensors, which is not installed.
        ValueError: if the model has parts that have no counterpart here, named: a copy mechanism,
            a context gate, features beside words, sparsemax, SRU, input feeding without attention.
    """
    checkpoint = read_checkpoint(path)
    options, vocabularies = checkpoint.get("opt"), checkpoint.get("vocab")
    if not isinstance(options, Namespace) or not isinstance(vocabularies, dict):
        raise ValueError(f"{path} must be a checkpoint of OpenNMT-py 3, with 'opt' and 'vocab'")
    weights = Weights(_tensors(checkpoint, Path(path)), str(path))
    cell, gates = _cell(options, path)
    source_tokens, target_tokens = list(vocabularies["src"]), list(vocabularies["tgt"])
    source, source_rows = reordered(source_tokens, _OUR_ORDER, path)
    target, target_rows = reordered(target_tokens, _OUR_ORDER, path)
    start = vocabularies.get("decoder_start_token", "<s>")
    if start not in ("<s>", "</s>"):
        raise ValueError(f"decoder_start_token in {path} must be '<s>' or '</s>', got {start!r}")
    if missing := {start, "</s>"} - set(target_tokens):
        raise ValueError(f"the target vocabulary in {path} must hold {sorted(missing)}")

    source_features = weights.shape(_EMBEDDING.format("encoder"))[1]
    target_features = weights.shape(_EMBEDDING.format("decoder"))[1]
    encoder_size = weights.shape(_ENCODER.format(name="weight_hh", layer=0, suffix=""))[1]
    both = _ENCODER.format(name="weight_hh", layer=0, suffix="_reverse") in weights
    memory = encoder_size * (2 if both else 1)
    feeds = num_layers(weights, _INPUT_FEED) > 0
    attends = "decoder.attn.linear_out.weight" in weights
    if feeds and not attends:
        raise ValueError(f"{path} feeds a decoder without attention, which has no counterpart here")
    mlp = "decoder.attn.v.weight" in weights
    general = "decoder.attn.linear_in.weight" in weights
    attention = "general" if general else "normalized_additive" if mlp else "dot"
    # OpenNMT-py makes this matrix, and then hands no coverage to the attention that has it.
    weights.drop("decoder.attn.linear_cover.weight")
    layers = num_layers(weights, _ENCODER)
    bridge = "encoder.bridge.0.weight" in weights
    ties = "none"
    if start == "<s>" and getattr(options, "share_decoder_embeddings", False):
        ties = "all" if getattr(options, "share_embeddings", False) else "decoder"
    dropout = getattr(options, "dropout", 0.0)
    config = Seq2SeqConfig(
        source_vocab_size=len(source),
        target_vocab_size=len(target),
        cell=cell,
        source_embedding_size=source_features,
        target_embedding_size=target_features,
        encoder_hidden_size=encoder_size,
        decoder_hidden_size=memory,
        encoder_num_layers=layers,
        decoder_num_layers=layers,
        bidirectional=both,
        dropout=float(dropout[0] if isinstance(dropout, list) else dropout),
        bridge="dense" if bridge else "copy",
        bridge_nonlinearity="relu" if bridge else "tanh",
        tie_embeddings=ties,
        attention=attention if attends else "none",
        attentional_nonlinearity="none" if mlp else "tanh",
        input_feeding=feeds,
    )

    stacks = {
        "encoder": take_layers(
            weights,
            _ENCODER,
            gates=gates,
            input_size=source_features,
            hidden_size=encoder_size,
            bidirectional=both,
        ),
        "decoder": take_layers(
            weights,
            _INPUT_FEED if feeds else _STANDARD,
            gates=gates,
            input_size=target_features + (memory if feeds else 0),
            hidden_size=memory,
        ),
    }
    tensors = {
        f"{part}.stack.rnn.{name}": tensor
        for part, stack in stacks.items()
        for name, tensor in stack.items()
    }
    theirs = weights.take(_EMBEDDING.format("decoder"), len(target_tokens), target_features)
    first_inputs = list(target_rows)
    first_inputs[target.bos_token_id] = target_tokens.index(start)
    tensors |= {
        "encoder.embedding.weight": rows(
            weights.take(_EMBEDDING.format("encoder"), len(source_tokens), source_features),
            source_rows,
        ),
        "decoder.embedding.weight": rows(theirs, first_inputs),
        "decoder.output.weight": rows(
            weights.take("generator.weight", len(target_tokens), memory), target_rows
        ),
        "decoder.output.bias": rows(
            weights.take("generator.bias", len(target_tokens)), target_rows
        ),
    }
    if attends:
        tensors["decoder.combine.weight"] = weights.take(
            "decoder.attn.linear_out.weight", memory, 2 * memory
        )
        tensors["decoder.combine.bias"] = (
            weights.take("decoder.attn.linear_out.bias", memory) if mlp else torch.zeros(memory)
        )
    if general:
        tensors["decoder.attention.key.weight"] = weights.take(
            "decoder.attn.linear_in.weight", memory, memory
        ).t()
    if mlp:
        # <v, tanh(W z + b + U m)>: the query's bias may as well be the key's, and v = |v| v / |v|.
        v = weights.take("decoder.attn.v.weight", 1, memory)[0]
        names = {"key.weight": "linear_context.weight", "query.weight": "linear_query.weight"}
        for ours, name in names.items():
            tensors[f"decoder.attention.{ours}"] = weights.take(
                f"decoder.attn.{name}", memory, memory
            )
        tensors["decoder.attention.key.bias"] = weights.take(
            "decoder.attn.linear_query.bias", memory
        )
        tensors["decoder.attention.v"] = v
        tensors["decoder.attention.gain"] = v.norm()
    if bridge:
        size, times = layers * encoder_size, 2 if both else 1
        for index, ours in enumerate(("hidden", "cell")[: 2 if cell == "lstm" else 1]):
            matrix = weights.take(f"encoder.bridge.{index}.weight", size, size)
            bias = weights.take(f"encoder.bridge.{index}.bias", size)
            tensors[f"bridge.{ours}.weight"] = torch.kron(torch.eye(times), matrix)
            tensors[f"bridge.{ours}.bias"] = bias.repeat(times)
    weights.finish()
    return PretrainedModel(
        model=filled(config, tensors),
        source_vocabulary=source,
        target_vocabulary=target,
        options=GenerationOptions(num_beams=5, length_penalty=0.0, max_new_tokens=250),
    )


def _cell(options: Namespace, path: str | os.PathLike[str]) -> tuple[str, int]:
    """The cell's name here and its number of gates; refuses what no weight would tell."""
    name = getattr(options, "rnn_type", None)
    if name not in _CELLS:
        raise ValueError(f"rnn_type in {path} must be one of {sorted(_CELLS)}, got {name!r}")
    function = getattr(options, "global_attention_function", "softmax")
    if function != "softmax":
        raise ValueError(f"global_attention_function in {path} must be 'softmax', got {function!r}")
    return _CELLS[name]


def _tensors(checkpoint: dict[str, Any], path: Path) -> dict[str, Tensor]:
    """All weights, those of the output layer as ``generator.*``."""
    if "model" in checkpoint:
        generator = checkpoint.get("generator") or {}
        tensors = dict(checkpoint["model"])
        tensors |= {f"generator.{name}": tensor for name, tensor in generator.items()}
        return tensors
    beside = path.with_suffix(".safetensors")
    if not beside.is_file():
        raise FileNotFoundError(f"{path} holds no weights, and there is no {beside}")
    safetensors = require("safetensors.torch", extra="train", purpose="reading safetensors")
    loaded: dict[str, Tensor] = safetensors.load_file(beside)
    return loaded
