"""``seq2seq-ext evaluate``: a run's figures on a set of pairs."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from seq2seq_ext import training
from seq2seq_ext.cli.devices import add_device
from seq2seq_ext.cli.numbers import finite_float, positive_int
from seq2seq_ext.data import DataConfig, PairDataset, load_files, load_set
from seq2seq_ext.data.files import write_bytes_atomically, write_json_atomically
from seq2seq_ext.data.reading import FORMATS
from seq2seq_ext.metrics import score
from seq2seq_ext.metrics.tables import as_markdown

_EXAMPLES = """\
examples:
  seq2seq-ext evaluate runs/g2p
  seq2seq-ext evaluate runs/g2p --num-beams 5 --n-best 5 --json figures.json
  seq2seq-ext evaluate runs/pairs --data newstest.en newstest.de --markdown figures.md

Without --data it is the test set that was put aside when the run was trained. The figures go to
stdout as a table in Markdown. docs/evaluation.md tells how each is counted.
"""


def add_parser(subcommands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand ``evaluate``."""
    parser = subcommands.add_parser(
        "evaluate",
        help="a run's figures on its test set or on other pairs",
        description="Decode a set of pairs with a trained run, and hold the texts against their "
        "references.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", metavar="RUN", help="run folder, such as runs/g2p")
    parser.add_argument(
        "--data",
        nargs="+",
        metavar="FILE",
        help="a file of pairs, or two files, of sources and of targets (the run's own test set)",
    )
    parser.add_argument("--set", choices=("dev", "test"), help="which of the run's own sets (test)")
    parser.add_argument("--format", choices=FORMATS, help="of a file of pairs (by its name)")
    parser.add_argument(
        "--several-references",
        action="store_true",
        help="with --data: a source counts once, and any of its targets is right",
    )
    parser.add_argument(
        "--max-pairs", type=positive_int, metavar="N", help="the first N pairs alone"
    )
    parser.add_argument(
        "--num-beams",
        "--beam",
        type=positive_int,
        default=1,
        metavar="N",
        help="beams (1: greedy search)",
    )
    parser.add_argument(
        "--n-best",
        type=positive_int,
        default=1,
        metavar="N",
        help="of so many candidates the oracle chooses (1: no oracle)",
    )
    parser.add_argument(
        "--length-penalty",
        type=finite_float,
        metavar="A",
        help="above 0 favours long results of a beam search (1)",
    )
    parser.add_argument(
        "--batch-size", type=positive_int, default=256, metavar="N", help="texts at once (256)"
    )
    add_device(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table here too")
    parser.add_argument(
        "--predictions",
        type=Path,
        metavar="FILE",
        help="write source, text and references here, with a tab between",
    )
    parser.set_defaults(run=run, parser=parser)


def run(options: argparse.Namespace) -> int:
    """Load, decode, count, and write what was asked for."""
    error = options.parser.error
    if options.n_best > options.num_beams:
        error(f"--n-best must be at most --num-beams, {options.num_beams}, got {options.n_best}")
    if options.length_penalty is not None and options.num_beams == 1:
        error("--length-penalty needs --num-beams above 1, got 1")
    if options.data is not None and (options.set is not None or len(options.data) > 2):
        error("--data takes one or two files, and no --set beside it")
    if options.several_references and options.data is None:
        error("--several-references needs --data; a run's own sets know of theirs")
    trained = training.load_run(options.folder, device=options.device)
    pairs = evaluation_pairs(trained, options)
    loss, forced = training.evaluate_teacher_forced(
        trained.model, pairs, batch_size=options.batch_size
    )
    search: dict[str, Any] = {"batch_size": options.batch_size, "num_beams": options.num_beams}
    if options.length_penalty is not None:
        search["length_penalty"] = options.length_penalty
    sources = [source for source, _ in pairs.pairs]
    start = time.perf_counter()
    hypotheses = trained.n_best(sources, options.n_best, **search)
    seconds = time.perf_counter() - start
    # A search may end with fewer than were asked for; what does not exist has no tokens.
    candidates = [[h.text for h in best if h.tokens] or [""] for best in hypotheses]
    found = score(
        [trained.source_vocabulary.tokenize(source) for source in sources],
        candidates,
        pairs.references,
        tokenize=trained.target_vocabulary.tokenize,
        error_names=None if pairs.is_text else pairs.error_names,
    )
    table = as_markdown(
        found,
        {
            "beams": str(options.num_beams),
            "loss, nats a token": f"{loss:.4f}",
            "exact match, teacher-forced": f"{forced.exact_match:.2%}",
            "texts/s": f"{len(sources) / seconds:,.0f}",
        },
    )
    sys.stdout.write(table)
    if options.json is not None:
        figures = {
            "data": options.data or options.set or "test",
            "search": search,
            "n_best": options.n_best,
            "loss": loss,
            "teacher_forced": {
                "exact_match": forced.exact_match,
                "token_accuracy": forced.token_accuracy,
            },
            "seconds": seconds,
            **found.to_dict(),
        }
        write_json_atomically(options.json, figures)
    if options.markdown is not None:
        write_bytes_atomically(options.markdown, table.encode())
    if options.predictions is not None:
        lines = (
            "\t".join([source, texts[0], *references])
            for source, texts, references in zip(sources, candidates, pairs.references, strict=True)
        )
        write_bytes_atomically(options.predictions, "".join(f"{x}\n" for x in lines).encode())
    return 0


def evaluation_pairs(trained: training.Run, options: argparse.Namespace) -> PairDataset:
    """The pairs that the options ask for: files, or a set of the run's own.

    Args:
        trained: has the vocabularies, and says what it was trained on.
        options: ``data``, ``set``, ``format``, ``several_references``, ``max_pairs`` and
            ``folder``.

    Raises:
        ValueError: if the run does not say, a file holds something else, or there are no pairs.
        OSError: if a file cannot be read.
    """
    known = trained.settings.get("data") or {"task": trained.settings.get("task")}
    try:
        config = DataConfig(**known)
    except (TypeError, ValueError) as error:
        if options.data is None:
            raise ValueError(
                f"{options.folder} does not say what it was trained on; give --data"
            ) from error
        config = DataConfig(pairs="")  # which says nothing of how to read files
    vocabularies = trained.source_vocabulary, trained.target_vocabulary
    copies = trained.model.config.copy
    config = replace(config, max_pairs=options.max_pairs or config.max_pairs)
    if options.data is None:
        return load_set(config, options.set or "test", vocabularies, copies=copies, tell=_tell)
    paths = options.data[0] if len(options.data) == 1 else options.data
    return load_files(
        replace(config, format=options.format),
        paths,
        vocabularies,
        several_references=options.several_references,
        copies=copies,
        tell=_tell,
    )


def _tell(told: str) -> None:
    print(f"seq2seq-ext: {told}", file=sys.stderr)
