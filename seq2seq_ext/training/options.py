"""How to train, as plain numbers, and the learning rate they imply."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """Settings of a training run.

    Args:
        epochs: passes over the training set.
        batch_size: pairs of a batch.
        learning_rate: peak of the one-cycle schedule, see `one_cycle`.
        warmup: share of the run in which the learning rate rises.
        weight_decay: of AdamW.
        gradient_clip: largest norm of all gradients together; 0 leaves them as they are.
        label_smoothing: share of each label's probability spread over the vocabulary.
        teacher_forcing_ratio: see `Seq2Seq.forward`.
        max_seconds: end after so much wall-clock time even if epochs are left, the learning rate
            going down in time; None sets no limit. See `Pace`.
        seed: of the batches' order and of dropout.
        accelerator: Lightning's name of the device: ``"cpu"``, ``"gpu"`` or ``"auto"``.
        precision: Lightning's name of what is computed in: ``"32-true"``, or under autocast, with
            parameters in float32, ``"bf16-mixed"`` or, not on the CPU, ``"16-mixed"``.

    Raises:
        ValueError: if a field is out of range.
    """

    epochs: int = 10
    batch_size: int = 64
    learning_rate: float = 3e-3
    warmup: float = 0.2
    weight_decay: float = 0.01
    gradient_clip: float = 1.0
    label_smoothing: float = 0.1
    teacher_forcing_ratio: float = 1.0
    max_seconds: float | None = None
    seed: int = 0
    accelerator: str = "cpu"
    precision: str = "32-true"

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be an int of at least {least}, got {value!r}")
        for name, low, high in (
            ("learning_rate", 0.0, math.inf),
            ("warmup", 0.0, 1.0),
            ("weight_decay", 0.0, math.inf),
            ("gradient_clip", 0.0, math.inf),
            ("label_smoothing", 0.0, 1.0),
            ("teacher_forcing_ratio", 0.0, 1.0),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name} must be in [{low:g}, {high:g}], got {value!r}")
        if self.max_seconds is not None and not self.max_seconds > 0:
            raise ValueError(f"max_seconds must be positive or None, got {self.max_seconds!r}")
        if self.precision not in PRECISIONS:
            raise ValueError(
                f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}"
            )
        if self.precision == "16-mixed" and self.accelerator == "cpu":
            raise ValueError(
                "precision must be '32-true' or 'bf16-mixed' on the CPU, got '16-mixed', "
                "which Lightning has for GPUs alone"
            )

    def to_dict(self) -> dict[str, Any]:
        """All fields as a dict that JSON can hold."""
        return asdict(self)


def one_cycle(progress: float, *, peak: float, warmup: float) -> float:
    """Learning rate after a share of the run: up in a line, down along half a cosine.

    It rises from a tenth of `peak` and ends at a thousandth of it (after Smith & Topin 2017,
    arXiv 1708.07120).

    Args:
        progress: share of the run that is over, in [0, 1].
        peak: the largest learning rate.
        warmup: share of the run in which it rises.

    Example:
        >>> [round(one_cycle(p, peak=1.0, warmup=0.2), 3) for p in (0.0, 0.1, 0.2, 0.6, 1.0)]
        [0.1, 0.55, 1.0, 0.501, 0.001]
    """
    if progress < warmup:
        return peak * (0.1 + 0.9 * progress / warmup)
    fall = (progress - warmup) / (1.0 - warmup) if warmup < 1.0 else 1.0
    return peak * (0.001 + 0.999 * 0.5 * (1.0 + math.cos(math.pi * min(fall, 1.0))))


@dataclass
class Pace:
    """How much of a run is over, by steps taken or by time spent, whichever is further.

    Without a time limit, and with one that the machine can keep, this is the share of the steps,
    so equal seeds give equal runs. Time does not count before a tenth of the limit is over: a slow
    first step must not change a run that has time enough.

    Args:
        total_steps: steps of the whole run.
        max_seconds: the time limit, or None.
    """

    total_steps: int
    max_seconds: float | None = None

    def progress(self, steps: int, seconds: float) -> float:
        """Share of the run that is over, at least 0; 1 and more mean that it has ended."""
        by_steps = steps / self.total_steps
        if self.max_seconds is None or seconds < 0.1 * self.max_seconds:
            return by_steps
        return max(by_steps, seconds / self.max_seconds)
