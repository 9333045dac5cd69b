"""``seq2seq-ext export``: a trained run for another runtime."""

from __future__ import annotations

import argparse

from seq2seq_ext.export import FORMATS, export_run
from seq2seq_ext.training import load_run

_EXAMPLES = """\
examples:
  seq2seq-ext export runs/plural --format onnx          runs/plural-onnx
  seq2seq-ext export runs/plural --format aoti --out plural-aoti
  seq2seq-ext export runs/plural --format prepacked     runs/plural-prepacked
  seq2seq-ext translate runs/plural-prepacked goose

onnx: encoder and decoding step for onnxruntime and others. aoti: the same as packages of
AOTInductor, for C++ and Python, with this package's library. prepacked: a run folder whose
recurrent matrices have 8 bits, which translate and serve load. See docs/export.md.
"""


def add_parser(subcommands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand ``export``."""
    parser = subcommands.add_parser(
        "export",
        help="write a trained run for another runtime",
        description="Write a model as ONNX, as packages of AOTInductor, or as a run folder in 8 "
        "bits, and compare it with the original.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", metavar="RUN", help="run folder, such as runs/plural")
    parser.add_argument("--format", choices=FORMATS, required=True, help="for what")
    parser.add_argument("--out", metavar="FOLDER", help="what is made (RUN-FORMAT)")
    parser.set_defaults(run=run, parser=parser)


def run(options: argparse.Namespace) -> int:
    """Load, write, compare."""
    out = options.out or f"{options.folder.rstrip('/')}-{options.format}"
    check = export_run(load_run(options.folder), out, options.format)
    print(out)
    if check is None:
        if options.format == "onnx":
            print("not compared with the original: onnxruntime is not installed")
        return 0
    tokens = "the same tokens" if check.same_tokens else "other tokens"
    print(
        f"compared with the original: {check.texts} texts of {check.steps} steps, {tokens}, "
        f"log-probabilities differ by at most {check.error:.1e}"
    )
    return 0 if check.same_tokens else 1
