"""What the commands that train do alike: make a model of the options, and measure it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from seq2seq_ext import training
from seq2seq_ext.data import EncodedPairs, Sets
from seq2seq_ext.models import Seq2Seq, Seq2SeqConfig

if TYPE_CHECKING:
    from rich.console import Console


class Learnt(NamedTuple):
    """A run that nothing has kept yet, how its training went, and its figures on the test set."""

    run: training.Run
    report: training.TrainingReport
    test: training.Evaluation


def new_model(train_set: EncodedPairs, seed: int, fields: Mapping[str, Any]) -> Seq2Seq:
    """A model from a seed.

    Args:
        train_set: has the vocabularies.
        seed: of the weights.
        fields: of the config, but for the sizes of the vocabularies.
    """
    torch.manual_seed(seed)
    return Seq2Seq(
        Seq2SeqConfig(
            source_vocab_size=len(train_set.source_vocabulary),
            target_vocab_size=len(train_set.target_vocabulary),
            **fields,
        )
    )


def demo_model(
    options: argparse.Namespace, train_set: EncodedPairs, hidden_size: int, **changes: Any
) -> Seq2Seq:
    """Encoder and decoder of equal size; and as many threads as suit them.

    Args:
        options: those of ``demo``.
        train_set: has batches to choose the number of threads by.
        hidden_size: where the options name none.
        **changes: other fields of the config.
    """
    hidden_size = options.hidden_size or hidden_size
    sizes = {"encoder_hidden_size": hidden_size, "decoder_hidden_size": hidden_size}
    model = new_model(train_set, options.seed, {"cell": options.cell, **sizes, **changes})
    typical = train_set[range(min(options.batch_size, len(train_set)))]
    torch.set_num_threads(options.threads or training.fastest_num_threads(model, typical))
    return model


def measured_run(
    model: Seq2Seq, sets: Sets, report: training.TrainingReport, settings: Mapping[str, Any]
) -> tuple[training.Run, dict[str, training.Evaluation]]:
    """The run of a trained model, and its figures on the dev and test sets that are not empty."""
    measured = {
        name: training.evaluate(model, pairs)
        for name, pairs in (("dev", sets.dev), ("test", sets.test))
        if len(pairs)
    }
    run = training.Run(
        model,
        sets.train.source_vocabulary,
        sets.train.target_vocabulary,
        settings=settings,
        metrics={
            "training": asdict(report),
            "pairs": sets.sizes,
            **{name: found.figures() for name, found in measured.items()},
        },
    )
    return run, measured


def learn(
    model: Seq2Seq, sets: Sets, settings: training.TrainingOptions, task: str, console: Console
) -> Learnt:
    """Train a model in place, and measure it on the dev and test sets."""
    report = training.train(model, sets.train, settings, console=console)
    about = {"task": task, "threads": torch.get_num_threads(), **settings.to_dict()}
    run, measured = measured_run(model, sets, report, about)
    return Learnt(run, report, measured["test"])
