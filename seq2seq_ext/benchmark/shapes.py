"""What is measured: cells, kinds of work, shapes and numbers of threads, in named sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
CELLS = tuple(GATES)
INFERENCE, TRAINING = "inference", "training"
WORKS = (INFERENCE, TRAINING)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a stack of layers and of its batch.

    Args:
        hidden_size: H.
        batch_size: B.
        time_steps: T, of the longest sequence.
        input_size: I.
        num_layers: L.
        num_directions: D, 1 or 2.
        proj_size: of an LSTM's projection; 0 for none.
    """

    hidden_size: int
    batch_size: int
    time_steps: int
    input_size: int
    num_layers: int = 1
    num_directions: int = 1
    proj_size: int = 0

    @property
    def output_size(self) -> int:
        """P, the features of h: the projection's or H."""
        return self.proj_size or self.hidden_size

    def __str__(self) -> str:
        text = f"H {self.hidden_size} B {self.batch_size} T {self.time_steps}"
        if self.input_size != self.hidden_size:
            text += f" I {self.input_size}"
        if self.num_layers > 1:
            text += f" L {self.num_layers}"
        if self.num_directions > 1:
            text += f" D {self.num_directions}"
        if self.proj_size:
            text += f" P {self.proj_size}"
        return text


class Pass(NamedTuple):
    """What forward or backward has to do.

    Args:
        flop: multiplications and additions of its matrix products.
        sweeps: how often it needs the recurrent weights of a layer and direction.
    """

    flop: int
    sweeps: int


@dataclass(frozen=True, kw_only=True)
class Task:
    """One kind of work at one shape, wherever it is done.

    Args:
        kind: ``"dense"``: sequences of equal length; ``"odd"``: those too, in shapes that fit
            badly; ``"lengths"``: of unequal length; ``"resets"``: episodes that end within them;
            ``"step"``: one call of a cell; ``"prepack"``: weights that stay packed, in smaller
            types too.
        cell: ``"LSTM"``, ``"GRU"`` or ``"RNN"``.
        work: ``"inference"``, or ``"training"``: forward, backward and all gradients.
        shape: the sizes.
    """

    kind: str
    cell: str
    work: str
    shape: Shape

    @property
    def device(self) -> str:
        """Where the work is done, as torch names it."""
        return "cpu"

    @property
    def dtype(self) -> torch.dtype:
        """Of weights, input and output."""
        return torch.float32

    @property
    def training(self) -> bool:
        """Whether backward follows."""
        return self.work == TRAINING

    @property
    def lengths(self) -> Tensor | None:
        """The lengths (B,) of unequal sequences, the same for the same shape; else None."""
        if self.kind != "lengths":
            return None
        return log_normal_lengths(self.shape.batch_size, self.shape.time_steps)

    @property
    def real_steps(self) -> int:
        """The sum of all sequences' lengths."""
        lengths = self.lengths
        if lengths is None:
            return self.shape.time_steps * self.shape.batch_size
        return int(lengths.sum())

    @property
    def forward_flop(self) -> int:
        """Multiplications and additions of W_ih x, W_hh h and the projection, of all real steps."""
        s = self.shape
        weights = self.input_weights + s.num_layers * s.num_directions * self.recurrent_weights
        return 2 * self.real_steps * weights

    @property
    def passes(self) -> tuple[Pass, ...]:
        """Forward, and in training backward.

        Backward does twice the work, for the inputs and for the weights, but for the gradient of
        the first state, which nobody asks for.
        """
        s = self.shape
        stacked = s.num_layers * s.num_directions
        forward = Pass(self.forward_flop, s.time_steps * stacked)
        if not self.training:
            return (forward,)
        first_state = 2 * s.batch_size * GATES[self.cell] * s.hidden_size * s.output_size * stacked
        return forward, Pass(2 * forward.flop - first_state, (s.time_steps - 1) * stacked)

    @property
    def flop(self) -> int:
        """Of the whole call."""
        return sum(each.flop for each in self.passes)

    @property
    def recurrent_weights(self) -> int:
        """How many one layer and direction has, those of the projection included."""
        s = self.shape
        return (GATES[self.cell] * s.output_size + s.proj_size) * s.hidden_size

    @property
    def input_weights(self) -> int:
        """How many all layers and directions have together."""
        s = self.shape
        widths = [s.input_size] + [s.num_directions * s.output_size] * (s.num_layers - 1)
        return GATES[self.cell] * s.hidden_size * sum(widths) * s.num_directions


@dataclass(frozen=True, kw_only=True)
class Case(Task):
    """One kind of work at one shape on the CPU.

    Args:
        threads: how many.
    """

    threads: int

    def __str__(self) -> str:
        return f"{self.cell} {self.work}, {self.kind}, {self.shape}, {threads_text(self.threads)}"


def threads_text(threads: int) -> str:
    """``1 thread``, ``2 threads``."""
    return f"{threads} thread{'s' * (threads > 1)}"


