"""The plot of a run on a GPU, as PNG: speed-ups over torch, a panel for each precision and work."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import geometric_mean
from typing import TYPE_CHECKING

from seq2seq_ext.benchmark.cuda.results import GRAPH, CudaResults, CudaRow
from seq2seq_ext.benchmark.cuda.shapes import PRECISIONS
from seq2seq_ext.benchmark.plots import MARKERS, set_speedup_scale
from seq2seq_ext.benchmark.shapes import WORKS
from seq2seq_ext.benchmark.workloads import TORCH
from seq2seq_ext.plots.figures import as_png, figure_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colours that the colour-blind can tell apart too (Okabe and Ito, 2008).
_COLOURS = {"LSTM": "#D55E00", "GRU": "#0072B2", "RNN": "#009E73"}


def results_as_png(results: CudaResults) -> bytes:
    """Speed-ups over `torch.nn` and over its replayed graph, by shape.

    Raises:
        ValueError: if no row has times.
    """
    rows = results.timed
    if not rows:
        raise ValueError("nothing to draw: no row has times")
    precisions = [name for name in PRECISIONS if any(r.case.precision == name for r in rows)]
    works = [work for work in WORKS if any(row.case.work == work for row in rows)]
    figure = figure_of(height=4.4 * len(precisions) + 0.8)
    grid = figure.subplots(len(precisions), len(works), squeeze=False)
    for line, precision in zip(grid, precisions, strict=True):
        for axes, work in zip(line, works, strict=True):
            of_panel = [r for r in rows if (r.case.precision, r.case.work) == (precision, work)]
            _speedups(axes, of_panel, f"{precision} {work}")
    d = results.device
    title = f"{d['device']}, driver {d['driver']}, cuDNN {d['cuDNN']}, torch {d['torch']}"
    if results.bad or results.cut:
        title += f"\n{len(results.bad)} rows wrong or failed, {len(results.cut)} cut"
    figure.suptitle(title)
    return as_png(figure)


def _speedups(axes: Axes, rows: Sequence[CudaRow], title: str) -> None:
    """Points over 1 are faster than torch; hollow ones compare graphs."""
    if not rows:
        axes.set_axis_off()
        return
    places = {key: place for place, key in enumerate(dict.fromkeys(map(_tick, rows)))}
    for cell, colour in _COLOURS.items():
        for name in (TORCH, f"{TORCH} {GRAPH}"):
            measured = [row for row in rows if row.case.cell == cell and name in row.times]
            if not measured:
                continue
            speedups = [row.speedup(name) for row in measured]
            of_graphs = f", {GRAPH}s" * (name != TORCH)
            axes.scatter(
                [places[_tick(row)] for row in measured],
                speedups,
                s=34,
                marker=MARKERS[cell],
                facecolors="none" if of_graphs else colour,
                edgecolors=colour,
                linewidths=1.1,
                label=f"{cell}{of_graphs}, mean {geometric_mean(speedups):.2f}x",
                zorder=2,
            )
    axes.axhline(1.0, color="black", lw=1.0, zorder=1)
    set_speedup_scale(axes)
    axes.grid(alpha=0.3, zorder=0)
    axes.set(ylabel="torch's best time over ours", xlim=(-0.6, len(places) - 0.4))
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xticks(range(len(places)), list(places), fontsize=7, rotation=60, ha="right")
    axes.legend(fontsize=7, frameon=False, loc="lower right", bbox_to_anchor=(1.01, 0.99), ncols=2)


def _tick(row: CudaRow) -> str:
    case = row.case
    return str(case.shape) if case.kind == "dense" else f"{case.shape} {case.kind}"
