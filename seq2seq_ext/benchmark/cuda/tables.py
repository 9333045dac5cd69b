"""Tables of a run on a GPU, in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import geometric_mean

from seq2seq_ext.benchmark.cuda.results import CudaResults, CudaRow
from seq2seq_ext.benchmark.tables import label, milliseconds, table
from seq2seq_ext.benchmark.workloads import TORCH


def as_markdown(results: CudaResults) -> str:
    """Everything that a run found: the device, what is wrong, means, every row, what was cut."""
    parts = [_opening(results), _bad(results), _means(results), *_all_rows(results), _cut(results)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _opening(results: CudaResults) -> str:
    d = results.device
    versions = ", ".join(f"{name} {d[name]}" for name in ("driver", "CUDA", "cuDNN", "torch"))
    return (
        f"{d['device']}, capability {d['capability']}, {d['multiprocessors']} multiprocessors, "
        f"{d['memory']}; {versions}, seq2seq_ext {d['seq2seq_ext']}; {d['date']}. "
        f"{len(results.rows)} rows in {results.seconds:.0f} s, up to {results.repeats} turns each."
    )


def _bad(results: CudaResults) -> str:
    if not results.bad:
        return ""
    lines = [
        (str(row.case), "wrong" if row.wrong else "failed", row.wrong or row.failed)
        for row in results.bad
    ]
    title = f"**{len(lines)} of {len(results.rows)} rows are wrong or failed**, and have no times"
    return f"{title}\n\n" + table(("case", "", "why"), lines)


def _means(results: CudaResults) -> str:
    """Geometric means of the speed-ups, by precision, kind and work."""
    groups: dict[tuple[str, ...], list[float]] = {}
    for row in results.timed:
        case = row.case
        for peer in row.peers:
            group = (case.precision, case.kind, case.cell, case.work, peer)
            groups.setdefault(group, []).append(row.speedup(peer))
    if not groups:
        return ""
    lines = [
        (
            *group,
            f"{geometric_mean(speedups):.2f}x",
            f"{min(speedups):.2f}x",
            f"{max(speedups):.2f}x",
            f"{sum(speedup < 1.0 for speedup in speedups)} of {len(speedups)}",
        )
        for group, speedups in groups.items()
    ]
    header = ("precision", "kind", "cell", "work", "peer", "mean", "lowest", "highest", "rows lost")
    return "**Speed-ups**, geometric means of best times; a graph's are over a graph\n\n" + table(
        header, lines
    )


def _all_rows(results: CudaResults) -> list[str]:
    groups: dict[tuple[str, str, str], list[CudaRow]] = {}
    for row in results.timed:
        groups.setdefault((row.case.kind, row.case.cell, row.case.work), []).append(row)
    parts = []
    for (kind, cell, work), rows in groups.items():
        notes = dict.fromkeys(note for row in rows for note in row.notes)
        parts.append(
            "\n\n".join(
                [f"**{cell}, {work}, {kind}**", _rows_table(rows), *(f"- {note}" for note in notes)]
            )
        )
    return parts


def _rows_table(rows: Sequence[CudaRow]) -> str:
    """One line a row; ``!`` marks one that is lost to a peer."""
    names = list(dict.fromkeys(name for row in rows for name in row.others))
    header = ["shape", "precision", "torch's algorithm", "ours best, ms", "median", "µs a step"]
    header += ["TFLOP/s", "KiB a step, persistent", "standard"]
    for name in names:
        header += [f"{label(name)} best, ms", "median"]
        header += ["µs a step", "speed-up"] if name.startswith(TORCH) else ["ratio"]
    return table(header, [_line(row, names) for row in rows])


def _line(row: CudaRow, names: Sequence[str]) -> list[str]:
    case, ours = row.case, next(iter(row.times))
    line = [
        str(case.shape),
        case.precision,
        " / ".join(row.algorithms),
        milliseconds(row.ours.best),
        milliseconds(row.ours.median),
        f"{1e6 * row.step_seconds(ours):.2f}",
        f"{row.rate(ours) / 1e12:.2f}",
        *(f"{case.bytes_per_step(persistent=each) / 2**10:.0f}" for each in (True, False)),
    ]
    for name in names:
        is_peer = name.startswith(TORCH)
        if name not in row.times:
            line += [""] * (4 if is_peer else 3)
            continue
        timing, speedup = row.times[name], row.speedup(name)
        line += [milliseconds(timing.best), milliseconds(timing.median)]
        if is_peer:
            line.append(f"{1e6 * row.step_seconds(name):.2f}")
        line.append(f"{speedup:.2f}x" + "!" * (is_peer and speedup < 1.0))
    return line


def _cut(results: CudaResults) -> str:
    if not results.cut:
        return ""
    lines = "\n".join(f"- {case}" for case in results.cut)
    return f"**{len(results.cut)} rows were cut** for want of time:\n\n{lines}"
