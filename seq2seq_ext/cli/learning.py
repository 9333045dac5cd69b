"""What the demonstrations do alike: make a model of the options, train it, and measure it."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from seq2seq_ext import training
from seq2seq_ext.data import PairDataset
from seq2seq_ext.models import Seq2Seq, Seq2SeqConfig

if TYPE_CHECKING:
    from rich.console import Console


class Sets(NamedTuple):
    """The pairs of a task, no word in two sets."""

    train: PairDataset
    dev: PairDataset
    test: PairDataset


class Learnt(NamedTuple):
    """A run that nothing has kept yet, how its training went, and its figures on the test set."""

    run: training.Run
    report: training.TrainingReport
    test: training.Evaluation


def new_model(
    options: argparse.Namespace, train_set: PairDataset, hidden_size: int, **changes: Any
) -> Seq2Seq:
    """A model from the seed, encoder and decoder of equal size; and as many threads as suit it.

    Args:
        options: those of ``demo``.
        train_set: has the vocabularies, and batches to choose the number of threads by.
        hidden_size: where the options name none.
        **changes: other fields of the config.
    """
    torch.manual_seed(options.seed)
    hidden_size = options.hidden_size or hidden_size
    model = Seq2Seq(
        Seq2SeqConfig(
            source_vocab_size=len(train_set.source_vocabulary),
            target_vocab_size=len(train_set.target_vocabulary),
            cell=options.cell,
            encoder_hidden_size=hidden_size,
            decoder_hidden_size=hidden_size,
            **changes,
        )
    )
    typical = train_set[range(min(options.batch_size, len(train_set)))]
    torch.set_num_threads(options.threads or training.fastest_num_threads(model, typical))
    return model


def learn(
    model: Seq2Seq, sets: Sets, settings: training.TrainingOptions, task: str, console: Console
) -> Learnt:
    """Train a model in place, and measure it on the dev and test sets."""
    report = training.train(model, sets.train, settings, console=console)
    dev, test = training.evaluate(model, sets.dev), training.evaluate(model, sets.test)
    run = training.Run(
        model,
        sets.train.source_vocabulary,
        sets.train.target_vocabulary,
        settings={"task": task, "threads": torch.get_num_threads(), **asdict(settings)},
        metrics={
            "training": asdict(report),
            "pairs": {name: len(part) for name, part in sets._asdict().items()},
            "dev": dev.figures(),
            "test": test.figures(),
        },
    )
    return Learnt(run, report, test)
