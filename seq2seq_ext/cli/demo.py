"""``seq2seq-ext demo``: learn English word forms, then show how well and how fast."""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from seq2seq_ext import training
from seq2seq_ext.cli import bottleneck
from seq2seq_ext.cli.layer_table import layer_timings
from seq2seq_ext.cli.learning import demo_model, learn
from seq2seq_ext.cli.numbers import non_negative_int, positive_float, positive_int
from seq2seq_ext.data import DataConfig, PairDataset, Sets, load_data
from seq2seq_ext.data.extras import check
from seq2seq_ext.models import Seq2Seq

if TYPE_CHECKING:
    from rich.console import Console

_SHOWN = 20
_EPOCHS = {"plural": 8, "past": 14}
_TRY = {"plural": "blog matrix", "past": "google outrun"}
_DESCRIPTION = """\
Learn English word forms character by character, from a context vector alone:

  plural      noun to plural, 13,668 pairs     goose -> geese
  past        verb to past tense, 6,414 pairs  teach -> taught
  bottleneck  plurals once more, by a small model with and without attention: the accuracy of both
              against the words' length, in one picture

The words come from the lexicon in the package lemminflect. A hash of each word puts it into the
training, dev or test set; no test word is seen in training. Shown at the end are the figures on
the test set, sample conversions, and our layers beside torch.nn's on this machine.
"""


