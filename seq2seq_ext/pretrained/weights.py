"""Arrays of a checkpoint, taken one by one with their shapes checked, none left over.

What is left over would be a part of the model that nobody computes: the answer would be wrong
without a word. So `Weights.finish` refuses it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
