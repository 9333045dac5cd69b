"""``seq2seq-ext train``: a YAML file, or options alone, and a run folder comes of it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from seq2seq_ext import training
from seq2seq_ext.data import PairDataset, Split, Vocabulary, split_pairs, word_pairs
from seq2seq_ext.data.extras import check
from seq2seq_ext.data.files import write_bytes_atomically
from seq2seq_ext.models import Seq2Seq, Seq2SeqConfig

PRESETS = ("cho2014", "sutskever2014", "bahdanau2015", "luong2015")
_CONFIG = "config.yaml"
_VOCAB_SIZES = {"source_vocab_size", "target_vocab_size"}
_DESCRIPTION = """\
Train a model: seq2seq-ext train [CONFIG.yaml] [--data PAIRS.tsv] [--model.NAME VALUE] ...
Options override the file. The same command runs on several processes under torchrun or SLURM.
"""


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """What to learn from.

    Args:
        task: a built-in list of words, ``"plural"`` or ``"past"``; or
        pairs: a file of two columns, source and target, with a tab between.
        dev: share of the pairs to validate on, chosen by a hash of the words.
        test: share to measure the trained model on.
        max_pairs: use the first pairs of each set alone.

    Raises:
        ValueError: if not just one of `task` and `pairs` is given.
    """

    task: str | None = None
    pairs: str | None = None
    dev: float = 0.05
    test: float = 0.1
    max_pairs: int | None = None

    def __post_init__(self) -> None:
        if (self.task is None) == (self.pairs is None):
            raise ValueError(
                "data.task or data.pairs must be given, and not both, "
                f"got {self.task!r} and {self.pairs!r}"
            )

    def read(self) -> Split:
        """The pairs of each set.

        Raises:
            ValueError: if a line of the file has not two columns, or a set is empty.
            OSError: if the file cannot be read.
        """
        pairs = word_pairs(self.task) if self.task is not None else _read_tsv(str(self.pairs))
        split = split_pairs(pairs, dev=self.dev, test=self.test)
        split = Split(*(part[: self.max_pairs] for part in split))
        if not split.train:
            raise ValueError(f"{self.pairs or self.task} has no pairs to train on")
        return split


def add_parser(subcommands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand ``train``, whose arguments jsonargparse reads."""
    parser = subcommands.add_parser(
        "train",
        help="train a model as a YAML file or options say",
        add_help=False,
        prefix_chars="\0",  # nothing is an option here: all is handed on
    )
    parser.add_argument("arguments", nargs="*")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Train, measure, and write the run folder; or print the config."""
    for package in ("jsonargparse", "lightning", "rich", "safetensors", "tensorboard"):
        check(package, extra="train", purpose="training")
    parser, config = _parse(options.arguments)
    resume, print_config = config.pop("resume"), config.pop("print_config")
    config.pop("config")
    text: str = parser.dump(config, skip_unset=False)
    if print_config:
        sys.stdout.write(text)
        return 0
    settings = training.TrainingOptions(**config.training)
    data = DataOptions(**config.data)
    folder = Path(config.out or Path("runs") / (data.task or Path(str(data.pairs)).stem))

    from lightning.pytorch.utilities import rank_zero_only
    from rich.console import Console

    from seq2seq_ext.training.logs import LOG_FILE

    first: bool = rank_zero_only.rank == 0  # type: ignore[attr-defined]
    console = Console(highlight=False, soft_wrap=True, quiet=not first)
    begun = any((folder / name).exists() for name in (LOG_FILE, training.METRICS_FILE))
    if first and begun and not resume:
        raise FileExistsError(f"{folder} holds a run; give --resume, or another folder with --out")
    if resume and (folder / training.METRICS_FILE).exists():
        console.print(f"the run in {folder} has ended; nothing is left to do")
        return 0

    split = data.read()
    vocabularies = [Vocabulary.from_texts(pair[i] for pair in split.train) for i in (0, 1)]
    sets = {name: PairDataset(p, *vocabularies) for name, p in split._asdict().items()}
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    torch.manual_seed(settings.seed)
    model = Seq2Seq(
        Seq2SeqConfig(
            source_vocab_size=len(vocabularies[0]),
            target_vocab_size=len(vocabularies[1]),
            **config.model,
        )
    )
    if first:
        write_bytes_atomically(folder / _CONFIG, text.encode())
    parameters = sum(p.numel() for p in model.parameters())
    sizes = ", ".join(f"{len(part):,} {name}" for name, part in sets.items())
    console.print(f"{sizes} pairs; {parameters:,} parameters; {torch.get_num_threads()} threads")
    report = training.train(
        model,
        sets["train"],
        settings,
        dev=sets["dev"] if split.dev else None,
        folder=folder,
        resume=resume,
        console=console,
    )
    if first:
        measured = {
            name: training.evaluate(model, sets[name])
            for name in ("dev", "test")
            if len(sets[name])
        }
        metrics: dict[str, Any] = {"training": asdict(report)}
        metrics["pairs"] = {name: len(part) for name, part in sets.items()}
        metrics |= {name: found.figures() for name, found in measured.items()}
        trained = training.Run(
            model,
            sets["train"].source_vocabulary,
            sets["train"].target_vocabulary,
            settings={"data": asdict(data), **asdict(settings)},
            metrics=metrics,
        )
        training.save_run(folder, trained)
        for name, found in measured.items():
            console.print(
                f"{name}: exact match {found.teacher_forced.exact_match:.1%} teacher-forced, "
                f"{found.free_running.exact_match:.1%} free-running"
            )
        console.print(f"run folder: {folder}")
    _leave_processes()
    return 0


def _leave_processes() -> None:
    """End one of several processes without the interpreter's farewell.

    A thread of gloo's that then still lets go of a tensor would abort it (pytorch issue 190489).
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _parse(arguments: Sequence[str]) -> tuple[Any, Any]:
    """The parser and what it made of the arguments; exits with 2 where it understands nothing."""
    arguments = [{"--data": "--data.pairs"}.get(argument, argument) for argument in arguments]
    if arguments and not arguments[0].startswith("-"):
        arguments.insert(0, "--config")
    try:
        preset = _new_parser(None).parse_args(arguments).preset
        parser = _new_parser(preset)
        return parser, parser.parse_args(arguments)
    except argparse.ArgumentError as error:
        message = " ".join(str(error).split())
        print(f"seq2seq-ext train: error: {message}", file=sys.stderr)
        raise SystemExit(2) from error


