"""Calls of the operator ``recurrence``, drawn at random, for every cell and variant."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from seq2seq_ext.variants.reference import GATES

LSTMS = ("lstm", "coupled_lstm")

# A variant by name: what it adds to a call.
VARIANTS = (
    "norm",
    "noise",
    "expected",
    "candidate",
    "state_mask",
    "hard_sigmoid",
    "peephole",
    "cell_clip",
    "projected",
)
FORMS = ("dense", "lengths", "packed", "resets", "reverse")


def has(cell: str, variant: str) -> bool:
    if variant in ("peephole", "cell_clip"):
        return cell in LSTMS
    if variant == "projected":
        return cell != "gru_reset_before"
    if variant == "candidate":
        return not cell.startswith("rnn")
    return True


def has_cell(cell: str, projected: bool) -> bool:
    """Whether the cell carries c beside h."""
    return cell in LSTMS or (cell == "gru" and projected)


def singles_and_pairs(cell: str) -> list[tuple[str, ...]]:
    """No variant, each one, and each two that a cell has together."""
    known = [variant for variant in VARIANTS if has(cell, variant)]
    pairs = [pair for pair in combinations(known, 2) if pair != ("noise", "expected")]
    return [(), *((variant,) for variant in known), *pairs]


def call(
    cell: str,
    variants: tuple[str, ...] = (),
    form: str = "dense",
    *,
    T: int = 5,
    B: int = 3,
    H: int = 5,
    dtype: torch.dtype = torch.float64,
) -> dict[str, Any]:
    """Arguments of a call; what has a gradient requires it."""

    def draw(*size: int) -> Tensor:
        return (0.6 * torch.randn(size, dtype=torch.float64)).to(dtype).requires_grad_()

    G, lstm, with_cell = GATES[cell], cell in LSTMS, has_cell(cell, "projected" in variants)
    P = max(1, 2 * H // 3) if "projected" in variants else H
    found: dict[str, Any] = {"cell": cell, "h_0": draw(B, P), "w_hh": draw(G * H, P)}
    rows: tuple[int, ...] = (T, B)
    if form == "packed":
        sizes = torch.tensor([max(1, B - t * B // T) for t in range(T)])
        found["batch_sizes"] = sizes
        rows = (int(sizes.sum()),)
    elif form == "lengths":
        found["lengths"] = torch.tensor([(T - 2 * b) % (T + 1) for b in range(B)])
    elif form == "resets":
        found["resets"] = torch.rand(rows) < 0.3
    found["reverse"] = form == "reverse"
    found["x"] = draw(*rows, G * H)
    if with_cell:
        found["c_0"] = draw(B, H)
    if cell == "gru":
        found["b_hn"] = draw(H)
    for variant in variants:
        if variant == "norm":
            found["norm_hh"] = draw(G * H)
            if lstm:
                found["norm_c"], found["bias_c"] = draw(H), draw(H)
        elif variant == "noise" or variant == "expected":
            found.update(zoneout_h=0.3, zoneout_c=0.2 if with_cell else 0.0)
        elif variant == "candidate":
            found["candidate_dropout"] = 0.25
        elif variant == "state_mask":
            found["h_mask"] = (torch.rand(B, P) < 0.7).to(dtype) / 0.7
        elif variant == "hard_sigmoid":
            found["hard_sigmoid"] = True
        elif variant == "peephole":
            found["peephole"] = draw(G - 1, H)
        elif variant == "cell_clip":
            found["cell_clip"] = 0.4
        elif variant == "projected":
            found.update(w_hr=draw(P, H), proj_clip=0.3)
    if "noise" in variants or ("candidate" in variants and "expected" not in variants):
        found["seed"], found["stream"] = torch.tensor([0x123456789ABCDEF]), 3
    elif "candidate" in variants:
        found["candidate_dropout"] = 0.0
    return found


def in_float64(arguments: dict[str, Any]) -> dict[str, Any]:
    """The same numbers as new leaves in float64."""
    return {
        name: value.detach().double().requires_grad_(value.requires_grad)
        if isinstance(value, Tensor) and value.is_floating_point()
        else value
        for name, value in arguments.items()
    }


def outputs_of(run: Any, arguments: dict[str, Any]) -> list[Tensor]:
    """All outputs that there are, c of every step among them."""
    options = {}
    if run.__module__.endswith("operator"):
        options["return_cells"] = has_cell(arguments["cell"], "w_hr" in arguments)
    return [output for output in run(**arguments, **options) if output is not None]


def leaves_of(arguments: dict[str, Any]) -> dict[str, Tensor]:
    return {
        name: value
        for name, value in arguments.items()
        if isinstance(value, Tensor) and value.requires_grad
    }
