"""Our layers beside `torch.nn`'s on this machine: the one command behind the README's table.

    python benchmarks/compare.py --json figures.json --markdown figures.md --plot figures.png

Dense sequences over a grid of shapes, then sequences of unequal length. Both sides take turns in
one process, and every row is shown, whoever wins it. Progress goes to stderr, the tables to stdout.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch
from machine import OtherPrograms, description, fma_peak
from report import DISTURBED, WORKS, Comparison, Row, as_json, as_markdown, as_png
from workloads import (
    LAYERS,
    OURS,
    PEER,
    both_sides,
    inference,
    log_normal_lengths,
    training,
    ways_through_unequal_lengths,
)

from seq2seq_ext.cli.numbers import positive_int
from seq2seq_ext.cli.timing import take_turns
from seq2seq_ext.data.extras import check
from seq2seq_ext.data.files import write_bytes_atomically, write_json_atomically


class Grid(NamedTuple):
    """The shapes of a run.

    Args:
        hidden_sizes: H of the dense rows, the width of the input too.
        batch_sizes: B of the dense rows.
        time_steps: T of the dense rows.
        repeats: samples of each call, if the command line does not say.
    """

    hidden_sizes: tuple[int, ...]
    batch_sizes: tuple[int, ...]
    time_steps: int
    repeats: int


FULL = Grid((64, 128, 256, 512), (1, 8, 32, 64), time_steps=50, repeats=15)
QUICK = Grid((64, 256), (1, 32), time_steps=50, repeats=3)
# Of the rows of unequal lengths.
BATCH_SIZE, MAX_LENGTH, HIDDEN_SIZE = 32, 200, 256


def dense_rows(cell: str, grid: Grid, repeats: int) -> Iterator[Row]:
    """Sequences of equal length: every shape of the grid, inference and training."""
    T = grid.time_steps
    for H, B, work in product(grid.hidden_sizes, grid.batch_sizes, WORKS):
        sides = both_sides(LAYERS[cell](H, H))
        x, d_y = torch.randn(2, T, B, H)
        if work == "inference":
            calls = [inference(sides[name], x) for name in (OURS, PEER)]
        else:
            calls = [training(sides[name], x, d_y) for name in (OURS, PEER)]
        ours, peer = take_turns(calls, repeats=repeats)
        yield Row(
            cell=cell,
            work=work,
            way="dense",
            hidden_size=H,
            batch_size=B,
            time_steps=T,
            real_steps=T * B,
            ours=ours,
            peer=peer,
        )


def unequal_rows(cell: str, repeats: int) -> Iterator[Row]:
    """Sequences of unequal length: ours with `lengths=` and packed, the peer packed."""
    lengths = log_normal_lengths(BATCH_SIZE, MAX_LENGTH)
    T = int(lengths.max())
    sides = both_sides(LAYERS[cell](HIDDEN_SIZE, HIDDEN_SIZE))
    x, d_y = torch.randn(2, T, BATCH_SIZE, HIDDEN_SIZE)
    for work in WORKS:
        calls = ways_through_unequal_lengths(sides, work, x, d_y, lengths)
        timings = dict(zip(calls, take_turns(list(calls.values()), repeats=repeats), strict=True))
        for way in ("lengths", "packed"):
            yield Row(
                cell=cell,
                work=work,
                way=way,
                hidden_size=HIDDEN_SIZE,
                batch_size=BATCH_SIZE,
                time_steps=T,
                real_steps=int(lengths.sum()),
                ours=timings[f"{OURS} {way}"],
                peer=timings[f"{PEER} packed"],
            )


def compare(cells: Sequence[str], grid: Grid, repeats: int) -> Comparison:
    """Measure everything. The peak is the best of products made before, between and after."""
    rows: list[Row] = []
    others = OtherPrograms()
    peak = fma_peak()
    for cell in cells:
        for row in dense_rows(cell, grid, repeats):
            rows.append(row)
            _progress(row)
        peak = max(peak, fma_peak())
    for cell in cells:
        for row in unequal_rows(cell, repeats):
            rows.append(row)
            _progress(row)
    peak = max(peak, fma_peak())
    return Comparison(
        machine=description(),
        peak=peak,
        repeats=repeats,
        cores_used_by_others=others.cores_used(),
        rows=rows,
    )


def _progress(row: Row) -> None:
    print(
        f"{row.cell:<5}{row.work:<10} {row.way:<8} H {row.hidden_size:<4} B {row.batch_size:<3} "
        f"T {row.time_steps:<4} torch {1e3 * row.peer.median:9.3f} ms, "
        f"ours {1e3 * row.ours.median:9.3f} ms, {row.speedup.median:5.2f}x",
        file=sys.stderr,
        flush=True,
    )


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Time the layers of seq2seq_ext and of torch.nn, in turn, on the CPU."
    )
    parser.add_argument(
        "--cells", nargs="+", choices=list(LAYERS), default=list(LAYERS), help="which (all)"
    )
    parser.add_argument(
        "--threads", type=positive_int, metavar="N", help="CPU threads (torch's choice)"
    )
    parser.add_argument(
        "--repeats",
        type=positive_int,
        metavar="N",
        help=f"samples of each call ({FULL.repeats}, or {QUICK.repeats} with --quick)",
    )
    parser.add_argument("--quick", action="store_true", help="few shapes, to see that it works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables here too")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE.png", help="draw the speed-ups (needs matplotlib)"
    )
    options = parser.parse_args(arguments)
    options.cells = list(dict.fromkeys(options.cells))
    # A missing library or a name that promises another format is better known before measuring.
    if options.plot:
        if options.plot.suffix != ".png":
            parser.error(f"argument --plot: expected a name that ends in .png, got {options.plot}")
        check("matplotlib", extra="bench", purpose="--plot")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables, write the files asked for."""
    options = _options(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    grid = QUICK if options.quick else FULL
    comparison = compare(options.cells, grid, options.repeats or grid.repeats)

    tables = as_markdown(comparison)
    print(tables, end="")
    if comparison.disturbed:
        print(DISTURBED, file=sys.stderr)
    if options.json:
        write_json_atomically(options.json, as_json(comparison))
    if options.markdown:
        write_bytes_atomically(options.markdown, tables.encode())
    if options.plot:
        write_bytes_atomically(options.plot, as_png(comparison))
    return 0


if __name__ == "__main__":
    sys.exit(main())
