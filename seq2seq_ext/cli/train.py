"""``seq2seq-ext train``: a YAML file, or options alone, and a run folder comes of it."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from seq2seq_ext import training
from seq2seq_ext.cli.learning import measured_run, new_model
from seq2seq_ext.data import DataConfig, EncodedPairs, load_data
from seq2seq_ext.data.extras import check
from seq2seq_ext.data.files import write_bytes_atomically
from seq2seq_ext.models import Seq2Seq, Seq2SeqConfig, read_token_vectors, set_embeddings
from seq2seq_ext.training.run import LOG_FILE, load_vocabularies, save_vocabularies

PRESETS = ("cho2014", "sutskever2014", "bahdanau2015", "luong2015", "gnmt")
_CONFIG = "config.yaml"
_VOCAB_SIZES = {"source_vocab_size", "target_vocab_size"}
_DATA = re.compile("^--data(?==|$)")
_DESCRIPTION = """\
Train a model: seq2seq-ext train [CONFIG.yaml] [--data PAIRS.tsv] [--model.NAME VALUE] ...
Options override the file. The same command runs on several processes under torchrun or SLURM.
"""


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
    data = DataConfig(**config.data)
    folder = Path(config.out or Path("runs") / _name_of(data))

    from lightning.pytorch.utilities import rank_zero_only
    from rich.console import Console

    from seq2seq_ext.training.checkpoints import FOLDER, LAST
    from seq2seq_ext.training.validation import error_rates

    first: bool = rank_zero_only.rank == 0  # type: ignore[attr-defined]
    console = Console(highlight=False, soft_wrap=True, quiet=not first)
    begun = any((folder / name).exists() for name in (LOG_FILE, training.METRICS_FILE))
    if first and begun and not resume:
        raise FileExistsError(f"{folder} holds a run; give --resume, or another folder with --out")
    if resume and (folder / training.METRICS_FILE).exists():
        console.print(f"the run in {folder} has ended; nothing is left to do")
        return 0

    # A vocabulary that is learnt may come out otherwise elsewhere: a run keeps its own.
    goes_on = resume and (folder / FOLDER / LAST).exists()
    kept = load_vocabularies(folder) if goes_on else None
    _check_vocabulary(data, config.model)
    sets = load_data(data, vocabularies=kept, copies=config.model.copy, tell=console.print)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    model = new_model(sets.train, settings.seed, config.model)
    for told in _load_vectors(model, sets.train, config):
        console.print(told)
    if first:
        write_bytes_atomically(folder / _CONFIG, text.encode())
        save_vocabularies(folder, sets.train.source_vocabulary, sets.train.target_vocabulary)
    parameters = sum(p.numel() for p in model.parameters())
    sizes = ", ".join(f"{n:,} {name}" for name, n in sets.sizes.items())
    console.print(f"{sizes} pairs; {parameters:,} parameters; {torch.get_num_threads()} threads")
    report = training.train(
        model,
        sets.train,
        settings,
        dev=sets.dev if len(sets.dev) else None,
        folder=folder,
        resume=resume,
        console=console,
    )
    if first:
        about = {"data": data.to_dict(), **settings.to_dict()}
        trained, measured = measured_run(model, sets, report, about)
        training.save_run(folder, trained)
        for name, found in measured.items():
            console.print(
                f"{name}: exact match {found.teacher_forced.exact_match:.1%} teacher-forced, "
                f"{found.free_running.exact_match:.1%} free-running; "
                f"{error_rates(found, sets.test)}"
            )
        console.print(f"run folder: {folder}")
    _leave_processes()
    return 0


def _check_vocabulary(data: DataConfig, model: Any) -> None:
    """Raise where a model needs one vocabulary and the data has two."""
    wants = {
        "model.copy=true": model.copy,
        "model.tie_embeddings=all": model.tie_embeddings == "all",
    }
    for name, wanted in wants.items():
        if wanted and not data.share_vocabulary:
            raise ValueError(f"{name} needs data.share_vocabulary=true, got false")


def _load_vectors(model: Seq2Seq, train_set: EncodedPairs, config: Any) -> Iterator[str]:
    """Put vectors of files into the embeddings; tells what each file had."""
    for side, part, vocabulary in (
        ("source", model.encoder, train_set.source_vocabulary),
        ("target", model.decoder, train_set.target_vocabulary),
    ):
        path = config[f"{side}_vectors"]
        if path is None:
            continue
        tokens = vocabulary.to_list()
        vectors, found = read_token_vectors(path, tokens, size=part.embedding.embedding_dim)
        set_embeddings(part.embedding, vectors, found, freeze=config.freeze_vectors)
        yield f"{path} has vectors of {int(found.sum()):,} of the {len(tokens):,} {side} tokens"


def _name_of(data: DataConfig) -> str:
    """The run's, where none is given: the data's without the endings of its file."""
    return "stdin" if data.name == "-" else Path(data.name).name.split(".")[0] or "run"


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
    arguments = [_DATA.sub("--data.pairs", argument) for argument in arguments]
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
    for side in ("source", "target"):
        parser.add_argument(
            f"--{side}-vectors",
            type=str | None,
            help=f"a text file of vectors (word2vec, GloVe) in which the {side} embedding begins",
        )
    parser.add_argument(
        "--freeze-vectors", type=bool, default=False, help="whether such an embedding stays"
    )
    parser.add_argument("--preset", choices=PRESETS, help="whose model the defaults are")
    parser.add_class_arguments(DataConfig, "data")
    parser.add_class_arguments(Seq2SeqConfig, "model", skip=_VOCAB_SIZES)
    parser.add_class_arguments(training.TrainingOptions, "training")
    if preset is not None:
        fields = getattr(Seq2SeqConfig, preset)(99, 99).to_dict()
        parser.set_defaults(
            {f"model.{name}": v for name, v in fields.items() if name not in _VOCAB_SIZES}
        )
    return parser
