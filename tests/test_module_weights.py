"""Weights that are not the layer's own parameters: computed, shared, swapped in or stacked."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from layer_cases import both_kinds, each_cell, make, twins
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import seq2seq_ext.nn as fused

NAME = "weight_hh_l0"


class Symmetric(nn.Module):
    """A parametrization: the top and the bottom rows of a matrix mirror each other."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight + weight.flip(0)


def symmetric(layer: nn.RNNBase, name: str) -> None:
    parametrize.register_parametrization(layer, name, Symmetric())


def spectral_norm(layer: nn.RNNBase, name: str) -> None:
    # Until it has converged: torch.nn reads a weight, and so iterates, several times a call.
    parametrizations.spectral_norm(layer, name, n_power_iterations=50)


def pruned(layer: nn.RNNBase, name: str) -> None:
    prune.l1_unstructured(layer, name, amount=0.5)


def pruned_by_rows(layer: nn.RNNBase, name: str) -> None:
    prune.ln_structured(layer, name, amount=0.5, n=2, dim=0)


# What computes a weight, and what makes it a parameter again.
COMPUTED: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "weight_norm": (parametrizations.weight_norm, parametrize.remove_parametrizations),
    "spectral_norm": (spectral_norm, parametrize.remove_parametrizations),
    "orthogonal": (parametrizations.orthogonal, parametrize.remove_parametrizations),
    "parametrization of one's own": (symmetric, parametrize.remove_parametrizations),
    "older weight_norm": (nn.utils.weight_norm, nn.utils.remove_weight_norm),
    "older spectral_norm": (nn.utils.spectral_norm, nn.utils.remove_spectral_norm),
    "pruned": (pruned, prune.remove),
    "pruned by rows": (pruned_by_rows, prune.remove),
}


@pytest.mark.parametrize(("compute", "remove"), COMPUTED.values(), ids=COMPUTED)
@both_kinds
def test_computed_weights_train_as_in_torch(
    ours: Any, theirs: Any, compute: Callable[..., Any], remove: Callable[..., Any]
) -> None:
    layer, other = twins(ours, theirs, 3, 4, 2)
    x = torch.randn(5, 2, 3)
    for module in (layer, other):
        torch.manual_seed(3)  # the spectral norms start from a random vector
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the older ones are deprecated
            compute(module, NAME)
        assert NAME not in dict(module.named_parameters())
        optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
        for _ in range(3):
            optimiser.zero_grad()
            module(x)[0].square().sum().backward()
            optimiser.step()
        module.eval()
    assert isinstance(layer, ours)
    assert isinstance(layer, theirs)

    def assert_same() -> None:
        torch.testing.assert_close(layer(x)[0], other(x)[0], rtol=1e-4, atol=1e-5)
        weights = dict(layer.named_parameters())
        for name, weight in other.named_parameters():
            torch.testing.assert_close(weights[name], weight, rtol=1e-4, atol=1e-5)

    assert_same()
    for module in (layer, other):
        remove(module, NAME)
    assert_same()
    assert type(layer) is ours
    assert sorted(layer.state_dict()) == sorted(ours(3, 4, 2).state_dict())


class Counted(nn.Module):
    """A parametrization that changes nothing, and counts."""

    calls = 0

    def forward(self, weight: Tensor) -> Tensor:
        self.calls += 1
        return weight.clone()


@pytest.mark.parametrize("form", ["dense", "resets"])
@each_cell
def test_a_weight_is_computed_once_a_call(cell: str, form: str) -> None:
    """So what changes whenever it is computed, a spectral norm's vector, goes one step a call."""
    layer, x = make(cell, 3, 4), torch.randn(5, 2, 3)
    options = {"resets": torch.rand(5, 2) < 0.3} if form == "resets" else {}
    counted = Counted()
    parametrize.register_parametrization(layer, NAME, counted)
    counted.calls = 0
    layer(x, **options)[0].sum().backward()
    assert counted.calls == 1
    with torch.no_grad():
        layer(x, **options)
    assert counted.calls == 2


