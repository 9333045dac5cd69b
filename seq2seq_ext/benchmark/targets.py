"""What the engine is to reach, beside what a run found: one line each, met or not.

A target is judged by the rows that belong to it, as many of them as the run has; where it has none
the target is left out. Beside a speed-up stands what it would be if ours took exactly the least
time that the machine allows (`limits`): a target above that cannot be met there by anyone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import geometric_mean
from typing import NamedTuple

import torch

from seq2seq_ext.benchmark.results import Results, Row
from seq2seq_ext.benchmark.scaling import FULL_BATCH, time_exponent, value_of
from seq2seq_ext.benchmark.shapes import INFERENCE, TRAINING, threads_text
from seq2seq_ext.benchmark.workloads import OURS, PREPACKED, TORCH, narrow_name

ONNXRUNTIME = "onnxruntime"
# No row may come closer to a peer than this.
_LEAST_SPEEDUP = 1.05


@dataclass(frozen=True, kw_only=True)
class Target:
    """One thing to reach.

    Args:
        what: cell, work, shapes and threads.
        required: the figure to reach, as text.
        got: the figure found.
        met: whether it is reached.
        at_limit: the figure at the machine's limit, as text; empty for what is no speed-up.
        possible: whether the limit allows it.
    """

    what: str
    required: str
    got: str
    met: bool
    at_limit: str = ""
    possible: bool = True

    @property
    def verdict(self) -> str:
        """For the column "met"."""
        return "yes" if self.met else "**no**" if self.possible else "**beyond the limit**"


class BatchGroup(NamedTuple):
    """Rows of similar batch sizes, whose speed-ups have one mean.

    Args:
        name: for tables.
        batch_sizes: the least and the largest B.
        hidden_sizes: the least and the largest H.
    """

    name: str
    batch_sizes: tuple[int, int]
    hidden_sizes: tuple[int, int]

    def holds(self, row: Row) -> bool:
        """Whether a row belongs to it."""
        shape = row.case.shape
        return (
            self.batch_sizes[0] <= shape.batch_size <= self.batch_sizes[1]
            and self.hidden_sizes[0] <= shape.hidden_size <= self.hidden_sizes[1]
        )


SMALL = BatchGroup("B 1–8, H 64–512", (1, 8), (64, 512))
LARGE = BatchGroup("B 32–64, H 128–512", (32, 64), (128, 512))

# Cell, work, group of batch sizes: the geometric mean of speed-ups to reach, by peer.
_SPEEDUPS: dict[tuple[str, str, BatchGroup], dict[str, float]] = {
    ("LSTM", INFERENCE, SMALL): {TORCH: 2.0, ONNXRUNTIME: 1.4},
    ("LSTM", INFERENCE, LARGE): {TORCH: 1.5, ONNXRUNTIME: 1.25},
    ("GRU", INFERENCE, SMALL): {TORCH: 4.0, ONNXRUNTIME: 1.5},
    ("GRU", INFERENCE, LARGE): {TORCH: 2.0, ONNXRUNTIME: 1.35},
    ("LSTM", TRAINING, SMALL): {TORCH: 2.5},
    ("LSTM", TRAINING, LARGE): {TORCH: 1.3},
    ("GRU", TRAINING, SMALL): {TORCH: 5.0},
    ("GRU", TRAINING, LARGE): {TORCH: 1.8},
}
_SPEEDUPS_ODD = {TORCH: 1.5, ONNXRUNTIME: 1.2}
_SHARE_OF_PEAK = {INFERENCE: 0.80, TRAINING: 0.75}
_SPEEDUPS_LENGTHS = {INFERENCE: 3.0, TRAINING: 6.0}
_SPEEDUPS_SMALL_TYPES = {torch.int8: 2.0, torch.bfloat16: 1.5}


def targets(results: Results) -> list[Target]:
    """All targets that the run's rows tell something about."""
    found: list[Target] = []
    for threads in sorted({row.case.threads for row in results.rows}):
        rows = [row for row in results.rows if row.case.threads == threads]
        ending = threads_text(threads)
        for parts in (_dense, _odd, _small_types, _lengths, _resets, _near_the_peak):
            found += parts(results, rows, ending)
    found += _exponents(results)
    found += _busy(results)
    return found


def _dense(results: Results, rows: Sequence[Row], ending: str) -> Iterator[Target]:
    dense = [row for row in rows if row.case.kind == "dense"]
    for (cell, work, group), required in _SPEEDUPS.items():
        of_work = [row for row in dense if (row.case.cell, row.case.work) == (cell, work)]
        of_group = [row for row in of_work if group.holds(row)]
        for peer, least in required.items():
            what = f"{cell} {work}, {group.name}, {ending}"
            yield from _mean_speedup(results, of_group, peer, least, what)
            if group is LARGE:
                what = f"{cell} {work}, every row, {ending}"
                yield from _lowest_speedup(results, of_work, peer, what)


def _odd(results: Results, rows: Sequence[Row], ending: str) -> Iterator[Target]:
    odd = [row for row in rows if row.case.kind == "odd"]
    for cell, work in _cells_and_works(odd):
        of_work = [row for row in odd if (row.case.cell, row.case.work) == (cell, work)]
        for peer, least in _SPEEDUPS_ODD.items():
            what = f"{cell} {work}, odd shapes, {ending}"
            yield from _mean_speedup(results, of_work, peer, least, what)


def _near_the_peak(results: Results, rows: Sequence[Row], ending: str) -> Iterator[Target]:
    for row in rows:
        case = row.case
        sizes = (case.kind, case.shape.hidden_size, case.shape.batch_size)
        if sizes != ("dense", 512, 64):
            continue
        share, least = results.share_of_peak(row), _SHARE_OF_PEAK[case.work]
        yield Target(
            what=f"{case.cell} {case.work}, H 512 B 64, share of the FMA peak, {ending}",
            required=f">= {least:.0%}",
            got=f"{share:.1%}",
            met=share >= least,
        )


