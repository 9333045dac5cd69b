"""The cells against torch.nn's, and against the layers that they are one step of."""

from __future__ import annotations

import copy
import itertools
import pickle
from typing import Any

import pytest
import torch
from layer_cases import CELL_IDS, CELLS, assert_within_torch_error
from torch import Tensor, nn

import seq2seq_ext.nn as fused
from seq2seq_ext import reference

CONFIGURATIONS = [
    ("LSTMCell", {}),
    ("GRUCell", {}),
    ("GRUCell", {"reset_after": False}),
    ("RNNCell", {}),
    ("RNNCell", {"nonlinearity": "relu"}),
]


def as_list(state: Any) -> list[Tensor]:
    return [state] if isinstance(state, Tensor) else list(state)


def new_state(cell: nn.RNNCellBase, B: int) -> Any:
    state = [torch.randn(B, cell.hidden_size, dtype=cell.weight_ih.dtype) for _ in range(2)]
    return tuple(state) if isinstance(cell, nn.LSTMCell) else state[0]


def run_reference(cell: nn.RNNCellBase, x: Tensor, state: list[Tensor]) -> list[Tensor]:
    weights = list(cell.parameters())
    if isinstance(cell, nn.LSTMCell):
        return list(reference.lstm_cell(x, *state, *weights))
    if isinstance(cell, nn.GRUCell):
        reset_after = getattr(cell, "reset_after", True)
        return [reference.gru_cell(x, *state, *weights, reset_after=reset_after)]
    return [reference.rnn_cell(x, *state, *weights, nonlinearity=cell.nonlinearity)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
@pytest.mark.parametrize(("name", "options"), CONFIGURATIONS)
def test_equals_torch(name: str, options: dict[str, Any], bias: bool, dtype: torch.dtype) -> None:
    for B, I, H in [(1, 1, 1), (4, 7, 11), (3, 64, 96)]:
        cell = getattr(fused, name)(I, H, bias, dtype=dtype, **options)
        x, state = torch.randn(B, I, dtype=dtype), as_list(new_state(cell, B))
        if "reset_after" in options:
            other = cell
        else:
            other = getattr(nn, name)(I, H, bias, dtype=dtype, **options)
            other.load_state_dict(cell.state_dict())
        exact = copy.deepcopy(cell).double()

        def outputs(
            module: nn.Module, run: Any, x: Tensor = x, state: list[Tensor] = state
        ) -> list[Tensor]:
            module_dtype = module.weight_ih.dtype
            leaves = [t.to(module_dtype).detach().requires_grad_() for t in (x, *state)]
            found = run(module, leaves[0], leaves[1:])
            loss = sum((h * torch.linspace(-1, 1, h.shape[-1]).to(h)).sum() for h in found)
            return found + list(torch.autograd.grad(loss, [*leaves, *module.parameters()]))

        def call(module: nn.Module, x: Tensor, state: list[Tensor]) -> list[Tensor]:
            return as_list(module(x, state if len(state) == 2 else state[0]))

        assert_within_torch_error(
            outputs(cell, call),
            outputs(other, run_reference if other is cell else call),
            outputs(exact, run_reference),
            floor=64.0 if dtype == torch.float64 else 8.0,
        )


@pytest.mark.parametrize(("ours", "theirs"), CELLS, ids=CELL_IDS)
def test_no_state_and_unbatched(ours: Any, theirs: Any) -> None:
    cell, other = ours(3, 5), theirs(3, 5)
    cell.load_state_dict(other.state_dict())
    for x in (torch.randn(4, 3), torch.randn(3), torch.randn(0, 3)):
        state = new_state(cell, 4)
        torch.testing.assert_close(cell(x), other(x))
        if x.dim() == 1:
            rows = [s[0] for s in as_list(state)]
            state = tuple(rows) if len(rows) == 2 else rows[0]
        elif x.shape[0] == 0:
            continue
        torch.testing.assert_close(cell(x, state), other(x, state))


@pytest.mark.parametrize(
    ("name", "layer", "options"),
    [(n, n.removesuffix("Cell"), o) for n, o in CONFIGURATIONS],
)
def test_cell_in_a_loop_equals_the_layer(name: str, layer: str, options: dict[str, Any]) -> None:
    stack, cell = getattr(fused, layer)(3, 5, **options), getattr(fused, name)(3, 5, **options)
    weights = {k.removesuffix("_l0"): v for k, v in stack.state_dict().items()}
    cell.load_state_dict(weights)
    x = torch.randn(6, 2, 3)
    state, outputs = None, []
    for step in x:
        state = cell(step, state)
        outputs.append(as_list(state)[0])
    torch.testing.assert_close(torch.stack(outputs), stack(x)[0])


@pytest.mark.parametrize(("ours", "theirs"), CELLS, ids=CELL_IDS)
def test_same_seed_same_weights_and_repr(ours: Any, theirs: Any) -> None:
    for bias in (True, False, 1):
        torch.manual_seed(5)
        cell = ours(3, 5, bias)
        torch.manual_seed(5)
        other = theirs(3, 5, bias)
        assert repr(cell) == repr(other)
        assert list(cell.state_dict()) == list(other.state_dict())
        for a, b in zip(cell.parameters(), other.parameters(), strict=True):
            assert torch.equal(a, b)
        assert isinstance(cell, theirs)


@pytest.mark.parametrize(("ours", "theirs"), CELLS, ids=CELL_IDS)
def test_copies(ours: Any, theirs: Any) -> None:
    cell, x = ours(3, 5), torch.randn(2, 3)
    for twin in (copy.deepcopy(cell), pickle.loads(pickle.dumps(cell))):
        assert type(twin) is ours
        torch.testing.assert_close(twin(x), cell(x), rtol=0, atol=0)


def test_reset_after_is_shown_and_kept() -> None:
    cell = fused.GRUCell(3, 5, reset_after=False)
    assert repr(cell) == "GRUCell(3, 5, reset_after=False)"
    assert not copy.deepcopy(cell).reset_after


ERRORS: list[tuple[str, Any, Any]] = [
    ("rank of the input", lambda one: (torch.ones(2, 3, 3), None), (ValueError, "got 3D instead")),
    ("input size", lambda one: (torch.ones(2, 4), None), (RuntimeError, "got 4 expected 3")),
    (
        "batch of the state",
        lambda one: (torch.ones(2, 3), one(torch.ones(4, 5))),
        (RuntimeError, "Input batch size 2 doesn't match hidden0 batch size 4"),
    ),
    (
        "size of the state",
        lambda one: (torch.ones(2, 3), one(torch.ones(2, 6))),
        (RuntimeError, "hidden0 has inconsistent hidden_size: got 6, expected 5"),
    ),
    (
        "rank of the state",
        lambda one: (torch.ones(2, 3), one(torch.ones(2, 5, 1))),
        (ValueError, "to be 1D or 2D, got 3D instead"),
    ),
    (
        "state of a batch for one sequence",
        lambda one: (torch.ones(3), one(torch.ones(2, 5))),
        (RuntimeError, None),
    ),
    (
        "dtype of the state",
        lambda one: (torch.ones(2, 3), one(torch.ones(2, 5).double())),
        (RuntimeError, "dtype"),
    ),
    ("dtype of the input", lambda one: (torch.ones(2, 3).double(), None), (RuntimeError, "dtype")),
    ("input of integers", lambda one: (torch.ones(2, 3).int(), None), (RuntimeError, "dtype")),
    ("no tensor", lambda one: ([1.0, 2.0, 3.0], None), (TypeError, "input to be a Tensor")),
    ("state no tensor", lambda one: (torch.ones(2, 3), one(5)), (TypeError, "Tensor")),
    ("device", lambda one: (torch.ones(2, 3, device="meta"), None), (RuntimeError, "device")),
]


@pytest.mark.parametrize(
    ("arguments", "error"), [e[1:] for e in ERRORS], ids=[e[0] for e in ERRORS]
)
@pytest.mark.parametrize(("ours", "theirs"), CELLS, ids=CELL_IDS)
def test_errors(ours: Any, theirs: Any, arguments: Any, error: tuple[type, str | None]) -> None:
    cell = ours(3, 5)

    def one(state: Any) -> Any:
        return (state, state) if ours is fused.LSTMCell else state

    with pytest.raises(error[0], match=error[1]):
        cell(*arguments(one))


def test_lstm_cell_wants_a_pair() -> None:
    cell, h = fused.LSTMCell(3, 5), torch.ones(2, 5)
    with pytest.raises(TypeError, match="tuple of two Tensors"):
        cell(torch.ones(2, 3), h)
    with pytest.raises(RuntimeError, match="lstm_cell expects two hidden states"):
        cell(torch.ones(2, 3), (h, h, h))


def test_unknown_nonlinearity() -> None:
    with pytest.raises(RuntimeError, match="Unknown nonlinearity: sin"):
        fused.RNNCell(3, 5, nonlinearity="sin")(torch.ones(2, 3))


@pytest.mark.parametrize("variants", [{}, {"layer_norm": True}], ids=["plain", "layer_norm"])
@pytest.mark.parametrize(("ours", "theirs"), CELLS, ids=CELL_IDS)
def test_autocast_computes_in_the_dtype_of_the_weights(
    ours: Any, theirs: Any, variants: dict[str, Any]
) -> None:
    """So that a state carried from step to step loses nothing."""
    cell, x = ours(3, 5, **variants), torch.randn(2, 3)
    state = new_state(cell, 2)
    with torch.autocast("cpu", torch.bfloat16):
        found = as_list(cell(x.bfloat16(), state))
    expected = as_list(cell(x.bfloat16().float(), state))
    for a, b in itertools.zip_longest(found, expected):
        assert torch.equal(a, b)
