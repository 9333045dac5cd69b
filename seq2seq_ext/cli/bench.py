"""``seq2seq-ext bench``: our layers beside the peers and the machine's limit, on CPU or GPU."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from seq2seq_ext.benchmark import peers
from seq2seq_ext.benchmark.busy import measure_busy
from seq2seq_ext.benchmark.comparison import compare
from seq2seq_ext.benchmark.cuda import tables as cuda_tables
from seq2seq_ext.benchmark.cuda.device import Device, cuda_device
from seq2seq_ext.benchmark.cuda.measuring import BUDGET_SECONDS, measure_rows
from seq2seq_ext.benchmark.cuda.results import CudaResults, CudaRow
from seq2seq_ext.benchmark.cuda.shapes import CUDA_SHAPE_SETS, PRECISIONS, cuda_cases
from seq2seq_ext.benchmark.limits import measure_limits
from seq2seq_ext.benchmark.machine import description
from seq2seq_ext.benchmark.measuring import measure, versions
from seq2seq_ext.benchmark.results import BusyRow, Results, Row, Sweep
from seq2seq_ext.benchmark.scaling import sweep_cases
from seq2seq_ext.benchmark.shapes import CELLS, SHAPE_SETS, WORKS, cases
from seq2seq_ext.benchmark.tables import (
    as_markdown,
    comparison_as_markdown,
    disturbed_text,
    milliseconds,
)
from seq2seq_ext.benchmark.timing import Timing
from seq2seq_ext.benchmark.workloads import TORCH
from seq2seq_ext.cli import bench_decode
from seq2seq_ext.cli.lists import one_of as _one_of
from seq2seq_ext.cli.lists import several as _several
from seq2seq_ext.cli.numbers import positive_float, positive_int
from seq2seq_ext.data.extras import check
from seq2seq_ext.data.files import read_json, write_bytes_atomically, write_json_atomically

_PEERS = (TORCH, *peers.RUNTIMES)
_NOTHING = "nothing to measure: none of the shapes goes with the work asked for"
_EXAMPLES = """\
examples:
  seq2seq-ext bench --shapes quick
  seq2seq-ext bench --cells LSTM --work inference --hidden-sizes 256 --batch-sizes 1,32
  seq2seq-ext bench --threads 1,2 --json new.json --plot new.png --compare old.json
  seq2seq-ext bench --scaling
  seq2seq-ext bench --decode --batch-sizes 1,64 --beams 1,5 --threads 1
  seq2seq-ext bench --device cuda --json gpu.json --plot gpu.png

Progress goes to stderr, the tables, in Markdown, to stdout. The status is 1 where --compare finds
something slower, or where on a GPU a row is wrong or fails. docs/benchmarking.md tells how the
figures are made.
"""


def add_parser(subcommands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand ``bench``."""
    parser = subcommands.add_parser(
        "bench",
        help="time our layers beside torch, onnxruntime and OpenVINO",
        description="Time the layers of seq2seq_ext and of its peers, turn by turn: on the CPU "
        "beside the limits of the machine, which are measured in the same run; on a GPU beside "
        "torch alone, in at most ten minutes.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="where to measure (cpu)"
    )
    sets = "; ".join(f"{name}: {chosen.what}" for name, chosen in SHAPE_SETS.items())
    cuda_sets = "; ".join(f"{name}: {chosen.what}" for name, chosen in CUDA_SHAPE_SETS.items())

    def several(option: str, names: Iterable[str], default: object, what: str) -> None:
        parser.add_argument(
            option, type=_several(_one_of(names)), default=default, metavar="A,B", help=what
        )

    parser.add_argument(
        "--shapes",
        type=_several(str),
        metavar="A,B",
        help=f"sets of shapes; on the CPU (standard) {sets}; on a GPU (all) {cuda_sets}",
    )
    several("--cells", CELLS, None, f"of {', '.join(CELLS)} (all; on a GPU LSTM,GRU)")
    several("--work", WORKS, list(WORKS), f"of {', '.join(WORKS)} (both)")
    several(
        "--peers",
        (*_PEERS, "none"),
        None,
        f"of {', '.join(_PEERS)}, or none (all that are installed)",
    )
    several("--precisions", PRECISIONS, None, f"on a GPU: of {', '.join(PRECISIONS)} (all)")
    for option, what in (
        ("--hidden-sizes", "hidden sizes in place of the sets' own"),
        ("--batch-sizes", "batch sizes in place of the sets' own"),
        ("--time-steps", "time steps in place of the sets' own"),
        ("--threads", "CPU threads (torch's choice)"),
    ):
        parser.add_argument(
            option, type=_several(positive_int), default=[], metavar="N,M", help=what
        )
    parser.add_argument(
        "--repeats",
        type=positive_int,
        default=15,
        metavar="N",
        help="turns of each at least (15); on a GPU fewer where a row takes long",
    )
    parser.add_argument(
        "--seconds",
        type=positive_float,
        metavar="S",
        help="take turns for S seconds a row at least",
    )
    parser.add_argument(
        "--scaling",
        action="store_true",
        help="time over T, H, B and I, with fitted exponents; without --shapes nothing else",
    )
    parser.add_argument(
        "--with-busy-core",
        action="store_true",
        help="time the shapes once more while another process keeps one core busy",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables here too")
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="FILE.png",
        help="draw roofline and speed-ups (on a GPU these alone); the scaling goes to "
        "FILE-scaling.png",
    )
    parser.add_argument(
        "--compare", type=Path, metavar="OLD.json", help="tell what is slower than in that run"
    )
    bench_decode.add_arguments(parser)
    parser.set_defaults(run=run, parser=parser)


