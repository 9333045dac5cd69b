"""Layers that are copied, stored, averaged, moved, made without memory or shared by processes."""

from __future__ import annotations

import copy
import io
import multiprocessing
import pickle
import warnings
from typing import Any

import pytest
import torch
from layer_cases import both_kinds, each_cell, make, states, twins
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import seq2seq_ext.nn as fused


@both_kinds
def test_copies_are_equal_and_independent(ours: Any, theirs: Any) -> None:
    layer, x = ours(3, 4, 2, bidirectional=True), torch.randn(5, 2, 3)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    expected = layer(x)[0]
    for twin in (
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.load(file, weights_only=False),
    ):
        assert type(twin) is ours
        assert torch.equal(twin(x)[0], expected)
        with torch.no_grad():
            twin.weight_hh_l0.zero_()
        assert not torch.equal(twin(x)[0], expected)
        assert torch.equal(layer(x)[0], expected)
    shallow = copy.copy(layer)
    assert shallow.weight_hh_l0 is layer.weight_hh_l0
    assert torch.equal(shallow(x)[0], expected)


@both_kinds
def test_state_dict_goes_both_ways(ours: Any, theirs: Any) -> None:
    layer, other = ours(3, 4, 2, bidirectional=True), theirs(3, 4, 2, bidirectional=True)
    x = torch.randn(5, 2, 3)
    layer.load_state_dict(other.state_dict())
    torch.testing.assert_close(layer(x)[0], other(x)[0])
    nn.init.normal_(layer.weight_hh_l1)
    other.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer(x)[0], other(x)[0])


@both_kinds
def test_moves_of_dtype_and_device(ours: Any, theirs: Any) -> None:
    layer, other = twins(ours, theirs, 3, 4)
    x = torch.randn(5, 2, 3)
    torch.testing.assert_close(layer.double()(x.double())[0], other.double()(x.double())[0])
    assert layer(x.double())[0].dtype == torch.float64
    torch.testing.assert_close(layer.to(torch.float32)(x)[0], other.float()(x)[0])
    layer.to("meta")
    y, h_n = layer(x.to("meta"))
    assert y.device.type == "meta"
    assert y.shape == (5, 2, 4)
    assert all(s.shape == (1, 2, 4) for s in states(h_n))
    layer.to_empty(device="cpu").load_state_dict(other.state_dict())
    torch.testing.assert_close(layer(x)[0], other(x)[0])


def test_default_dtype_of_double() -> None:
    torch.set_default_dtype(torch.float64)
    assert fused.GRU(3, 4)(torch.randn(5, 3))[0].dtype == torch.float64


@each_cell
def test_changes_through_data_are_seen(cell: str) -> None:
    """No version counter moves, so nothing derived from the weights may be kept between calls."""
    layer, x = make(cell, 3, 4).eval(), torch.randn(5, 2, 3)
    with torch.inference_mode():
        before = layer(x)[0].clone()
        layer.weight_hh_l0.data.mul_(2)
        assert not torch.equal(layer(x)[0], before)
        layer.weight_hh_l0.data.div_(2)
        torch.testing.assert_close(layer(x)[0], before)


def test_flat_weights_are_always_the_weights() -> None:
    layer = fused.LSTM(3, 4, 2)
    assert [id(w) for w in layer._flat_weights] == [id(p) for p in layer.parameters()]
    layer.weight_hh_l1 = nn.Parameter(torch.zeros(16, 4))
    assert layer._flat_weights[5] is layer.weight_hh_l1
    layer.flatten_parameters()
    layer.double()
    assert all(w.dtype == torch.float64 for w in layer._flat_weights)


@both_kinds
def test_moving_averages_of_weights(ours: Any, theirs: Any) -> None:
    layer, other = twins(ours, theirs, 3, 4, 2)
    x = torch.randn(5, 2, 3)
    averages = []
    for module in (layer, other):
        average = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(0.5))
        optimiser = torch.optim.SGD(module.parameters(), lr=0.5)
        for _ in range(3):
            optimiser.zero_grad()
            module(x)[0].square().sum().backward()
            optimiser.step()
            average.update_parameters(module)
        averages.append(average)
    assert type(averages[0].module) is ours
    found, expected = (average(x)[0] for average in averages)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not torch.equal(found, layer(x)[0])


@both_kinds
def test_made_without_memory_and_loaded_by_assignment(ours: Any, theirs: Any) -> None:
    other, x = theirs(3, 4, 2, bidirectional=True), torch.randn(5, 2, 3)
    layer = ours(3, 4, 2, bidirectional=True, device="meta")
    weights = {name: nn.Parameter(weight.clone()) for name, weight in other.named_parameters()}
    layer.load_state_dict(weights, assign=True)
    assert all(weight is weights[name] for name, weight in layer.named_parameters())
    torch.testing.assert_close(layer(x)[0], other(x)[0])
    layer.load_state_dict({name: 2 * weight for name, weight in weights.items()}, assign=True)
    other.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer(x)[0], other(x)[0])


@both_kinds
def test_made_without_memory_and_initialised_later(ours: Any, theirs: Any) -> None:
    layers = []
    for kind in (ours, theirs):
        with torch.device("meta"):
            layer = kind(3, 4, 2)
        layer.to_empty(device="cpu")
        torch.manual_seed(3)
        layer.reset_parameters()
        layers.append(layer)
    layer, other = layers
    for a, b in zip(layer.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    x = torch.randn(5, 2, 3)
    torch.testing.assert_close(layer(x)[0], other(x)[0])


def train_one_step(layer: nn.RNNBase, x: torch.Tensor) -> None:
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer(x)[0].square().sum().backward()
    optimiser.step()


@pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="this platform has no fork"
)
@each_cell
def test_a_process_trains_weights_in_shared_memory(cell: str) -> None:
    layer, x = make(cell, 3, 4), torch.randn(5, 2, 3)
    twin = copy.deepcopy(layer)
    assert layer.share_memory() is layer
    assert all(weight.is_shared() for weight in layer.parameters())
    torch.testing.assert_close(layer(x), twin(x))
    process = multiprocessing.get_context("fork").Process(target=train_one_step, args=(layer, x))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        process.start()
    process.join(60)
    assert process.exitcode == 0
    train_one_step(twin, x)
    torch.testing.assert_close(layer(x), twin(x))
