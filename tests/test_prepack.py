"""``prepack``: right numbers from packed weights, and every change of the weights noticed."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from layer_cases import CELLS, LAYERS, NAMES, make, random_state, states
from torch import Tensor, nn
from torch.library import opcheck
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import seq2seq_ext as s2s
import seq2seq_ext.nn as fused
from seq2seq_ext import ops

each_cell = pytest.mark.parametrize("cell", NAMES)
NARROW = [torch.bfloat16, torch.int8]
each_narrow = pytest.mark.parametrize("narrow", NARROW, ids=["bfloat16", "int8"])

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
def test_weights_that_narrow_types_hold_exactly_give_the_same_bits_of_rounding(
    narrow: torch.dtype,
) -> None:
    """With weights of few bits, narrow storage has no error: only sums may differ in order."""
    layer = make("gru", 16, 32)
    with torch.no_grad():
        for weight in layer.parameters():
            weight.copy_(torch.randint(-127, 128, weight.shape) / 256)
            if weight.dim() == 2:
                weight[:, 0] = 127 / 256  # int8's scale is that of the largest in the row
    x = torch.randn(9, 4, 16)
    expected = run(layer, x)
    for a, b in zip(run(s2s.prepack(layer, narrow), x), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


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
    expected = run(layer, x.float())
    with torch.autocast("cpu", torch.bfloat16):
        assert_equal(run(layer, x), expected)
    with pytest.raises(ValueError, match="RNN input dtype"):
        run(layer, x)


# What is noticed.

X = torch.randn(4, 2, 40, generator=torch.Generator().manual_seed(3))


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


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("change", CHANGES, ids=[c.__name__ for c in CHANGES])
def test_the_next_call_notices(change: Callable[[nn.Module], None], dtype: Any) -> None:
    layer = s2s.prepack(fused.LSTM(40, 48, 2), dtype)
    before = run(layer, X)
    change(layer)
    found = run(layer, X)
    fresh = fused.LSTM(40, 48, 2)
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