def add_parser(subcommands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand ``demo``."""
    parser = subcommands.add_parser(
        "demo",
        help="learn English plurals or past tenses in a minute",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "task",
        nargs="?",
        choices=(*sorted(_EPOCHS), bottleneck.NAME),
        default="plural",
        help="what to learn (plural)",
    )
    parser.add_argument("--out", metavar="FOLDER", help="run folder (runs/TASK)")
    parser.add_argument(
        "--cell", choices=("lstm", "gru", "rnn"), default="gru", help="recurrent cell (gru)"
    )
    parser.add_argument(
        "--hidden-size",
        type=positive_int,
        metavar="N",
        help=f"state size (256, bottleneck {bottleneck.HIDDEN_SIZE})",
    )
    parser.add_argument(
        "--epochs",
        type=positive_int,
        metavar="N",
        help="passes over the training words (plural {plural}, past {past}, bottleneck {plural})"
        "".format(**_EPOCHS),
    )
    parser.add_argument(
        "--max-seconds",
        type=positive_float,
        default=55.0,
        metavar="S",
        help="stop training after S seconds even if epochs are left; the learning rate goes down "
        "in time (55)",
    )
    parser.add_argument(
        "--batch-size", type=positive_int, default=64, metavar="N", help="pairs a step (64)"
    )
    parser.add_argument(
        "--learning-rate", type=positive_float, default=3e-3, metavar="R", help="its peak (0.003)"
    )
    parser.add_argument(
        "--precision",
        choices=("32-true", "bf16-mixed"),
        default="32-true",
        help="train in float32, or under autocast to bfloat16 (32-true)",
    )
    parser.add_argument(
        "--seed", type=non_negative_int, default=0, metavar="N", help="random seed (0)"
    )
    parser.add_argument(
        "--threads",
        type=positive_int,
        metavar="N",
        help="CPU threads (torch's choice, or 1 where a trial finds that much faster)",
    )
    parser.add_argument(
        "--max-pairs",
        type=positive_int,
        metavar="N",
        help="use the first N pairs of each set alone, for a quick trial",
    )
    parser.add_argument(
        "--layer-seconds",
        type=positive_float,
        default=1.0,
        metavar="S",
        help="time for each row of the table of layers (1)",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Train, measure, show, and write the run folder."""
    for package in ("lightning", "rich", "safetensors", "lemminflect"):
        check(package, extra="demo", purpose="the demo")
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    folder = Path(options.out or Path("runs") / options.task)
    # Now, and not after a minute of training, is the time to learn that nothing can be kept.
    folder.mkdir(parents=True, exist_ok=True)

    task = "plural" if options.task == bottleneck.NAME else options.task
    sets = load_data(DataConfig(task=task, max_pairs=options.max_pairs))
    settings = training.TrainingOptions(
        epochs=options.epochs or _EPOCHS[task],
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        max_seconds=options.max_seconds,
        seed=options.seed,
        precision=options.precision,
    )
    if options.task == bottleneck.NAME:
        return bottleneck.run(options, console, folder, sets, settings)
    model = demo_model(options, sets.train, 256, reverse_source=True)
    _print_opening(console, options.task, sets, model)
    trained, report, test = learn(model, sets, settings, options.task, console)
    training.save_run(folder, trained)

    _print_figures(console, test, len(sets.test))
    _print_samples(console, sets.test, test, options.seed)
    _print_layers(console, options.layer_seconds)
    console.print(f"\nrun folder: {folder}")
    console.print(f"try: seq2seq-ext translate {folder} {_TRY[options.task]}")
    console.print(
        f"exact match on {len(sets.test):,} unseen words, free-running: "
        f"{test.free_running.exact_match:.1%}, after {report.seconds:.0f} s of training "
        f"({report.steps:,} steps, {report.epochs:.1f} epochs)"
    )
    return 0


def _print_opening(console: Console, task: str, sets: Sets, model: Seq2Seq) -> None:
    config, threads = model.config, torch.get_num_threads()
    parameters = sum(p.numel() for p in model.parameters())
    console.print(
        f"{task}: {len(sets.train):,} pairs to learn, {len(sets.dev):,} dev, "
        f"{len(sets.test):,} test, no word in two sets"
    )
    console.print(
        f"{config.cell.upper()} encoder and decoder of {config.encoder_hidden_size}, no attention, "
        f"{parameters:,} parameters, {threads} thread{'s' if threads > 1 else ''}"
    )


def _print_figures(console: Console, test: training.Evaluation, words: int) -> None:
    from rich.table import Table

    table = Table(title=f"\n{words:,} unseen words", title_justify="left", box=None)
    for column in ("", "teacher-forced", "free-running"):
        table.add_column(column, justify="right" if column else "left")
    for label, name in (("exact match", "exact_match"), ("token accuracy", "token_accuracy")):
        forced, free = getattr(test.teacher_forced, name), getattr(test.free_running, name)
        table.add_row(label, f"{forced:.1%}", f"{free:.1%}")
    console.print(table)


def _print_samples(
    console: Console, dataset: PairDataset, test: training.Evaluation, seed: int
) -> None:
    from rich.table import Table

    table = Table(title="\nsample conversions", title_justify="left", box=None)
    for column in ("", "word", "written", "right"):
        table.add_column(column)
    rows = random.Random(seed).sample(range(len(dataset)), min(_SHOWN, len(dataset)))
    for row in rows:
        source, target = dataset.pairs[row]
        written = test.predictions[row]
        right = written == target
        table.add_row("" if right else "[red]wrong[/]", source, written, "" if right else target)
    console.print(table)


def _print_layers(console: Console, seconds: float) -> None:
    from rich.table import Table

    batch_size, time_steps, hidden_size = 32, 50, 256
    table = Table(
        title=f"\none layer, ms a call: batch {batch_size}, {time_steps} steps, "
        f"hidden size {hidden_size}",
        title_justify="left",
        box=None,
    )
    table.add_column("", no_wrap=True)
    for column in ("torch best", "median", "ours best", "median", "ratio of medians"):
        table.add_column(column, justify="right", no_wrap=True)
    for timing in layer_timings(
        batch_size=batch_size,
        time_steps=time_steps,
        hidden_size=hidden_size,
        seconds=seconds,
    ):
        table.add_row(
            f"{timing.layer} {timing.work}",
            f"{timing.torch_best:.2f}",
            f"{timing.torch_median:.2f}",
            f"{timing.ours_best:.2f}",
            f"{timing.ours_median:.2f}",
            f"{timing.speedup:.2f}x",
        )
    console.print(table)
