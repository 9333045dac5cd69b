"""What the tests of ``prepack`` share: calls without gradients, and whether they were packed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from layer_cases import NAMES, states
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

each_cell = pytest.mark.parametrize("cell", NAMES)
NARROW = [torch.bfloat16, torch.int8]
each_narrow = pytest.mark.parametrize("narrow", NARROW, ids=["bfloat16", "int8"])

# The input of most calls.
X = torch.randn(4, 2, 40, generator=torch.Generator().manual_seed(3))


def run(module: nn.Module, *args: Any, **options: Any) -> list[Tensor]:
    """All outputs of a call that needs no gradient, in one list."""
    with torch.no_grad():
        found = module(*args, **options)
    flat: list[Tensor] = []
    for part in found if type(found) is tuple else (found,):
        flat += [part.data] if isinstance(part, PackedSequence) else states(part)
    return flat


def run_plain(module: nn.Module, *args: Any) -> list[Tensor]:
    """The same as if ``module`` were not prepacked."""
    packed = module.__dict__.pop("_packed")
    found = run(module, *args)
    module._packed = packed
    return found


def is_in_use(module: nn.Module) -> bool:
    """Whether the last call of ``module`` found packed weights, or made some."""
    packed = module._packed
    return packed is not None and packed._made is not None


def block(module: nn.Module) -> Tensor:
    return module._packed._made.block


def assert_nearly_equal(found: list[Tensor], expected: list[Tensor]) -> None:
    """Plain calls of very few steps read the weights where they lie, and sum in another order."""
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def assert_equal(found: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)
