"""replace_modules on torch's dynamically quantised layers: their weights in float32, and back."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
from layer_cases import states
from torch import nn

import seq2seq_ext as s2s
import seq2seq_ext.nn as fused

KINDS: list[tuple[type[nn.Module], type[nn.Module], dict[str, Any]]] = [
    (fused.LSTM, nn.LSTM, {}),
    (fused.LSTM, nn.LSTM, {"num_layers": 2, "bidirectional": True, "batch_first": True}),
    (fused.GRU, nn.GRU, {"num_layers": 2, "dropout": 0.5}),
    (fused.GRU, nn.GRU, {"bidirectional": True}),
    (fused.LSTMCell, nn.LSTMCell, {}),
    (fused.GRUCell, nn.GRUCell, {}),
    (fused.RNNCell, nn.RNNCell, {"nonlinearity": "relu"}),
]
each_kind = pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    KINDS,
    ids=["LSTM", "LSTM-stack", "GRU-stack", "GRU-both", "LSTMCell", "GRUCell", "RNNCell"],
)

# Which engines there are depends on the CPU and on how torch was built.
ENGINES = [e for e in torch.backends.quantized.supported_engines if e != "none"]
FORMS = [
    (engine, dtype)
    for engine in ENGINES
    for dtype in (torch.qint8, torch.float16)
    if dtype == torch.qint8 or engine in ("fbgemm", "x86")
]
each_form = pytest.mark.parametrize(("engine", "dtype"), FORMS, ids=lambda v: str(v)[-7:])

ENGINE = torch.backends.quantized.engine


@pytest.fixture(autouse=True)
def same_engine() -> Any:
    yield
    torch.backends.quantized.engine = ENGINE


def quantise(layer: nn.Module, dtype: torch.dtype = torch.qint8) -> nn.Sequential:
    """A model of ``layer`` alone, which is quantised in it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch is about to drop these functions
        model = torch.ao.quantization.quantize_dynamic(
            nn.Sequential(layer), {type(layer)}, dtype=dtype
        )
    assert "quantized.dynamic" in type(model[0]).__module__
    return model


def dequantised(quantised: Any, like: nn.Module) -> nn.Module:
    """A copy of ``like``, a layer of torch.nn, with the weights of ``quantised``."""
    twin = copy.deepcopy(like).eval()
    named = {n: w.dequantize() for n, w in quantised.get_weight().items()} | quantised.get_bias()
    twin.load_state_dict(named)
    return twin


def x_for(theirs: type[nn.Module]) -> torch.Tensor:
    return torch.randn(5, 3) if issubclass(theirs, nn.RNNCellBase) else torch.randn(4, 5, 3)


def outputs(found: Any) -> list[torch.Tensor]:
    """All tensors of an output."""
    if isinstance(found, torch.Tensor):
        return [found]
    return [tensor for part in found for tensor in states(part)]


@each_form
@each_kind
@pytest.mark.filterwarnings("error")
def test_computes_what_torch_does_with_the_dequantised_weights(
    ours: Any, theirs: Any, options: dict[str, Any], engine: str, dtype: torch.dtype
) -> None:
    torch.backends.quantized.engine = engine
    plain = theirs(3, 40, **options)
    model = quantise(plain, dtype)
    quantised, x = model[0], x_for(theirs)
    expected = dequantised(quantised, plain)(x)
    before = quantised(x)

    assert s2s.replace_modules(model) is model
    assert model[0] is quantised
    assert type(quantised) is ours
    assert list(quantised.state_dict()) == list(plain.state_dict())
    assert repr(quantised) == repr(s2s.replace_modules(copy.deepcopy(plain)))
    assert not any(p.requires_grad or p.dtype != torch.float32 for p in model.parameters())
    found = outputs(quantised(x))
    for a, b in zip(found, outputs(expected), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)

    assert s2s.restore_modules(model)[0] is quantised
    assert "quantized.dynamic" in type(quantised).__module__
    assert not list(model.parameters())
    for a, b, c in zip(found, outputs(quantised(x)), outputs(before), strict=True):
        assert torch.equal(b, c)
        torch.testing.assert_close(a, b, rtol=0.1, atol=0.05)  # inputs were of 8 bits


