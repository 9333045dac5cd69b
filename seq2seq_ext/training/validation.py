"""Validation during training: figures, samples, the best weights, the plateau and the end."""

from __future__ import annotations

from typing import Any

import lightning
from rich.console import Console

from seq2seq_ext.data import PairDataset
from seq2seq_ext.training.checkpoints import Checkpoints
from seq2seq_ext.training.evaluation import Evaluation, evaluate
from seq2seq_ext.training.logs import Logging
from seq2seq_ext.training.module import Seq2SeqModule, StepCallback
from seq2seq_ext.training.options import METRICS, TrainingOptions
from seq2seq_ext.training.stream import Part


class Validation(StepCallback):
    """Measures the model on the dev set every so often, and draws the conclusions.

    Every process measures the whole set, so that all of them come to the same conclusions.

    Args:
        dataset: the dev set.
        options: when, by which metric, and how long to wait for a better one.
        console: where figures and samples are shown; None shows none.
        logging: what logs the figures; None does not.
        checkpoints: what keeps the best weights; None does not.
    """

    def __init__(
        self,
        dataset: PairDataset,
        options: TrainingOptions,
        *,
        console: Console | None = None,
        logging: Logging | None = None,
        checkpoints: Checkpoints | None = None,
    ) -> None:
        self.dataset = dataset
        self.options = options
        self.console = console
        self.logging = logging
        self.checkpoints = checkpoints
        self.best: float | None = None
        self.since_best = 0
        self.since_reduction = 0

    def state_dict(self) -> dict[str, Any]:
        """What is kept over an interruption."""
        return {
            "data": self.dataset.fingerprint,
            "best": self.best,
            "since_best": self.since_best,
            "since_reduction": self.since_reduction,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go back to what `state_dict` gave.

        Raises:
            ValueError: if it was of another dev set, whose figures do not compare with this one's.
        """
        if state_dict.get("data", self.dataset.fingerprint) != self.dataset.fingerprint:
            raise ValueError("dev must be the set that the run was begun with")
        self.best = state_dict["best"]
        self.since_best = state_dict["since_best"]
        self.since_reduction = state_dict["since_reduction"]

    def on_step_end(self, trainer: lightning.Trainer, module: Seq2SeqModule, part: Part) -> None:
        """Validate where it is time, and after the last step."""
        every = self.options.validate_every
        due = part.end.steps == 0 if every is None else module.steps % every == 0
        if not (due or trainer.should_stop):
            return
        with module.whole_parameters():
            found = evaluate(module.model, self.dataset, batch_size=self.options.batch_size)
        self._show(module, found)
        if self.logging is not None:
            self.logging.write(module.steps, figures(found))
        self._judge(trainer, module, metric_of(found, self.options.metric))

    def _judge(self, trainer: lightning.Trainer, module: Seq2SeqModule, value: float) -> None:
        better = METRICS[self.options.metric]
        if self.best is None or (value != self.best and better(value, self.best) == value):
            self.best = value
            self.since_best = self.since_reduction = 0
        else:
            self.since_best += 1
            self.since_reduction += 1
        options = self.options
        if options.schedule == "plateau" and self.since_reduction >= options.plateau_patience:
            module.reductions += 1
            self.since_reduction = 0
        if options.patience is not None and self.since_best >= options.patience:
            module.end()
        if self.checkpoints is not None:
            self.checkpoints.rank(trainer, module, value)

    def _show(self, module: Seq2SeqModule, found: Evaluation) -> None:
        if self.console is None:
            return
        forced, free = found.teacher_forced, found.free_running
        self.console.print(
            f"step {module.steps:,}  dev loss {found.loss:.3f}  "
            f"exact match {forced.exact_match:.1%} teacher-forced, {free.exact_match:.1%} "
            f"free-running  token accuracy {forced.token_accuracy:.1%}, {free.token_accuracy:.1%}  "
            f"{error_rates(found, self.dataset)}",
            highlight=False,
        )
        shown = min(self.options.samples, len(self.dataset))
        for i in range(shown):
            row = i * len(self.dataset) // shown
            (source, _), written = self.dataset.pairs[row], found.predictions[row]
            references = self.dataset.references[row]
            right = "" if written in references else f"  (right: {' or '.join(references)})"
            self.console.print(f"  {source} -> {written}{right}", highlight=False, markup=False)


def metric_of(found: Evaluation, name: str) -> float:
    """The figure by which options say a model is better: one of `METRICS`."""
    if name in ("loss", "token_error_rate"):
        return float(getattr(found, name))
    return float(getattr(found.free_running, name))


def figures(found: Evaluation) -> dict[str, float]:
    """Those of the log's columns that a validation fills."""
    return {
        "dev_loss": found.loss,
        "dev_teacher_forced_exact_match": found.teacher_forced.exact_match,
        "dev_free_running_exact_match": found.free_running.exact_match,
        "dev_teacher_forced_token_accuracy": found.teacher_forced.token_accuracy,
        "dev_free_running_token_accuracy": found.free_running.token_accuracy,
        "dev_token_error_rate": found.token_error_rate,
    }


def error_rates(found: Evaluation, dataset: PairDataset) -> str:
    """Both error rates, by the names that they have for such texts: ``WER 25.3%, PER 6.2%``."""
    sequences, tokens = dataset.error_names
    return f"{sequences} {found.sequence_error_rate:.1%}, {tokens} {found.token_error_rate:.1%}"
