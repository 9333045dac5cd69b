"""Thousands of wrong calls: each ends in a clean Python error, or in the right result.

A good call is made, and one to three of its arguments are spoilt in ways that users have found.
What does not raise must be right: equal to ``torch.nn``, or, where the call uses an argument that
``torch.nn`` has not, equal to the reference.
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from layer_cases import CELL_IDS, CELLS, LAYER_IDS, LAYERS, states
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import seq2seq_ext.nn as fused
from seq2seq_ext import functional, reference

CLEAN = (TypeError, ValueError, RuntimeError, IndexError)
CALLS = 600  # for each of the layers, the cells and the functions: 9 * 600 altogether
WRONG = 330  # of these, at least so many raise: 9 * 330 > 2,000 in all

Call = dict[str, Any]
Spoil = Callable[[random.Random, Call], None]


def bad_tensor(rng: random.Random, tensor: Any) -> Any:
    """``tensor`` with another rank, size, dtype, device, layout or content, or no tensor at all."""
    if not isinstance(tensor, Tensor):
        return rng.choice([torch.zeros(()), torch.zeros(2, 2), "state", 3])
    shape = list(tensor.shape)
    axis = rng.randrange(max(1, len(shape)))
    other = shape.copy()
    if other:
        other[axis] += rng.choice([-1, 1, 7])
        other[axis] = max(0, other[axis])
    choices: list[Callable[[], Any]] = [
        lambda: torch.zeros(other, dtype=tensor.dtype),
        lambda: tensor.unsqueeze(rng.randrange(tensor.dim() + 1)),
        lambda: tensor.unsqueeze(0).unsqueeze(0).unsqueeze(0),
        lambda: tensor.sum(),
        lambda: tensor[0] if tensor.dim() and len(tensor) else tensor,
        lambda: torch.zeros([0] * tensor.dim(), dtype=tensor.dtype),
        lambda: tensor.to("meta"),
        lambda: tensor.to_sparse() if tensor.dim() else tensor,
        lambda: tensor.tolist(),
        lambda: None,
        lambda: "input",
        lambda: tensor.numpy(force=True),
        lambda: [tensor],
        lambda: (tensor, tensor, tensor),
        lambda: tensor.to(
            rng.choice([torch.int64, torch.float16, torch.bfloat16, torch.complex64, torch.bool])
        ),
        lambda: tensor.double(),
        lambda: tensor.transpose(0, -1) if tensor.dim() else tensor,
    ]
    return rng.choice(choices)()


def bad_values(rng: random.Random, tensor: Any) -> Any:
    """``tensor`` with entries that are not finite, or large: nothing is wrong with the call."""
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or tensor.numel() == 0:
        return tensor
    tensor = tensor.clone()
    flat = tensor.view(-1)
    flat[rng.randrange(len(flat))] = rng.choice([math.nan, math.inf, -math.inf, 1e38, -1e38, 0.0])
    return tensor


def spoil_input(rng: random.Random, call: Call) -> None:
    if isinstance(call["input"], Tensor) and call["input"].numel() > 1000:
        return  # spoil_huge has been there
    if isinstance(call["input"], PackedSequence):
        call["input"] = bad_packed(rng, call["input"])
    elif rng.random() < 0.25:
        call["input"] = bad_values(rng, call["input"])
    else:
        call["input"] = bad_tensor(rng, call["input"])


def spoil_huge(rng: random.Random, call: Call) -> None:
    """Sizes of which nothing could be allocated, in memory that is one number."""
    if isinstance(call["input"], Tensor) and call["input"].dim() == 3:
        features = call["input"].shape[-1]
        size = rng.choice([(2, 1 << 45, features), (2, 3, 1 << 45), (1 << 45, 3, features + 1)])
        call["input"] = torch.zeros(1).expand(size)
        call["lengths"] = None


def spoil_state(rng: random.Random, call: Call) -> None:
    hx = call["hx"]
    if isinstance(hx, tuple) and len(hx) == 2 and rng.random() < 0.7:
        spoilt = list(hx)
        spoilt[rng.randrange(2)] = bad_tensor(rng, hx[0])
        call["hx"] = tuple(spoilt) if rng.random() < 0.5 else spoilt
    elif rng.random() < 0.2:
        call["hx"] = bad_values(rng, hx)
    else:
        call["hx"] = bad_tensor(rng, hx)


def spoil_lengths(rng: random.Random, call: Call) -> None:
    B = rng.choice([1, 3])
    choices: list[Callable[[], Any]] = [
        lambda: torch.tensor([4, -1, 2]),
        lambda: torch.tensor([4, 6, 2]),
        lambda: torch.tensor([4, 1 << 62, 2]),
        lambda: torch.tensor([4, -(1 << 63), 2]),
        lambda: torch.randint(0, 5, (B, B)),
        lambda: torch.randint(0, 5, (B + 1,)),
        lambda: torch.tensor([1.0, 2.0, 3.0]),
        lambda: torch.tensor([math.nan, 2.0, 3.0]),
        lambda: torch.tensor([True, False, True]),
        lambda: torch.tensor(3),
        lambda: torch.tensor([]),
        lambda: torch.tensor([3, 1, 0], device="meta"),
        lambda: [3, 1, 0],
        lambda: 3,
        lambda: "long",
        lambda: torch.tensor([3, 1, 0], dtype=torch.int8),
        lambda: torch.tensor([3, 1, 0]).to_sparse(),
    ]
    call["lengths"] = rng.choice(choices)()


def spoil_resets(rng: random.Random, call: Call) -> None:
    x = call["input"]
    shape = x.shape[:-1] if isinstance(x, Tensor) and x.dim() > 1 else (5, 3)
    if any(size > 1000 for size in shape):
        return
    good = torch.rand(shape) < 0.5
    choices: list[Callable[[], Any]] = [
        lambda: good,
        lambda: good.float(),
        lambda: good.to(torch.uint8),
        lambda: good.transpose(0, -1).contiguous(),
        lambda: good.unsqueeze(-1),
        lambda: good.reshape(-1),
        lambda: good.tolist(),
        lambda: good.to("meta"),
        lambda: True,
        lambda: torch.ones(2, 2, dtype=torch.bool),
        lambda: torch.tensor(True),
    ]
    call["resets"] = rng.choice(choices)()


def bad_packed(rng: random.Random, packed: PackedSequence) -> Any:
    data, sizes = packed.data, packed.batch_sizes
    choices: list[Callable[[], Any]] = [
        lambda: PackedSequence(data, sizes.flip(0)),
        lambda: PackedSequence(data, sizes + 1),
        lambda: PackedSequence(data, sizes - 2),
        lambda: PackedSequence(data, -sizes),
        lambda: PackedSequence(data, sizes[:-1]),
        lambda: PackedSequence(data, sizes[:0]),
        lambda: PackedSequence(data, sizes.to(torch.float32)),
        lambda: PackedSequence(data, sizes.to(torch.int32)),
        lambda: PackedSequence(data, sizes.unsqueeze(0)),
        lambda: PackedSequence(data, sizes * (1 << 60)),
        lambda: PackedSequence(bad_tensor(rng, data), sizes),
        lambda: PackedSequence(bad_values(rng, data), sizes),
        lambda: PackedSequence(data, sizes, torch.tensor([7, 0, 1]), torch.tensor([0, 1, 2])),
        lambda: PackedSequence(data, sizes, torch.tensor([0, 1]), torch.tensor([0, 1])),
        lambda: PackedSequence(data, None),
    ]
    return rng.choice(choices)()


def good_call(rng: random.Random, lstm: bool) -> Call:
    """T 5, B 3, I 4, H 6, one layer; sometimes with everything that a call can have."""
    T, B, I, H = 5, 3, 4, 6
    x: Any = torch.randn(T, B, I)
    call: Call = {"input": x, "hx": None, "lengths": None, "resets": None}
    if rng.random() < 0.6:
        call["hx"] = tuple(torch.randn(1, B, H) for _ in range(2)) if lstm else torch.randn(1, B, H)
    if rng.random() < 0.2:
        call["input"] = pack_padded_sequence(x, torch.tensor([5, 3, 1]))
    elif rng.random() < 0.3:
        call["lengths"] = torch.tensor([5, 0, 3])
    return call


SPOILS: list[Spoil] = [spoil_input, spoil_state, spoil_lengths, spoil_resets, spoil_huge]


def outcome(call: Callable[[], Any]) -> Any:
    """What ``call`` returns, or the clean error that it raises; any other error goes on."""
    try:
        return call()
    except CLEAN as error:
        if not str(error):
            pytest.fail(f"an error without a word: {error!r}")
        return error


def flat(value: Any) -> list[Tensor]:
    if isinstance(value, PackedSequence):
        return [value.data]
    if isinstance(value, Tensor):
        return [value]
    return [tensor for item in value for tensor in flat(item)]


def same(found: Any, expected: Any) -> None:
    for a, b in zip(flat(found), flat(expected), strict=True):
        if a.device.type == "meta":
            assert a.shape == b.shape
        else:
            torch.testing.assert_close(
                a, b.to(a.dtype), rtol=1e-4, atol=1e-5, equal_nan=True, check_layout=False
            )


def torch_or_error(call: Callable[[], Any]) -> Any:
    """torch.nn answers some wrong calls with an AttributeError; that counts as an error too."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return call()
    except (*CLEAN, AttributeError) as error:
        return error


