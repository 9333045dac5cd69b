"""One step of a cell: what a loop over time of one's own pays per step."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from workloads import CELLS, OURS, PEER, both_sides, inference


@pytest.mark.parametrize("side", [PEER, OURS])
@pytest.mark.parametrize(("B", "H"), [(1, 256), (32, 256)])
@pytest.mark.parametrize("cell", CELLS)
def test_cell_step(measure: Callable[..., None], cell: str, B: int, H: int, side: str) -> None:
    sides = both_sides(CELLS[cell](H, H))
    x, h, c = torch.randn(3, B, H)
    hx = (h, c) if cell == "LSTM" else h
    calls = {name: inference(module, x, hx) for name, module in sides.items()}
    measure(f"{cell}Cell, one step, B {B}, H {H}", calls, side)