def _new_parser(preset: str | None) -> Any:
    import jsonargparse

    parser = jsonargparse.ArgumentParser(
        prog="seq2seq-ext train",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        exit_on_error=False,
    )
    parser.add_argument("--config", action="config", help="a YAML file of these options")
    parser.add_argument("--print-config", action="store_true", help="print them all, and end")
    parser.add_argument("--resume", action="store_true", help="go on with the run in the folder")
    parser.add_argument("--out", type=str | None, help="run folder (runs/, and the data's name)")
    parser.add_argument("--threads", type=int | None, help="CPU threads (torch's choice)")
    parser.add_argument("--preset", choices=PRESETS, help="whose model the defaults are")
    parser.add_class_arguments(DataOptions, "data")
    parser.add_class_arguments(Seq2SeqConfig, "model", skip=_VOCAB_SIZES)
    parser.add_class_arguments(training.TrainingOptions, "training")
    if preset is not None:
        fields = getattr(Seq2SeqConfig, preset)(99, 99).to_dict()
        parser.set_defaults(
            {f"model.{name}": v for name, v in fields.items() if name not in _VOCAB_SIZES}
        )
    return parser


def _read_tsv(path: str) -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    try:
        with open(path, encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                columns = line.rstrip("\r\n").split("\t")
                if len(columns) != 2:
                    raise ValueError(
                        f"{path}, line {number} must have two columns with a tab between, "
                        f"got {len(columns)}"
                    )
                pairs.append((columns[0], columns[1]))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error
    return pairs
