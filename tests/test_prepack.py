"""``prepack``: right numbers from packed weights, who uses them, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from layer_cases import CELLS, LAYERS, NAMES, make, random_state
from prepack_cases import (
    NARROW,
    assert_equal,
    assert_nearly_equal,
    block,
    each_cell,
    each_narrow,
    is_in_use,
    run,
)
from torch import Tensor, nn
from torch.library import opcheck
from torch.nn.utils.rnn import pack_padded_sequence

import seq2seq_ext as s2s
import seq2seq_ext.nn as fused
from seq2seq_ext import ops

# The largest error of an output relative to the largest output, with random weights: a rounding of
# 2^-9 or 1/254 of each weight, of which the products of a step average many out.
BOUND = {torch.bfloat16: 0.02, torch.int8: 0.05}

SINGLE = {
    "lstm": (fused.LSTMCell, {}),
    "gru": (fused.GRUCell, {}),
    "gru_reset_before": (fused.GRUCell, {"reset_after": False}),
    "rnn_tanh": (fused.RNNCell, {}),
    "rnn_relu": (fused.RNNCell, {"nonlinearity": "relu"}),
}


@pytest.fixture(params=s2s.available_cpu_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = s2s.cpu_isa()
    s2s.set_cpu_isa(request.param)
    yield request.param
    s2s.set_cpu_isa(before)


def assert_close(found: list[Tensor], expected: list[Tensor], narrow: torch.dtype) -> None:
    for a, b in zip(found, expected, strict=True):
        assert not torch.equal(a, b)
        assert (a - b).abs().max() <= BOUND[narrow] * b.abs().max()


# Numbers.

FORMS = ["dense", "unbatched", "lengths", "resets", "packed", "state"]


def call_of(layer: nn.RNNBase, form: str, T: int, B: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    x = torch.randn(T, B, layer.input_size, dtype=layer.weight_ih_l0.dtype)
    lengths = torch.randint(1, T + 1, (B,))
    if form == "unbatched":
        return (x[:, 0],), {}
    if form == "lengths":
        return (x,), {"lengths": lengths}
    if form == "resets":
        return (x,), {"resets": torch.rand(T, B) < 0.3}
    if form == "packed":
        return (pack_padded_sequence(x, lengths, enforce_sorted=False),), {}
    if form == "state":
        return (x, random_state(layer, B)), {}
    return (x,), {}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("num_layers", "bidirectional"), [(1, False), (2, True)])
@pytest.mark.parametrize(
    ("cell", "options"), [*((c, {}) for c in NAMES), ("lstm", {"proj_size": 5})]
)
def test_layers_give_the_same_bits(
    cell: str, options: dict[str, Any], num_layers: int, bidirectional: bool, form: str, isa: str
) -> None:
    for bias, dtype in ((True, torch.float32), (False, torch.float64)):
        layer = make(
            cell,
            9,
            21,
            num_layers,
            bias=bias,
            bidirectional=bidirectional,
            dtype=dtype,
            **options,
        )
        for T, B in [(1, 1), (6, 3), (3, 19)]:
            args, kwargs = call_of(layer, form, T, B)
            expected = run(layer, *args, **kwargs)
            s2s.prepack(layer)
            same = assert_nearly_equal if T * B == 1 else assert_equal
            same(run(layer, *args, **kwargs), expected)
            assert is_in_use(layer)
            s2s.unpack(layer)


@each_cell
def test_cells_give_the_same_bits(cell: str, isa: str) -> None:
    cls, options = SINGLE[cell]
    for bias in (True, False):
        module = cls(9, 21, bias, **options)
        for B in (1, 3, 19):
            x = torch.randn(B, 9)
            h = run(module, x)
            hx = tuple(h) if len(h) == 2 else h[0]
            expected, single = run(module, x, hx), run(module, x[0])
            s2s.prepack(module)
            same = assert_nearly_equal if B == 1 else assert_equal
            same(run(module, x, hx), expected)
            assert_nearly_equal(run(module, x[0]), single)
            assert is_in_use(module)
            s2s.unpack(module)


@each_narrow
@pytest.mark.parametrize("proj_size", [0, 24])
@each_cell
def test_narrow_weights_err_little(
    cell: str, proj_size: int, narrow: torch.dtype, isa: str
) -> None:
    if proj_size and cell != "lstm":
        proj_size = 0
    options = {"proj_size": proj_size} if proj_size else {}
    layer = make(cell, 40, 72, 2, bidirectional=True, **options)
    for form in ("dense", "lengths"):
        args, kwargs = call_of(layer, form, 12, 5)
        expected = run(s2s.unpack(layer), *args, **kwargs)
        assert_close(run(s2s.prepack(layer, narrow), *args, **kwargs), expected, narrow)


@each_narrow
@each_cell
def test_narrow_cells_are_a_step_of_narrow_layers(cell: str, narrow: torch.dtype) -> None:
    cls, options = SINGLE[cell]
    module, layer = cls(40, 72, **options), make(cell, 40, 72)
    layer.load_state_dict({f"{k}_l0": v for k, v in module.state_dict().items()})
    s2s.prepack(module, narrow), s2s.prepack(layer, narrow)
    x = torch.randn(5, 40)
    for a, b in zip(run(module, x), run(layer, x.unsqueeze(0))[1:], strict=True):
        torch.testing.assert_close(a, b[0], rtol=1e-5, atol=1e-6)


@each_narrow
def test_narrow_weights_take_less_memory(narrow: torch.dtype) -> None:
    layer = make("lstm", 256, 256)
    full = block(s2s.prepack(layer)).numel()
    assert block(s2s.prepack(layer, narrow)).numel() < full * narrow.itemsize / 4 * 1.05
    weights = sum(w.numel() * 4 for w in layer.parameters())
    assert full < weights * 1.05


@each_narrow
def test_weights_that_narrow_types_hold_exactly_leave_rounding_errors_only(
    narrow: torch.dtype,
) -> None:
    """With weights of few bits, narrow storage has no error.

    Then sums may differ in order, and inputs and states may have 16 bits: an input of 4 is off by
    6e-5 at most, and a gate's sum by a few times as much.
    """
    layer = make("gru", 16, 32)
    with torch.no_grad():
        for weight in layer.parameters():
            weight.copy_(torch.randint(-127, 128, weight.shape) / 256)
            if weight.dim() == 2:
                weight[:, 0] = 127 / 256  # int8's scale is that of the largest in the row
    x = torch.randn(9, 4, 16)
    expected = run(layer, x)
    for a, b in zip(run(s2s.prepack(layer, narrow), x), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=3e-4)


# Who uses them.


def test_gradients_are_those_of_the_parameters() -> None:
    layer, plain = fused.LSTM(5, 7, 2), fused.LSTM(5, 7, 2)
    plain.load_state_dict(layer.state_dict())
    s2s.prepack(layer, torch.int8)
    x = torch.randn(6, 3, 5)
    y, expected = layer(x)[0], plain(x)[0]
    assert torch.equal(y, expected)
    for a, b in zip(
        torch.autograd.grad(y.sum(), layer.parameters()),
        torch.autograd.grad(expected.sum(), plain.parameters()),
        strict=True,
    ):
        assert torch.equal(a, b)
    frozen = layer.requires_grad_(False)
    assert not torch.equal(frozen(x)[0], expected)  # nothing requires a gradient: int8
    assert torch.equal(frozen(x.requires_grad_())[0], expected)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_modes_without_gradients_use_packed_weights(mode: Callable[[], Any]) -> None:
    layer, x = s2s.prepack(fused.GRU(5, 7), torch.bfloat16), torch.randn(6, 3, 5)
    with mode():
        y = layer(x)[0]
    assert not torch.equal(y, layer(x)[0])
    assert y.is_inference() == (mode is torch.inference_mode)


def test_every_layer_and_cell_of_a_model() -> None:
    model = nn.ModuleDict(
        {
            "layers": nn.ModuleList(ours(3, 4) for ours, _ in LAYERS),
            "cells": nn.ModuleList(ours(3, 4) for ours, _ in CELLS),
            "theirs": nn.LSTM(3, 4),
            "linear": nn.Linear(3, 4),
        }
    )
    assert s2s.prepack(model) is model
    for module in [*model["layers"], *model["cells"]]:
        assert is_in_use(module)
        assert module._packed.dtype is None
    assert not hasattr(model["theirs"], "_packed")
    s2s.prepack(model, torch.int8)
    for module in [*model["layers"], *model["cells"]]:
        assert module._packed.dtype is torch.int8
    assert s2s.unpack(model) is model
    for module in [*model["layers"], *model["cells"]]:
        assert module._packed is None


def test_dropout_between_layers_of_a_training_layer() -> None:
    layer, x = fused.GRU(5, 7, 3, dropout=0.5), torch.randn(6, 3, 5)
    torch.manual_seed(1)
    expected = run(layer, x)
    s2s.prepack(layer)
    torch.manual_seed(1)
    assert_equal(run(layer, x), expected)


@pytest.mark.parametrize("dtype", [None, torch.int8])
def test_compiled_and_exported_models_compute_with_the_parameters(dtype: Any) -> None:
    torch._dynamo.reset()
    layer, x = fused.GRU(5, 7).eval(), torch.randn(6, 3, 5)
    expected = run(layer, x)
    s2s.prepack(layer, dtype)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert_equal(run(compiled, x), expected)
    program = torch.export.export(layer, (x,))
    assert_equal(run(program.module(), x), expected)


def test_autocast_and_other_dtypes_of_the_input() -> None:
    layer, x = s2s.prepack(fused.LSTM(5, 7)), torch.randn(6, 3, 5).bfloat16()
    expected = [output.bfloat16() for output in run(layer, x.float())]
    with torch.autocast("cpu", torch.bfloat16):
        assert_equal(run(layer, x), expected)
    with pytest.raises(ValueError, match="RNN input dtype"):
        run(layer, x)


# Errors.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.uint8, "int8", 8])
def test_other_dtypes_are_refused(dtype: Any) -> None:
    layer = fused.LSTM(3, 4)
    with pytest.raises(ValueError, match=r"dtype must be None, torch.bfloat16 or torch.int8, got"):
        s2s.prepack(layer, dtype)
    assert layer._packed is None


@each_narrow
def test_float64_is_not_narrowed(narrow: torch.dtype) -> None:
    model = nn.ModuleDict({"a": fused.LSTM(3, 4), "b": fused.GRUCell(3, 4).double()})
    with pytest.raises(
        ValueError, match=r"dtype must be None for weights .*those of b \(GRUCell\)"
    ):
        s2s.prepack(model, narrow)
    assert model["a"]._packed is None
    s2s.prepack(model)
    with pytest.raises(ValueError, match=r"those of the model \(LSTM\)"):
        s2s.prepack(fused.LSTM(3, 4).double(), narrow)


def test_models_without_our_layers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got none in LSTM; replace_modules\(model\)"):
        s2s.prepack(nn.LSTM(3, 4))
    for function in (s2s.prepack, s2s.unpack):
        with pytest.raises(TypeError, match="Module, got int"):
            function(3)


# The operator.


@each_cell
def test_opcheck(cell: str) -> None:
    layer = make(cell, 3, 4, 2, bidirectional=True)
    weights = [w.detach() for w in layer.parameters()]
    for dtype in (None, *NARROW):
        arguments = (weights, ops.CELLS.index(cell), 2, True, dtype)
        results = opcheck(
            torch.ops.seq2seq_ext.prepack.default,
            arguments,
            test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
        )
        assert set(results.values()) == {"SUCCESS"}
        packed = torch.ops.seq2seq_ext.prepack(*arguments)
        before = packed.clone()
        torch.ops.seq2seq_ext.rnn(
            torch.randn(5, 3, 3), None, None, *arguments[:4], False, packed, 12
        )
        assert torch.equal(packed, before)  # threads share it


def test_the_operator_refuses_what_was_not_packed_for_it() -> None:
    weights = [w.detach() for w in fused.GRU(3, 4).parameters()]
    others = [w.detach() for w in fused.GRU(3, 5).parameters()]
    twins = [w.clone() for w in weights]
    x = torch.randn(5, 2, 3)

    def rnn(packed: Tensor, save: bool = False, turn: int = 0) -> Any:
        return torch.ops.seq2seq_ext.rnn(x, None, None, weights, 1, 1, False, save, packed, turn)

    def prepack(weights: list[Tensor], cell: int = 1, dtype: Any = None) -> Tensor:
        return torch.ops.seq2seq_ext.prepack(weights, cell, dtype=dtype)

    good = prepack(weights)
    rnn(good)
    for packed in (prepack(others), prepack(weights, 2), prepack(weights[:2]), good.clone()[:-64]):
        with pytest.raises(RuntimeError, match="packed: expected what prepack makes of these"):
            rnn(packed)
    for packed in (
        good[:8],
        good[1:],
        good.view(1, -1),
        good[::2],
        torch.zeros(3),
        good.to("cpu")[:0],
    ):
        with pytest.raises(RuntimeError, match="packed: expected"):
            rnn(packed)
    with pytest.raises(RuntimeError, match="packed: the weights are other tensors"):
        rnn(prepack(twins))
    with pytest.raises(RuntimeError, match="packed: expected None with save"):
        rnn(good, save=True)
    with pytest.raises(RuntimeError, match="turn: expected a number of steps, got -1"):
        rnn(good, turn=-1)
    weights[3].add_(1)
    with pytest.raises(RuntimeError, match=r"packed: weights\[3\] has changed"):
        rnn(good)
    with pytest.raises(RuntimeError, match="dtype: expected None, BFloat16 or Char, got Half"):
        prepack(weights, dtype=torch.float16)
    with pytest.raises(RuntimeError, match="dtype: expected None for weights of Double, got Char"):
        prepack([w.double() for w in weights], dtype=torch.int8)
    with pytest.raises(RuntimeError, match=r"weights\[1\]: expected shape"):
        prepack([weights[0], weights[0]])
    with pytest.raises(RuntimeError, match="weights: expected 2 to 5 tensors"):
        prepack(weights[:1])
