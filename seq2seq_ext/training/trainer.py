"""One call that trains a model on pairs of texts, with Lightning underneath."""

from __future__ import annotations

import logging
import os
import signal
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule

from seq2seq_ext.data import EncodedPairs, PairDataset
from seq2seq_ext.models import Seq2Seq
from seq2seq_ext.training.checkpoints import FOLDER, LAST, AtomicCheckpointIO, Checkpoints
from seq2seq_ext.training.logs import Logging
from seq2seq_ext.training.module import Seq2SeqModule, StepCounter
from seq2seq_ext.training.options import TrainingOptions
from seq2seq_ext.training.progress import ProgressBar
from seq2seq_ext.training.validation import Validation


@dataclass(frozen=True)
class TrainingReport:
    """What a training run took.

    Args:
        seconds: wall-clock time from the first batch's loading to the last step's end; of a resumed
            run with the time before its last checkpoint.
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
    dataset: EncodedPairs,
    options: TrainingOptions | None = None,
    *,
    dev: PairDataset | None = None,
    folder: str | os.PathLike[str] | None = None,
    resume: bool = False,
    console: Console | None = None,
) -> TrainingReport:
    """Train a model in place.

    Seeds Python's, numpy's and torch's global generators with ``options.seed``; a model built under
    the same seed, on the same machine and number of threads, is trained to the same weights, in one
    go or with interruptions.

    Args:
        model: ends in eval mode; with `dev` and `folder`, with the weights of the best validation.
        dataset: the pairs to learn.
        options: how; None takes the defaults.
        dev: pairs to validate on; None validates never.
        folder: where checkpoints and logs go; None keeps none.
        resume: go on from the folder's latest checkpoint, if it has one.
        console: where progress is shown; None shows none.

    Raises:
        ValueError: if a dataset is empty, a checkpoint is damaged or was written with options that
            must stay, or Lightning cannot do what is asked of it on this machine.
        FileExistsError: if `folder` holds a checkpoint, and `resume` is false.
        KeyboardInterrupt: on Ctrl-C.
    """
    for name, pairs in (("dataset", dataset), ("dev", dev)):
        if pairs is not None and len(pairs) == 0:
            raise ValueError(f"{name} must hold at least one pair, got none")
    options = options or TrainingOptions()
    last = None if folder is None else Path(folder) / FOLDER / LAST
    begun = last is not None and last.is_file()
    rank: int = rank_zero_only.rank  # type: ignore[attr-defined]
    if begun and not resume and rank == 0:
        raise FileExistsError(f"{folder} holds a run; resume it, or name another folder")
    module = Seq2SeqModule(model, options, dataset)
    if rank:
        console = None
    checkpoints = None if folder is None else _checkpoints(Path(folder), options)
    callbacks = _callbacks(options, dev, folder, checkpoints, console)
    model.train()
    with _quiet_lightning():
        trainer = _trainer(options, callbacks)
        on_interrupt = signal.getsignal(signal.SIGINT)
        start = time.perf_counter()
        try:
            trainer.fit(module, ckpt_path=last if begun else None)
        except SystemExit as exit_request:
            if not trainer.interrupted:
                raise
            # Lightning answers Ctrl-C by ignoring the signal from then on and leaving the program;
            # whether to leave is for the caller to say.
            signal.signal(signal.SIGINT, on_interrupt)
            raise KeyboardInterrupt from exit_request
        seconds = max(time.perf_counter() - start, module.seconds)
    if isinstance(model, FSDPModule):
        _make_whole(model)
    if checkpoints is not None and checkpoints.best:
        best = checkpoints.path(checkpoints.best[0][1])
        weights = AtomicCheckpointIO().load_checkpoint(best)["state_dict"]
        module.load_state_dict(weights)
    model.eval()
    tokens = module.source_tokens + module.target_tokens
    return TrainingReport(
        seconds=seconds,
        steps=module.steps,
        epochs=module.epochs,
        loss=module.loss,
        tokens_per_second=tokens / seconds,
    )


def _make_whole(model: Seq2Seq) -> None:
    """Turn a sharded model back into a plain one, in all processes and in place."""
    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    whole = Seq2Seq(model.config)
    whole.load_state_dict(weights)
    model.__class__ = Seq2Seq
    model.__dict__ = whole.__dict__


def _checkpoints(folder: Path, options: TrainingOptions) -> Checkpoints:
    return Checkpoints(
        folder,
        metric=options.metric,
        keep_best=options.keep_best,
        every_steps=options.checkpoint_steps,
        every_seconds=options.checkpoint_seconds,
    )


def _callbacks(
    options: TrainingOptions,
    dev: PairDataset | None,
    folder: str | os.PathLike[str] | None,
    checkpoints: Checkpoints | None,
    console: Console | None,
) -> list[lightning.Callback]:
    """In the order in which they act after a step: checkpoints last, of all that came of it."""
    callbacks: list[lightning.Callback] = [StepCounter()]
    log = None if folder is None else Logging(Path(folder), options.log_every)
    if log is not None:
        callbacks.append(log)
    if console is not None:
        callbacks.append(ProgressBar(console))
    if dev is not None:
        callbacks.append(
            Validation(dev, options, console=console, logging=log, checkpoints=checkpoints)
        )
    if checkpoints is not None:
        callbacks.append(checkpoints)
    return callbacks


def _trainer(options: TrainingOptions, callbacks: list[lightning.Callback]) -> lightning.Trainer:
    devices, num_nodes = options.devices or 1, options.num_nodes
    if TorchElasticEnvironment.detect():
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        num_nodes = int(os.environ["WORLD_SIZE"]) // devices
    strategy: Any = options.strategy
    plugins: list[Any] = [AtomicCheckpointIO()]
    if strategy == "fsdp":
        strategy = ModelParallelStrategy(
            data_parallel_size=devices * num_nodes,
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
        )
    return lightning.Trainer(
        accelerator=options.accelerator,
        devices=devices,
        num_nodes=num_nodes,
        strategy=strategy,
        precision=options.precision,  # type: ignore[arg-type]
        max_epochs=1,  # see Seq2SeqModule
        accumulate_grad_batches=options.accumulate,
        gradient_clip_val=options.gradient_clip or None,
        callbacks=callbacks,
        plugins=plugins,
        logger=False,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Silence Lightning's notes on hardware, data workers and products; its errors still come.

    What it cannot do with the settings on this machine comes as a ValueError.
    """
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\..*")
            yield
    except MisconfigurationException as error:
        raise ValueError(" ".join(str(error).split())) from error
    finally:
        logger.setLevel(level)
