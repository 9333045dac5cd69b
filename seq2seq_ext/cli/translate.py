"""``seq2seq-ext translate``: convert words with a trained run."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from seq2seq_ext.cli.numbers import finite_float, positive_int
from seq2seq_ext.training import Run, load_run

_EXAMPLES = """\
examples:
  seq2seq-ext translate runs/plural goose
  seq2seq-ext translate runs/plural --file words.txt > plurals.txt
  cat words.txt | seq2seq-ext translate runs/plural
  seq2seq-ext translate runs/plural goose --num-beams 5 --n-best 3

One line of output for every word or line of input, in its order; an empty line stays empty.
With --n-best N there are N lines for each, best first: the result, a tab and its score, which is
its log-probability, with beams divided by n ** A for n tokens, the end counted as one.
"""


def add_parser(subcommands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand ``translate``."""
    parser = subcommands.add_parser(
        "translate",
        help="convert words with a trained run",
        description="Convert words with a model that `seq2seq-ext demo` has trained: words given "
        "as arguments, lines of a file, or lines of the standard input.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", metavar="RUN", help="run folder, such as runs/plural")
    parser.add_argument("words", metavar="WORD", nargs="*", help="words to convert")
    parser.add_argument("--file", metavar="PATH", help="read words from a file, one a line")
    parser.add_argument(
        "--batch-size", type=positive_int, default=256, metavar="N", help="words at once (256)"
    )
    parser.add_argument(
        "--num-beams", type=positive_int, default=1, metavar="N", help="beams (1: greedy search)"
    )
    parser.add_argument(
        "--n-best", type=positive_int, metavar="N", help="show the N best of the beams, with scores"
    )
    parser.add_argument(
        "--length-penalty",
        type=finite_float,
        metavar="A",
        help="above 0 favours long results of a beam search (1)",
    )
    parser.set_defaults(run=run, parser=parser)


def run(options: argparse.Namespace) -> int:
    """Load the run and convert."""
    if options.words and options.file is not None:
        options.parser.error("give words or --file, not both")
    if options.n_best is not None and options.n_best > options.num_beams:
        options.parser.error(
            f"--n-best must be at most --num-beams, {options.num_beams}, got {options.n_best}"
        )
    if options.length_penalty is not None and options.num_beams == 1:
        options.parser.error("--length-penalty needs --num-beams above 1, got 1")
    trained = load_run(options.folder)
    if options.words:
        _convert(trained, options.words, options, options.batch_size)
    elif options.file is not None:
        try:
            with open(options.file, encoding="utf-8") as lines:
                _convert(trained, lines, options, options.batch_size)
        except UnicodeDecodeError as error:
            raise ValueError(f"{options.file} is not UTF-8 text: {error}") from error
    else:
        if sys.stdin.isatty():
            print("reading words from the terminal, one a line; Ctrl-D ends", file=sys.stderr)
        # A terminal's user wants an answer to every line.
        _convert(trained, sys.stdin, options, 1 if sys.stdin.isatty() else options.batch_size)
    return 0


def _convert(
    trained: Run, lines: Iterable[str], options: argparse.Namespace, batch_size: int
) -> None:
    """Print one result a line; tell once about each token that the model does not know."""
    search: dict[str, Any] = {"batch_size": batch_size, "num_beams": options.num_beams}
    if options.length_penalty is not None:
        search["length_penalty"] = options.length_penalty
    told: set[str] = set()
    for batch in _batches((line.rstrip("\r\n") for line in lines), batch_size):
        unknown = dict.fromkeys(t for x in batch for t in trained.source_vocabulary.unknown(x))
        new = [token for token in unknown if token not in told]
        if new:
            told.update(new)
            shown = " ".join(repr(token) for token in new)
            print(
                f"seq2seq-ext: read as <unk>, not seen in training: {shown}",
                file=sys.stderr,
            )
        filled = [text for text in batch if text]
        if options.n_best is None:
            results = iter([[text] for text in trained.translate(filled, **search)])
        else:
            results = iter(
                [f"{each.text}\t{each.score:.4f}" for each in best]
                for best in trained.n_best(filled, options.n_best, **search)
            )
        for text in batch:
            print(*(next(results) if text else [""] * (options.n_best or 1)), sep="\n")
        sys.stdout.flush()


def _batches(items: Iterable[str], size: int) -> Iterator[list[str]]:
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
