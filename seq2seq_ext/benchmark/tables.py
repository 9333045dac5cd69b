"""Tables of a run's results, in Markdown that reads well in a terminal too."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import geometric_mean

from seq2seq_ext.benchmark.results import Results, Row
from seq2seq_ext.benchmark.workloads import OURS

DISTURBED = "The machine was not idle: these figures, ratios included, are not to be quoted."


def as_markdown(results: Results) -> str:
    """All tables: geometric means, then every row."""
    parts = [opening(results)]
    groups: dict[tuple[str, str, str, int], list[Row]] = {}
    for row in results.rows:
        case = row.case
        groups.setdefault((case.kind, case.cell, case.work, case.threads), []).append(row)
    for (kind, cell, work, threads), rows in groups.items():
        title = f"**{cell}, {work}, {kind}, {threads} thread{'s' * (threads > 1)}**"
        parts.append(f"{title}\n\n{_rows_table(results, rows)}")
    return "\n\n".join(parts) + "\n"


def opening(results: Results) -> str:
    """The machine, the versions and the limits."""
    m = results.machine
    lines = [
        f"{m['processor']}, {m['cores']} cores, {m['instruction set']}; "
        + ", ".join(f"{name} {version}" for name, version in results.versions.items())
        + f" ({m['compiler']}). Float32, {results.repeats} turns each.",
    ]
    for limits in results.limits.values():
        bandwidth = ", ".join(f"{k} {v / 1e9:.0f}" for k, v in limits.bandwidth.items())
        lines.append(
            f"{limits.threads} thread{'s' * (limits.threads > 1)}: FMA peak "
            f"{limits.fma / 1e9:.0f} GFLOP/s, matrix product {limits.product / 1e9:.0f} GFLOP/s, "
            f"reading GB/s: {bandwidth}."
        )
    lines.append(f"Other programs used {results.cores_used_by_others:.2f} cores meanwhile.")
    if results.disturbed:
        lines.append(f"**{DISTURBED}**")
    return "\n".join(lines)


def _rows_table(results: Results, rows: Sequence[Row]) -> str:
    """One line a shape, then the geometric mean; `!` marks a lost comparison."""
    peers = [name for name in rows[0].times if name != OURS]
    header = ["shape", "best, ms", "median", "GFLOP/s", "of limit", "of peak"]
    for name in peers:
        header += [f"{name} best", "median", "speed-up"]
    lines = []
    for row in rows:
        line = [
            str(row.case.shape),
            milliseconds(row.ours.best),
            milliseconds(row.ours.median),
            f"{row.rate / 1e9:.1f}",
            f"{results.share_of_limit(row):.0%}",
            f"{results.share_of_peak(row):.0%}",
        ]
        for name in peers:
            timing, speedup = row.times[name], row.speedup(name)
            lost = "!" * (speedup < 1.0)
            line += [
                milliseconds(timing.best),
                milliseconds(timing.median),
                f"{speedup:.2f}x{lost}",
            ]
        lines.append(line)
    if len(rows) > 1:
        mean = ["geometric mean", "", "", "", "", ""]
        for name in peers:
            mean += ["", "", f"{geometric_mean(row.speedup(name) for row in rows):.2f}x"]
        lines.append(mean)
    return table(header, lines)


def milliseconds(seconds: float) -> str:
    """Seconds as milliseconds, three or four digits."""
    value = 1e3 * seconds
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, padded; columns of figures stand to the right."""
    body = [tuple(row) for row in rows]
    columns = range(len(header))
    figures = [all(row[i][:1].isdigit() or not row[i] for row in body) for i in columns]
    widths = [max(3, *(len(row[i]) for row in (header, *body))) for i in columns]

    def line(row: Sequence[str]) -> str:
        cells = (
            cell.rjust(width) if figure else cell.ljust(width)
            for cell, width, figure in zip(row, widths, figures, strict=True)
        )
        return "| " + " | ".join(cells) + " |"

    rule = [
        "-" * (width - 1) + ":" if figure else "-" * width
        for width, figure in zip(widths, figures, strict=True)
    ]
    return "\n".join([line(header), "| " + " | ".join(rule) + " |", *map(line, body)])
