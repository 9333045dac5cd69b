"""A `Seq2Seq` model as Lightning trains it.

A step of a small model takes a few milliseconds, so what happens beside it counts: nothing here
reads a number back from the device. Whoever shows figures asks `observation` when it redraws.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import lightning
import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, fully_shard

from seq2seq_ext.data import EncodedPairs, LengthBuckets
from seq2seq_ext.models import Seq2Seq, Seq2SeqOutput
from seq2seq_ext.training.options import TrainingOptions
from seq2seq_ext.training.random_state import gather_random_states, restore_random_state, seed_all
from seq2seq_ext.training.risk import expected_risk
from seq2seq_ext.training.schedules import Pace, learning_rate, teacher_forcing
from seq2seq_ext.training.stream import Part, Position, Stream

STATE = "seq2seq_ext"
# What a checkpoint keeps as it is.
_SAVED = ("steps", "source_tokens", "target_tokens", "reductions", "epochs", "loss", "ended")
# Resuming with another value would train on other batches, or with another optimiser's state.
_MUST_STAY = ("seed", "batch_size", "batch_tokens", "optimizer")


class Observation(NamedTuple):
    """Figures of a run at one moment.

    Args:
        loss: of the latest part of a step, in nats a token.
        token_accuracy: share of right tokens in it, teacher-forced, in [0, 1].
        learning_rate: of the latest step.
        source_tokens: read since the start, by all processes.
        target_tokens: likewise.
        seconds: time since the start.
        progress: share of the run that is over, in [0, 1].
    """

    loss: float
    token_accuracy: float
    learning_rate: float
    source_tokens: int
    target_tokens: int
    seconds: float
    progress: float

    @property
    def source_tokens_per_second(self) -> float:
        """Averaged since the start."""
        return self.source_tokens / self.seconds if self.seconds > 0 else 0.0

    @property
    def target_tokens_per_second(self) -> float:
        """Averaged since the start."""
        return self.target_tokens / self.seconds if self.seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float:
        """Time to the end at the pace so far."""
        return self.seconds * (1.0 - self.progress) / self.progress if self.progress > 0 else 0.0


class Seq2SeqModule(lightning.LightningModule):
    """Loss, optimiser, schedules and place in the data of a training run.

    To Lightning the run is one epoch of an endless loader; passes over the data are counted here,
    so that a run goes on from any step like from any other.

    Args:
        model: what is trained, in place.
        options: how.
        dataset: what on.
    """

    def __init__(self, model: Seq2Seq, options: TrainingOptions, dataset: EncodedPairs) -> None:
        super().__init__()
        self.model = model
        self.options = options
        self.dataset = dataset
        self.pace = Pace(options.max_seconds)
        self.position = Position()
        self.steps = 0
        self.source_tokens = 0
        self.target_tokens = 0
        self.reductions = 0
        self.epochs = 0.0
        self.progress = 0.0
        self.loss = math.nan
        self.ended = False
        self._spent = 0.0
        self._start: float | None = None
        self._random_states: list[dict[str, Any]] | None = None
        self._latest: Seq2SeqOutput | None = None
        self._loss_sum: Tensor | None = None

    def configure_model(self) -> None:
        """Under FSDP: shard the parameters, all in one group."""
        if self.options.strategy == "fsdp":
            assert self.device_mesh is not None  # the strategy has made one
            fully_shard(self.model, mesh=self.device_mesh["data_parallel"])

    @contextmanager
    def whole_parameters(self) -> Iterator[None]:
        """While it lasts, every process has all the parameters, as generating needs."""
        if not isinstance(self.model, FSDPModule):
            yield
            return
        self.model.unshard()
        try:
            yield
        finally:
            self.model.reshard()

    def train_dataloader(self) -> Stream:
        """This process's parts of all steps that are left."""
        return Stream(
            self.dataset,
            LengthBuckets(
                self.dataset,
                self.options.batch_size,
                seed=self.options.seed,
                batch_tokens=self.options.batch_tokens,
            ),
            self.options.epochs,
            start=self.position,
            rank=self.global_rank,
            world_size=self.trainer.world_size,
            accumulate=self.options.accumulate,
        )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """All parameters in one fused update where Lightning can clip before it."""
        options = self.options
        common: dict[str, Any] = {"lr": options.learning_rate, "weight_decay": options.weight_decay}
        common["fused"] = options.precision == "32-true"
        if options.optimizer == "sgd":
            return torch.optim.SGD(self.model.parameters(), **common)
        kind = torch.optim.AdamW if options.optimizer == "adamw" else torch.optim.Adam
        return kind(self.model.parameters(), betas=(0.9, 0.98), **common)

    def on_train_start(self) -> None:
        """Seed, or go on with, all random numbers, and start the clock.

        Raises:
            ValueError: if the processes have read different data.
        """
        rank = self.global_rank
        if self.trainer.strategy.broadcast(self.dataset.fingerprint) != self.dataset.fingerprint:
            raise ValueError(f"dataset must be the same in all processes, process {rank} differs")
        if self._random_states is None:
            seed_all(self.options.seed, rank)
        elif len(self._random_states) == self.trainer.world_size:
            restore_random_state(self._random_states[rank])
        else:  # other processes than those that drew before: fresh numbers, not the first again
            seed_all(self.options.seed, rank, self.steps)
        self._start = time.perf_counter()
        self._measure_progress()

    def on_train_end(self) -> None:
        """Take down the loss of the last step, for which all processes are needed."""
        self.step_loss()

    def on_train_batch_start(self, batch: Part, batch_idx: int) -> int | None:
        """Set the learning rate of this step; end a run that is over."""
        if self.progress >= 1.0:  # resumed at its end
            return -1
        rate = self.learning_rate()
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = rate
        return None

    def training_step(self, part: Part, batch_idx: int) -> Tensor:
        """The part's share of the step's loss."""
        options, progress = self.options, min(self.progress, 1.0)
        output: Seq2SeqOutput = self.model(
            *part.batch,
            teacher_forcing_ratio=teacher_forcing(
                options.teacher_forcing_schedule, progress, final=options.teacher_forcing_ratio
            ),
            label_smoothing=options.label_smoothing,
            coverage_loss=options.coverage_loss,
        )
        self._latest = Seq2SeqOutput(*(value.detach() for value in output))
        loss = part.weight * output.loss
        share = loss.detach() / options.accumulate
        before = None if part.first else self._loss_sum
        self._loss_sum = share if before is None else before + share
        if options.risk_weight:
            risk = expected_risk(
                self.model,
                part.batch,
                cost=options.risk_cost,
                samples=options.risk_samples,
                sharpness=options.risk_sharpness,
            )
            # Risk is a mean over sources; like the likelihood's, its parts count by their tokens.
            loss = (1.0 - options.risk_weight) * loss + options.risk_weight * part.weight * risk
        return loss

    def end_step(self, part: Part) -> None:
        """Count a step; end the run when its work or its time is over."""
        self.steps += 1
        self.position = part.end
        self.source_tokens += part.source_tokens
        self.target_tokens += part.target_tokens
        self.epochs = part.epochs
        self._measure_progress()
        if self.progress >= 1.0:
            self.trainer.should_stop = True

    def end(self) -> None:
        """End the run after this step, though work is left."""
        self.ended = True
        self.trainer.should_stop = True

    @property
    def seconds(self) -> float:
        """Time trained, that before an interruption included."""
        return self._spent + (0.0 if self._start is None else time.perf_counter() - self._start)

    def _measure_progress(self) -> None:
        """Take down the share of the run that is over, one for all processes: clocks differ."""
        seconds = self.seconds
        if self.options.max_seconds is not None and self.trainer.world_size > 1:
            seconds = self.trainer.strategy.broadcast(seconds)
        self.progress = self.pace.progress(self._done(), seconds)

    def _done(self) -> float:
        """Share of the work that is over."""
        steps = self.options.max_steps
        by_steps = 0.0 if steps is None else self.steps / steps
        return 1.0 if self.ended else max(self.epochs / self.options.epochs, by_steps)

    def learning_rate(self) -> float:
        """That of the coming step."""
        options = self.options
        rate = learning_rate(
            options.schedule,
            min(self.progress, 1.0),
            peak=options.learning_rate,
            warmup=options.warmup,
        )
        return rate * options.plateau_factor**self.reductions

    def step_loss(self) -> float:
        """Mean loss of the latest step over the tokens of all processes. Waits for them all."""
        if self._loss_sum is not None:
            self.loss = float(self.trainer.strategy.reduce(self._loss_sum, reduce_op="mean"))
        return self.loss

    def observation(self) -> Observation | None:
        """Figures at this moment, None before the first step. Waits for the device."""
        if self._latest is None:
            return None
        loss, logits, labels = self._latest
        inside = labels != self.model.config.pad_token_id
        right = (logits.argmax(-1) == labels) & inside
        return Observation(
            loss=float(loss),
            token_accuracy=int(right.sum()) / max(1, int(inside.sum())),
            learning_rate=float(self.trainer.optimizers[0].param_groups[0]["lr"]),
            source_tokens=self.source_tokens,
            target_tokens=self.target_tokens,
            seconds=self.seconds,
            progress=min(self.progress, 1.0),
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add where the run stands; called in all processes."""
        # Lightning's own count of batches would be a second opinion on where the run stands.
        del checkpoint["loops"]
        self.step_loss()
        checkpoint[STATE] = {
            **{name: getattr(self, name) for name in _SAVED},
            "position": list(self.position),
            "seconds": self.seconds,
            "options": self.options.to_dict(),
            "model": self.model.config.to_dict(),
            "data": self.dataset.fingerprint,
            "random_states": gather_random_states(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go back to where the run stood.

        Raises:
            ValueError: if it was begun with another model, other data, or
                options that must stay.
        """
        state = checkpoint[STATE]
        options, model = self.options.to_dict(), self.model.config.to_dict()
        for before, present, names in (
            (state["options"], options, _MUST_STAY),
            (state["model"], model, tuple(model)),
        ):
            for name in names:
                # A field that the checkpoint's version did not know was not there to be changed.
                was, now = before.get(name, present[name]), present[name]
                if was != now:
                    raise ValueError(
                        f"{name} must stay {was!r} in a run that is resumed, got {now!r}"
                    )
        if state["data"] != self.dataset.fingerprint:
            raise ValueError("dataset must be the one that the run was begun with, got another")
        self.position = Position(*state["position"])
        for name in _SAVED:
            setattr(self, name, state[name])
        self._spent = state["seconds"]
        self._random_states = state["random_states"]


class StepCallback(lightning.Callback):
    """Something done after a step, and not after each of its parts."""

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        module: lightning.LightningModule,
        outputs: Any,
        batch: Part,
        batch_idx: int,
    ) -> None:
        """Pass on the last part of a step."""
        if batch.last:
            assert isinstance(module, Seq2SeqModule)
            self.on_step_end(trainer, module, batch)

    def on_step_end(self, trainer: lightning.Trainer, module: Seq2SeqModule, part: Part) -> None:
        """After a step in which the process's last part was `part`."""
        raise NotImplementedError


class StepCounter(StepCallback):
    """Comes first of all callbacks: the others see the step counted."""

    def on_step_end(self, trainer: lightning.Trainer, module: Seq2SeqModule, part: Part) -> None:
        """Count it."""
        module.end_step(part)
