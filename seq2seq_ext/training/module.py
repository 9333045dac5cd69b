"""A `Seq2Seq` model as Lightning trains it.

A step of a small model takes a few milliseconds, so what happens beside it counts: nothing here
reads a number back from the device. Whoever shows figures asks `observation` when it redraws.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import lightning
import torch
from torch import Tensor

from seq2seq_ext.data import Batch
from seq2seq_ext.models import Seq2Seq, Seq2SeqOutput
from seq2seq_ext.training.options import Pace, TrainingOptions, one_cycle


class Observation(NamedTuple):
    """Figures of a run at one moment.

    Args:
        loss: of the latest step, in nats a token.
        token_accuracy: share of right tokens in the latest step, teacher-forced, in [0, 1].
        tokens: source and target tokens read since the start.
        seconds: time since the start.
        progress: share of the run that is over, in [0, 1].
    """

    loss: float
    token_accuracy: float
    tokens: int
    seconds: float
    progress: float

    @property
    def tokens_per_second(self) -> float:
        """Source and target tokens a second, averaged since the start."""
        return self.tokens / self.seconds if self.seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float:
        """Time to the end at the pace so far."""
        return self.seconds * (1.0 - self.progress) / self.progress if self.progress > 0 else 0.0


class Seq2SeqModule(lightning.LightningModule):
    """Loss, optimiser and schedule of a training run.

    Args:
        model: what is trained, in place.
        options: how.
        total_steps: steps of the whole run.
    """

    def __init__(self, model: Seq2Seq, options: TrainingOptions, total_steps: int) -> None:
        super().__init__()
        self.model = model
        self.options = options
        self.pace = Pace(total_steps, options.max_seconds)
        self.steps = 0
        self._tokens: Tensor | None = None
        self._latest: Seq2SeqOutput | None = None
        self._start = 0.0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW, all parameters in one fused update where Lightning can clip before it."""
        return torch.optim.AdamW(
            self.model.parameters(),
            lr=self.options.learning_rate,
            betas=(0.9, 0.98),
            weight_decay=self.options.weight_decay,
            fused=self.options.precision == "32-true",
        )

    def on_train_start(self) -> None:
        """Start the clock."""
        self._tokens = torch.zeros((), dtype=torch.int64, device=self.device)
        self._start = time.perf_counter()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Set the learning rate of this step."""
        rate = one_cycle(
            min(self._progress(), 1.0),
            peak=self.options.learning_rate,
            warmup=self.options.warmup,
        )
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = rate

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of a batch."""
        output: Seq2SeqOutput = self.model(
            *batch,
            teacher_forcing_ratio=self.options.teacher_forcing_ratio,
            label_smoothing=self.options.label_smoothing,
        )
        self._latest = Seq2SeqOutput(
            output.loss.detach(), output.logits.detach(), output.labels.detach()
        )
        assert self._tokens is not None
        self._tokens += batch.source_lengths.sum() + batch.target_lengths.sum()
        return output.loss

    def on_train_batch_end(self, outputs: object, batch: Batch, batch_idx: int) -> None:
        """Count the step; end the run when its time is over."""
        self.steps += 1
        if self._progress() >= 1.0:
            self.trainer.should_stop = True

    def observation(self) -> Observation | None:
        """Figures at this moment, None before the first step. Waits for the device."""
        if self._latest is None or self._tokens is None:
            return None
        loss, logits, labels = self._latest
        inside = labels != self.model.config.pad_token_id
        right = (logits.argmax(-1) == labels) & inside
        return Observation(
            loss=float(loss),
            token_accuracy=int(right.sum()) / max(1, int(inside.sum())),
            tokens=int(self._tokens),
            seconds=time.perf_counter() - self._start,
            progress=min(self._progress(), 1.0),
        )

    def _progress(self) -> float:
        return self.pace.progress(self.steps, time.perf_counter() - self._start)