def by_reference(layer: nn.RNNBase, call: Call) -> Any:
    """The result of a call with lengths or resets, for dense (T, B, I) or a packed input."""
    x, batch_sizes = call["input"], None
    if isinstance(x, PackedSequence):
        x, batch_sizes = x.data, x.batch_sizes
        B = int(batch_sizes[0])
    single = x.dim() == 2 and batch_sizes is None
    hx, lengths, resets = call["hx"], call["lengths"], call["resets"]
    if single:
        x = x.unsqueeze(1)
        resets = None if resets is None else resets.unsqueeze(1)
        lengths = None if lengths is None else lengths.reshape(1)
    if batch_sizes is None:
        B = x.shape[1]
    if hx is None:
        hx = [torch.zeros(1, B, 6)] * (2 if layer.mode == "LSTM" else 1)
    else:
        hx = [s.unsqueeze(1) if single else s for s in states(hx)]
    cell = {"LSTM": "lstm", "GRU": "gru", "RNN_TANH": "rnn_tanh"}[layer.mode]
    y, h_n, c_n = reference.rnn(
        x,
        hx[0],
        hx[1] if cell == "lstm" else None,
        list(layer.parameters()),
        cell=cell,
        num_layers=1,
        bidirectional=False,
        lengths=None if lengths is None else lengths.to(torch.int64),
        batch_sizes=batch_sizes,
        resets=resets,
    )
    results = [y, h_n] if c_n is None else [y, h_n, c_n]
    return [r.squeeze(1) for r in results] if single else results


