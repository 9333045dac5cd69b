"""Weights of a run in 8 bits: what `seq2seq_ext.prepack` makes of them, on the disk.

A matrix of a recurrent layer is kept as integers ``q`` (R, C) in [-127, 127] and, for each row, the
largest absolute weight ``m`` (R,) float32; the weight is ``q m / 127``. These are the numbers that
``prepack(model, torch.int8)`` rounds to, and packing them once more loses nothing, so a model that
was read from such a file computes what the prepacked original computes. Everything else
(embeddings, biases, attention, the output layer) stays as it was.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from seq2seq_ext.nn import GRU, LSTM, RNN

__all__ = ["narrowed", "widened"]

_Q, _M = ".int8", ".largest"


def narrowed(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a model, the matrices of its recurrent layers in 8 bits.

    Raises:
        ValueError: if no layer's weights can be kept so: it has none of this package's recurrent
            layers in float32.
    """
    matrices = {
        f"{name}.{parameter}" if name else parameter
        for name, layer in model.named_modules()
        if isinstance(layer, (LSTM, GRU, RNN))
        for parameter, weight in layer.named_parameters()
        if parameter.startswith("weight_") and weight.dtype == torch.float32
    }
    if not matrices:
        raise ValueError("model must hold recurrent layers of float32 to be kept in 8 bits")
    found: dict[str, Tensor] = {}
    for name, weight in weights.items():
        if name not in matrices:
            found[name] = weight
            continue
        largest = weight.abs().amax(1)
        inverse = torch.where(largest > 0, 127 / largest, 0)
        found[name + _Q] = (weight * inverse[:, None]).round().clamp(-127, 127).to(torch.int8)
        found[name + _M] = largest
    return found


def widened(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], bool]:
    """The float32 weights of what `narrowed` gave, and whether any was in 8 bits.

    >>> q, m = torch.tensor([[127, -64]], dtype=torch.int8), torch.tensor([2.0])
    >>> weights, is_narrow = widened({"w.int8": q, "w.largest": m})
    >>> weights["w"], is_narrow
    (tensor([[ 2.0000, -1.0079]]), True)

    Raises:
        ValueError: if one of a pair is missing.
    """
    found: dict[str, Tensor] = {}
    is_narrow = False
    for name, tensor in weights.items():
        if name.endswith(_M) and name.removesuffix(_M) + _Q in weights:
            continue
        if not name.endswith(_Q):
            found[name] = tensor
            continue
        plain = name.removesuffix(_Q)
        largest = weights.get(plain + _M)
        if largest is None:
            raise ValueError(f"weights must hold {plain + _M!r} beside {name!r}")
        # 31 bits at most before the division: the largest weight of a row comes back exactly.
        found[plain] = (tensor.double() * largest.double()[:, None] / 127).float()
        is_narrow = True
    return found, is_narrow
