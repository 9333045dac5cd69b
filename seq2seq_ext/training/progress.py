"""The progress bar of a training run: loss, token accuracy, tokens a second, time left."""

from __future__ import annotations

import time
from typing import Any, cast

import lightning
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from seq2seq_ext.training.module import Observation, Seq2SeqModule

_REDRAW_SECONDS = 0.2


class ProgressBar(lightning.Callback):
    """Draws a bar on a terminal; where output goes to a file, writes a line after every epoch.

    Args:
        console: where to draw.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._next_redraw = 0.0

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Draw the empty bar."""
        if not self.console.is_terminal:
            return
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[figures]}"),
            console=self.console,
            # Redrawn from the training loop: a drawing thread would compete with the kernels.
            auto_refresh=False,
        )
        self._task = self._progress.add_task("", total=1.0, epoch="", figures="")
        self._progress.start()

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Redraw, at most five times a second."""
        now = time.perf_counter()
        if self._progress is not None and now >= self._next_redraw:
            self._next_redraw = now + _REDRAW_SECONDS
            self._redraw(trainer, module)

    def on_train_epoch_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule
    ) -> None:
        """Redraw, or write the epoch's line."""
        if self._progress is not None:
            self._redraw(trainer, module)
            return
        observation = _observe(module)
        if observation is not None:
            self.console.print(f"epoch {_epoch(trainer)}  {_figures(observation)}", highlight=False)

    def on_train_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Leave the full bar standing."""
        if self._progress is not None:
            self._redraw(trainer, module)
            self._close()

    def on_exception(
        self,
        trainer: lightning.Trainer,
        module: lightning.LightningModule,
        exception: BaseException,
    ) -> None:
        """Give the terminal back."""
        self._close()

    def _close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _redraw(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        observation = _observe(module)
        if self._progress is None or observation is None:
            return
        self._progress.update(
            self._task,
            completed=observation.progress,
            epoch=_epoch(trainer),
            figures=_figures(observation),
        )
        self._progress.refresh()


def _observe(module: lightning.LightningModule) -> Observation | None:
    return cast("Seq2SeqModule", module).observation()


def _epoch(trainer: lightning.Trainer) -> str:
    return f"{trainer.current_epoch + 1}/{trainer.max_epochs}"


def _figures(observation: Observation) -> str:
    minutes, seconds = divmod(round(observation.seconds_left), 60)
    return (
        f"loss {observation.loss:.3f}  token accuracy {observation.token_accuracy:6.1%}  "
        f"{observation.tokens_per_second:,.0f} tokens/s  {minutes}:{seconds:02d} left"
    )
