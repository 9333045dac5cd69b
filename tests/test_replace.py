"""replace_modules and restore_modules: what changes in a model, and all that must not."""

from __future__ import annotations

import contextlib
import copy
import pickle
import types
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from layer_cases import CELL_IDS, CELLS, LAYER_IDS, LAYERS, states
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import seq2seq_ext.nn as fused
from seq2seq_ext.nn import replace_modules, restore_modules

# Replacing what can be replaced is silent.
pytestmark = pytest.mark.filterwarnings("error")


@contextlib.contextmanager
def deprecated() -> Iterator[None]:
    """Use what PyTorch is about to drop and what users still have."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class Tagger(nn.Module):
    """Layers at several depths, one of them in two places, and a module that is none of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 4)
        self.encoder = nn.ModuleList([nn.LSTM(4, 6, bidirectional=True), nn.GRU(12, 5)])
        self.shared = self.encoder[1]
        self.block = nn.Sequential(nn.Linear(5, 5), nn.ModuleDict({"rnn": nn.RNN(5, 3)})["rnn"])
        self.cells = nn.ModuleList([nn.LSTMCell(3, 3), nn.GRUCell(3, 3), nn.RNNCell(3, 3)])

    def forward(self, tokens: Tensor) -> Tensor:
        x, _ = self.encoder[0](self.embedding(tokens))
        x, _ = self.shared(x)
        x, _ = self.block(x)
        h = x[-1]
        for cell in self.cells:
            h = cell(h)
            h = h[0] if isinstance(cell, nn.LSTMCell) else h
        return h


def test_same_outputs_same_gradients_same_objects() -> None:
    model, tokens = Tagger(), torch.randint(11, (7, 3))
    expected = model(tokens)
    gradients = torch.autograd.grad(expected.sum(), model.parameters(), retain_graph=True)
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    state = {k: v.clone() for k, v in model.state_dict().items()}

    assert replace_modules(model) is model
    assert dict(model.named_modules()) == modules
    for name, parameter in model.named_parameters():
        assert parameter is parameters[name]
    assert list(model.state_dict()) == list(state)
    kinds = [type(m) for m in (*model.encoder, model.block[1], *model.cells)]
    assert kinds == [
        fused.LSTM,
        fused.GRU,
        fused.RNN,
        fused.LSTMCell,
        fused.GRUCell,
        fused.RNNCell,
    ]
    assert model.shared is model.encoder[1]

    found = model(tokens)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found.sum(), model.parameters()), gradients)

    assert restore_modules(model) is model
    assert type(model.encoder[0]) is nn.LSTM
    assert type(model.cells[2]) is nn.RNNCell
    assert torch.equal(model(tokens), expected)


@pytest.mark.parametrize(("ours", "theirs"), LAYERS + CELLS, ids=LAYER_IDS + CELL_IDS)
def test_the_model_may_be_the_layer(ours: Any, theirs: Any) -> None:
    layer = theirs(3, 4)
    x = torch.randn(5, 3)
    expected = layer(x)
    assert replace_modules(layer) is layer
    assert type(layer) is ours
    torch.testing.assert_close(layer(x), expected)
    assert type(restore_modules(layer)) is theirs
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=0)


def test_twice_is_once() -> None:
    model = replace_modules(replace_modules(Tagger()))
    restore_modules(restore_modules(model))
    assert type(model.encoder[0]) is nn.LSTM


def test_an_optimiser_made_before_goes_on() -> None:
    model, twin = Tagger(), Tagger()
    twin.load_state_dict(model.state_dict())
    optimisers = [torch.optim.Adam(m.parameters(), lr=0.01) for m in (model, twin)]
    replace_modules(model)
    tokens = torch.randint(11, (7, 3))
    for _ in range(3):
        for m, optimiser in zip((model, twin), optimisers, strict=True):
            optimiser.zero_grad()
            m(tokens).square().sum().backward()
            optimiser.step()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_mode_device_dtype_and_requires_grad_are_kept() -> None:
    model = nn.Sequential(nn.LSTM(3, 4, 2, dropout=0.5, dtype=torch.float64), nn.GRU(3, 4))
    model[0].eval()
    model[1].weight_hh_l0.requires_grad_(False)
    replace_modules(model)
    assert not model[0].training
    assert model[1].training
    assert model[0].weight_ih_l0.dtype == torch.float64
    assert not model[1].weight_hh_l0.requires_grad
    assert repr(model[0]) == "LSTM(3, 4, num_layers=2, dropout=0.5)"
    on_meta = replace_modules(nn.LSTM(3, 4, device="meta"))
    assert type(on_meta) is fused.LSTM


