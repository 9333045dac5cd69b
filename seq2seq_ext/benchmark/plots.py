"""Plots of a run's results, as PNG: roofline and speed-ups, and the scaling."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import geometric_mean
from typing import TYPE_CHECKING

from seq2seq_ext.benchmark.limits import Limits
from seq2seq_ext.benchmark.results import Results, Row, Sweep
from seq2seq_ext.benchmark.scaling import FULL_BATCH, flop_exponent, time_exponent, value_of
from seq2seq_ext.benchmark.shapes import CELLS, TRAINING, WORKS, threads_text
from seq2seq_ext.benchmark.workloads import OURS, PREPACKED, TORCH
from seq2seq_ext.plots.figures import COLOURS, as_png, figure_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NAMED = (TORCH, OURS, "onnxruntime", "openvino", PREPACKED)
_COLOURS = dict(zip(_NAMED, COLOURS, strict=False))
_OTHER_COLOURS = COLOURS[len(_NAMED) :]
MARKERS = {"LSTM": "o", "GRU": "s", "RNN": "^"}


def results_as_png(results: Results) -> bytes:
    """The roofline, and bars of the speed-ups over every peer; of the most threads measured."""
    threads = max(row.case.threads for row in results.rows)
    rows = [row for row in results.rows if row.case.threads == threads]
    dense = [row for row in rows if row.case.kind == "dense"]
    panels: dict[str, list[Row]] = {}
    for row in rows:
        case = row.case
        panels.setdefault(case.cell if case.kind == "dense" else case.kind, []).append(row)
    figure = figure_of(height=(4.6 if dense else 0.0) + 3.1 * len(panels) + 0.8)
    parts = figure.subfigures(
        1 + bool(dense),
        1,
        squeeze=False,
        height_ratios=[4.6, 3.1 * len(panels)] if dense else [1.0],
    )[:, 0]
    if dense:
        for axes, work in zip(parts[0].subplots(1, 2, sharey=True), WORKS, strict=True):
            of_work = [row for row in dense if row.case.work == work]
            _roofline(axes, results.limits[threads], of_work, work)
    grid = parts[-1].subplots(len(panels), 2, squeeze=False)
    for line, (name, of_panel) in zip(grid, panels.items(), strict=True):
        for axes, work in zip(line, WORKS, strict=True):
            _speedups(axes, [row for row in of_panel if row.case.work == work], f"{name} {work}")
    figure.suptitle(_title(results, threads))
    return as_png(figure)


def scaling_as_png(results: Results) -> bytes:
    """Times over each size, ours and torch's, with the fitted exponents."""
    sizes = list(dict.fromkeys(sweep.size for sweep in results.sweeps))
    threads = max(sweep.rows[0].case.threads for sweep in results.sweeps)
    figure = figure_of(height=3.6 * len(sizes) + 0.8)
    grid = figure.subplots(len(sizes), 2, squeeze=False)
    for line, size in zip(grid, sizes, strict=True):
        for axes, work in zip(line, WORKS, strict=True):
            axes.set(title=f"{work} over {size}", xlabel=size, ylabel="best time, ms")
            axes.set(xscale="log", yscale="log")
            axes.yaxis.set_major_formatter(lambda value, position: f"{value:g}")
            axes.grid(alpha=0.3)
            for sweep in results.sweeps:
                case = sweep.rows[0].case
                if (sweep.size, case.work, case.threads) == (size, work, threads):
                    _sweep(axes, sweep)
            if axes.has_data():
                axes.legend(
                    fontsize=7,
                    title_fontsize=8,
                    title="exponent of time (of the operations)",
                    loc="upper left",
                )
    figure.suptitle(_title(results, threads))
    return as_png(figure)


def _title(results: Results, threads: int) -> str:
    m = results.machine
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    title = f"{m['processor']}, {m['instruction set']}, {threads_text(threads)}, float32"
    lines = [title, versions]
    if results.disturbed:
        lines.append("The machine was not idle: not to be quoted")
    return "\n".join(lines)


