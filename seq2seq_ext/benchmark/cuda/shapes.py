"""What is measured on a GPU: precisions and shapes, in named sets, the most telling first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product

import torch

from seq2seq_ext.benchmark.shapes import GATES, WORKS, Shape, ShapeSet, Task, grid

# Types by precision; TF32 is float32 in memory.
DTYPES = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "tf32": torch.float32,
    "fp32": torch.float32,
}
PRECISIONS = tuple(DTYPES)
# How far results may lie from torch's before they count as wrong, as a share of the largest value:
# rounding differs from step to step, and gradients of weights sum the noise of all of them. An
# error of the mathematics shows as a share near 1; finer ones are for the tests to find.
TOLERANCES = {"fp16": 2e-2, "bf16": 1e-1, "tf32": 2e-2, "fp32": 1e-3}


@dataclass(frozen=True, kw_only=True)
class CudaCase(Task):
    """One kind of work at one shape in one precision.

    Args:
        precision: of `PRECISIONS`.
        place: the device, as torch names it.
    """

    precision: str
    place: str = "cuda"

    def __str__(self) -> str:
        return f"{self.cell} {self.work}, {self.precision}, {self.kind}, {self.shape}"

    @property
    def device(self) -> str:
        return self.place

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.precision]

    def bytes_per_step(self, *, persistent: bool) -> float:
        """Bytes that a time step moves at least, forward and backward together.

        Each step reads x and writes y, and every unit's h is written once and read once by the
        others, in every layer and direction. Recurrent weights are read in every step, or where
        they stay on the chip once in a call; those of the input once in a call, for the products
        over all steps can share them. Backward moves the gradients of x, y and h likewise, reads
        the weights anew, writes the weights' gradients once, and reads the G gates of every unit
        and step that forward wrote.
        """
        s = self.shape
        stacked = s.num_layers * s.num_directions
        rows = self.real_steps / s.time_steps
        moved = rows * (s.input_size + s.num_directions * s.output_size)
        moved += 2 * rows * stacked * s.output_size
        recurrent = stacked * self.recurrent_weights
        once = self.input_weights + (recurrent if persistent else 0)
        moved += once / s.time_steps + (0 if persistent else recurrent)
        if self.training:
            moved *= 2
            moved += (self.input_weights + recurrent) / s.time_steps
            moved += 2 * rows * stacked * GATES[self.cell] * s.hidden_size
        return float(moved * self.dtype.itemsize)


def allow_tf32_in_cudnn(allow: bool) -> None:
    # Not by assignment to the flag, which torch forbids for good once its own test helpers are
    # imported; nor by its context manager, which sets all other flags as well.
    torch.backends.cudnn.set_flags(  # type: ignore[no-untyped-call]
        _allow_tf32=allow, _fp32_precision=None
    )


@contextmanager
def precision_set(name: str) -> Iterator[None]:
    """Within this context float32 products use TF32 for ``"tf32"`` and else do not."""
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    try:
        allow_tf32_in_cudnn(name == "tf32")
        torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
        yield
    finally:
        allow_tf32_in_cudnn(before[0])
        torch.set_float32_matmul_precision(before[1])


def _one(**sizes: int) -> Shape:
    sizes.setdefault("input_size", sizes["hidden_size"])
    return Shape(**sizes)


# In this order: a run that is cut short has the first.
CUDA_SHAPE_SETS = {
    "reference": ShapeSet(
        "dense",
        grid((768,), (16,), (1024,)),
        WORKS,
        True,
        "where cuDNN's persistent fp16 LSTM is at its best",
    ),
    "stacks": ShapeSet(
        "dense",
        (
            _one(hidden_size=512, batch_size=32, time_steps=256, num_layers=2),
            _one(hidden_size=512, batch_size=32, time_steps=256, num_directions=2),
            _one(hidden_size=256, batch_size=32, time_steps=256, num_layers=4, num_directions=2),
            _one(hidden_size=768, batch_size=16, time_steps=256, proj_size=256),
        ),
        WORKS,
        False,
        "several layers, both directions, an LSTM's projection",
    ),
    "lengths": ShapeSet(
        "lengths", grid((256, 768), (32,), (512,)), WORKS, True, "sequences of unequal length"
    ),
    "resets": ShapeSet(
        "resets", grid((256,), (8, 64), (128,)), WORKS, True, "episodes ending in mid-sequence"
    ),
    "small": ShapeSet("dense", grid((128,), (1, 32), (512,)), WORKS, True, "few units"),
    "grid": ShapeSet(
        "dense", grid((256, 1024, 2048), (1, 64, 200), (256,)), WORKS, True, "sizes in turn"
    ),
}


def cuda_cases(
    sets: Sequence[str],
    *,
    cells: Sequence[str],
    works: Sequence[str],
    precisions: Sequence[str],
    hidden_sizes: Sequence[int] = (),
    batch_sizes: Sequence[int] = (),
    time_steps: Sequence[int] = (),
    place: str = "cuda",
) -> list[CudaCase]:
    """The cases of named sets, each once; sizes that are given take the place of a set's own.

    Raises:
        ValueError: if sizes are given for a set whose very shapes are the point.
    """
    found: dict[CudaCase, None] = {}
    for name in sets:
        chosen = CUDA_SHAPE_SETS[name]
        shapes = chosen.resized(name, hidden_sizes, batch_sizes, time_steps)
        for shape, cell, precision, work in product(shapes, cells, precisions, works):
            if shape.proj_size and cell != "LSTM":
                continue
            case = CudaCase(
                kind=chosen.kind,
                cell=cell,
                work=work,
                shape=shape,
                precision=precision,
                place=place,
            )
            found[case] = None
    return list(found)
