"""``seq2seq-ext translate``: convert words with a trained run."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterable, Iterator

from seq2seq_ext.cli.numbers import positive_int
from seq2seq_ext.training import Run, load_run

_EXAMPLES = """\
examples:
  seq2seq-ext translate runs/plural goose
  seq2seq-ext translate runs/plural --file words.txt > plurals.txt
  cat words.txt | seq2seq-ext translate runs/plural

One line of output for every word or line of input, in its order; an empty line stays empty.
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
    parser.set_defaults(run=run, parser=parser)


def run(options: argparse.Namespace) -> int:
    """Load the run and convert."""
    if options.words and options.file is not None:
        options.parser.error("give words or --file, not both")
    trained = load_run(options.folder)
    if options.words:
        _convert(trained, options.words, options.batch_size)
    elif options.file is not None:
        try:
            with open(options.file, encoding="utf-8") as lines:
                _convert(trained, lines, options.batch_size)
        except UnicodeDecodeError as error:
            raise ValueError(f"{options.file} is not UTF-8 text: {error}") from error
    else:
        if sys.stdin.isatty():
            print("reading words from the terminal, one a line; Ctrl-D ends", file=sys.stderr)
        # A terminal's user wants an answer to every line.
        _convert(trained, sys.stdin, 1 if sys.stdin.isatty() else options.batch_size)
    return 0


def _convert(trained: Run, lines: Iterable[str], batch_size: int) -> None:
    """Print one result a line; tell once about each character that the model does not know."""
    told: set[str] = set()
    for batch in _batches((line.rstrip("\r\n") for line in lines), batch_size):
        unknown = trained.source_vocabulary.unknown("".join(batch))
        new = [character for character in unknown if character not in told]
        if new:
            told.update(new)
            shown = " ".join(repr(character) for character in new)
            print(
                f"seq2seq-ext: read as <unk>, not seen in training: {shown}",
                file=sys.stderr,
            )
        filled = [text for text in batch if text]
        results = iter(trained.translate(filled, batch_size=batch_size) if filled else ())
        for text in batch:
            print(next(results) if text else "")
        sys.stdout.flush()


def _batches(items: Iterable[str], size: int) -> Iterator[list[str]]:
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
