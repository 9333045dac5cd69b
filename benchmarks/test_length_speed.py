"""Sequences of unequal length: `lengths=` and packed, beside `torch.nn`'s packed path."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from workloads import (
    LAYERS,
    OURS,
    PEER,
    both_sides,
    log_normal_lengths,
    ways_through_unequal_lengths,
)

B, H, MAX_T = 32, 256, 200


@pytest.mark.parametrize("way", [f"{PEER} packed", f"{OURS} packed", f"{OURS} lengths"])
@pytest.mark.parametrize("work", ["inference", "training"])
@pytest.mark.parametrize("cell", LAYERS)
def test_unequal_lengths(measure: Callable[..., None], cell: str, work: str, way: str) -> None:
    lengths = log_normal_lengths(B, MAX_T)
    x, d_y = torch.randn(2, int(lengths.max()), B, H)
    calls = ways_through_unequal_lengths(both_sides(LAYERS[cell](H, H)), work, x, d_y, lengths)
    # The rest is padded in one way and packed in the other.
    common = (lambda result: result[1]) if work == "inference" else (lambda grads: grads[1:])
    measure(f"{cell} {work}, lengths up to {MAX_T}, B {B}, H {H}", calls, way, common)