def run(options: argparse.Namespace) -> int:
    """Measure, print, write what was asked for; 1 if something became slower or is wrong."""
    _check_options(options)
    bench_decode.check_arguments(options)
    # What is missing is better known before measuring than after.
    if options.decode:
        return bench_decode.run(options, _write)
    check("numpy", extra="bench", purpose="seq2seq-ext bench")
    check("rich", extra="bench", purpose="seq2seq-ext bench")
    if options.plot:
        if options.plot.suffix != ".png":
            options.parser.error(
                f"argument --plot: expected a name that ends in .png, got {options.plot}"
            )
        check("matplotlib", extra="bench", purpose="--plot")
    return _run_on_gpu(options) if options.device == "cuda" else _run_on_cpu(options)


def _check_options(options: argparse.Namespace) -> None:
    """Refuse what the device does not know, and fill in what it does by itself."""
    error = options.parser.error
    if options.device == "cuda":
        for name in ("threads", "peers", "scaling", "with_busy_core", "compare"):
            if getattr(options, name):
                error(f"argument --{name.replace('_', '-')}: not with --device cuda")
    elif options.precisions:
        error("argument --precisions: only with --device cuda")
    known = CUDA_SHAPE_SETS if options.device == "cuda" else SHAPE_SETS
    for name in options.shapes or ():
        if name not in known:
            error(f"argument --shapes: expected one of {', '.join(known)}; got {name!r}")


def _run_on_gpu(options: argparse.Namespace, device: Device | None = None) -> int:
    """Measure on a GPU, or on what stands in for it."""
    device = device or cuda_device()
    chosen = cuda_cases(
        options.shapes or list(CUDA_SHAPE_SETS),
        cells=options.cells or ["LSTM", "GRU"],
        works=options.work,
        precisions=options.precisions or PRECISIONS,
        hidden_sizes=options.hidden_sizes,
        batch_sizes=options.batch_sizes,
        time_steps=options.time_steps,
        place=device.place,
    )
    if not chosen:
        raise ValueError(_NOTHING)
    repeats, start = options.repeats, time.monotonic()
    with _Progress(len(chosen)) as progress:
        rows = [
            progress.cuda_row(row)
            for row in measure_rows(
                chosen,
                device,
                repeats=repeats,
                seconds=options.seconds or 0.0,
                budget_seconds=BUDGET_SECONDS,
            )
        ]
    results = CudaResults(
        device=device.description,
        repeats=repeats,
        seconds=time.monotonic() - start,
        rows=rows,
        cut=chosen[len(rows) :],
    )
    _write(options, cuda_tables.as_markdown(results), results.as_json())
    if options.plot and results.timed:
        from seq2seq_ext.benchmark.cuda.plots import results_as_png

        write_bytes_atomically(options.plot, results_as_png(results))
    return 1 if results.bad else 0


def _run_on_cpu(options: argparse.Namespace) -> int:
    earlier = Results.from_json(read_json(options.compare)) if options.compare else None

    results = _measure_all(options)
    tables = as_markdown(results)
    comparison = compare(earlier, results) if earlier else None
    if comparison:
        tables += "\n" + comparison_as_markdown(comparison)
    _write(options, tables, results.as_json())
    if results.disturbed:
        print(f"seq2seq-ext: {disturbed_text(results)}", file=sys.stderr)
    if options.plot:
        from seq2seq_ext.benchmark.plots import results_as_png, scaling_as_png

        if results.rows:
            write_bytes_atomically(options.plot, results_as_png(results))
        if results.sweeps:
            name = f"{options.plot.stem}-scaling.png"
            write_bytes_atomically(options.plot.with_name(name), scaling_as_png(results))
    return 1 if comparison and comparison.slower else 0


