"""The progress bar of a training run: loss, accuracy, learning rate, tokens a second, time left."""

from __future__ import annotations

import math
import time

import lightning
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from seq2seq_ext.training.module import Observation, Seq2SeqModule, StepCallback
from seq2seq_ext.training.stream import Part

_REDRAW_SECONDS = 0.2


class ProgressBar(StepCallback):
    """Draws a bar on a terminal; where output goes to a file, writes a line after every epoch.

    Tokens a second are those of the sources and those of the targets.

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

    def on_step_end(self, trainer: lightning.Trainer, module: Seq2SeqModule, part: Part) -> None:
        """Redraw, at most five times a second; or write the line of an epoch that ends."""
        epoch = f"{part.begin.epoch + 1}/{module.options.epochs}"
        now = time.perf_counter()
        if self._progress is not None:
            if now >= self._next_redraw or trainer.should_stop:
                self._next_redraw = now + _REDRAW_SECONDS
                self._redraw(module, epoch)
        elif part.end.steps == 0 or trainer.should_stop:
            observation = module.observation()
            if observation is not None:
                self.console.print(f"epoch {epoch}  {_figures(observation)}", highlight=False)

    def on_train_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Leave the full bar standing."""
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

    def _redraw(self, module: Seq2SeqModule, epoch: str) -> None:
        observation = module.observation()
        if self._progress is None or observation is None:
            return
        self._progress.update(
            self._task, completed=observation.progress, epoch=epoch, figures=_figures(observation)
        )
        self._progress.refresh()


def _figures(observation: Observation) -> str:
    minutes, seconds = divmod(round(observation.seconds_left), 60)
    return (
        f"loss {observation.loss:.3f}  ppl {math.exp(min(observation.loss, 99.0)):.3g}  "
        f"token accuracy {observation.token_accuracy:6.1%}  lr {observation.learning_rate:.2g}  "
        f"{observation.source_tokens_per_second:,.0f} + "
        f"{observation.target_tokens_per_second:,.0f} tokens/s  {minutes}:{seconds:02d} left"
    )
