"""What a search sees of a model: a step, and a state that can select rows.

A search knows nothing of encoders or cells. It moves rows by `select` alone, so that a state
decides what is copied and what, such as an encoder's memory, may be shared.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

from torch import Tensor


class SearchState(Protocol):
    """What a search needs of a decoder's state.

    A decoder with attention has one attribute more, ``alignments``: the weights ``(N, S)`` that its
    latest step gave to the S positions of the source.
    """

    def select(self: StateT, rows: Tensor) -> StateT:
        """The state of the given rows (int64 indices into the batch), in their order."""
        ...


StateT = TypeVar("StateT", bound=SearchState)


class StepModel(Protocol[StateT]):
    """What a search needs of a model."""

    def start(self, source: Tensor, source_lengths: Tensor | None = None) -> StateT:
        """Read the source: the state of every row before its first token."""
        ...

    def step(self, tokens: Tensor, state: StateT) -> tuple[Tensor, StateT]:
        """One step: int64 ``(N,)`` -> logits ``(N, V)``, a fresh tensor, and the new state."""
        ...


def alignments_of(state: SearchState, argument: str) -> Tensor:
    """The latest step's alignments ``(N, S)``.

    Raises:
        ValueError: if there are none, naming the argument that asks for them.
    """
    alignments: Tensor | None = getattr(state, "alignments", None)
    if alignments is None:
        raise ValueError(
            f"{argument} needs a model with attention, got one whose state has no alignments"
        )
    return alignments