@each_kind
def test_then_prepacked_to_int8(ours: Any, theirs: Any, options: dict[str, Any]) -> None:
    model, x = s2s.replace_modules(quantise(theirs(3, 40, **options))), x_for(theirs)
    plain = outputs(model(x))
    s2s.prepack(model, torch.int8)
    for a, b in zip(outputs(model(x)), plain, strict=True):
        assert not torch.equal(a, b)
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.02)
    s2s.restore_modules(model)
    assert not isinstance(model[0], ours)


@each_kind
def test_back_and_forth_copied_and_stored(ours: Any, theirs: Any, options: dict[str, Any]) -> None:
    model, x = quantise(theirs(3, 4, **options)), x_for(theirs)
    before = outputs(model(x))
    for _ in range(2):
        s2s.replace_modules(s2s.replace_modules(model))
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert type(twin[0]) is ours
            for a, b in zip(outputs(twin(x)), outputs(model(x)), strict=True):
                assert torch.equal(a, b)
            for a, b in zip(outputs(s2s.restore_modules(twin)(x)), before, strict=True):
                assert torch.equal(a, b)
        s2s.restore_modules(s2s.restore_modules(model))
    for a, b in zip(outputs(model(x)), before, strict=True):
        assert torch.equal(a, b)


def test_hooks_mode_and_attributes_are_kept() -> None:
    model, calls = quantise(nn.LSTM(3, 4)), []
    layer = model[0]
    layer.purpose = "to read"
    layer.extra = nn.Linear(2, 2)
    handle = layer.register_forward_hook(lambda *_: calls.append("before"))
    s2s.replace_modules(model)
    layer.register_forward_hook(lambda *_: calls.append("between"))
    assert layer.purpose == "to read"
    assert [name for name, _ in layer.named_children()] == ["extra"]
    x = torch.randn(5, 2, 3)
    layer(x)
    layer.train()
    layer.purpose = "to write"
    layer.later = nn.Linear(2, 2)
    s2s.restore_modules(model)
    layer(x)
    handle.remove()
    layer(x)
    assert calls == ["before", "between", "before", "between", "between"]
    assert layer.training
    assert layer.purpose == "to write"
    assert {"extra", "later"} < {name for name, _ in layer.named_children()}


def test_changed_weights_are_not_thrown_away() -> None:
    model, x = s2s.replace_modules(quantise(nn.GRU(3, 4))), torch.randn(5, 2, 3)
    model.requires_grad_(True)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    model(x)[0].sum().backward()
    optimiser.step()
    trained = model(x)[0]
    assert type(s2s.restore_modules(model)[0]) is nn.GRU
    torch.testing.assert_close(model(x)[0], trained)

    wider = s2s.replace_modules(quantise(nn.GRU(3, 4))).double()
    assert type(s2s.restore_modules(wider)[0]) is nn.GRU


def test_layers_left_alone_are_reported() -> None:
    class Own(torch.ao.nn.quantized.dynamic.LSTM):
        pass

    own_forward = quantise(nn.LSTMCell(3, 4))[0]
    own_forward.forward = lambda x: x
    model = nn.ModuleDict(
        {
            "subclass": Own(3, 4),
            "instance": own_forward,
            "static": torch.ao.nn.quantizable.LSTMCell(3, 4),
            "served": quantise(nn.LSTM(3, 4))[0],
        }
    )
    kinds = {name: type(module) for name, module in model.items()}
    report: list[fused.NotReplaced] = []
    s2s.replace_modules(model, report=report)
    reasons = {item.name: item.reason for item in report}
    assert set(reasons) == {"subclass", "instance", "static"}
    assert "Own is a subclass of a quantised layer" in reasons["subclass"]
    assert "forward" in reasons["instance"]
    assert "another form than torch's dynamic one" in reasons["static"]
    assert all(type(model[name]) is kinds[name] for name in reasons)
    assert type(model["served"]) is fused.LSTM