def _small_types(results: Results, rows: Sequence[Row], ending: str) -> Iterator[Target]:
    for row in rows:
        for dtype, least in _SPEEDUPS_SMALL_TYPES.items():
            name = narrow_name(dtype)
            if row.case.kind == "prepack" and {name, PREPACKED} <= row.times.keys():
                speedup = row.times[PREPACKED].best / row.times[name].best
                at_limit = results.speedup_at_limit(row, PREPACKED, dtype)
                what = f"{row.case.cell} {row.case.shape}, {_short(name)} over float32, {ending}"
                yield _at_least(what, least, speedup, at_limit=at_limit)


def _lengths(results: Results, rows: Sequence[Row], ending: str) -> Iterator[Target]:
    for row in rows:
        case = row.case
        if case.kind != "lengths":
            continue
        for name in (OURS, f"{OURS} packed"):
            way = "packed" if name.endswith("packed") else "lengths="
            what = f"{case.cell} {case.work}, unequal lengths, {way}"
            mine = row.times[name].best
            if TORCH in row.times:
                yield _at_least(
                    f"{what}, over torch packed, {ending}",
                    _SPEEDUPS_LENGTHS[case.work],
                    row.times[TORCH].best / mine,
                    at_limit=results.speedup_at_limit(row, TORCH),
                )
            padded = case.shape.time_steps * case.shape.batch_size
            ideal = row.times[f"{OURS} dense"].best * case.real_steps / padded
            yield _at_least(
                f"{what}, ideal share of the dense time over ours, {ending}", 0.85, ideal / mine
            )


def _resets(results: Results, rows: Sequence[Row], ending: str) -> Iterator[Target]:
    of_kind = [row for row in rows if row.case.kind == "resets"]
    for cell, work in _cells_and_works(of_kind):
        of_work = [row for row in of_kind if (row.case.cell, row.case.work) == (cell, work)]
        costs = [row.ours.best / row.times[f"{OURS} without resets"].best for row in of_work]
        cost = geometric_mean(costs)
        yield Target(
            what=f"{cell} {work}, resets over none, {ending}",
            required="<= 1.05x",
            got=f"{cost:.2f}x (highest {max(costs):.2f}x)",
            met=cost <= 1.05,
        )
        what = f"{cell} {work}, resets, {ending}"
        yield from _mean_speedup(results, of_work, TORCH, 15.0, what)


def _exponents(results: Results) -> Iterator[Target]:
    for sweep in results.sweeps:
        case = sweep.rows[0].case
        what = f"{case.cell} {case.work}, exponent of {sweep.size}"
        least = FULL_BATCH if sweep.size == "B" else 0
        sizes = [value_of(row.case.shape, sweep.size) for row in sweep.rows]
        if sweep.size not in ("T", "B") or sum(size >= least for size in sizes) < 2:
            continue
        if least:
            what += f" from {least}"
        found = time_exponent(sweep, OURS, least=least)
        yield Target(
            what=f"{what}, {threads_text(case.threads)}",
            required="<= 1.05",
            got=f"{found:.2f}",
            met=found <= 1.05,
        )


def _busy(results: Results) -> Iterator[Target]:
    for threads in sorted({row.case.threads for row in results.busy}):
        rows = [row for row in results.busy if row.case.threads == threads]
        worst = max(rows, key=lambda row: row.slowdown(OURS))
        slowdown = worst.slowdown(OURS)
        yield Target(
            what=f"slowest row with a busy core, {threads_text(threads)}",
            required="<= 3.00x",
            got=f"{slowdown:.2f}x ({worst.case.cell} {worst.case.work} {worst.case.shape})",
            met=slowdown <= 3.0,
        )


def _cells_and_works(rows: Iterable[Row]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((row.case.cell, row.case.work) for row in rows))


def _short(name: str) -> str:
    return name.removeprefix(f"{OURS} ")


def _mean_speedup(
    results: Results, rows: Sequence[Row], peer: str, least: float, what: str
) -> Iterator[Target]:
    measured = [row for row in rows if peer in row.times]
    if measured:
        yield _at_least(
            f"{what}, geometric mean {_over(measured, peer)}",
            least,
            geometric_mean(row.speedup(peer) for row in measured),
            f" of {len(measured)} rows",
            at_limit=geometric_mean(results.speedup_at_limit(row, peer) for row in measured),
        )


def _lowest_speedup(
    results: Results, rows: Sequence[Row], peer: str, what: str
) -> Iterator[Target]:
    measured = [row for row in rows if peer in row.times]
    if measured:
        lowest = min(measured, key=lambda row: row.speedup(peer))
        yield _at_least(
            f"{what}, lowest {_over(measured, peer)}",
            _LEAST_SPEEDUP,
            lowest.speedup(peer),
            f" at {lowest.case.shape}",
            at_limit=min(results.speedup_at_limit(row, peer) for row in measured),
        )


def _over(rows: Sequence[Row], peer: str) -> str:
    prepacked = any(row.counterpart(peer) == PREPACKED for row in rows)
    return "of prepacked " * prepacked + f"over {peer}"


def _at_least(
    what: str, least: float, found: float, where: str = "", *, at_limit: float | None = None
) -> Target:
    return Target(
        what=what,
        required=f">= {least:.2f}x",
        got=f"{found:.2f}x{where}",
        met=found >= least,
        at_limit="" if at_limit is None else f"{at_limit:.2f}x",
        possible=at_limit is None or at_limit >= least,
    )
