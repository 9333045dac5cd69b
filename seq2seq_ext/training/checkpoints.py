"""Checkpoints that are whole or not there: the latest, and those of the best metrics.

==========================================  ======================================================
``checkpoints/last.ckpt``                   all that a run needs to go on as if it had not stopped
``checkpoints/step-000120.ckpt``            weights of one of the best validations
==========================================  ======================================================

The latest names the best that belong to it. It is written after them, and what it does not name is
deleted after that, so that at every moment the folder holds what its latest checkpoint names.
"""

from __future__ import annotations

import io
import os
import time
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.plugins import CheckpointIO

from seq2seq_ext.data.files import write_bytes_atomically
from seq2seq_ext.training.module import Seq2SeqModule, StepCallback
from seq2seq_ext.training.options import METRICS
from seq2seq_ext.training.stream import Part

FOLDER = "checkpoints"
LAST = "last.ckpt"
# Steps after which several processes ask the first whether it is time: asking takes time itself.
_TURN = 10


class AtomicCheckpointIO(CheckpointIO):  # type: ignore[misc, unused-ignore]
    """Reads and writes a checkpoint as one file, in one step, safe against a kill at any moment."""

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | os.PathLike[str],
        storage_options: Any | None = None,
    ) -> None:
        """Write, or replace, the file at `path`."""
        content = io.BytesIO()
        torch.save(checkpoint, content)
        write_bytes_atomically(path, content.getvalue())

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Any | None = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read what `save_checkpoint` wrote; nothing in the file is executed.

        Raises:
            ValueError: if the file is damaged.
        """
        try:
            # To the CPU: the generators' states must stay there, and load_state_dict moves weights.
            checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            raise
        except Exception as error:
            raise ValueError(f"{path} is no checkpoint, or damaged: {error}") from error
        return checkpoint

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Delete the file at `path` if it is there."""
        Path(path).unlink(missing_ok=True)


class Checkpoints(StepCallback):
    """Writes checkpoints when it is time, and knows the best.

    Args:
        folder: the run's.
        metric: by which one is better than another.
        keep_best: how many are kept.
        every_steps: steps between two; None makes none by steps.
        every_seconds: time between two; None makes none by time.
    """

    def __init__(
        self,
        folder: Path,
        *,
        metric: str,
        keep_best: int,
        every_steps: int | None,
        every_seconds: float | None,
    ) -> None:
        self.folder = folder / FOLDER
        self.metric = metric
        self.keep_best = keep_best
        self.every_steps = every_steps
        self.every_seconds = every_seconds
        # (value, steps) of the best validations, best first.
        self.best: list[tuple[float, int]] = []
        self._written = time.perf_counter()
        self._steps = 0

    def state_dict(self) -> dict[str, Any]:
        """What is kept over an interruption."""
        return {"best": [list(entry) for entry in self.best]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go back to what `state_dict` gave."""
        self.best = [(value, steps) for value, steps in state_dict["best"]]

    def path(self, steps: int) -> Path:
        """Where the weights after so many steps are kept."""
        return self.folder / f"step-{steps:06d}.ckpt"

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Delete what a kill has left half written."""
        if trainer.is_global_zero:
            for path in self.folder.glob(".*.ckpt.*"):
                path.unlink()

    def on_step_end(self, trainer: lightning.Trainer, module: Seq2SeqModule, part: Part) -> None:
        """Write the latest where it is time, and validation has not just done so."""
        due = self.every_steps is not None and module.steps % self.every_steps == 0
        alone = trainer.world_size == 1
        if not due and self.every_seconds is not None and (alone or module.steps % _TURN == 0):
            due = time.perf_counter() - self._written >= self.every_seconds
            due = due if alone else trainer.strategy.broadcast(due)
        if due and module.steps != self._steps:
            self.save(trainer, module)

    def on_train_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Write the last of all."""
        assert isinstance(module, Seq2SeqModule)
        self.save(trainer, module)

    def save(self, trainer: lightning.Trainer, module: Seq2SeqModule) -> None:
        """Write the latest; delete what it does not name."""
        trainer.save_checkpoint(self.folder / LAST)
        if trainer.is_global_zero:
            named = {self.path(steps) for _, steps in self.best}
            for path in set(self.folder.glob("step-*.ckpt")) - named:
                path.unlink()
        self._written, self._steps = time.perf_counter(), module.steps

    def rank(self, trainer: lightning.Trainer, module: Seq2SeqModule, value: float) -> None:
        """Keep the present weights if they are among the best, and write the latest either way."""
        better = METRICS[self.metric]
        entry = (value, module.steps)
        # Of equals the earlier goes first, and sorting keeps that order.
        self.best = sorted([*self.best, entry], key=lambda e: e[0], reverse=better is max)
        self.best = self.best[: self.keep_best]
        if entry in self.best:
            trainer.save_checkpoint(self.path(module.steps), weights_only=True)
        self.save(trainer, module)
