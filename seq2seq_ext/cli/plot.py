"""``seq2seq-ext plot``: pictures of runs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from seq2seq_ext.cli.evaluate import evaluation_pairs
from seq2seq_ext.cli.numbers import positive_int
from seq2seq_ext.data.extras import check
from seq2seq_ext.data.files import write_bytes_atomically
from seq2seq_ext.training import Run, load_run
from seq2seq_ext.training.run import LOG_FILE, room_for

_EXAMPLES = """\
examples:
  seq2seq-ext plot runs/g2p
  seq2seq-ext plot runs/context runs/attention --lengths --out pictures
  seq2seq-ext plot runs/g2p --attention elephant --beams elephant --num-beams 4

curves     loss, figures of the dev set and learning rate over the steps
lengths    exact match on the runs' test set, against the length of the source
attention  what each token of the best text was written from
beams      the tree of a beam search: what was tried, and what was given up

Without any of them it is curves, which work while a run is being trained. Each picture is a PNG of
that name in the folder --out.
"""


def add_parser(subcommands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand ``plot``."""
    parser = subcommands.add_parser(
        "plot",
        help="learning curves, accuracy against length, attention and beams of runs",
        description="Draw pictures of one run, or of several beside each other.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folders", metavar="RUN", nargs="+", help="run folder, such as runs/g2p")
    parser.add_argument("--curves", action="store_true", help="learning curves")
    parser.add_argument("--lengths", action="store_true", help="accuracy against length")
    parser.add_argument("--attention", metavar="TEXT", help="attention when TEXT is converted")
    parser.add_argument("--beams", metavar="TEXT", help="beams when TEXT is converted")
    parser.add_argument(
        "--num-beams", type=positive_int, metavar="N", help="beams (--beams: 4; others: 1)"
    )
    parser.add_argument(
        "--max-pairs", type=positive_int, metavar="N", help="--lengths: the first N pairs alone"
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where to (RUN/plots)")
    parser.set_defaults(run=run, parser=parser)


def run(options: argparse.Namespace) -> int:
    """Draw what was asked for, and tell where it is."""
    check("matplotlib", extra="plot", purpose="seq2seq-ext plot")
    folders = [Path(folder) for folder in options.folders]
    names = _names(folders)
    for name in ("attention", "beams"):
        if getattr(options, name) is not None and len(folders) > 1:
            options.parser.error(f"--{name} is of one run, got {len(folders)}")
    if options.beams is not None and options.num_beams == 1:
        options.parser.error("--beams needs --num-beams above 1, got 1")
    out = options.out or folders[0] / "plots"
    pictures: dict[str, bytes] = {}
    asked = options.lengths or options.attention is not None or options.beams is not None
    if options.curves or not asked:
        pictures["curves"] = _curves(folders, names)
    if asked:
        runs = [load_run(folder) for folder in folders]
        if options.lengths:
            pictures["lengths"] = _lengths(runs, names, options)
        if options.attention is not None:
            pictures["attention"] = _attention(runs[0], options.attention, options.num_beams or 1)
        if options.beams is not None:
            pictures["beams"] = _beams(runs[0], options.beams, options.num_beams or 4)
    for name, content in pictures.items():
        write_bytes_atomically(out / f"{name}.png", content)
        print(f"{name}: {out / name}.png")
    return 0


def _names(folders: Sequence[Path]) -> list[str]:
    """What tells the runs apart: their folders' names, or their paths where those are the same."""
    short = [folder.resolve().name for folder in folders]
    return short if len(set(short)) == len(short) else [str(folder) for folder in folders]


def _curves(folders: Sequence[Path], names: Sequence[str]) -> bytes:
    from seq2seq_ext.plots import learning_curves_as_png, read_log

    logs = {n: read_log(folder / LOG_FILE) for n, folder in zip(names, folders, strict=True)}
    return learning_curves_as_png(logs, ", ".join(names))


def _lengths(runs: Sequence[Run], names: Sequence[str], options: argparse.Namespace) -> bytes:
    from seq2seq_ext.metrics import by_length
    from seq2seq_ext.plots import accuracy_by_length_as_png

    asked = argparse.Namespace(
        data=None, set=None, format=None, max_pairs=options.max_pairs, several_references=False
    )
    buckets = {}
    first: list[tuple[str, str]] | None = None
    for run_, name, folder in zip(runs, names, options.folders, strict=True):
        asked.folder = folder
        pairs = evaluation_pairs(run_, asked)
        first = pairs.pairs if first is None else first
        if [source for source, _ in pairs.pairs] != [source for source, _ in first]:
            raise ValueError(f"{folder} has another test set than {options.folders[0]}")
        sources = [source for source, _ in pairs.pairs]
        predictions = run_.translate(sources, num_beams=options.num_beams or 1)
        # By the first run's tokens, so that the lengths of all are the same.
        tokens = [runs[0].source_vocabulary.tokenize(source) for source in sources]
        buckets[name] = by_length(tokens, predictions, pairs.references)
    return accuracy_by_length_as_png(buckets, f"{len(first or []):,} texts that were never seen")


def _attention(run_: Run, text: str, num_beams: int) -> bytes:
    from seq2seq_ext.plots import attention_as_png

    _check_text(text)
    best = run_.n_best([text], 1, num_beams=num_beams, return_attention=True)[0][0]
    assert best.alignments is not None  # asked for
    return attention_as_png(run_.source_vocabulary.tokenize(text), best.tokens, best.alignments)


def _beams(run_: Run, text: str, num_beams: int) -> bytes:
    from seq2seq_ext.generation import beam_tree
    from seq2seq_ext.plots import beam_tree_as_png

    _check_text(text)
    ids, unknown = run_.encode(text)
    source = torch.tensor([ids])
    tree = beam_tree(
        run_.model.eval(),
        source,
        num_beams=num_beams,
        num_return_sequences=num_beams,
        max_new_tokens=room_for(source.size(1)),
        output_scores=True,
    )
    return beam_tree_as_png(tree, [*run_.target_vocabulary.to_list(), *unknown], text)


def _check_text(text: str) -> None:
    if not text.strip():
        raise ValueError(f"TEXT must not be blank, got {text!r}")
