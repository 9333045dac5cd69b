"""Parse the command line, run the subcommand, and turn what goes wrong into one clear line."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from seq2seq_ext.cli import (
    bench,
    demo,
    evaluate,
    export,
    info,
    plan,
    plot,
    serve,
    train,
    translate,
)

_DESCRIPTION = """\
Recurrent encoder-decoders on fused kernels.

  seq2seq-ext demo plural               learn English plurals, show figures, keep a run folder
  seq2seq-ext train CONFIG.yaml         train a model on pairs of your own
  seq2seq-ext evaluate runs/plural      a run's figures on its test set or on other pairs
  seq2seq-ext plot runs/plural          learning curves; accuracy, attention, beams
  seq2seq-ext translate runs/plural fox convert words with a trained run
  seq2seq-ext serve runs/plural         the same over HTTP
  seq2seq-ext export runs/plural --format onnx   for another runtime
  seq2seq-ext bench                     our layers beside torch, onnxruntime and OpenVINO
  seq2seq-ext plan --devices h100       how the CUDA kernels would be laid on a GPU
  seq2seq-ext info                      what to put in a problem report
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: without the program's name; None takes the process's own.

    Returns:
        The exit status: 0, or 1 where something is missing or damaged, or 130 after Ctrl-C.
        Wrong usage exits with 2 (`argparse`).
    """
    parser = argparse.ArgumentParser(
        prog="seq2seq-ext",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subcommands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in (demo, train, evaluate, plot, translate, serve, export, bench, plan, info):
        module.add_parser(subcommands)
    options = parser.parse_args(arguments)
    try:
        status: int = options.run(options)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # The reader, such as head, has seen enough. Nothing more can be written, not even by the
        # interpreter's own flush at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("seq2seq-ext: interrupted", file=sys.stderr)
        return 130
    except (ImportError, OSError, ValueError) as error:
        print(f"seq2seq-ext: {error}", file=sys.stderr)
        return 1
