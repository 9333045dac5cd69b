"""Tables of a run's results, in Markdown that reads well in a terminal too."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import geometric_mean

from seq2seq_ext.benchmark.comparison import Change, Comparison
from seq2seq_ext.benchmark.results import Results, Row
from seq2seq_ext.benchmark.scaling import FULL_BATCH, flop_exponent, time_exponent, value_of
from seq2seq_ext.benchmark.shapes import threads_text
from seq2seq_ext.benchmark.targets import LARGE, SMALL, targets
from seq2seq_ext.benchmark.workloads import OURS, PREPACKED

Group = tuple[int, str, str, str]

_FAIR = (
    "Those over torch are of the plain layer, those over onnxruntime and openvino, which order the "
    "weights when they load a model, of the prepacked one."
)


def as_markdown(results: Results) -> str:
    """Everything that a run found: targets, means, scaling, busy core, every row."""
    parts = [_opening(results), _targets(results), _means(results), _sweeps(results)]
    parts += [_busy(results), *_all_rows(results)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _opening(results: Results) -> str:
    m = results.machine
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    machine = f"{m['processor']}, {m['cores']} cores, {m['instruction set']}, {m['system']}"
    lines = [
        f"{machine}; {versions} ({m['compiler']}). Float32, {results.repeats} turns each or more.\n"
    ]
    for limits in results.limits.values():
        bandwidth = ", ".join(f"{k} {v / 1e9:.0f}" for k, v in limits.bandwidth.items())
        line = (
            f"- {threads_text(limits.threads)}: multiply-adds {limits.fma / 1e9:.0f} GFLOP/s, "
            f"torch's matrix product {limits.product / 1e9:.0f}"
        )
        lines.append(line + (f"; reading, GB/s: {bandwidth}" if bandwidth else ""))
    if results.disturbed:
        lines.append(f"\n**{disturbed_text(results)}**")
    return "\n".join(lines)


def disturbed_text(results: Results) -> str:
    """What to say where other programs took part of the machine."""
    return (
        f"The machine was not idle: {results.disturbed} rows, marked ~, are disturbed and not to "
        "be quoted."
    )


def _targets(results: Results) -> str:
    found = targets(results)
    if not found:
        return ""
    met = sum(target.met for target in found)
    beyond = sum(not (target.met or target.possible) for target in found)
    title = f"**Targets**: {met} of {len(found)} met, {beyond} beyond this machine's limit\n\n"
    header = ("what", "required", "got (best of all samples)", "at the limit", "met")
    return title + table(
        header, [(t.what, t.required, t.got, t.at_limit, t.verdict) for t in found]
    )


def _groups(results: Results) -> dict[Group, list[Row]]:
    groups: dict[Group, list[Row]] = {}
    for row in results.rows:
        case = row.case
        groups.setdefault((case.threads, case.kind, case.cell, case.work), []).append(row)
    return groups


def _means(results: Results) -> str:
    """Geometric means of the dense rows' speed-ups, by batch sizes."""
    lines = []
    for (threads, kind, cell, work), rows in _groups(results).items():
        for group in (SMALL, LARGE):
            inside = [row for row in rows if kind == "dense" and group.holds(row)]
            for peer in _peers(inside):
                speedups = [row.speedup(peer) for row in inside]
                medians = [row.median_speedup(peer) for row in inside]
                lines.append(
                    (
                        cell,
                        work,
                        threads_text(threads),
                        group.name,
                        "prepacked" if inside[0].counterpart(peer) == PREPACKED else "plain",
                        peer,
                        f"{geometric_mean(speedups):.2f}x",
                        f"{geometric_mean(medians):.2f}x",
                        f"{min(speedups):.2f}x",
                        f"{max(speedups):.2f}x",
                        f"{sum(speedup < 1.0 for speedup in speedups)} of {len(inside)}",
                    )
                )
    if not lines:
        return ""
    header = ["cell", "work", "threads", "shapes", "ours", "peer", "of best", "of median"]
    header += ["lowest", "highest", "rows lost"]
    return f"**Speed-ups**, geometric means. {_FAIR}\n\n" + table(header, lines)


def _sweeps(results: Results) -> str:
    names = list(dict.fromkeys(name for sweep in results.sweeps for name in sweep.rows[0].times))
    lines = []
    for sweep in results.sweeps:
        case = sweep.rows[0].case
        sizes = [value_of(row.case.shape, sweep.size) for row in sweep.rows]
        for least in (0, FULL_BATCH) if sweep.size == "B" else (0,):
            kept = [size for size in sizes if size >= least]
            if len(kept) < 2:
                continue
            lines.append(
                (
                    f"{case.cell} {case.work}",
                    threads_text(case.threads),
                    f"{sweep.size} {kept[0]}–{kept[-1]}",
                    f"{flop_exponent(sweep, least=least):.2f}",
                    *(
                        f"{time_exponent(sweep, name, least=least):.2f}"
                        if name in sweep.rows[0].times
                        else ""
                        for name in names
                    ),
                )
            )
    if not lines:
        return ""
    return (
        "**Scaling**: exponents p of time = c size^p, fitted to the best times; the other sizes "
        "are H 256, I 256, B 32, T 50, and I goes with H\n\n"
        + table(("", "threads", "size", "operations", *map(label, names)), lines)
    )


