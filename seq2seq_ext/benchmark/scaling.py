"""How time grows with each size: exponents, fitted where both axes are logarithmic.

A layer makes 2 T B G H (I + H) operations: time goes with T, with B, with H (I + H). So the
textbook's O(T H D), D being the width of the input, is the exponents 1 of T, 2 of H where I is H,
and less than 1 of I alone, for the recurrent half stays. Beside each exponent of time stands that
of the operations at the very same points. Below it lies what is spread over more work, such as the
reading of weights over more rows; above it would lie what gets worse with size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from seq2seq_ext.benchmark.results import Sweep
from seq2seq_ext.benchmark.shapes import Case, Shape
from seq2seq_ext.data.extras import require

BASE = Shape(hidden_size=256, batch_size=32, time_steps=50, input_size=256)
# Where more rows fill more of each tile and share each weight, until nothing is left to share.
FULL_BATCH = 32
_VALUES = {
    "T": (25, 50, 100, 200, 400, 800),
    "H": (64, 128, 256, 512, 1024),
    "B": (1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
    "I": (64, 128, 256, 512, 1024),
}


def sweep_cases(
    cells: Sequence[str], works: Sequence[str], threads: Sequence[int]
) -> dict[tuple[str, str, str, int], list[Case]]:
    """The cases of every sweep, by size, cell, work and threads."""
    return {
        (size, cell, work, number): [
            Case(kind="dense", cell=cell, work=work, shape=shape_at(size, value), threads=number)
            for value in values
        ]
        for number in threads
        for cell in cells
        for work in works
        for size, values in _VALUES.items()
    }


def shape_at(size: str, value: int) -> Shape:
    """The shape of a sweep where one size has this value; I goes with H."""
    if size == "H":
        return replace(BASE, hidden_size=value, input_size=value)
    return replace(BASE, **{_FIELDS[size]: value})


_FIELDS = {"T": "time_steps", "H": "hidden_size", "B": "batch_size", "I": "input_size"}


def value_of(shape: Shape, size: str) -> int:
    """The size that a sweep goes over."""
    value: int = getattr(shape, _FIELDS[size])
    return value


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The p of values = c sizes^p that fits best, by least squares of the logarithms.

    Raises:
        ValueError: if there are fewer than two points.
    """
    if len(sizes) < 2:
        raise ValueError(f"sizes must hold at least 2 points for a fit, got {len(sizes)}")
    numpy = require("numpy", extra="bench", purpose="a fit")
    slope, _ = numpy.polyfit(numpy.log(sizes), numpy.log(values), 1)
    return float(slope)


def time_exponent(sweep: Sweep, name: str, *, least: int = 0) -> float:
    """The exponent of a contestant's best times, of the rows from a size `least` on."""
    rows = [row for row in sweep.rows if value_of(row.case.shape, sweep.size) >= least]
    return exponent(
        [value_of(row.case.shape, sweep.size) for row in rows],
        [row.times[name].best for row in rows],
    )


def flop_exponent(sweep: Sweep, *, least: int = 0) -> float:
    """The exponent of the operations at the same points."""
    rows = [row for row in sweep.rows if value_of(row.case.shape, sweep.size) >= least]
    return exponent(
        [value_of(row.case.shape, sweep.size) for row in rows],
        [float(row.case.flop) for row in rows],
    )
