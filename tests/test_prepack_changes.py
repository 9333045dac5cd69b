"""``prepack``: every change of the weights is noticed, and copies keep their own."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from layer_cases import make
from prepack_cases import (
    X,
    assert_equal,
    assert_nearly_equal,
    block,
    each_cell,
    is_in_use,
    run,
    run_plain,
)
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.rnn import pack_padded_sequence

import seq2seq_ext as s2s
import seq2seq_ext.nn as fused

# What is noticed.


def by_optimiser(layer: nn.Module) -> None:
    optimiser = torch.optim.SGD(layer.parameters(), lr=1.0)
    layer(X)[0].sum().backward()
    optimiser.step()


def by_data_of_one(layer: nn.Module) -> None:
    layer.weight_ih_l0.data.mul_(1.5)


def by_data_of_a_bias(layer: nn.Module) -> None:
    layer.bias_hh_l1.data.add_(0.5)


def by_numpy(layer: nn.Module) -> None:
    layer.weight_hh_l1.detach().numpy()[:] *= 1.5


def by_data_of_an_optimiser(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        parameter.data.sub_(torch.randn_like(parameter), alpha=0.01)


def by_one_element_in_place(layer: nn.Module) -> None:
    with torch.no_grad():
        layer.weight_hh_l1[17, 3] += 1


def by_load_state_dict(layer: nn.Module) -> None:
    state = {name: 0.5 * value for name, value in layer.state_dict().items()}
    layer.load_state_dict(state)


def by_load_state_dict_assign(layer: nn.Module) -> None:
    state = {name: 0.5 * value for name, value in layer.state_dict().items()}
    layer.load_state_dict(state, assign=True)


def by_new_parameter(layer: nn.Module) -> None:
    layer.weight_hh_l0 = nn.Parameter(layer.weight_hh_l0.detach() * 0.5)


def by_new_memory(layer: nn.Module) -> None:
    changed = layer.weight_hh_l0.detach().clone()
    changed[11, 5] += 1
    layer.weight_hh_l0.data = changed


def by_initialisation(layer: nn.Module) -> None:
    layer.reset_parameters()


def by_sharing_memory(layer: nn.Module) -> None:
    layer.share_memory()
    layer.weight_ih_l0.data.mul_(1.5)


def by_strides(layer: nn.Module) -> None:
    layer.weight_ih_l0.data = layer.weight_ih_l0.data.mul(2).t().contiguous().t()


CHANGES = [value for name, value in list(globals().items()) if name.startswith("by_")]


@pytest.mark.parametrize("layer_norm", [False, True], ids=["plain", "layer_norm"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("change", CHANGES, ids=[c.__name__ for c in CHANGES])
def test_the_next_call_notices(
    change: Callable[[nn.Module], None], dtype: Any, layer_norm: bool
) -> None:
    variants = {"layer_norm": True} if layer_norm else {}
    layer = s2s.prepack(fused.LSTM(40, 48, 2, **variants), dtype)
    before = run(layer, X)
    change(layer)
    found = run(layer, X)
    fresh = fused.LSTM(40, 48, 2, **variants)
    fresh.load_state_dict(layer.state_dict())
    assert_equal(found, run(s2s.prepack(fresh, dtype), X))
    assert not torch.equal(found[0], before[0])
    assert_equal(run(layer, X), found)


@pytest.mark.parametrize("T", [1, 3, 50, 1100])
@each_cell
def test_any_change_is_noticed_within_1024_steps(cell: str, T: int) -> None:
    layer, x = s2s.prepack(make(cell, 70, 130)), torch.randn(T, 1, 70)
    run(layer, x)
    for weight in layer.parameters():
        for _ in range(3):
            made = block(layer)
            flat = weight.data.view(-1)
            flat[torch.randint(len(flat), ())] += 2.0**-20
            for _ in range(
                -(-1024 // T) + 1
            ):  # the call that notices is the next one at the latest
                run(layer, x)
            assert block(layer) is not made
    found = run(layer, x)
    assert_nearly_equal(found, run(s2s.unpack(layer), x))


def test_steps_of_calls_of_all_kinds_add_up() -> None:
    cell, layer = s2s.prepack(fused.LSTMCell(70, 90)), s2s.prepack(fused.LSTM(70, 90))
    lengths = torch.tensor([7, 3])
    kinds: list[tuple[nn.Module, int, Callable[[], Any]]] = [
        (cell, 1, lambda: cell(torch.randn(2, 70))),
        (cell, 1, lambda: cell(torch.randn(70))),
        (layer, 7, lambda: layer(torch.randn(7, 70))),
        (layer, 7, lambda: layer(torch.randn(7, 2, 70), lengths=lengths)),
        (layer, 7, lambda: layer(pack_padded_sequence(torch.randn(7, 2, 70), lengths))),
    ]
    for module, steps, call in kinds:
        for element in torch.randint(360 * 90, (5,)).tolist():
            made = block(module)
            weight = next(w for name, w in module.named_parameters() if "weight_hh" in name)
            weight.data.view(-1)[element] += 1
            with torch.no_grad():
                for _ in range(-(-1024 // steps) + 1):
                    call()
            assert block(module) is not made


def test_nothing_is_packed_anew_without_a_change() -> None:
    layer = s2s.prepack(fused.GRU(70, 90, 2, bidirectional=True))
    made = block(layer)
    for T in (1, 1, 30, 2, 300, 7):
        run(layer, torch.randn(T, 2, 70))
    layer(torch.randn(3, 2, 70))[0].sum().backward()
    assert block(layer) is made


def test_another_instruction_set() -> None:
    layer = s2s.prepack(fused.LSTM(40, 48, 2), torch.int8)
    before = s2s.cpu_isa()
    try:
        for name in [*s2s.available_cpu_isas(), before]:
            s2s.set_cpu_isa(name)
            found = run(layer, X)
            fresh = s2s.prepack(copy.deepcopy(layer), torch.int8)
            assert_equal(found, run(fresh, X))
            assert name.encode() in bytes(block(layer)[:64].tolist())
    finally:
        s2s.set_cpu_isa(before)


def test_moves_of_dtype_and_device() -> None:
    layer = s2s.prepack(fused.LSTM(40, 48), torch.bfloat16)
    narrow = run(layer, X)
    layer.double()
    plain = copy.deepcopy(layer)
    assert_equal(run(layer, X.double()), run(s2s.unpack(plain), X.double()))
    layer.float()
    assert_equal(run(layer, X), narrow)
    layer.to("meta")
    assert run(layer, X.to("meta"))[0].device.type == "meta"
    layer.to_empty(device="cpu").load_state_dict(plain.float().state_dict())
    assert_equal(run(layer, X), narrow)


def test_made_on_the_meta_device() -> None:
    layer = s2s.prepack(fused.LSTM(40, 48, device="meta"))
    other = fused.LSTM(40, 48)
    layer.load_state_dict(other.state_dict(), assign=True)
    assert_equal(run(layer, X), run(other, X))
    assert is_in_use(layer)


# Weights that are computed, shared or swapped.


def test_parametrized_and_pruned_weights_are_computed_in_each_call() -> None:
    for compute, finish in (
        (
            lambda layer: parametrizations.weight_norm(layer, "weight_hh_l0"),
            lambda layer: nn.utils.parametrize.remove_parametrizations(layer, "weight_hh_l0"),
        ),
        (
            lambda layer: prune.random_unstructured(layer, "weight_hh_l0", 0.4),
            lambda layer: prune.remove(layer, "weight_hh_l0"),
        ),
    ):
        layer = s2s.prepack(fused.LSTM(40, 48))
        compute(layer)
        for _ in range(3):
            assert_equal(run(layer, X), run_plain(layer, X))
            for parameter in layer.parameters():
                parameter.data.view(-1)[7] += 0.5
        made = layer._packed._made
        run(layer, X)
        assert layer._packed._made is made
        finish(layer)
        assert_equal(run(layer, X), run_plain(layer, X))
        assert layer._packed._made is not made


def test_prepacking_a_pruned_layer() -> None:
    layer = fused.GRU(40, 48)
    prune.random_unstructured(layer, "weight_ih_l0", 0.4)
    expected = run(layer, X)
    assert_equal(run(s2s.prepack(layer, torch.int8), X), expected)


def test_functional_call_uses_the_given_weights() -> None:
    layer, other = s2s.prepack(fused.GRU(40, 48)), fused.GRU(40, 48)
    expected, own = run(other, X), run(layer, X)
    with torch.no_grad():
        for weights in (dict(other.named_parameters()), dict(other.state_dict())):
            found = torch.func.functional_call(layer, weights, (X,))
            assert_equal([found[0], found[1]], expected)
            assert_equal(run(layer, X), own)


def test_a_weight_of_two_layers() -> None:
    a, b = fused.RNN(40, 40), fused.RNN(40, 40)
    b.weight_hh_l0 = a.weight_hh_l0
    s2s.prepack(nn.ModuleList([a, b]))
    for change in (lambda w: w.data.mul_(0.5), lambda w: w.detach().add_(0.1)):
        change(a.weight_hh_l0)
        for layer in (a, b):
            found = run(layer, X)
            assert_equal(found, run_plain(layer, X))


def test_one_layer_twice_in_a_model() -> None:
    layer = fused.RNN(40, 40)
    model = nn.Sequential(layer, nn.Identity(), layer)
    s2s.prepack(model, torch.bfloat16)
    assert is_in_use(model[0])
    assert model[0]._packed is model[2]._packed


# Copies, files, replacing.


@pytest.mark.parametrize("dtype", [None, torch.int8])
@pytest.mark.parametrize(
    "module", [fused.LSTM(40, 48), fused.GRUCell(40, 48)], ids=["layer", "cell"]
)
def test_copies_pack_their_own(module: nn.Module, dtype: Any) -> None:
    x = X if isinstance(module, nn.RNNBase) else X[0]
    s2s.prepack(module, dtype)
    expected = run(module, x)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), copy.copy(module)):
        assert type(twin) is type(module)
        assert_equal(run(twin, x), expected)
        assert twin._packed.dtype is dtype
    twin = copy.deepcopy(module)
    with torch.no_grad():
        next(twin.parameters()).zero_()
    assert not torch.equal(run(twin, x)[0], expected[0])
    assert_equal(run(module, x), expected)


def test_files_do_not_grow() -> None:
    layer = fused.LSTM(40, 48)
    size, names = len(pickle.dumps(layer)), list(layer.state_dict())
    s2s.prepack(layer)
    assert len(pickle.dumps(layer)) < size + 500
    assert list(layer.state_dict()) == names


def test_replacing_before_and_after() -> None:
    model = nn.Sequential(nn.LSTM(40, 48))
    expected = run(s2s.replace_modules(model), X)
    s2s.prepack(model)
    s2s.replace_modules(model)
    assert is_in_use(model[0])
    assert_equal(run(model, X), expected)
    s2s.restore_modules(model)
    assert type(model[0]) is nn.LSTM
    for a, b in zip(run(model, X), expected, strict=True):
        torch.testing.assert_close(a, b)
    s2s.replace_modules(model)
    assert model[0]._packed is None
    assert_equal(run(s2s.prepack(model), X), expected)


def test_subclasses_with_a_forward_of_their_own() -> None:
    class Doubled(fused.GRU):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            y, h = super().forward(*args, **kwargs)
            return 2 * y, h

    layer = Doubled(40, 48)
    expected = run(layer, X)
    assert_equal(run(s2s.prepack(layer), X), expected)
    assert is_in_use(layer)


# Threads.


def test_threads_run_and_notice_side_by_side() -> None:
    """While one thread changes the weights, results are those of the weights before or after."""
    layer = s2s.prepack(fused.LSTM(40, 48), torch.bfloat16)
    versions = [[w.detach().clone() * scale for w in layer.parameters()] for scale in (1.0, 0.5)]
    allowed = []
    for weights in versions:
        for parameter, weight in zip(layer.parameters(), weights, strict=True):
            parameter.data = weight
        allowed.append(run(layer, X)[0])
    failures: list[Any] = []
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            y = run(layer, X)[0]
            if not any(torch.equal(y, each) for each in allowed):
                failures.append(y)

    threads = [threading.Thread(target=read) for _ in range(3)]
    # All weights change at once, as far as any reader can see: in one swap of the parameters.
    packs = [[nn.Parameter(w, requires_grad=False) for w in weights] for weights in versions]
    names = [name for name, _ in layer.named_parameters()]
    for thread in threads:
        thread.start()
    for turn in range(200):
        layer.__dict__["_parameters"] = dict(zip(names, packs[turn % 2], strict=True))
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert_equal([run(layer, X)[0]], [allowed[1]])


def test_changes_while_threads_read_are_noticed_in_the_end() -> None:
    layer = s2s.prepack(fused.LSTM(40, 48))
    stop = threading.Event()
    failures: list[BaseException] = []

    def read() -> None:
        try:
            while not stop.is_set():
                assert run(layer, X)[0].isfinite().all()
        except BaseException as error:  # a thread must hand its failure over
            failures.append(error)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for turn in range(300):
        for weight in layer.parameters():
            weight.data.uniform_(-0.1 - 0.01 * (turn % 7), 0.1)
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]
    assert_equal(run(layer, X), run_plain(layer, X))
