"""The rows of a comparison, and their forms: Markdown tables, JSON, a plot of the speed-ups."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from workloads import GATES

from seq2seq_ext.cli.timing import Timing

WORKS: tuple[Literal["inference"], Literal["training"]] = ("inference", "training")

DISTURBED = "The machine was not idle: these figures, ratios included, are not to be quoted."


@dataclass(frozen=True, kw_only=True)
class Row:
    """One kind of work at one shape, by both sides.

    Args:
        cell: ``"LSTM"``, ``"GRU"`` or ``"RNN"``.
        work: ``"inference"``, or ``"training"``: forward, backward and all gradients.
        way: ``"dense"``; for unequal lengths ``"lengths"`` or ``"packed"``, where the peer's is
            always packed.
        hidden_size: H, the width of the input too.
        batch_size: B.
        time_steps: T, of the longest sequence.
        real_steps: the sum of all sequences' lengths.
        ours: of `seq2seq_ext`.
        peer: of `torch.nn`.
    """

    cell: str
    work: str
    way: str
    hidden_size: int
    batch_size: int
    time_steps: int
    real_steps: int
    ours: Timing
    peer: Timing

    @property
    def speedup(self) -> Timing:
        """The peer's time over ours: of the best times, and of the medians."""
        return Timing(self.peer.best / self.ours.best, self.peer.median / self.ours.median)

    @property
    def flop(self) -> int:
        """Multiplications and additions of the matrix products; training needs them three times.

        For W_ih x and W_hh h forward, the gradients of x and h, and those of W_ih and W_hh.
        """
        forward = 2 * self.real_steps * GATES[self.cell] * self.hidden_size * 2 * self.hidden_size
        return forward if self.work == "inference" else 3 * forward

    def share_of(self, peak: float) -> float:
        """Our best as a share of `peak`, FLOP a second."""
        return self.flop / self.ours.best / peak


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All that one run measured.

    Args:
        machine: of `machine.description`.
        peak: FLOP a second, of `machine.fma_peak`.
        repeats: samples behind each best and median.
        cores_used_by_others: of `machine.OtherPrograms`, over the whole run.
        rows: in the order they were measured.
    """

    machine: dict[str, str]
    peak: float
    repeats: int
    cores_used_by_others: float
    rows: Sequence[Row]

    @property
    def disturbed(self) -> bool:
        """Whether other programs used more than a twentieth of the cores."""
        return self.cores_used_by_others > 0.05 * int(self.machine["cores"])

    def of(self, cell: str, work: str) -> list[Row]:
        """The dense rows of a cell and a kind of work."""
        return [r for r in self.rows if (r.cell, r.work, r.way) == (cell, work, "dense")]

    def cells(self) -> list[str]:
        """The cells, in the order measured."""
        return list(dict.fromkeys(row.cell for row in self.rows))


def geometric_mean(rows: Iterable[Row]) -> Timing:
    """The geometric means of the rows' speed-ups."""
    speedups = [row.speedup for row in rows]

    def mean(values: list[float]) -> float:
        return math.exp(sum(map(math.log, values)) / len(values))

    return Timing(mean([s.best for s in speedups]), mean([s.median for s in speedups]))


def as_json(comparison: Comparison) -> dict[str, Any]:
    """The comparison as values that JSON can hold; times in seconds."""
    return {
        "machine": comparison.machine,
        "fma_peak_flop_per_second": comparison.peak,
        "repeats": comparison.repeats,
        "cores_used_by_others": comparison.cores_used_by_others,
        "disturbed": comparison.disturbed,
        "geometric_means": [
            {"cell": cell, "work": work, **geometric_mean(comparison.of(cell, work))._asdict()}
            for cell in comparison.cells()
            for work in WORKS
        ],
        "rows": [
            {
                "cell": row.cell,
                "work": row.work,
                "way": row.way,
                "hidden_size": row.hidden_size,
                "batch_size": row.batch_size,
                "time_steps": row.time_steps,
                "real_steps": row.real_steps,
                "flop": row.flop,
                "seq2seq_ext_seconds": row.ours._asdict(),
                "torch_seconds": row.peer._asdict(),
                "speedup": row.speedup._asdict(),
                "share_of_peak": row.share_of(comparison.peak),
            }
            for row in comparison.rows
        ],
    }


