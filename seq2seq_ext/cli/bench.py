"""``seq2seq-ext bench``: our layers beside the peers and the machine's limit."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch

import seq2seq_ext
from seq2seq_ext.benchmark import peers
from seq2seq_ext.benchmark.measuring import measure
from seq2seq_ext.benchmark.results import Row
from seq2seq_ext.benchmark.shapes import CELLS, SHAPE_SETS, WORKS, cases
from seq2seq_ext.benchmark.tables import DISTURBED, as_markdown, milliseconds
from seq2seq_ext.benchmark.workloads import TORCH
from seq2seq_ext.cli.numbers import positive_float, positive_int
from seq2seq_ext.data.files import write_bytes_atomically, write_json_atomically

_PEERS = (TORCH, *peers.RUNTIMES)


def add_parser(subcommands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand ``bench``."""
    parser = subcommands.add_parser(
        "bench",
        help="time our layers beside torch, onnxruntime and OpenVINO",
        description="Time the layers of seq2seq_ext and of its peers, turn by turn, and measure "
        "the machine's limits in the same run.",
    )
    sets = ", ".join(f"{name} ({chosen.what})" for name, chosen in SHAPE_SETS.items())
    several = {"metavar": "A,B", "help": ""}
    del several
    parser.add_argument(
        "--shapes",
        type=_several(_one_of(SHAPE_SETS)),
        default=["standard"],
        metavar="A,B",
        help=f"sets of shapes (standard): {sets}",
    )
    parser.add_argument(
        "--cells",
        type=_several(_one_of(CELLS)),
        default=list(CELLS),
        metavar="A,B",
        help=f"of {', '.join(CELLS)} (all)",
    )
    parser.add_argument(
        "--work",
        type=_several(_one_of(WORKS)),
        default=list(WORKS),
        metavar="A,B",
        help=f"of {', '.join(WORKS)} (both)",
    )
    parser.add_argument(
        "--peers",
        type=_several(_one_of((*_PEERS, "none"))),
        default=list(_PEERS),
        metavar="A,B",
        help=f"of {', '.join(_PEERS)}, or none (all that are installed)",
    )
    for option, what in (
        ("--hidden-sizes", "hidden sizes instead of the set's own"),
        ("--batch-sizes", "batch sizes instead of the set's own"),
        ("--time-steps", "numbers of time steps instead of the set's own"),
        ("--threads", "numbers of CPU threads (torch's choice)"),
    ):
        parser.add_argument(
            option, type=_several(positive_int), default=[], metavar="N,M", help=what
        )
    parser.add_argument(
        "--repeats", type=positive_int, default=15, metavar="N", help="turns of each at least (15)"
    )
    parser.add_argument(
        "--seconds", type=positive_float, default=0.001, metavar="S", help="for each row at least"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables here too")
    parser.set_defaults(run=run, parser=parser)


def run(options: argparse.Namespace) -> int:
    """Measure, print, write what was asked for."""
    chosen = list(
        cases(
            _available_sets(options.shapes),
            cells=options.cells,
            works=options.work,
            threads=options.threads or [torch.get_num_threads()],
            hidden_sizes=options.hidden_sizes,
            batch_sizes=options.batch_sizes,
            time_steps=options.time_steps,
        )
    )
    count = 0

    def progress(row: Row) -> None:
        nonlocal count
        count += 1
        times = ", ".join(f"{name} {milliseconds(t.best)}" for name, t in row.times.items())
        print(f"[{count}/{len(chosen)}] {row.case}: {times}", file=sys.stderr, flush=True)

    results = measure(
        chosen,
        peer_names=_available_peers(options.peers),
        repeats=options.repeats,
        seconds=options.seconds,
        progress=progress,
    )
    tables = as_markdown(results)
    print(tables, end="")
    if results.disturbed:
        print(DISTURBED, file=sys.stderr)
    if options.json:
        write_json_atomically(options.json, results.as_json())
    if options.markdown:
        write_bytes_atomically(options.markdown, tables.encode())
    return 0


def _available_peers(names: list[str]) -> list[str]:
    available = []
    for name in names:
        reason = peers.missing(name) if name in peers.RUNTIMES else None
        if reason:
            print(f"seq2seq-ext: without the peer {name}: {reason}", file=sys.stderr)
        elif name != "none":
            available.append(name)
    return available


def _available_sets(names: list[str]) -> list[str]:
    if "prepack" in names and not hasattr(seq2seq_ext, "prepack"):
        print("seq2seq-ext: without the shapes prepack: this build has no prepack", file=sys.stderr)
        names = [name for name in names if name != "prepack"]
    return names


def _several(one: Callable[[str], object]) -> Callable[[str], list[object]]:
    """The type of an option that takes a list with commas; what is named twice counts once."""

    def parse(text: str) -> list[object]:
        return list(dict.fromkeys(one(part.strip()) for part in text.split(",")))

    return parse


def _one_of(names: object) -> Callable[[str], str]:
    known = list(names)  # type: ignore[call-overload]

    def parse(text: str) -> str:
        if text not in known:
            raise argparse.ArgumentTypeError(f"expected some of {', '.join(known)}; got {text!r}")
        return text

    return parse
