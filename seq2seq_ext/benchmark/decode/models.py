"""What is decoded: models of random weights that end by themselves, and sentences for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seq2seq_ext.models import Seq2Seq, Seq2SeqConfig

VOCABULARY = 64
MAX_NEW_TOKENS = 48
LENGTHS = (6, 18)  # of sentences, both included

# name: what it is, its settings
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "context": ("GRU without attention", {"cell": "gru"}),
    "additive": (
        "GRU, additive attention by the state before (Bahdanau et al. 2015)",
        {"cell": "gru", "attention": "additive", "attention_query": "previous"},
    ),
    "general": (
        "LSTM, general attention, input feeding (Luong et al. 2015)",
        {"cell": "lstm", "attention": "general", "input_feeding": True},
    ),
}


def make(name: str, hidden_size: int, *, seed: int = 0) -> Seq2Seq:
    """A model of `MODELS` whose greedy outputs are about as long as its sentences.

    Random weights seldom write an end, and never where it belongs. So weights are larger than at
    the start of a training, for outputs that depend on the source, and the bias of ``</s>`` is
    chosen by bisection.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Seq2Seq(
            Seq2SeqConfig(
                source_vocab_size=VOCABULARY,
                target_vocab_size=VOCABULARY,
                encoder_hidden_size=hidden_size,
                decoder_hidden_size=hidden_size,
                **MODELS[name][1],
            )
        ).eval()
    output = model.decoder.output
    assert isinstance(output, torch.nn.Linear)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
        output.weight.mul_(4)
        source, lengths = sentences(32, seed=seed + 1)
        wanted = float(lengths.double().mean())
        low, high = -10.0, 10.0
        for _ in range(12):
            output.bias[model.config.eos_token_id] = (low + high) / 2
            found = model.generate(
                source, lengths, max_new_tokens=MAX_NEW_TOKENS, return_dict_in_generate=True
            )
            if float(found.lengths.double().mean()) > wanted:
                low = (low + high) / 2
            else:
                high = (low + high) / 2
    return model


def sentences(count: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random sources: int64 (count, T), padded, and their lengths (count,)."""
    chance = torch.Generator().manual_seed(seed)
    low, high = LENGTHS
    lengths = torch.randint(low, high + 1, (count,), generator=chance)
    source = torch.randint(4, VOCABULARY, (count, high), generator=chance)
    return source.masked_fill(torch.arange(high) >= lengths[:, None], 0), lengths
