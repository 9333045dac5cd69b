"""``seq2seq-ext translate``: convert words, or a file of any size, with a trained run."""

from __future__ import annotations

import argparse
import io
import sys
import time
from typing import Any

from seq2seq_ext.bulk import FORMATS, BulkOptions, convert, format_of, translate_file
from seq2seq_ext.bulk.lines import windows
from seq2seq_ext.bulk.shards import Shard
from seq2seq_ext.cli.devices import add_device
from seq2seq_ext.cli.numbers import finite_float, positive_int
from seq2seq_ext.training import Run, load_run

_EXAMPLES = """\
examples:
  seq2seq-ext translate runs/plural goose
  seq2seq-ext translate runs/plural --file words.txt > plurals.txt
  cat words.txt | seq2seq-ext translate runs/plural
  seq2seq-ext translate runs/plural goose --num-beams 5 --n-best 3

bulk:
  seq2seq-ext translate RUN words.txt -o plurals.txt
  seq2seq-ext translate RUN words.tsv.gz -o plurals.jsonl.gz --num-beams 5 --n-best 3
  seq2seq-ext translate RUN words.txt -o plurals.txt --resume
  torchrun --nproc-per-node 2 -m seq2seq_ext.cli translate RUN words.txt -o plurals.txt

One line of output for every word or line of input, in its order; an empty line stays empty.
With --n-best N there are N lines for each, best first: the result, a tab and its score, which is
its log-probability, with beams divided by n ** A for n tokens, the end counted as one.
A .tsv has texts in a column and gets further columns; a .jsonl has them in a field of its objects
and gets another field. With -o a file larger than memory may be given, the output appears when it
is whole, and --resume goes on after an interruption.
"""
_LATER = 2.0  # seconds between two lines of progress


def add_parser(subcommands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand ``translate``."""
    parser = subcommands.add_parser(
        "translate",
        help="convert words or files with a trained run",
        description="Convert words with a model that `seq2seq-ext demo` or `train` has trained: "
        "words given as arguments, lines of a file, or lines of the standard input.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", metavar="RUN", help="run folder, such as runs/plural")
    parser.add_argument(
        "words", metavar="WORD", nargs="*", help="words to convert; with -o the file to read"
    )
    parser.add_argument(
        "--file", metavar="PATH", help="read a file, one word a line; -: standard input"
    )
    parser.add_argument(
        "-o", "--output", metavar="PATH", help="write a file; -, the default: standard output"
    )
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
    for side in ("input", "output"):
        parser.add_argument(
            f"--{side}-format", choices=FORMATS, help=f"of the {side} (by its name's end)"
        )
    parser.add_argument(
        "--column", type=positive_int, default=1, metavar="N", help="of TSV with the text (1)"
    )
    parser.add_argument(
        "--field", default="text", metavar="NAME", help="of JSON with the text (text)"
    )
    parser.add_argument(
        "--bad-lines",
        choices=("stop", "empty"),
        default="stop",
        help="at a line that cannot be read: stop, or tell and take it for empty (stop)",
    )
    parser.add_argument(
        "--window",
        type=positive_int,
        metavar="N",
        help="lines in memory, decoded by length (8192; without -o those of a batch)",
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on with -o where it was interrupted"
    )
    parser.add_argument("--threads", type=positive_int, metavar="N", help="threads that compute")
    add_device(parser)
    parser.add_argument(
        "--cuda-graph",
        action="store_true",
        help="on a GPU make every step of the search one launch",
    )
    parser.set_defaults(run=run, parser=parser)


def run(options: argparse.Namespace) -> int:
    """Load the run and convert."""
    _check(options)
    if options.threads is not None:
        import torch

        torch.set_num_threads(options.threads)
    trained = load_run(options.folder, device=options.device)
    source, words = options.file, options.words
    if options.output is not None and words:
        (source,), words = words, []
    source, output = source or "-", options.output or "-"
    teller = _Teller(trained)
    if words:
        lines = "".join(f"{word}\n" for word in words).encode(errors="surrogateescape")
        how = _how(options, "words", output, options.batch_size)
        for window in windows(io.BytesIO(lines), how.window):
            sys.stdout.write(
                convert(trained, window, how, name="the words", on_texts=teller.texts).decode()
            )
        return 0
    size = options.window or (options.batch_size if output == "-" else 8192)
    if source == "-" and sys.stdin.isatty():
        print("reading words from the terminal, one a line; Ctrl-D ends", file=sys.stderr)
        # A terminal's user wants an answer to every line.
        size = 1 if output == "-" else size
    lines_done = translate_file(
        trained,
        source,
        output,
        _how(options, source, output, size),
        resume=options.resume,
        on_bad_line=teller.say,
        on_texts=teller.texts,
        on_lines=teller.lines if output != "-" else None,
    )
    if output != "-":
        teller.end(lines_done)
    return 0


def _check(options: argparse.Namespace) -> None:
    error = options.parser.error
    if options.words and options.file is not None:
        error("give words or --file, not both")
    if options.n_best is not None and options.n_best > options.num_beams:
        error(f"--n-best must be at most --num-beams, {options.num_beams}, got {options.n_best}")
    if options.length_penalty is not None and options.num_beams == 1:
        error("--length-penalty needs --num-beams above 1, got 1")
    if options.cuda_graph and options.device == "cpu":
        error("--cuda-graph needs --device cuda, got cpu")
    if options.output is not None and len(options.words) > 1:
        error(f"with -o one file is read, got {len(options.words)}")
    if options.resume and options.output in (None, "-"):
        error("--resume needs -o with a file")


def _how(options: argparse.Namespace, source: str, output: str, window: int) -> BulkOptions:
    search: dict[str, Any] = {"num_beams": options.num_beams}
    if options.length_penalty is not None:
        search["length_penalty"] = options.length_penalty
    if options.cuda_graph:
        search["cuda_graph"] = True
    return BulkOptions(
        input_format=options.input_format or format_of(source),
        output_format=options.output_format or format_of(output),
        column=options.column,
        field=options.field,
        n_best=options.n_best,
        window=window,
        batch_size=options.batch_size,
        bad_lines=options.bad_lines,
        search=search,
    )


class _Teller:
    """What is told on stderr meanwhile."""

    def __init__(self, trained: Run) -> None:
        self._vocabulary = trained.source_vocabulary
        self._told: set[str] = set()
        self._begin = self._last = time.perf_counter()
        self._shows = sys.stderr.isatty() and Shard.of_environment().rank == 0

    def say(self, message: str) -> None:
        print(f"seq2seq-ext: {message}", file=sys.stderr)

    def texts(self, texts: list[str]) -> None:
        """Tell once about each token that the model does not know."""
        unknown = dict.fromkeys(t for text in texts for t in self._vocabulary.unknown(text))
        new = [token for token in unknown if token not in self._told]
        if new:
            self._told.update(new)
            shown = " ".join(repr(token) for token in new)
            self.say(f"read as <unk>, not seen in training: {shown}")

    def lines(self, done: int) -> None:
        """Tell a terminal now and then how far it is."""
        now = time.perf_counter()
        if self._shows and now - self._last >= _LATER:
            self._last = now
            print(f"\r{done:,} lines", end="", file=sys.stderr, flush=True)

    def end(self, done: int) -> None:
        """Tell a terminal what was done."""
        if self._shows:
            seconds = time.perf_counter() - self._begin
            print(f"\r{done:,} lines in {seconds:.1f} s", file=sys.stderr)
