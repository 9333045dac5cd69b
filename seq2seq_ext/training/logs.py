"""The log of a run: a line of CSV every few steps and at each validation, and TensorBoard's files.

A line is appended in one write. On resuming, lines beyond the checkpoint are cut off, and so is a
line that a kill has left unfinished.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping
from pathlib import Path

import lightning

from seq2seq_ext.data.extras import check
from seq2seq_ext.data.files import write_bytes_atomically
from seq2seq_ext.training.module import Seq2SeqModule, StepCallback
from seq2seq_ext.training.run import LOG_FILE
from seq2seq_ext.training.stream import Part

TENSORBOARD = "tensorboard"
COLUMNS = (
    "step",
    "epoch",
    "seconds",
    "learning_rate",
    "loss",
    "token_accuracy",
    "source_tokens_per_second",
    "target_tokens_per_second",
    "dev_loss",
    "dev_teacher_forced_exact_match",
    "dev_free_running_exact_match",
    "dev_teacher_forced_token_accuracy",
    "dev_free_running_token_accuracy",
    "dev_token_error_rate",
)


class Log:
    """Writes figures to a run's folder.

    Args:
        folder: the run's.
        steps: lines of later steps are cut off; 0 begins anew.
    """

    def __init__(self, folder: Path, steps: int) -> None:
        self.path = folder / LOG_FILE
        kept = [",".join(COLUMNS)]
        if steps and self.path.is_file():
            whole, _, _ = self.path.read_text(encoding="utf-8").rpartition("\n")
            kept += [row for row in whole.splitlines()[1:] if int(row.split(",")[0]) <= steps]
        write_bytes_atomically(self.path, "".join(f"{row}\n" for row in kept).encode())
        check("tensorboard", extra="train", purpose="the log")
        from torch.utils.tensorboard import SummaryWriter

        self._board = SummaryWriter(  # type: ignore[no-untyped-call, unused-ignore]
            str(folder / TENSORBOARD), purge_step=steps + 1 if steps else None
        )

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Add a line."""
        line = io.StringIO()
        writer = csv.DictWriter(line, COLUMNS, lineterminator="\n")
        writer.writerow({"step": step} | {k: f"{v:.9g}" for k, v in figures.items()})
        with open(self.path, "ab", buffering=0) as file:
            file.write(line.getvalue().encode())
        for name, value in figures.items():
            self._board.add_scalar(name, value, step)  # type: ignore[no-untyped-call, unused-ignore]

    def close(self) -> None:
        """Write what is buffered."""
        self._board.close()  # type: ignore[no-untyped-call, unused-ignore]


class Logging(StepCallback):
    """Logs the training figures of a run, of whose processes the first writes.

    Args:
        folder: the run's.
        every: steps between two lines.
    """

    def __init__(self, folder: Path, every: int) -> None:
        self.folder = folder
        self.every = every
        self._file: Log | None = None

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Open the log, without what comes after the checkpoint."""
        assert isinstance(module, Seq2SeqModule)
        if trainer.is_global_zero:
            os.makedirs(self.folder, exist_ok=True)
            self._file = Log(self.folder, module.steps)

    def on_step_end(self, trainer: lightning.Trainer, module: Seq2SeqModule, part: Part) -> None:
        """Write a line where it is time, and after the last step."""
        if module.steps % self.every and not trainer.should_stop:
            return
        loss = module.step_loss()
        seen = module.observation()
        if seen is None:
            return
        self.write(
            module.steps,
            {
                "epoch": module.epochs,
                "seconds": seen.seconds,
                "learning_rate": seen.learning_rate,
                "loss": loss,
                "token_accuracy": seen.token_accuracy,
                "source_tokens_per_second": seen.source_tokens_per_second,
                "target_tokens_per_second": seen.target_tokens_per_second,
            },
        )

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Write a line, in the process that does."""
        if self._file is not None:
            self._file.write(step, figures)

    def teardown(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, stage: str
    ) -> None:
        """Close the log."""
        if self._file is not None:
            self._file.close()