class ShapeSet(NamedTuple):
    """A named set of shapes.

    Args:
        kind: of its cases.
        shapes: the sizes.
        works: which kinds of work.
        is_grid: whether other sizes make sense; else the very shapes are the point.
        what: for the help.
    """

    kind: str
    shapes: tuple[Shape, ...]
    works: tuple[str, ...]
    is_grid: bool
    what: str

    def resized(
        self,
        name: str,
        hidden_sizes: Sequence[int],
        batch_sizes: Sequence[int],
        time_steps: Sequence[int],
    ) -> tuple[Shape, ...]:
        """Its shapes, with sizes that are given in the place of its own.

        Args:
            name: of the set, for the error.
            hidden_sizes: none for its own.
            batch_sizes: none for its own.
            time_steps: none for its own; a single step stays one.

        Raises:
            ValueError: if sizes are given and its very shapes are the point.
        """
        if not (hidden_sizes or batch_sizes or time_steps):
            return self.shapes
        if not self.is_grid:
            raise ValueError(f"the shapes of {name!r} are fixed: other sizes cannot be given")
        return grid(
            hidden_sizes or sorted({shape.hidden_size for shape in self.shapes}),
            batch_sizes or sorted({shape.batch_size for shape in self.shapes}),
            (1,)
            if self.kind == "step"
            else time_steps or sorted({shape.time_steps for shape in self.shapes}),
        )


def grid(
    hidden_sizes: Sequence[int], batch_sizes: Sequence[int], time_steps: Sequence[int]
) -> tuple[Shape, ...]:
    """One layer for each combination, its input as wide as its state."""
    return tuple(
        Shape(hidden_size=H, batch_size=B, time_steps=T, input_size=H)
        for T, H, B in product(time_steps, hidden_sizes, batch_sizes)
    )


SHAPE_SETS = {
    "standard": ShapeSet(
        "dense", grid((64, 128, 256, 512), (1, 8, 32, 64), (50,)), WORKS, True, "the grid"
    ),
    "quick": ShapeSet("dense", grid((64, 256), (1, 32), (50,)), WORKS, True, "four of its shapes"),
    "odd": ShapeSet(
        "odd",
        (
            Shape(input_size=40, hidden_size=256, num_layers=3, batch_size=16, time_steps=50),
            Shape(
                input_size=80,
                hidden_size=320,
                num_layers=2,
                num_directions=2,
                batch_size=16,
                time_steps=50,
            ),
            Shape(input_size=33, hidden_size=97, batch_size=5, time_steps=50),
            Shape(input_size=1, hidden_size=40, batch_size=32, time_steps=50),
        ),
        WORKS,
        False,
        "stacks, both directions, sizes that fill no vector",
    ),
    "lengths": ShapeSet(
        "lengths", grid((256,), (32,), (200,)), WORKS, True, "sequences of unequal length"
    ),
    # What a minibatch of recurrent PPO holds by default: in CleanRL 128 steps of 2 environments,
    # 128 units; in sb3-contrib 128 steps in one or a few sequences, 256 units. 8 is a larger one.
    "resets": ShapeSet(
        "resets",
        grid((64, 128, 256), (2, 8), (128,)),
        WORKS,
        True,
        "episodes ending in mid-sequence",
    ),
    "step": ShapeSet("step", grid((128, 256, 512), (1, 32), (1,)), WORKS, True, "cells"),
    "prepack": ShapeSet(
        "prepack", grid((512, 1024), (1,), (50,)), (INFERENCE,), True, "packed weights, bf16, int8"
    ),
}


def cases(
    sets: Sequence[str],
    *,
    cells: Sequence[str] = CELLS,
    works: Sequence[str] = WORKS,
    threads: Sequence[int],
    hidden_sizes: Sequence[int] = (),
    batch_sizes: Sequence[int] = (),
    time_steps: Sequence[int] = (),
) -> list[Case]:
    """The cases of named sets, each once; sizes that are given take the place of a set's own.

    Raises:
        ValueError: if sizes are given for a set whose very shapes are the point.
    """
    found: dict[Case, None] = {}
    for name in sets:
        chosen = SHAPE_SETS[name]
        shapes = chosen.resized(name, hidden_sizes, batch_sizes, time_steps)
        for number, cell, work, shape in product(threads, cells, works, shapes):
            if work in chosen.works:
                case = Case(kind=chosen.kind, cell=cell, work=work, shape=shape, threads=number)
                found[case] = None
    return list(found)


def log_normal_lengths(batch_size: int, max_length: int, *, seed: int = 0) -> Tensor:
    """Lengths (B,), int64 in 1..`max_length`, distributed as those of sentences are.

    The logarithm is normal with standard deviation 0.7; the median is a quarter of `max_length`,
    which the longest reaches.

    >>> lengths = log_normal_lengths(1000, 200)
    >>> int(lengths.min()) >= 1, int(lengths.max()), 45 < int(lengths.median()) < 55
    (True, 200, True)
    """
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(batch_size, generator=generator)
    lengths = (max_length / 4 * torch.exp(0.7 * normal)).round().clamp(1, max_length).long()
    lengths[lengths.argmax()] = max_length
    return lengths
