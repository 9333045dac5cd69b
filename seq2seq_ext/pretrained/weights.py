"""Arrays of a checkpoint, taken one by one with their shapes checked, none left over.

What is left over would be a part of the model that nobody computes: the answer would be wrong
without a word. So `Weights.finish` refuses it.
"""

from __future__ import annotations

import argparse
import os
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seq2seq_ext.models import Seq2Seq, Seq2SeqConfig


class Weights:
    """The named tensors of one checkpoint.

    Args:
        tensors: by name.
        origin: what the tensors were read from, for messages.
    """

    def __init__(self, tensors: Mapping[str, Tensor], origin: str) -> None:
        self.left = dict(tensors)
        self.origin = origin

    def __contains__(self, name: str) -> bool:
        return name in self.left

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor that has not been taken yet.

        Raises:
            ValueError: if there is none of that name.
        """
        if name not in self.left:
            raise ValueError(f"{self.origin} must hold {name!r}, got {sorted(self.left)}")
        return tuple(self.left[name].shape)

    def take(self, name: str, *shape: int) -> Tensor:
        """The tensor as float32, which is then no longer left.

        Raises:
            ValueError: if there is none of that name, or of another shape.
        """
        if self.shape(name) != shape:
            raise ValueError(
                f"{name!r} in {self.origin} must have shape {shape}, got {self.shape(name)}"
            )
        return self.left.pop(name).detach().to("cpu", torch.float32)

    def drop(self, *names: str) -> None:
        """Leave out tensors that say nothing new, if they are there."""
        for name in names:
            self.left.pop(name, None)

    def finish(self) -> None:
        """Refuse a checkpoint of which something is left.

        Raises:
            ValueError: naming what is left.
        """
        if self.left:
            raise ValueError(f"{self.origin} holds weights of parts unknown: {sorted(self.left)}")


def rows(matrix: Tensor, origin: Sequence[int]) -> Tensor:
    """Rows of a matrix, or of a vector, in a new order; zeros where the origin is -1.

    >>> rows(torch.tensor([[1.0], [2.0]]), [1, -1, 0]).flatten()
    tensor([2., 0., 1.])
    """
    index = torch.tensor(origin)
    found = matrix[index.clamp(min=0)]
    return found.masked_fill((index < 0).view(-1, *[1] * (matrix.dim() - 1)), 0)


def filled(config: Seq2SeqConfig, tensors: Mapping[str, Tensor]) -> Seq2Seq:
    """The model of a config with the given parameters, all of them, in evaluation mode."""
    model = Seq2Seq(config)
    model.load_state_dict(tensors, strict=True)
    return model.eval()


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What `torch.save` wrote, on the CPU; nothing in the file is executed.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no checkpoint of plain values and tensors, or no dict.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"path must be a file, got {path}")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (EOFError, OSError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} is no checkpoint of plain values: {error}") from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f"{path} must hold a dict, got {type(checkpoint).__name__}")
    return checkpoint


def num_layers(weights: Weights, pattern: str) -> int:
    """How many layers there are.

    Args:
        weights: those of a checkpoint.
        pattern: of the names, with ``{name}``, ``{layer}`` and, if it has directions, ``{suffix}``.
    """
    layer = 0
    while pattern.format(name="weight_hh", layer=layer, suffix="") in weights:
        layer += 1
    return layer


def take_layers(
    weights: Weights,
    pattern: str,
    *,
    gates: int,
    input_size: int,
    hidden_size: int,
    bidirectional: bool = False,
) -> dict[str, Tensor]:
    """Weights of a recurrent stack under `torch.nn`'s names.

    Args:
        weights: those of a checkpoint.
        pattern: as in `num_layers`.
        gates: 4 of an LSTM, 3 of a GRU, 1 of an RNN.
        input_size: features that the first layer reads.
        hidden_size: units of each layer and direction.
        bidirectional: whether there is a second direction.
    """
    found: dict[str, Tensor] = {}
    suffixes = ("", "_reverse") if bidirectional else ("",)
    for layer in range(num_layers(weights, pattern)):
        read = input_size if layer == 0 else hidden_size * len(suffixes)
        for suffix in suffixes:
            for name, columns in (
                ("weight_ih", (read,)),
                ("weight_hh", (hidden_size,)),
                ("bias_ih", ()),
                ("bias_hh", ()),
            ):
                found[f"{name}_l{layer}{suffix}"] = weights.take(
                    pattern.format(name=name, layer=layer, suffix=suffix),
                    gates * hidden_size,
                    *columns,
                )
    return found
