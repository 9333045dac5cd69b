"""Greedy and beam search of a small encoder-decoder: its stacks ours, or `torch.nn`'s instead."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from seq2seq_ext import Seq2Seq, Seq2SeqConfig
from seq2seq_ext.benchmark.workloads import LAYERS, OURS, TORCH, Contestant, tensors

T, VOCABULARY, NEW_TOKENS = 12, 40, 16


class TorchStack(nn.Module):
    """What the models' own recurrent stack is, computed by a layer of `torch.nn`."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.rnn = layer

    def forward(
        self,
        x: Tensor,
        state: tuple[Tensor, Tensor | None] | None = None,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor | None]]:
        hx = state if state is None or self.rnn.mode == "LSTM" else state[0]
        packed = None if lengths is None else pack_padded_sequence(x, lengths, enforce_sorted=False)
        y, h_n = self.rnn(x if packed is None else packed, hx)
        if lengths is not None:
            y, _ = pad_packed_sequence(y, total_length=x.size(0))
        return y, h_n if self.rnn.mode == "LSTM" else (h_n, None)


def with_torch_layers(model: Seq2Seq) -> Seq2Seq:
    """A copy of the model whose encoder and decoder run on `torch.nn`."""
    model = copy.deepcopy(model)
    for part in (model.encoder, model.decoder):
        ours = part.stack.rnn
        theirs = LAYERS[ours.mode](ours.input_size, ours.hidden_size, ours.num_layers)
        theirs.load_state_dict(ours.state_dict())
        part.register_module("stack", TorchStack(theirs))
    return model


@pytest.mark.parametrize("side", [TORCH, OURS])
@pytest.mark.parametrize("B", [1, 32])
@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
@pytest.mark.parametrize("num_beams", [1, 5])
def test_decoding(
    measure: Callable[..., None], num_beams: int, cell: str, B: int, side: str
) -> None:
    config = Seq2SeqConfig(
        source_vocab_size=VOCABULARY, target_vocab_size=VOCABULARY, cell=cell.lower()
    )
    ours = Seq2Seq(config).eval()
    source = torch.randint(4, VOCABULARY, (B, T))
    source_lengths = torch.randint(T // 2, T + 1, (B,))
    entrants = [
        Contestant(
            name=name,
            call=partial(
                model.generate,
                source,
                source_lengths,
                num_beams=num_beams,
                max_new_tokens=NEW_TOKENS,
                min_new_tokens=NEW_TOKENS,  # both write equally much
            ),
            results=tensors,
        )
        for name, model in ((TORCH, with_torch_layers(ours)), (OURS, ours))
    ]
    search = "greedy search" if num_beams == 1 else f"beam search ({num_beams})"
    measure(f"{cell} {search}, {NEW_TOKENS} tokens, B {B}", entrants, side)