@pytest.mark.parametrize(("ours", "theirs"), LAYERS, ids=LAYER_IDS)
def test_layers(ours: Any, theirs: Any) -> None:
    rng = random.Random(1)
    layer, other = ours(4, 6), theirs(4, 6)
    other.load_state_dict(layer.state_dict())
    wrong = 0
    for _ in range(CALLS):
        call = good_call(rng, ours is fused.LSTM)
        try:
            for spoil in rng.sample(SPOILS, rng.choice([1, 1, 2, 3])):
                spoil(rng, call)
        except (*CLEAN, AttributeError, AssertionError):
            continue  # torch would not even make that argument
        x, hx = call["input"], call["hx"]
        options = {"lengths": call["lengths"], "resets": call["resets"]}
        found = outcome(lambda: layer(x, hx, **options))  # noqa: B023
        if isinstance(found, Exception):
            wrong += 1
        elif call["lengths"] is None and call["resets"] is None:
            expected = torch_or_error(lambda: other(x, hx))  # noqa: B023
            assert not isinstance(expected, Exception), (call, expected)
            same(found, expected)
        else:
            same(found, by_reference(layer, call))
    assert wrong >= WRONG, wrong


@pytest.mark.parametrize(("ours", "theirs"), CELLS, ids=CELL_IDS)
def test_cells(ours: Any, theirs: Any) -> None:
    rng = random.Random(2)
    cell, other = ours(4, 6), theirs(4, 6)
    other.load_state_dict(cell.state_dict())
    wrong = 0
    for _ in range(CALLS):
        call: Call = {"input": torch.randn(3, 4), "hx": None}
        if rng.random() < 0.7:
            state = torch.randn(3, 6)
            call["hx"] = (state, state) if ours is fused.LSTMCell else state
        try:
            for spoil in rng.sample([spoil_input, spoil_state], rng.choice([1, 2])):
                spoil(rng, call)
        except (*CLEAN, AttributeError):
            continue
        x, hx = call["input"], call["hx"]
        found = outcome(lambda: cell(x, hx))  # noqa: B023
        if isinstance(found, Exception):
            wrong += 1
            continue
        expected = torch_or_error(lambda: other(x, hx))  # noqa: B023
        assert not isinstance(expected, Exception), (call, expected)
        same(found, expected)
    assert wrong >= WRONG, wrong