def test_every_kind_of_hook_keeps_firing() -> None:
    layer, calls = nn.GRU(3, 4), []
    x = torch.randn(5, 2, 3, requires_grad=True)

    def note(name: str) -> Any:
        return lambda *arguments: calls.append(name)

    handles = [
        layer.register_forward_pre_hook(note("forward_pre")),
        layer.register_forward_hook(note("forward")),
        layer.register_full_backward_pre_hook(note("backward_pre")),
        layer.register_full_backward_hook(note("backward")),
        layer.register_state_dict_pre_hook(note("state_dict_pre")),
        layer._register_state_dict_hook(note("state_dict")),
        layer.register_load_state_dict_pre_hook(note("load_pre")),
        layer.register_load_state_dict_post_hook(note("load_post")),
    ]

    def exercise() -> list[str]:
        calls.clear()
        layer(x)[0].sum().backward()
        layer.load_state_dict(layer.state_dict())
        return list(calls)

    before = exercise()
    assert len(set(before)) == 8
    replace_modules(layer)
    assert exercise() == before
    handles[1].remove()
    assert exercise() == [name for name in before if name != "forward"]
    for handle in handles:
        handle.remove()
    assert exercise() == []


def test_a_hook_sees_the_module_it_was_given() -> None:
    model = Tagger()
    seen = []
    model.encoder[0].register_forward_hook(lambda module, *_: seen.append(module))
    replace_modules(model)(torch.randint(11, (7, 3)))
    assert seen == [model.encoder[0]]
    assert isinstance(seen[0], fused.LSTM)


# Layers whose weights are computed.


@pytest.mark.parametrize(("ours", "theirs"), LAYERS + CELLS, ids=LAYER_IDS + CELL_IDS)
def test_parametrized_layers(ours: Any, theirs: Any) -> None:
    layer = theirs(3, 4)
    name = next(n for n, _ in layer.named_parameters() if "weight_hh" in n)
    parametrizations.weight_norm(layer, name)
    x = torch.randn(5, 3)
    expected = layer(x)
    replace_modules(layer)
    assert isinstance(layer, ours)
    assert isinstance(layer, theirs)
    assert parametrize.is_parametrized(layer, name)
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(copy.deepcopy(layer)(x), expected)

    optimiser = torch.optim.SGD(layer.parameters(), lr=0.1)
    states(layer(x))[0].square().sum().backward()
    assert all(p.grad is not None for p in layer.parameters())
    optimiser.step()
    trained = layer(x)
    assert not torch.equal(states(trained)[0], states(expected)[0])

    restore_modules(layer)
    assert not isinstance(layer, ours)
    torch.testing.assert_close(layer(x), trained)
    replace_modules(layer)
    parametrize.remove_parametrizations(layer, name)
    assert type(layer) is ours
    torch.testing.assert_close(layer(x), trained)
    assert type(restore_modules(layer)) is theirs
    torch.testing.assert_close(layer(x), trained)


def test_pruned_layers() -> None:
    layer, x = nn.LSTM(3, 4), torch.randn(5, 2, 3)
    prune.random_unstructured(layer, "weight_hh_l0", amount=0.5)
    expected = layer(x)[0]
    replace_modules(layer)
    torch.testing.assert_close(layer(x)[0], expected)
    layer(x)[0].sum().backward()
    assert not layer.weight_hh_l0_orig.grad[layer.weight_hh_l0_mask == 0].any()
    prune.remove(layer, "weight_hh_l0")
    torch.testing.assert_close(layer(x)[0], expected)
    prune.l1_unstructured(layer, "weight_ih_l0", amount=0.25)
    assert not torch.equal(layer(x)[0], expected)


def test_weight_norm_of_the_older_kind() -> None:
    layer, x = nn.GRU(3, 4), torch.randn(5, 2, 3)
    with deprecated():
        nn.utils.weight_norm(layer, "weight_hh_l0")
    expected = layer(x)[0]
    replace_modules(layer)
    torch.testing.assert_close(layer(x)[0], expected)
    layer.weight_hh_l0_g.data *= 2
    changed = layer(x)[0]
    assert not torch.equal(changed, expected)
    restore_modules(layer)
    torch.testing.assert_close(layer(x)[0], changed)


