"""Calls of the attention decoder: every cell with every way of attending."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from seq2seq_ext.decoder import DecoderResult, attention_decoder, reference

GATES = {"lstm": 4, "gru": 3, "gru_reset_before": 3, "rnn_tanh": 1, "rnn_relu": 1}
# Luong's dot product with input feeding; several heads; Bahdanau's; See's coverage; the context
# alone fed to the next step.
WAYS = ("dot", "heads", "previous", "coverage", "context")

Call = dict[str, Any]


def call(
    cell: str,
    way: str,
    *,
    layers: int = 2,
    T: int = 5,
    B: int = 3,
    S: int = 6,
    H: int = 7,
    ragged: bool = True,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Call:
    """The arguments of a call, states and all; with ``ragged`` lengths of all kinds."""
    generator = torch.Generator().manual_seed(seed)

    def random(*size: int) -> Tensor:
        return (0.6 * torch.randn(size, generator=generator, dtype=torch.float64)).to(dtype)

    A, C, O = {"dot": H, "context": H}.get(way, 6), 4, 5
    G, fed = GATES[cell], C if way in ("previous", "context") else O
    arguments: Call = {
        "x": random(T, B, G * H),
        "keys": random(B, S, A),
        "values": random(B, S, C),
        "cell": cell,
        "bias": random(layers, G * H),
        "h_0": random(layers, B, H),
        "residual": 1 if layers > 1 else 0,
    }
    if cell == "gru":
        arguments["b_hn"] = random(layers, H)
    if cell == "lstm":
        arguments["c_0"] = random(layers, B, H)
    if layers > 1:
        arguments["dropout_mask"] = (random(layers - 1, T, B, H) > 0).to(dtype) * 2
    if way in ("heads", "previous", "coverage"):
        arguments["w_query"] = random(A, H)
    if way in ("previous", "coverage"):
        arguments["v"] = random(A)
    if fed == O:
        arguments |= {"w_out": random(O, C + H), "b_out": random(O)}
    if way == "heads":
        arguments |= {"heads": 2, "scale": 0.7}
    if way == "coverage":
        arguments |= {"w_coverage": random(A), "coverage_0": random(B, S).abs()}
    if way == "previous":
        arguments["query_first"] = True
    else:
        arguments["feed_0"] = random(B, fed)
    widths = [fed] + [H] * (layers - 1)
    arguments["weights"] = [
        random(G * H, width) / width**0.5 for upper in widths for width in (upper, H)
    ]
    if ragged:
        arguments["lengths"] = torch.tensor(([T, 2, 0, 1, 4] * B)[:B], dtype=torch.int64)
        arguments["source_lengths"] = torch.tensor(([3, S, 1, 0, 2] * B)[:B], dtype=torch.int64)
    return arguments


def leaves(arguments: Call) -> dict[str, Tensor]:
    """The tensors with a gradient, by name."""
    found = {
        name: value
        for name, value in arguments.items()
        if isinstance(value, Tensor) and value.is_floating_point() and name != "dropout_mask"
    }
    return found | {f"weights[{i}]": w for i, w in enumerate(arguments["weights"])}


def converted(arguments: Call, dtype: torch.dtype) -> Call:
    """The same with all numbers in another dtype."""

    def convert(value: Any) -> Any:
        if isinstance(value, list):
            return [convert(item) for item in value]
        if isinstance(value, Tensor) and value.is_floating_point():
            return value.detach().to(dtype)
        return value

    return {name: convert(value) for name, value in arguments.items()}


def run(arguments: Call) -> DecoderResult:
    rest = dict(arguments)
    return attention_decoder(rest.pop("x"), rest.pop("weights"), **rest)


def expected(arguments: Call) -> tuple[Tensor | None, ...]:
    rest = dict(arguments)
    return reference.attention_decoder(rest.pop("x"), rest.pop("weights"), **rest)


def outcome(
    function: Callable[[Call], Sequence[Tensor | None]], arguments: Call
) -> dict[str, Tensor]:
    """Results and gradients by name, from cotangents that are the same for every dtype."""
    leaf = leaves(arguments)
    for tensor in leaf.values():
        tensor.requires_grad_()
    results = [t for t in function(arguments) if t is not None]
    generator = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(t.shape, generator=generator).half().to(t) for t in results]
    gradients = torch.autograd.grad(results, list(leaf.values()), cotangents)
    named = {f"result {i}": t.detach() for i, t in enumerate(results)}
    return named | {f"d_{name}": d for name, d in zip(leaf, gradients, strict=True)}
