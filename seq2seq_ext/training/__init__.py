"""Training, evaluation and the folder of a run.

`train` needs the extra ``[train]``: Lightning and rich are imported when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from seq2seq_ext.data.extras import require
from seq2seq_ext.training.evaluation import Accuracy, Evaluation, evaluate, evaluate_teacher_forced
from seq2seq_ext.training.options import TrainingOptions
from seq2seq_ext.training.run import METRICS_FILE, Hypothesis, Run, load_run, save_run
from seq2seq_ext.training.threads import fastest_num_threads

if TYPE_CHECKING:
    from seq2seq_ext.training.trainer import TrainingReport, train

__all__ = [
    "METRICS_FILE",
    "Accuracy",
    "Evaluation",
    "Hypothesis",
    "Run",
    "TrainingOptions",
    "TrainingReport",
    "evaluate",
    "evaluate_teacher_forced",
    "fastest_num_threads",
    "load_run",
    "save_run",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in ("TrainingReport", "train"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    for module in ("lightning", "rich"):
        require(module, extra="train", purpose="training")
    from seq2seq_ext.training import trainer

    return getattr(trainer, name)
