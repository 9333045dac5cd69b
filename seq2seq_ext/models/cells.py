"""The cells of a model: which they are, and what they have beside their plain equations."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from seq2seq_ext.variants import Variant

__all__ = ["CellConfig"]

CELLS = ("rnn", "lstm", "gru")
NONLINEARITIES = ("tanh", "relu")
# Fields that are keyword arguments of a layer as they are.
_VARIANTS = (
    "layer_norm",
    "recurrent_dropout",
    "recurrent_dropout_kind",
    "weight_drop",
    "hard_sigmoid",
    "peephole",
    "cell_clip",
    "coupled",
)


@dataclass(frozen=True, kw_only=True)
class CellConfig:
    """The fields of a `Seq2SeqConfig` that tell of its cells, with their meaning there.

    Raises:
        TypeError: if a field is of another type than its default.
        ValueError: if a field is out of range, or one that `cell` does not have.
    """

    cell: str = "gru"
    nonlinearity: str = "tanh"
    reset_after: bool = True
    layer_norm: bool = False
    zoneout: float = 0.0
    cell_zoneout: float = 0.0
    recurrent_dropout: float = 0.0
    recurrent_dropout_kind: str = "state"
    weight_drop: float = 0.0
    hard_sigmoid: bool = False
    peephole: bool = False
    cell_clip: float | None = None
    coupled: bool = False
    forget_bias: float | None = None
    learn_initial_state: bool = False

    def __post_init__(self) -> None:
        self._check_choice("cell", CELLS)
        self._check_choice("nonlinearity", NONLINEARITIES)
        for field in fields(self):  # of what is derived from this too
            value = getattr(self, field.name)
            if isinstance(field.default, bool):
                if not isinstance(value, bool):
                    raise TypeError(f"{field.name} must be a bool, got {value!r}")
            elif isinstance(field.default, float):
                self._check_number(field.name)
        for name in ("cell_clip", "forget_bias"):
            if getattr(self, name) is not None:
                self._check_number(name)
        if not 0.0 <= self.cell_zoneout < 1.0:  # a layer would call it zoneout
            raise ValueError(
                "cell_zoneout must be a probability of at least 0 and below 1, "
                f"got {self.cell_zoneout}"
            )
        variant = Variant(**self.variants, forget_bias=self.forget_bias)
        variant.check(self.cell.upper(), bias=True, projected=False)

    @property
    def variants(self) -> dict[str, Any]:
        """What every step of the cells has beside the plain equations, as a layer's arguments."""
        found = {
            name: getattr(self, name)
            for name in _VARIANTS
            if getattr(self, name) != getattr(CellConfig, name)
        }
        if self.zoneout or self.cell_zoneout:
            found["zoneout"] = (self.zoneout, self.cell_zoneout)
        return found

    def _check_number(self, name: str) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{name} must be a number, got {value!r}")

    def _check_choice(self, name: str, choices: tuple[str, ...]) -> None:
        value = getattr(self, name)
        if value not in choices:
            raise ValueError(f"{name} must be one of {list(choices)}, got {value!r}")
