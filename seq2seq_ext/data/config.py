"""What to learn from, as plain names and numbers, checked when they are given."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from seq2seq_ext.data.tasks import TASKS

UNITS = ("char", "word")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What to learn from.

    Args:
        task: a built-in set: ``"plural"``, ``"past"``, ``"g2p"``, ``"names"``, ``"copy"``,
            ``"reverse"`` or ``"sort"``; or
        pairs: a file of two columns, source and target, with a tab between.
        dev: share of the pairs to validate on, chosen by a hash of the words; None takes the
            task's own, or 0.05.
        test: share to measure the trained model on; None takes the task's own, or 0.1.
        max_pairs: use the first pairs of each set alone.
        source_unit: tokens of the sources: ``"char"`` or ``"word"``; None takes the task's own, or
            characters.
        target_unit: likewise of the targets.
        several_references: whether a source of the dev and test sets counts once, and any of its
            targets is right; None takes the task's own, or false.

    Raises:
        ValueError: if a field is out of range, or not just one of `task` and `pairs` is given.
    """

    task: str | None = None
    pairs: str | None = None
    dev: float | None = None
    test: float | None = None
    max_pairs: int | None = None
    source_unit: str | None = None
    target_unit: str | None = None
    several_references: bool | None = None

    def __post_init__(self) -> None:
        if (self.task is None) == (self.pairs is None):
            raise ValueError(
                "data.task or data.pairs must be given, and not both, "
                f"got {self.task!r} and {self.pairs!r}"
            )
        if self.task is not None and self.task not in TASKS:
            raise ValueError(f"data.task must be one of {', '.join(TASKS)}, got {self.task!r}")
        for name in ("source_unit", "target_unit"):
            unit = getattr(self, name)
            if unit is not None and unit not in UNITS:
                raise ValueError(f"data.{name} must be one of {', '.join(UNITS)}, got {unit!r}")

    def to_dict(self) -> dict[str, Any]:
        """All fields as a dict that JSON can hold."""
        return asdict(self)