@pytest.mark.parametrize("function", [functional.lstm, functional.gru, functional.rnn])
def test_functions_with_bad_weights(function: Any) -> None:
    """Weights of other sizes, dtypes, number and kind; whatever is accepted is the reference's."""
    rng = random.Random(3)
    G = {"lstm": 4, "gru": 3, "rnn": 1}[function.__name__]
    layer = {4: fused.LSTM, 3: fused.GRU, 1: fused.RNN}[G](4, 6)
    wrong = 0
    for _ in range(CALLS):
        weights: Any = [w.detach() for w in layer.parameters()]
        options: dict[str, Any] = {}
        for _ in range(rng.choice([1, 1, 2])):
            kind = rng.randrange(6)
            if kind < 3:
                index = rng.randrange(len(weights))
                try:
                    weights[index] = bad_tensor(rng, weights[index])
                except CLEAN:
                    continue
            elif kind == 3:
                weights = weights[: rng.randrange(len(weights) + 1)] if weights else weights
            elif kind == 4:
                weights = weights + weights[: rng.choice([1, 2])]
            else:
                name, values = rng.choice(
                    [
                        ("num_layers", [0, -1, 2, 1 << 40, "two", None]),
                        ("bidirectional", [True]),
                        ("dropout", [0.5, 1.5, -1.0, "often"]),
                    ]
                )
                options[name] = rng.choice(values)
            if not weights:
                break
        found = outcome(lambda: function(torch.randn(5, 3, 4), None, weights, **options))  # noqa: B023
        wrong += isinstance(found, Exception)
        if not isinstance(found, Exception):
            assert options.keys() <= {"dropout"}
            assert found[0].shape[:2] == (5, 3)
    assert wrong >= WRONG, wrong


CONSTRUCTIONS: list[dict[str, Any]] = [
    {"input_size": 0},
    {"input_size": -3},
    {"input_size": 2.0},
    {"input_size": "4"},
    {"input_size": None},
    {"hidden_size": 0},
    {"hidden_size": -1},
    {"hidden_size": 5.5},
    {"hidden_size": 1 << 40},
    {"hidden_size": 1 << 70},
    {"num_layers": 0},
    {"num_layers": -2},
    {"num_layers": 1.5},
    {"num_layers": "two"},
    {"bias": "yes"},
    {"bias": None},
    {"batch_first": 2.0},
    {"dropout": -0.1},
    {"dropout": 1.1},
    {"dropout": True},
    {"dropout": "often"},
    {"dropout": math.nan},
    {"proj_size": -1},
    {"proj_size": 6},
    {"proj_size": 60},
    {"dtype": torch.int64},
    {"dtype": "float"},
    {"device": "nowhere"},
    {"nonlinearity": "sin"},
    {"unknown": 1},
]


@pytest.mark.parametrize("change", CONSTRUCTIONS, ids=str)
@pytest.mark.parametrize(("ours", "theirs"), LAYERS, ids=LAYER_IDS)
def test_constructors_raise_what_torch_raises(
    ours: Any, theirs: Any, change: dict[str, Any]
) -> None:
    if "proj_size" in change:  # which torch has for LSTMs only
        theirs = torch.nn.LSTM
    arguments = {"input_size": 4, "hidden_size": 6} | change
    expected = torch_or_error(lambda: theirs(**arguments))
    found = torch_or_error(lambda: ours(**arguments))
    if isinstance(expected, Exception):
        assert type(found) is type(expected)
        if "unknown" not in change and "nonlinearity" not in change:
            # Below its first line, torch may print the stack that led to it.
            assert str(found).partition("\n")[0] == str(expected).partition("\n")[0]
    else:
        assert not isinstance(found, Exception)


def test_dropout_spoilt_later() -> None:
    layer, x = fused.GRU(4, 6, 2), torch.randn(5, 3, 4)
    for p in (1.5, -0.1, math.nan):
        layer.dropout = p
        with pytest.raises(RuntimeError, match="between 0 and 1"):
            layer(x)
        layer.eval()(x)
        layer.train()
