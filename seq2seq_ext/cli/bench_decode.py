"""``seq2seq-ext bench --decode``: searches beside the same in plain torch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import torch

from seq2seq_ext.benchmark.decode import g2p_en
from seq2seq_ext.benchmark.decode.measuring import DTYPES, DecodeCase, DecodeRow, measure
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
    kinds = {name: what for name, (what, _) in MODELS.items()} | {g2p_en.NAME: g2p_en.WHAT}
    models = "; ".join(f"{name}: {what}" for name, what in kinds.items())
    parser.add_argument(
        "--models",
        type=several(one_of(kinds)),
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
        help=f"with --decode: of our recurrent weights, of {', '.join(DTYPES)} (float32; of "
        f"{g2p_en.NAME} all)",
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
    if options.models == [g2p_en.NAME]:
        for name in ("hidden_sizes", "batch_sizes", "beams", "threads"):
            if getattr(options, name) not in (None, [], [1]):
                error(f"argument --{name.replace('_', '-')}: not with --models {g2p_en.NAME} alone")


def run(
    options: argparse.Namespace,
    write: Callable[[argparse.Namespace, str, dict[str, Any]], None],
) -> int:
    """Measure the grid and tell."""
    before = torch.get_num_threads()
    models = options.models or [*MODELS, g2p_en.NAME]
    cases = [
        DecodeCase(model, hidden_size, batch_size, num_beams, dtype, threads)
        for threads in options.threads or [before]
        for model in models
        if model in MODELS
        for hidden_size in options.hidden_sizes or [256]
        for batch_size in options.batch_sizes or [1, 64]
        for num_beams in options.beams or [1, 5]
        for dtype in options.dtypes or ["float32"]
    ]
    left_out = {}
    if g2p_en.NAME in models and (lack := g2p_en.missing()):
        left_out[g2p_en.NAME] = lack
        print(f"seq2seq-ext: without {g2p_en.NAME}: {lack}", file=sys.stderr)
    names = [TORCH]
    rows = []
    try:
        for case in cases:
            rows.append(_told(measure(case, repeats=options.repeats)))
        if g2p_en.NAME in models and not left_out:
            names += [g2p_en.NUMPY, g2p_en.NAME]
            words = g2p_en.words()
            for dtype in options.dtypes or DTYPES:
                rows.append(_told(g2p_en.measure(dtype, words, repeats=options.repeats)))
    finally:
        torch.set_num_threads(before)
    results = DecodeResults(description(), versions(names), options.repeats, rows, left_out)
    write(options, as_markdown(results), results.as_json())
    return 0


def _told(row: DecodeRow) -> DecodeRow:
    """Tell how a row came out; returns the row."""
    case = row.case
    print(
        f"{case.model} H {case.hidden_size} B {case.batch_size} beams {case.num_beams} "
        f"{case.dtype}: {row.speedup:.2f}x, {row.same:.1%} the same",
        file=sys.stderr,
    )
    return row