def as_markdown(comparison: Comparison) -> str:
    """The tables, in Markdown: geometric means, unequal lengths, every shape."""
    parts = [_opening(comparison), _summary(comparison)]
    unequal = [row for row in comparison.rows if row.way != "dense"]
    if unequal:
        first = unequal[0]
        real = first.real_steps / (first.batch_size * first.time_steps)
        parts.append(
            f"**Unequal lengths**: B {first.batch_size}, T up to {first.time_steps}, log-normal, "
            f"{real:.0%} of the padded steps real, H {first.hidden_size}; `torch.nn` packed.\n\n"
            + _table(
                ("cell", "work", "ours", *_FIGURES),
                ((r.cell, r.work, r.way, *_figures(r, comparison.peak)) for r in unequal),
            )
        )
    for cell in comparison.cells():
        for work in WORKS:
            rows = comparison.of(cell, work)
            parts.append(
                f"**{cell}, {work}**, T {rows[0].time_steps}\n\n"
                + _table(
                    ("H", "B", *_FIGURES),
                    (
                        (str(r.hidden_size), str(r.batch_size), *_figures(r, comparison.peak))
                        for r in rows
                    ),
                )
            )
    return "\n\n".join(parts) + "\n"


def _opening(comparison: Comparison) -> str:
    m = comparison.machine
    text = (
        f"{m['processor']}, {m['cores']} cores, {m['threads']} threads, {m['instruction set']}; "
        f"torch {m['torch']}, seq2seq_ext {m['seq2seq_ext']} ({m['compiler']}). Float32. Ours and "
        f"`torch.nn` in turn, {comparison.repeats} samples each; a speed-up is `torch.nn`'s time "
        f"over ours. The peak is that of a large matrix product in the same run, "
        f"{comparison.peak / 1e9:.0f} GFLOP/s; our share of it is at our best time. Other programs "
        f"used {comparison.cores_used_by_others:.2f} cores meanwhile."
    )
    if comparison.disturbed:
        text += f"\n\n**{DISTURBED}**"
    return text


_FIGURES = (
    "torch best, ms",
    "median",
    "ours best, ms",
    "median",
    "speed-up of best",
    "of median",
    "our share of peak",
)


def _figures(row: Row, peak: float) -> tuple[str, ...]:
    milliseconds = (1e3 * t for timing in (row.peer, row.ours) for t in timing)
    return (
        *(f"{t:.3f}" if t < 10 else f"{t:.1f}" for t in milliseconds),
        *(f"{s:.2f}x" for s in row.speedup),
        f"{row.share_of(peak):.0%}",
    )


def _summary(comparison: Comparison) -> str:
    lines = []
    for cell in comparison.cells():
        for work in WORKS:
            rows = comparison.of(cell, work)
            mean, speedups = geometric_mean(rows), [row.speedup.median for row in rows]
            lost = sum(speedup < 1.0 for speedup in speedups)
            figures = (mean.best, mean.median, min(speedups), max(speedups))
            lines.append((cell, work, *(f"{f:.2f}x" for f in figures), f"{lost} of {len(rows)}"))
    title = "**Speed-up over `torch.nn`**, geometric mean over the shapes below\n\n"
    header = ("cell", "work", "of best", "of median", "lowest", "highest", "shapes lost")
    return title + _table(header, lines)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the columns of figures stand to the right."""
    body = [tuple(row) for row in rows]
    figures = [all(row[i][:1].isdigit() for row in body) for i in range(len(header))]
    rule = ["---:" if figure else "---" for figure in figures]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, rule, *body))


def as_png(comparison: Comparison) -> bytes:
    """Bars of the dense rows' speed-ups, by shape and cell; needs matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cells = comparison.cells()
    figure = Figure(figsize=(11, 7), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, work in zip(figure.subplots(2, 1, sharex=True), WORKS, strict=True):
        width = 0.8 / len(cells)
        for i, cell in enumerate(cells):
            rows = comparison.of(cell, work)
            mean = geometric_mean(rows).median
            centres = [n + (i - (len(cells) - 1) / 2) * width for n in range(len(rows))]
            # From 1: what is faster points up, what is slower points down.
            heights = [row.speedup.median - 1.0 for row in rows]
            label = f"{cell}, mean {mean:.2f}x"
            axes.bar(centres, heights, width, bottom=1.0, label=label, zorder=2)
        axes.axhline(1.0, color="black", linewidth=1.0, zorder=3)
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_formatter(lambda value, position: f"{value:g}x")
        axes.grid(axis="y", alpha=0.3, zorder=0)
        axes.set_ylabel(f"{work}: torch.nn's median over ours")
        axes.set_xticks(
            range(len(rows)), [f"H {r.hidden_size}\nB {r.batch_size}" for r in rows], fontsize=8
        )
        axes.legend()
    m = comparison.machine
    figure.suptitle(
        f"seq2seq_ext beside torch.nn {m['torch']}, float32, T {rows[0].time_steps}: "
        f"{m['processor']}, {m['threads']} threads, {m['instruction set']}"
        + (f"\n{DISTURBED}" if comparison.disturbed else "")
    )
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    return image.getvalue()