def _busy(results: Results) -> str:
    if not results.busy:
        return ""
    names = list(dict.fromkeys(name for row in results.busy for name in row.alone))
    header = ["", "shape", "threads", "alone, ms", "busy, ms"]
    header += [f"{label(name)} slow-down" for name in names]
    lines = [
        (
            f"{row.case.cell} {row.case.work}",
            str(row.case.shape),
            str(row.case.threads),
            milliseconds(row.alone[OURS].median),
            milliseconds(row.busy[OURS].median),
            *(f"{row.slowdown(name):.2f}x" if name in row.busy else "" for name in names),
        )
        for row in results.busy
    ]
    return "**With one core kept busy by another process**, medians\n\n" + table(header, lines)


def _all_rows(results: Results) -> list[str]:
    parts = []
    for (threads, kind, cell, work), rows in _groups(results).items():
        title = f"**{cell}, {work}, {kind}, {threads_text(threads)}**"
        if kind == "lengths":
            case = rows[0].case
            padded = case.shape.time_steps * case.shape.batch_size
            title += f": {case.real_steps / padded:.0%} of the padded steps are real"
        parts.append(f"{title}\n\n{_rows_table(results, rows)}")
    return parts


def _rows_table(results: Results, rows: Sequence[Row]) -> str:
    """One line a shape; ``!`` marks a row lost to a peer, ``~`` one that others disturbed."""
    header = ["shape", "ours best, ms", "median", "GFLOP/s", "of limit", "of peak"]
    names = rows[0].others
    for name in names:
        who = label(name)
        compared = "ratio"
        if not name.startswith(OURS):
            compared = "prepacked: " * (rows[0].counterpart(name) == PREPACKED) + "speed-up"
        header += [f"{who} best", "median", compared]
    lines = []
    for row in rows:
        line = [
            str(row.case.shape) + " ~" * row.disturbed,
            milliseconds(row.ours.best),
            milliseconds(row.ours.median),
            f"{row.rate / 1e9:.1f}",
            f"{results.share_of_limit(row):.0%}",
            f"{results.share_of_peak(row):.0%}",
        ]
        for name in names:
            timing, speedup = row.times[name], row.speedup(name)
            lost = "!" * (speedup < 1.0 and not name.startswith(OURS))
            line += [
                milliseconds(timing.best),
                milliseconds(timing.median),
                f"{speedup:.2f}x{lost}",
            ]
        lines.append(line)
    return table(header, lines)


def comparison_as_markdown(comparison: Comparison) -> str:
    """What has changed since an earlier run."""
    what = "times" if comparison.same_machine else "times over the peers', for the machine differs"
    slower, faster = comparison.slower, comparison.faster
    text = (
        f"**Since the earlier run** ({what}): {len(slower)} slower, {len(faster)} faster, "
        f"{len(comparison.changes) - len(slower) - len(faster)} within the noise"
    )
    if comparison.left_out:
        text += f"; {comparison.left_out} rows have nothing to be compared with"
    lines = [_change_line(change, "slower") for change in slower]
    lines += [_change_line(change, "faster") for change in faster]
    if lines:
        header = ("case", "who", "", "best, now / then", "median, now / then", "noise")
        text += "\n\n" + table(header, lines)
    return text + "\n"


def _change_line(change: Change, how: str) -> tuple[str, ...]:
    return (
        str(change.case),
        label(change.name),
        how,
        f"{change.best:.2f}x",
        f"{change.median:.2f}x",
        f"{change.noise:.0%}",
    )


def _peers(rows: Sequence[Row]) -> list[str]:
    return [name for name in rows[0].others if not name.startswith(OURS)] if rows else []


def label(name: str) -> str:
    """A contestant's name for the head of a column."""
    return "ours" + name.removeprefix(OURS) if name.startswith(OURS) else name


def milliseconds(seconds: float) -> str:
    """Seconds as milliseconds, in three digits or more."""
    value = 1e3 * seconds
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, padded; columns of figures stand to the right.

    >>> print(table(("shape", "ms"), [("H 64", "1.5"), ("H 128", "12.5")]))
    | shape |   ms |
    | ----- | ---: |
    | H 64  |  1.5 |
    | H 128 | 12.5 |
    """
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
