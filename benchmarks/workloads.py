"""What is timed: layers of both sides with equal weights, their inputs, and what they do with them.

The peer is `torch.nn`. Both sides get the very same inputs and hand back all that a caller would
use, and a training call asks for every gradient: those of the input and of all parameters.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import seq2seq_ext

OURS, PEER = "seq2seq_ext", "torch.nn"

LAYERS: dict[str, Callable[..., nn.RNNBase]] = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN}
CELLS: dict[str, Callable[..., nn.RNNCellBase]] = {
    "LSTM": nn.LSTMCell,
    "GRU": nn.GRUCell,
    "RNN": nn.RNNCell,
}
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def both_sides(theirs: nn.Module) -> dict[str, nn.Module]:
    """A layer or cell of `torch.nn` and its replacement: equal weights, each its own copy."""
    return {PEER: theirs, OURS: seq2seq_ext.replace_modules(copy.deepcopy(theirs))}


def log_normal_lengths(batch_size: int, max_length: int, *, seed: int = 0) -> Tensor:
    """Lengths (B,), int64 in 1..`max_length`, distributed as those of sentences are.

    The logarithm is normal with standard deviation 0.7; the median is a quarter of `max_length`.

    >>> lengths = log_normal_lengths(1000, 200)
    >>> int(lengths.min()) >= 1, int(lengths.max()), 45 < int(lengths.median()) < 55
    (True, 200, True)
    """
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(batch_size, generator=generator)
    return (max_length / 4 * torch.exp(0.7 * normal)).round().clamp(1, max_length).long()


def pack(x: Tensor, lengths: Tensor) -> PackedSequence:
    """The PackedSequence of x (T, B, I), in any order of lengths."""
    return pack_padded_sequence(x, lengths, enforce_sorted=False)


def inference(
    layer: nn.Module, x: Tensor | PackedSequence, *hx: Any, **options: Any
) -> Callable[[], Any]:
    """A call that runs a layer or cell without autograd and returns what it returns."""

    def call() -> Any:
        with torch.inference_mode():
            return layer(x, *hx, **options)

    return call


def training(
    layer: nn.Module, x: Tensor | PackedSequence, d_y: Tensor, **options: Any
) -> Callable[[], tuple[Tensor, ...]]:
    """A call that runs a layer forward and backward.

    Args:
        layer: a layer of either side.
        x: its input.
        d_y: the gradient of the output, (T, B, H), or (N, H) if `x` is packed.
        **options: further arguments of the layer.

    Returns:
        The call; it returns the gradients of the input and of all parameters, in their order.
    """
    if isinstance(x, PackedSequence):
        leaf = x.data.detach().clone().requires_grad_()
        x = PackedSequence(leaf, x.batch_sizes, x.sorted_indices, x.unsorted_indices)
    else:
        leaf = x = x.detach().clone().requires_grad_()
    inputs = [leaf, *layer.parameters()]

    def call() -> tuple[Tensor, ...]:
        y = layer(x, **options)[0]
        return torch.autograd.grad(y.data if isinstance(y, PackedSequence) else y, inputs, d_y)

    return call


def ways_through_unequal_lengths(
    sides: dict[str, nn.Module], work: str, x: Tensor, d_y: Tensor, lengths: Tensor
) -> dict[str, Callable[[], Any]]:
    """The calls for one batch of sequences of unequal length: both sides packed, and `lengths=`.

    Packing is not timed, though the callers of `torch.nn` pay for it and those of `lengths=` do
    not. What all of the calls have in common are the final states, or the parameters' gradients.

    Args:
        sides: of `both_sides`.
        work: ``"inference"`` or ``"training"``.
        x: (T, B, I), the batch in its padding.
        d_y: (T, B, H), the gradient of the output, for training.
        lengths: (B,), int64.
    """
    packed = pack(x, lengths)
    if work == "inference":
        return {
            f"{PEER} packed": inference(sides[PEER], packed),
            f"{OURS} packed": inference(sides[OURS], packed),
            f"{OURS} lengths": inference(sides[OURS], x, lengths=lengths),
        }
    d_packed = pack(d_y, lengths).data
    return {
        f"{PEER} packed": training(sides[PEER], packed, d_packed),
        f"{OURS} packed": training(sides[OURS], packed, d_packed),
        f"{OURS} lengths": training(sides[OURS], x, d_y, lengths=lengths),
    }
