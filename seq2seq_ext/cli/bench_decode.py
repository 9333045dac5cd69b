"""``seq2seq-ext bench --decode``: searches beside the same in plain torch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import torch

from seq2seq_ext.benchmark.decode.measuring import DTYPES, DecodeCase, measure
from seq2seq_ext.benchmark.decode.models import MODELS
from seq2seq_ext.benchmark.decode.tables import DecodeResults, as_markdown
from seq2seq_ext.benchmark.machine import description
from seq2seq_ext.benchmark.measuring import versions
from seq2seq_ext.benchmark.workloads import TORCH
from seq2seq_ext.cli.lists import one_of, several
from seq2seq_ext.cli.numbers import positive_int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `bench` knows for decoding alone."""
    parser.add_argument(
        "--decode",
        action="store_true",
        help="time greedy and beam search beside the same in plain torch, and nothing else",
    )
    models = "; ".join(f"{name}: {what}" for name, (what, _) in MODELS.items())
    parser.add_argument(
        "--models",
        type=several(one_of(MODELS)),
        metavar="A,B",
        help=f"with --decode (all): {models}",
    )
    parser.add_argument(
        "--beams", type=several(positive_int), metavar="N,M", help="with --decode (1,5)"
    )
    parser.add_argument(
        "--dtypes",
        type=several(one_of(DTYPES)),
        metavar="A,B",
        help=f"with --decode: of our recurrent weights, of {', '.join(DTYPES)} (float32)",
    )


def check_arguments(options: argparse.Namespace) -> None:
    """Refuse what does not go together."""
    error = options.parser.error
    if not options.decode:
        for name in ("models", "beams", "dtypes"):
            if getattr(options, name):
                error(f"argument --{name}: only with --decode")
        return
    for name in (
        "shapes", "cells", "time_steps", "scaling", "with_busy_core", "plot", "compare", "seconds",
    ):  # fmt: skip
        if getattr(options, name):
            error(f"argument --{name.replace('_', '-')}: not with --decode")
    if options.device == "cuda":
        error("argument --device: only cpu with --decode")


def run(
    options: argparse.Namespace,
    write: Callable[[argparse.Namespace, str, dict[str, Any]], None],
) -> int:
    """Measure the grid and tell."""
    before = torch.get_num_threads()
    cases = [
        DecodeCase(model, hidden_size, batch_size, num_beams, dtype, threads)
        for threads in options.threads or [before]
        for model in options.models or MODELS
        for hidden_size in options.hidden_sizes or [256]
        for batch_size in options.batch_sizes or [1, 64]
        for num_beams in options.beams or [1, 5]
        for dtype in options.dtypes or ["float32"]
    ]
    rows = []
    try:
        for case in cases:
            row = measure(case, repeats=options.repeats)
            rows.append(row)
            print(
                f"{case.model} H {case.hidden_size} B {case.batch_size} beams {case.num_beams} "
                f"{case.dtype}: {row.speedup:.2f}x, {row.same:.0%} the same",
                file=sys.stderr,
            )
    finally:
        torch.set_num_threads(before)
    results = DecodeResults(description(), versions([TORCH]), options.repeats, rows)
    write(options, as_markdown(results), results.as_json())
    return 0