def _roofline(axes: Axes, limits: Limits, rows: Sequence[Row], work: str) -> None:
    """Rates over operations per byte of recurrent weights; those of equal B apart by H."""
    if not rows:
        axes.set_axis_off()
        return
    widths = sorted({row.case.shape.hidden_size for row in rows})

    def intensity(row: Row) -> float:
        case = row.case
        apart = widths.index(case.shape.hidden_size) - (len(widths) - 1) / 2
        moved = 4 * case.recurrent_weights * sum(each.sweeps for each in case.passes)
        return float(case.flop / moved * 1.12**apart)

    places = [intensity(row) for row in rows]
    left, right = min(places) / 3.0, max(places) * 1.5
    lowest = min(row.case.flop / t.best / 1e9 for row in rows for t in row.times.values()) / 1.5
    peak = limits.peak / 1e9
    levels = {name: rate / 1e9 for name, rate in limits.bandwidth.items()}
    for name, rate in levels.items():
        end = min(right, peak / rate)
        if end > left:
            axes.plot([left, end], [left * rate, end * rate], color="0.6", lw=1, zorder=1)
            # Just within the plot, however slow the level.
            place = min(end, max(left, lowest / rate)) * 1.04
            axes.annotate(
                f"{name} {rate:.0f} GB/s",
                (place, place * rate),
                (0, 3),
                textcoords="offset points",
                rotation=38,
                rotation_mode="anchor",
                fontsize=7,
                color="0.4",
            )
    axes.plot([left, right], [peak, peak], color="black", lw=1.2, zorder=1)
    note = f"multiply-adds, {peak:.0f} GFLOP/s"
    axes.annotate(note, (right, peak), (-4, 4), textcoords="offset points", ha="right", fontsize=8)
    for name in dict.fromkeys(name for row in rows for name in row.times):
        for cell in CELLS:
            of_cell = [(p, r) for p, r in zip(places, rows, strict=True) if r.case.cell == cell]
            measured = [(place, row) for place, row in of_cell if name in row.times]
            ours = name == OURS
            axes.scatter(
                [place for place, _ in measured],
                [row.case.flop / row.times[name].best / 1e9 for _, row in measured],
                s=34 if ours else 20,
                marker=MARKERS[cell],
                facecolors=_COLOURS[name] if ours else "none",
                edgecolors=_COLOURS[name],
                linewidths=0.9,
                label=f"{name} {cell}" if measured else None,
                zorder=3 if ours else 2,
            )
    axes.set(
        title=f"roofline, {work}",
        xlabel="operations per byte of recurrent weights read "
        f"({'1.5 B' if work == TRAINING else 'B'} where I = H), by H sideways",
        xscale="log",
        yscale="log",
        xlim=(left, right),
        ylim=(lowest, peak * 1.6),
    )
    axes.xaxis.set_major_formatter(lambda value, position: f"{value:g}")
    axes.yaxis.set_major_formatter(lambda value, position: f"{value:g}")
    axes.set_ylabel("GFLOP/s, best")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, ncols=2, loc="lower right")


def _speedups(axes: Axes, rows: Sequence[Row], title: str) -> None:
    """Bars from 1: what is faster than the peer points up, what is slower down."""
    names = list(dict.fromkeys(name for row in rows for name in row.others if name != OURS))
    names = [name for name in names if not name.startswith(OURS)]
    if not names:
        axes.set_axis_off()
        return
    starred = [name for name in names if any(row.counterpart(name) == PREPACKED for row in rows)]
    width = 0.8 / len(names)
    others = iter(_OTHER_COLOURS)
    for index, name in enumerate(names):
        measured = [(place, row) for place, row in enumerate(rows) if name in row.times]
        speedups = [row.speedup(name) for _, row in measured]
        shift = (index - (len(names) - 1) / 2) * width
        axes.bar(
            [place + shift for place, _ in measured],
            [speedup - 1.0 for speedup in speedups],
            width,
            bottom=1.0,
            color=_COLOURS.get(name) or next(others),
            label=f"{name}{'*' * (name in starred)}, mean {geometric_mean(speedups):.2f}x",
            zorder=2,
        )
    axes.axhline(1.0, color="black", lw=1.0, zorder=3)
    set_speedup_scale(axes)
    axes.grid(axis="y", alpha=0.3, zorder=0)
    ylabel = "peer's best time over ours" + "\n* prepacked" * bool(starred)
    axes.set(ylabel=ylabel, xlim=(-0.6, len(rows) - 0.4))
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xticks(range(len(rows)), [_tick(row) for row in rows], fontsize=7)
    axes.legend(
        fontsize=7,
        loc="lower right",
        bbox_to_anchor=(1.01, 0.99),
        ncols=len(names),
        frameon=False,
        columnspacing=1.0,
        handlelength=1.2,
    )


def set_speedup_scale(axes: Axes) -> None:
    """Let y be a speed-up: powers of two, and 1 and 2 within the plot at least."""
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(lambda value, position: f"{value:g}x")
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, 0.7), max(high, 2.1))


def _tick(row: Row) -> str:
    shape = row.case.shape
    if row.case.kind == "dense":
        return f"H {shape.hidden_size}\nB {shape.batch_size}"
    parts = str(shape).split(" ")
    sizes = (f"{name} {value}" for name, value in zip(parts[::2], parts[1::2], strict=True))
    return "\n".join([row.case.cell, *sizes])


def _sweep(axes: Axes, sweep: Sweep) -> None:
    case = sweep.rows[0].case
    sizes = [value_of(row.case.shape, sweep.size) for row in sweep.rows]
    least = FULL_BATCH if sweep.size == "B" else 0
    for name in sweep.rows[0].times:
        label = f"{_label(name)} {case.cell} {time_exponent(sweep, name, least=least):.2f}"
        label += f" ({flop_exponent(sweep, least=least):.2f})"
        axes.plot(
            sizes,
            [1e3 * row.times[name].best for row in sweep.rows],
            marker=MARKERS[case.cell],
            markersize=4,
            color=_COLOURS[name],
            linestyle={"LSTM": "-", "GRU": "--", "RNN": ":"}[case.cell],
            lw=1.2,
            label=label + (f", from {least}" if least else ""),
        )
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()


def _label(name: str) -> str:
    return name.replace(OURS, "ours")
