"""Layers over whole sequences: inference, and training with all gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from workloads import LAYERS, OURS, PEER, both_sides, inference, training

T = 50


class Shape(NamedTuple):
    """Sizes of a layer and its batch; the input is as wide as the state."""

    B: int
    H: int
    L: int = 1
    D: int = 1

    def __str__(self) -> str:
        return f"B {self.B}, H {self.H}, L {self.L}, D {self.D}"


SHAPES = [Shape(1, 256), Shape(32, 256), Shape(64, 512), Shape(32, 128, L=2, D=2)]


@pytest.mark.parametrize("side", [PEER, OURS])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("cell", LAYERS)
def test_layer_inference(measure: Callable[..., None], cell: str, shape: Shape, side: str) -> None:
    B, H, L, D = shape
    sides = both_sides(LAYERS[cell](H, H, L, bidirectional=D == 2))
    x = torch.randn(T, B, H)
    calls = {name: inference(layer, x) for name, layer in sides.items()}
    measure(f"{cell} inference, T {T}, {shape}", calls, side)


@pytest.mark.parametrize("side", [PEER, OURS])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("cell", LAYERS)
def test_layer_training(measure: Callable[..., None], cell: str, shape: Shape, side: str) -> None:
    B, H, L, D = shape
    sides = both_sides(LAYERS[cell](H, H, L, bidirectional=D == 2))
    x, d_y = torch.randn(T, B, H), torch.randn(T, B, D * H)
    calls = {name: training(layer, x, d_y) for name, layer in sides.items()}
    measure(f"{cell} training, T {T}, {shape}", calls, side)