def test_weights_shared_between_layers() -> None:
    model = nn.ModuleList([nn.LSTM(4, 4), nn.LSTM(4, 4)])
    model[1].weight_hh_l0 = model[0].weight_hh_l0
    replace_modules(model)
    assert model[1].weight_hh_l0 is model[0].weight_hh_l0
    model[0].weight_hh_l0.data.zero_()
    x = torch.randn(5, 2, 4)
    other = nn.LSTM(4, 4)
    other.load_state_dict(model[1].state_dict())
    torch.testing.assert_close(model[1](x)[0], other(x)[0])


# Layers that are left as they are.


class Halving(nn.LSTM):
    def forward(self, input: Any, hx: Any = None) -> Any:
        y, h = super().forward(input, hx)
        return y / 2, h


def test_layers_left_alone_are_reported() -> None:
    with deprecated():
        scripted = torch.jit.script(nn.GRU(3, 4))
    own_forward = nn.RNN(3, 4)
    own_forward.forward = types.MethodType(lambda self, x: x, own_forward)
    model = nn.ModuleDict(
        {
            "subclass": Halving(3, 4),
            "scripted": scripted,
            "low": nn.GRU(3, 4).to(torch.float8_e4m3fn),
            "instance": own_forward,
            "served": nn.LSTM(3, 4),
            "plain": nn.Linear(3, 4),
        }
    )
    kinds = {name: type(module) for name, module in model.items()}
    report: list[fused.NotReplaced] = []
    replace_modules(model, report=report)
    reasons = {item.name: item.reason for item in report}
    assert set(reasons) == {"subclass", "scripted", "low", "instance"}
    assert "subclass of nn.LSTM" in reasons["subclass"]
    assert "scripted" in reasons["scripted"]
    assert "float8_e4m3fn" in reasons["low"]
    assert "forward" in reasons["instance"]
    for item in report:
        assert item.module is model[item.name]
        assert type(item.module) is kinds[item.name]
    assert type(model["served"]) is fused.LSTM

    with pytest.warns(UserWarning, match=r"replace_modules left(.|\n)*subclass: (.|\n)*scripted"):
        replace_modules(model)
    assert type(restore_modules(model)["served"]) is nn.LSTM
    assert type(model["subclass"]) is Halving


def test_a_gru_that_torch_has_not_is_not_restored() -> None:
    model = nn.Sequential(fused.GRU(3, 4, reset_after=False), fused.GRU(3, 4))
    with pytest.warns(UserWarning, match="0: torch.nn has no GRU with reset_after=False"):
        restore_modules(model)
    assert type(model[0]) is fused.GRU
    assert type(model[1]) is nn.GRU


def test_subclasses_of_ours_are_ours() -> None:
    class Own(fused.LSTM):
        pass

    report: list[fused.NotReplaced] = []
    layer = Own(3, 4)
    assert type(replace_modules(layer, report=report)) is Own
    assert report == []


@pytest.mark.parametrize("function", [replace_modules, restore_modules])
def test_a_model_is_wanted(function: Any) -> None:
    with pytest.raises(TypeError, match=r"expects a torch.nn.Module, got list"):
        function([nn.LSTM(3, 4)])


def test_replaced_models_are_copied_and_stored() -> None:
    model, tokens = replace_modules(Tagger()), torch.randint(11, (7, 3))
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(twin.encoder[0]) is fused.LSTM
        assert twin.shared is twin.encoder[1]
        assert torch.equal(twin(tokens), model(tokens))


def test_state_dicts_go_both_ways() -> None:
    model, other = replace_modules(Tagger()), Tagger()
    tokens = torch.randint(11, (7, 3))
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(tokens), other(tokens))
    fresh = replace_modules(Tagger())
    fresh.load_state_dict(other.state_dict())
    assert torch.equal(fresh(tokens), model(tokens))


def test_layers_in_other_dtypes_after_the_swap() -> None:
    model = replace_modules(nn.Sequential(nn.LSTM(3, 4))).double()
    assert model[0](torch.randn(5, 3).double())[0].dtype == torch.float64
    assert all(w.dtype == torch.float64 for w in model[0]._flat_weights)
    restore_modules(model)
    assert model[0](torch.randn(5, 3).double())[0].dtype == torch.float64
