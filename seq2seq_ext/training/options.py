"""How to train, as plain numbers and names, checked when they are given."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from seq2seq_ext.training.schedules import FORCING_SCHEDULES, SCHEDULES

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
OPTIMIZERS = ("adamw", "adam", "sgd")
STRATEGIES = ("auto", "ddp", "fsdp")
# What a validated metric's better side is.
METRICS = {"exact_match": max, "token_accuracy": max, "token_error_rate": min, "loss": min}
RISK_COSTS = ("edit_distance", "sentence_bleu")


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """Settings of a training run.

    Args:
        epochs: passes over the training set.
        max_steps: end after so many optimiser steps even if epochs are left; None sets no limit.
        batch_size: pairs of an optimiser step, those of all processes together.
        batch_tokens: in place of `batch_size`, the most tokens of an optimiser step on either side,
            padding counted: pairs times the longest text; None bounds the pairs.
        accumulate: passes in which a process works off its part of a step, to need less memory.
        optimizer: ``"adamw"``, ``"adam"`` (both with betas 0.9 and 0.98) or ``"sgd"``.
        learning_rate: the largest, see `learning_rate`.
        schedule: of the learning rate: ``"one_cycle"``, ``"constant"``, ``"cosine"``,
            ``"inverse_sqrt"`` or ``"plateau"``.
        warmup: share of the run in which the learning rate rises.
        plateau_factor: what a learning rate on the schedule ``"plateau"`` is multiplied by ...
        plateau_patience: ... after so many validations without a better metric.
        weight_decay: of the optimiser.
        gradient_clip: largest norm of all gradients together; 0 leaves them as they are.
        label_smoothing: share of each label's probability spread over the vocabulary.
        coverage_loss: what the loss of sources that are read twice is multiplied by, for models
            with attention; see `Seq2Seq.forward`.
        teacher_forcing_ratio: see `Seq2Seq.forward`; the last one of a schedule that falls to it.
        teacher_forcing_schedule: ``"constant"``, ``"linear"``, ``"exponential"`` or
            ``"inverse_sigmoid"``, see `teacher_forcing`.
        risk_weight: share of the expected risk in the loss, see `seq2seq_ext.training.risk`; 0
            trains by likelihood alone.
        risk_samples: outputs drawn for each source.
        risk_sharpness: exponent of their probabilities.
        risk_cost: ``"edit_distance"`` or ``"sentence_bleu"``.
        max_seconds: end after so much wall-clock time even if epochs are left, the learning rate
            going down in time; None sets no limit. See `Pace`. A resumed run's clock goes on.
        seed: of the batches' order, of dropout and of all else that is drawn.
        validate_every: optimiser steps between validations; None validates after every epoch.
        metric: what makes a model better: ``"exact_match"``, ``"token_accuracy"`` or
            ``"token_error_rate"`` (CER, WER or PER, by the target's tokens), all three
            free-running, or ``"loss"``.
        patience: end after so many validations without a better metric; None goes on.
        samples: outputs shown at each validation.
        keep_best: how many checkpoints of the best metrics are kept.
        checkpoint_steps: optimiser steps between checkpoints; None makes none by steps.
        checkpoint_seconds: time between checkpoints; None makes none by time.
        log_every: optimiser steps between two lines of the log.
        accelerator: Lightning's name of the device: ``"cpu"``, ``"gpu"`` or ``"auto"``.
        devices: processes on each machine; 0 takes what ``torchrun`` has started, else 1.
        num_nodes: machines; not read under ``torchrun``, which knows.
        strategy: ``"ddp"``, ``"fsdp"`` (parameters and the optimiser's state in shards, between
            steps), or ``"auto"``: DDP where there is more than one process.
        precision: Lightning's name of what is computed in: ``"32-true"``, or under autocast, with
            parameters in float32, ``"bf16-mixed"`` or, not on the CPU, ``"16-mixed"``.

    Raises:
        ValueError: if a field is out of range.
    """

    epochs: int = 10
    max_steps: int | None = None
    batch_size: int = 64
    batch_tokens: int | None = None
    accumulate: int = 1
    optimizer: str = "adamw"
    learning_rate: float = 3e-3
    schedule: str = "one_cycle"
    warmup: float = 0.2
    plateau_factor: float = 0.5
    plateau_patience: int = 2
    weight_decay: float = 0.01
    gradient_clip: float = 1.0
    label_smoothing: float = 0.1
    coverage_loss: float = 0.0
    teacher_forcing_ratio: float = 1.0
    teacher_forcing_schedule: str = "constant"
    risk_weight: float = 0.0
    risk_samples: int = 10
    risk_sharpness: float = 0.005
    risk_cost: str = "edit_distance"
    max_seconds: float | None = None
    seed: int = 0
    validate_every: int | None = None
    metric: str = "exact_match"
    patience: int | None = None
    samples: int = 3
    keep_best: int = 1
    checkpoint_steps: int | None = None
    checkpoint_seconds: float | None = 60.0
    log_every: int = 50
    accelerator: str = "cpu"
    devices: int = 0
    num_nodes: int = 1
    strategy: str = "auto"
    precision: str = "32-true"

    def __post_init__(self) -> None:
        for name, least in (
            ("epochs", 1),
            ("max_steps", 1),
            ("batch_size", 1),
            ("batch_tokens", 1),
            ("accumulate", 1),
            ("plateau_patience", 1),
            ("risk_samples", 1),
            ("seed", 0),
            ("validate_every", 1),
            ("patience", 1),
            ("samples", 0),
            ("keep_best", 1),
            ("checkpoint_steps", 1),
            ("log_every", 1),
            ("devices", 0),
            ("num_nodes", 1),
        ):
            self._check_int(name, least)
        for name, low, high in (
            ("learning_rate", 0.0, math.inf),
            ("warmup", 0.0, 1.0),
            ("plateau_factor", 0.0, 1.0),
            ("weight_decay", 0.0, math.inf),
            ("gradient_clip", 0.0, math.inf),
            ("label_smoothing", 0.0, 1.0),
            ("coverage_loss", 0.0, math.inf),
            ("teacher_forcing_ratio", 0.0, 1.0),
            ("risk_weight", 0.0, 1.0),
            ("risk_sharpness", 0.0, math.inf),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name} must be in [{low:g}, {high:g}], got {value!r}")
        for name in ("max_seconds", "checkpoint_seconds"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive or None, got {value!r}")
        for name, choices in (
            ("optimizer", OPTIMIZERS),
            ("schedule", SCHEDULES),
            ("teacher_forcing_schedule", FORCING_SCHEDULES),
            ("risk_cost", RISK_COSTS),
            ("metric", tuple(METRICS)),
            ("strategy", STRATEGIES),
            ("precision", PRECISIONS),
        ):
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
        if self.teacher_forcing_schedule == "exponential" and self.teacher_forcing_ratio == 0:
            raise ValueError(
                "teacher_forcing_ratio must be above 0 for teacher_forcing_schedule='exponential', "
                f"got {self.teacher_forcing_ratio!r}"
            )
        if self.precision == "16-mixed" and self.accelerator == "cpu":
            raise ValueError(
                "precision must be '32-true' or 'bf16-mixed' on the CPU, got '16-mixed', "
                "which Lightning has for GPUs alone"
            )

    def to_dict(self) -> dict[str, Any]:
        """All fields as a dict that JSON can hold."""
        return asdict(self)

    def _check_int(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if value is None and getattr(type(self), name) is None:
            return
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be an int of at least {least}, got {value!r}")
