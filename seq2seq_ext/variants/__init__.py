"""Variants of the recurrent layers: what a cell may have beside its plain equations.

:class:`Variant` holds a layer's settings, :mod:`~seq2seq_ext.variants.stack` runs layers that have
some, :mod:`~seq2seq_ext.variants.reference` is their mathematics in plain torch.  The kernels' own
description is ``csrc/row_step.h``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

__all__ = ["Variant"]


@dataclass(frozen=True)
class Variant:
    """The settings of a layer, checked; the layers take them as keyword arguments.

    Args:
        layer_norm: normalize the input's and the recurrent sums of the gates, each over all gates
            of a layer, and a cell before its tanh (Ba, Kiros & Hinton 2016).
        zoneout: probability that a unit of h keeps its old value, or a pair of those of h and of c
            (Krueger et al. 2016).  One number is for h alone.
        recurrent_dropout: probability of dropping, while training, what
        recurrent_dropout_kind: says: ``"state"`` units of h on the way to the gates, the same in
            all steps of a call (Gal & Ghahramani 2015); ``"candidate"`` candidates of the cell,
            anew in each step (Semeniuta, Severyn & Barth 2016).
        weight_drop: probability of dropping, while training, each recurrent weight, once a call
            (Merity, Keskar & Socher 2017).
        hard_sigmoid: gates are ``min(max(x/6 + 1/2, 0), 1)``.
        peephole: the gates of an LSTM see its cell (Gers & Schmidhuber 2000).
        cell_clip: largest magnitude of a cell of an LSTM.
        proj_clip: largest magnitude of a projected h.
        coupled: the input gate of an LSTM is 1 - f, and has no weights (Greff et al. 2015).
        forget_bias: what the forget gate's biases add up to at first (Gers, Schmidhuber & Cummins
            2000; 1.0 in Jozefowicz, Zaremba & Sutskever 2015).
        residual: add a layer's input to its output, from this layer on; True is 1, the second one
            (Wu et al. 2016).
        learn_initial_state: the state before the first step, where none is given, is a parameter.
        return_cells: the layer's third result is c of every step.

    Raises:
        ValueError: naming a setting of a value that it cannot have.

    >>> Variant(zoneout=0.1)
    Variant(zoneout=(0.1, 0.0))
    >>> Variant(zoneout=1.0)
    Traceback (most recent call last):
    ValueError: zoneout must be a probability of at least 0 and below 1, got 1.0
    """

    layer_norm: bool = False
    zoneout: float | tuple[float, float] = (0.0, 0.0)
    recurrent_dropout: float = 0.0
    recurrent_dropout_kind: str = "state"
    weight_drop: float = 0.0
    hard_sigmoid: bool = False
    peephole: bool = False
    cell_clip: float | None = None
    proj_clip: float | None = None
    coupled: bool = False
    forget_bias: float | None = None
    residual: bool | int = False
    learn_initial_state: bool = False
    return_cells: bool = False

    def __post_init__(self) -> None:
        zoneout: Any = self.zoneout
        if isinstance(zoneout, (int, float)):
            zoneout = (float(zoneout), 0.0)
        if not isinstance(zoneout, Sequence) or len(zoneout) != 2:
            raise ValueError(
                f"zoneout must be a probability, or a pair of those of h and of c, got {zoneout!r}"
            )
        object.__setattr__(self, "zoneout", (float(zoneout[0]), float(zoneout[1])))
        for name, value in (
            ("zoneout", self.zoneout_h),
            ("zoneout", self.zoneout_c),
            ("recurrent_dropout", self.recurrent_dropout),
            ("weight_drop", self.weight_drop),
        ):
            if not 0.0 <= value < 1.0:
                raise ValueError(
                    f"{name} must be a probability of at least 0 and below 1, got {value}"
                )
        if self.recurrent_dropout_kind not in ("state", "candidate"):
            raise ValueError(
                "recurrent_dropout_kind must be 'state' or 'candidate', "
                f"got {self.recurrent_dropout_kind!r}"
            )
        for name in ("cell_clip", "proj_clip"):
            limit = getattr(self, name)
            if limit is not None and not 0.0 < limit < float("inf"):
                raise ValueError(f"{name} must be a positive number or None, got {limit}")
        if int(self.residual) < 0:
            raise ValueError(
                f"residual must be a bool or the number of a layer, got {self.residual}"
            )

    @property
    def zoneout_h(self) -> float:
        return self.zoneout[0]  # type: ignore[index]

    @property
    def zoneout_c(self) -> float:
        return self.zoneout[1]  # type: ignore[index]

    @property
    def candidate_dropout(self) -> float:
        return self.recurrent_dropout if self.recurrent_dropout_kind == "candidate" else 0.0

    @property
    def state_dropout(self) -> float:
        return self.recurrent_dropout if self.recurrent_dropout_kind == "state" else 0.0

    @property
    def noisy(self) -> bool:
        """Whether the kernels draw numbers while training."""
        return self.zoneout_h > 0 or self.zoneout_c > 0 or self.candidate_dropout > 0

    @property
    def first_residual(self) -> int | None:
        """The first layer whose input is added to its output."""
        if self.residual is False:
            return None
        return max(int(self.residual), 1)

    def check(self, kind: str, bias: bool, projected: bool) -> None:
        """Refuse what a layer of this kind, ``"LSTM"``, ``"GRU"`` or ``"RNN"``, does not have."""
        if self.forget_bias is not None and not bias:
            raise ValueError("forget_bias is for a layer with biases, got bias=False")
        if self.proj_clip is not None and not projected:
            raise ValueError("proj_clip is for a layer with proj_size, got proj_size=0")
        if kind != "LSTM":
            for name in ("peephole", "cell_clip", "coupled", "forget_bias", "return_cells"):
                if getattr(self, name) != getattr(type(self), name):
                    raise ValueError(f"{name} is for an LSTM, which has a cell state, not a {kind}")
            if self.zoneout_c:
                raise ValueError(
                    f"zoneout of c is for an LSTM, which has a cell state, not a {kind}"
                )
        if kind == "RNN" and self.candidate_dropout:
            raise ValueError(
                "recurrent_dropout_kind 'candidate' is for an LSTM or a GRU; "
                "an RNN has no candidate"
            )

    def __repr__(self) -> str:
        return f"Variant({', '.join(self.described())})"

    def described(self) -> list[str]:
        """``name=value`` of every setting that is not the default."""
        return [
            f"{field.name}={value!r}"
            for field in fields(self)
            if (value := getattr(self, field.name)) != getattr(_DEFAULT, field.name)
        ]


_DEFAULT = Variant()