@both_kinds
def test_a_parametrization_is_of_one_layer_and_copied_with_it(ours: Any, theirs: Any) -> None:
    layer, x = ours(3, 4), torch.randn(5, 2, 3)
    parametrizations.weight_norm(layer, NAME)
    torch.testing.assert_close(copy.deepcopy(layer)(x)[0], layer(x)[0])
    assert "property" not in repr(ours.__dict__.get(NAME))
    plain = ours(3, 4)
    assert not parametrize.is_parametrized(plain)
    plain(x)


def test_functional_call_uses_the_given_weights() -> None:
    layer, other = fused.GRU(3, 4, 2), nn.GRU(3, 4, 2)
    x = torch.randn(5, 2, 3)
    found = torch.func.functional_call(layer, dict(other.named_parameters()), (x,))
    torch.testing.assert_close(found[0], other(x)[0])
    grads = torch.autograd.grad(found[0].sum(), other.parameters())
    expected = torch.autograd.grad(other(x)[0].sum(), other.parameters())
    torch.testing.assert_close(grads, expected)


def test_a_weight_used_by_two_layers_gets_both_gradients() -> None:
    a, b = fused.RNN(4, 4), fused.RNN(4, 4)
    b.weight_hh_l0 = a.weight_hh_l0
    c, d = nn.RNN(4, 4), nn.RNN(4, 4)
    c.load_state_dict(a.state_dict()), d.load_state_dict(b.state_dict())
    d.weight_hh_l0 = c.weight_hh_l0
    x = torch.randn(5, 2, 4)
    b(a(x)[0])[0].sum().backward()
    d(c(x)[0])[0].sum().backward()
    torch.testing.assert_close(a.weight_hh_l0.grad, c.weight_hh_l0.grad)


def test_one_tensor_as_every_weight_of_a_layer() -> None:
    layer, other = twins(fused.RNN, nn.RNN, 4, 4, 2)
    for module in (layer, other):
        for name in ("weight_hh_l0", "weight_ih_l1", "weight_hh_l1"):
            setattr(module, name, module.weight_ih_l0)
        module(torch.ones(5, 2, 4))[0].sum().backward()
    torch.testing.assert_close(layer.weight_ih_l0.grad, other.weight_ih_l0.grad)


@both_kinds
def test_layers_tied_after_they_were_made_train_as_in_torch(ours: Any, theirs: Any) -> None:
    lower, upper = twins(ours, theirs, 4, 4), twins(ours, theirs, 4, 4)
    pairs = [nn.ModuleList(layers) for layers in zip(lower, upper, strict=True)]
    x, losses = torch.randn(5, 2, 4), []
    for pair in pairs:
        pair[0](x)  # they have run with weights of their own
        pair[1].weight_ih_l0 = pair[0].weight_ih_l0
        pair[1].bias_hh_l0 = pair[0].bias_hh_l0
        assert len(list(pair.parameters())) == 6
        optimiser = torch.optim.SGD(pair.parameters(), lr=0.1)
        for _ in range(3):
            optimiser.zero_grad()
            loss = pair[1](pair[0](x)[0])[0].square().sum()
            loss.backward()
            optimiser.step()
        losses.append(loss.detach())
    torch.testing.assert_close(*losses)
    for a, b in zip(*(pair.parameters() for pair in pairs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    twin = copy.deepcopy(pairs[0])
    assert twin[1].weight_ih_l0 is twin[0].weight_ih_l0


@each_cell
def test_models_whose_weights_are_stacked(cell: str) -> None:
    """An ensemble runs through one model without memory, and its gradients are those of each."""
    models, x = [make(cell, 3, 4, 2) for _ in range(3)], torch.randn(5, 2, 3)
    weights, buffers = torch.func.stack_module_state(models)
    base = copy.deepcopy(models[0]).to("meta")
    outputs = [
        torch.func.functional_call(base, ({k: w[n] for k, w in weights.items()}, buffers), (x,))[0]
        for n in range(len(models))
    ]
    expected = [model(x)[0] for model in models]
    torch.testing.assert_close(outputs, expected)
    gradients = torch.autograd.grad(sum(y.sin().sum() for y in outputs), weights.values())
    of_each = [
        torch.autograd.grad(y.sin().sum(), model.parameters())
        for y, model in zip(expected, models, strict=True)
    ]
    for stacked, *single in zip(gradients, *of_each, strict=True):
        torch.testing.assert_close(stacked, torch.stack(single))
