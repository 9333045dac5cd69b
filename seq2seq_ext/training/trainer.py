"""One call that trains a model on pairs of texts, with Lightning underneath."""

from __future__ import annotations

import logging
import signal
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import lightning
import torch
from rich.console import Console
from torch.utils.data import DataLoader

from seq2seq_ext.data import Batch, LengthBuckets, PairDataset
from seq2seq_ext.models import Seq2Seq
from seq2seq_ext.training.module import Seq2SeqModule
from seq2seq_ext.training.options import TrainingOptions
from seq2seq_ext.training.progress import ProgressBar


@dataclass(frozen=True)
class TrainingReport:
    """What a training run took.

    Args:
        seconds: wall-clock time from the first batch's loading to the last step's end.
        steps: optimiser steps.
        epochs: passes over the training set, the last perhaps in part.
        loss: of the last step, in nats a token.
        tokens_per_second: source and target tokens a second.
    """

    seconds: float
    steps: int
    epochs: float
    loss: float
    tokens_per_second: float


def train(
    model: Seq2Seq,
    dataset: PairDataset,
    options: TrainingOptions | None = None,
    *,
    console: Console | None = None,
) -> TrainingReport:
    """Train a model in place.

    Seeds torch's global generator with ``options.seed``; a model built under the same seed, on the
    same machine and number of threads, is trained to the same weights.

    Args:
        model: ends in eval mode.
        dataset: the pairs to learn.
        options: how; None takes the defaults.
        console: where progress is shown; None shows none.

    Raises:
        ValueError: if the dataset is empty.
        KeyboardInterrupt: on Ctrl-C.
    """
    if len(dataset) == 0:
        raise ValueError("dataset must hold at least one pair, got none")
    options = options or TrainingOptions()
    batches = LengthBuckets(dataset, options.batch_size, seed=options.seed)
    loader: DataLoader[Batch] = DataLoader(dataset, batch_size=None, sampler=batches)
    module = Seq2SeqModule(model, options, total_steps=options.epochs * len(batches))
    torch.manual_seed(options.seed)
    model.train()
    with _quiet_lightning():
        trainer = lightning.Trainer(
            accelerator=options.accelerator,
            devices=1,
            precision=options.precision,  # type: ignore[arg-type]
            max_epochs=options.epochs,
            gradient_clip_val=options.gradient_clip or None,
            callbacks=[] if console is None else [ProgressBar(console)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        on_interrupt = signal.getsignal(signal.SIGINT)
        start = time.perf_counter()
        try:
            trainer.fit(module, loader)
        except SystemExit as exit_request:
            if not trainer.interrupted:
                raise
            # Lightning answers Ctrl-C by ignoring the signal from then on and leaving the program;
            # whether to leave is for the caller to say.
            signal.signal(signal.SIGINT, on_interrupt)
            raise KeyboardInterrupt from exit_request
        seconds = time.perf_counter() - start
    model.eval()
    observation = module.observation()
    assert observation is not None  # a dataset that is not empty gives at least one step
    return TrainingReport(
        seconds=seconds,
        steps=module.steps,
        epochs=module.steps / len(batches),
        loss=observation.loss,
        tokens_per_second=observation.tokens / seconds,
    )


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Silence Lightning's notes on hardware, data workers and products; its errors still come."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\..*")
            yield
    finally:
        logger.setLevel(level)