def _write(options: argparse.Namespace, tables: str, figures: dict[str, Any]) -> None:
    """Print the tables, and write what was asked for."""
    print(tables, end="")
    if options.json:
        write_json_atomically(options.json, figures)
    if options.markdown:
        write_bytes_atomically(options.markdown, tables.encode())


def _measure_all(options: argparse.Namespace) -> Results:
    names = _available_peers(options.peers or list(_PEERS))
    cells = options.cells or list(CELLS)
    threads = options.threads or [torch.get_num_threads()]
    sets = options.shapes or ([] if options.scaling else ["standard"])
    chosen = cases(
        sets,
        cells=cells,
        works=options.work,
        threads=threads,
        hidden_sizes=options.hidden_sizes,
        batch_sizes=options.batch_sizes,
        time_steps=options.time_steps,
    )
    sweeps = sweep_cases(cells, options.work, threads) if options.scaling else {}
    busy_cases = chosen if options.with_busy_core else []
    total = len(chosen) + len(busy_cases) + sum(map(len, sweeps.values()))
    if not total:
        raise ValueError(_NOTHING)
    repeats, seconds = options.repeats, options.seconds or 0.0

    torch_alone = [name for name in names if name == TORCH]
    before = torch.get_num_threads()
    try:
        with _Progress(total) as progress:
            limits = {number: measure_limits(number) for number in threads}
            rows = [
                progress.row(measure(case, peer_names=names, repeats=repeats, seconds=seconds))
                for case in chosen
            ]
            swept = [
                Sweep(
                    size=size,
                    rows=[
                        progress.row(measure(case, peer_names=torch_alone, repeats=repeats))
                        for case in of_sweep
                    ],
                )
                for (size, *_), of_sweep in sweeps.items()
            ]
            # Longer turns, so fewer of them.
            busy = [
                progress.busy_row(measure_busy(case, peer_names=names, repeats=(repeats + 2) // 3))
                for case in busy_cases
            ]
            limits = {number: limits[number].better_of(measure_limits(number)) for number in limits}
    finally:
        torch.set_num_threads(before)
    return Results(
        machine=description(),
        versions=versions(names),
        limits=limits,
        repeats=repeats,
        rows=rows,
        sweeps=swept,
        busy=busy,
    )


class _Progress:
    """A line for each row on stderr, and on a terminal a bar with the time that is left.

    The bar is drawn between the rows alone: a thread that draws would take a core from what is
    timed.
    """

    def __init__(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

        console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._progress = Progress(
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            auto_refresh=False,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("", total=total)

    def __enter__(self) -> _Progress:
        self._progress.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._progress.__exit__(*exception)

    def row(self, row: Row) -> Row:
        """Tell the best times; returns the row."""
        self._tell(f"{row.case}: {_best_times(row.times)}")
        return row

    def cuda_row(self, row: CudaRow) -> CudaRow:
        """Tell the best times, or what is wrong; returns the row."""
        found = f"wrong: {row.wrong}" if row.wrong else f"failed: {row.failed}"
        self._tell(f"{row.case}: {_best_times(row.times) if row.times else found}")
        return row

    def busy_row(self, row: BusyRow) -> BusyRow:
        """Tell how much slower everyone is with a busy core; returns the row."""
        slower = ", ".join(f"{name} {row.slowdown(name):.2f}x" for name in row.alone)
        self._tell(f"{row.case}, a core busy: {slower}")
        return row

    def _tell(self, text: str) -> None:
        self._progress.console.print(text, markup=False)
        self._progress.update(self._task, advance=1, refresh=True)


def _best_times(times: Mapping[str, Timing]) -> str:
    return ", ".join(f"{name} {milliseconds(each.best)} ms" for name, each in times.items())


def _available_peers(names: Sequence[str]) -> list[str]:
    """The peers that can take part; tells of each other one what it lacks."""
    available = []
    for name in names:
        lack = peers.missing(name) if name in peers.RUNTIMES else None
        if lack:
            print(f"seq2seq-ext: without the peer {name}: {lack}", file=sys.stderr)
        elif name != "none":
            available.append(name)
    return available
