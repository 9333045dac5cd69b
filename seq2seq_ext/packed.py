"""Weights in the order in which the kernels read them, kept from call to call.

They are made anew on a change.  What is noticed when is told by :func:`seq2seq_ext.prepack`, how by
``csrc/cpu/fingerprint.h``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

__all__ = ["Packed"]

Block = TypeVar("Block")
Result = TypeVar("Result")


@dataclass(frozen=True)
class _Made(Generic[Block]):
    """What was packed, and of which weights in which state it was made.

    ``weights`` are aliases of them, so that their memory stays theirs: the operators know them by
    their address.
    """

    block: Block
    weights: list[Tensor]
    versions: list[int] | None


class Packed(Generic[Block]):
    """The packed weights of a layer.

    Threads may share one.  Copies and pickles of it start empty.

    Args:
        dtype: in which the weights are kept: None for their own (float32 for float16), bfloat16 or
            int8.  Weights in float64 are kept as they are.
    """

    def __init__(self, dtype: torch.dtype | None) -> None:
        self.dtype = dtype
        self._made: _Made[Block] | None = None
        self._turn = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.dtype,)

    def _pack(
        self, weights: list[Tensor], options: tuple[int, ...], dtype: torch.dtype | None
    ) -> Block:
        raise NotImplementedError

    def make(self, weights: Sequence[Tensor], options: tuple[int, ...]) -> _Made[Block]:
        """Pack ``weights``; ``options`` are what else :meth:`_pack` wants to know of the layer."""
        # The order matters: what another thread changes meanwhile is a change since then.
        versions = _versions(weights)
        dtype = None if weights[0].dtype == torch.float64 else self.dtype
        aliases = [weight.detach() for weight in weights]
        made = _Made(self._pack(aliases, options, dtype), aliases, versions)
        self._made = made
        return made

    def run(
        self,
        weights: Sequence[Tensor],
        options: tuple[int, ...],
        steps: int,
        call: Callable[[Block | None, int], Result],
    ) -> Result:
        """What ``call`` answers with what is packed of ``weights``, which require no gradient.

        Args:
            weights: the layer's, as they are now.
            options: as for :meth:`make`.
            steps: how many time steps the call has.
            call: is given the block, or None where weights are not to be packed, and the steps that
                calls have run before.  It raises a RuntimeError that begins with "packed: " where
                an operator finds that the block does not serve; then there is another one.
        """
        turn = self._turn
        self._turn = turn + steps
        made = self._made
        for _ in range(2):
            if made is not None and made.versions == _versions(weights):
                try:
                    return call(made.block, turn)
                except RuntimeError as error:
                    if not str(error).startswith("packed: "):
                        raise
            # Weights that are computed are other tensors in each call: packing would not pay.
            if not all(isinstance(weight, torch.nn.Parameter) for weight in weights):
                break
            made = self.make(weights, options)
        # Computed; or someone changes them all the time.
        return call(None, 0)


_version = attrgetter("_version")


def _versions(weights: Sequence[Tensor]) -> list[int] | None:
    try:
        return list(map(_version, weights))
    except RuntimeError:  # tensors made in inference mode have none
        return None
