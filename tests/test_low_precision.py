"""float16 and bfloat16: layers of that dtype on the CPU, autocast, scaled gradients.

Numbers are stored narrow and calculated in float32: an error against float64 may be twice that of
torch.nn in the dtype, and one unit in the last place, which is what rounding an output costs.
"""

from __future__ import annotations

import itertools
import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from layer_cases import (
    CELL_IDS,
    CELLS,
    FORMS,
    LAYER_IDS,
    LAYERS,
    NAMES,
    STACK_IDS,
    STACKS,
    assert_within_torch_error,
    check,
    make,
    random_state,
    states,
)
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from variant_cases import FORMS as VARIANT_FORMS
from variant_cases import VARIANTS as OPERATOR_VARIANTS
from variant_cases import call, has, in_float64, leaves_of, outputs_of

import seq2seq_ext as s2s
import seq2seq_ext.nn as fused
from seq2seq_ext.variants import operator, reference

PAGE = Path(__file__).parents[1] / "docs" / "low-precision.md"

DTYPES = [torch.bfloat16, torch.float16]
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["bfloat16", "float16"])
each_layer = pytest.mark.parametrize(("ours", "theirs"), LAYERS, ids=LAYER_IDS)

# Arguments of layers with variants, all of them together.
VARIANTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "lstm": (fused.LSTM, {"layer_norm": True, "peephole": True, "cell_clip": 2.0}),
    "coupled": (fused.LSTM, {"coupled": True, "learn_initial_state": True, "return_cells": True}),
    "projected": (fused.LSTM, {"proj_size": 3, "proj_clip": 1.0, "zoneout": (0.1, 0.1)}),
    "gru": (fused.GRU, {"layer_norm": True, "zoneout": 0.1, "residual": True}),
    "gru_reset_before": (fused.GRU, {"reset_after": False, "hard_sigmoid": True}),
    "projected_gru": (fused.GRU, {"proj_size": 3, "zoneout": 0.1, "layer_norm": True}),
    "rnn": (fused.RNN, {"layer_norm": True, "recurrent_dropout": 0.2}),
}
each_variant = pytest.mark.parametrize("name", VARIANTS)


def with_variants(name: str, **options: Any) -> Any:
    cls, variants = VARIANTS[name]
    return cls(4, 6, 2, bidirectional=True, **variants, **options)


def flat(outputs: Any) -> list[Tensor]:
    """All tensors of a layer's outputs."""
    if isinstance(outputs, Tensor):
        return [outputs]
    return [t for part in outputs if part is not None for t in flat(part)]


def backward(outputs: list[Tensor]) -> None:
    sum(output.float().square().sum() for output in outputs).backward()


# Layers of 16 bits on the CPU.


@each_dtype
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("num_layers", "bidirectional", "bias"),
    [*itertools.product((1, 2), (False, True), (True,)), (3, True, False)],
    ids=lambda value: str(value),
)
@pytest.mark.parametrize(("cell", "proj_size"), STACKS, ids=STACK_IDS)
def test_equals_torch(
    cell: str,
    proj_size: int,
    num_layers: int,
    bidirectional: bool,
    bias: bool,
    form: str,
    dtype: torch.dtype,
) -> None:
    proj = {"proj_size": proj_size} if proj_size else {}
    layer = make(
        cell, 6, 11, num_layers, bias=bias, bidirectional=bidirectional, dtype=dtype, **proj
    )
    check(cell, form, layer, T=7, B=5, floor=1.0)


@each_dtype
@pytest.mark.parametrize("form", ["dense", "lengths", "resets"])
@pytest.mark.parametrize(
    ("T", "B", "I", "H"), [(1, 1, 1, 1), (3, 17, 5, 33), (40, 4, 24, 272), (200, 4, 8, 24)]
)
@pytest.mark.parametrize("cell", NAMES)
def test_equals_torch_at_uneven_sizes(
    cell: str, T: int, B: int, I: int, H: int, form: str, dtype: torch.dtype
) -> None:
    check(cell, form, make(cell, I, H, dtype=dtype), T, B, floor=1.0)


@each_dtype
@pytest.mark.parametrize("cell", reference.GATES)
def test_recurrence_equals_the_reference(cell: str, dtype: torch.dtype) -> None:
    """Every variant alone, in every form, with all gradients."""
    singles = [(), *((variant,) for variant in OPERATOR_VARIANTS if has(cell, variant))]
    for variants, form in itertools.product(singles, VARIANT_FORMS):
        arguments = call(cell, variants, form, B=4, H=9, dtype=dtype)
        results = []
        for run, given in (
            (operator.recurrence, arguments),
            (reference.recurrence, arguments),
            (reference.recurrence, in_float64(arguments)),
        ):
            outputs = outputs_of(run, given)
            torch.manual_seed(1)
            cotangents = [torch.randn(o.shape).to(dtype).to(o.dtype) for o in outputs]
            found = torch.autograd.grad(outputs, list(leaves_of(given).values()), cotangents)
            results.append([*outputs, *found])
        for ours, given in zip(results[0], results[1], strict=True):
            assert ours.dtype == given.dtype
        assert_within_torch_error(*results, floor=1.0)


@pytest.mark.cpu_kernels
@each_dtype
def test_states_between_steps_are_float32(dtype: torch.dtype) -> None:
    """A cell that grows by less than its last place would stand still if it were stored narrow."""
    layer = fused.LSTM(1, 1, dtype=dtype)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    with torch.no_grad():
        layer.bias_ih_l0.copy_(torch.tensor([20.0, 20.0, 1e-3, 20.0]))
    _, (_, c_n) = layer(torch.zeros(3000, 1, 1, dtype=dtype), None)
    torch.testing.assert_close(c_n.float().item(), 3.0, rtol=0.01, atol=0.0)


@each_dtype
@each_variant
def test_layers_with_variants_run_and_train(name: str, dtype: torch.dtype) -> None:
    layer = with_variants(name, dtype=dtype)
    x = torch.randn(5, 3, 4, dtype=dtype, requires_grad=True)
    outputs = flat(layer(x, lengths=torch.tensor([5, 2, 3])))
    assert {output.dtype for output in outputs} == {dtype}
    backward(outputs)
    for tensor in (x, *layer.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.dtype == dtype
        assert tensor.grad.isfinite().all()
    layer.eval()
    expected = flat(layer.float()(x.float(), lengths=torch.tensor([5, 2, 3])))
    layer.to(dtype)
    for found, exact in zip(flat(layer(x, lengths=torch.tensor([5, 2, 3]))), expected, strict=True):
        assert (found.float() - exact).abs().mean() < 0.01


@each_dtype
@pytest.mark.parametrize(("ours", "theirs"), CELLS, ids=CELL_IDS)
def test_cells_equal_torchs(ours: Any, theirs: Any, dtype: torch.dtype) -> None:
    other = theirs(3, 5, dtype=dtype)
    cell, exact = ours(3, 5, dtype=dtype), theirs(3, 5, dtype=torch.float64)
    for module in (cell, exact):
        module.load_state_dict(other.state_dict())
    x = torch.randn(4, 3, dtype=dtype)
    results = []
    for module in (cell, other, exact):
        given = x.to(module.weight_ih.dtype, copy=True).requires_grad_()
        outputs = states(module(given))
        backward(outputs)
        assert given.grad is not None
        results.append([*outputs, given.grad, module.weight_hh.grad, module.bias_ih.grad])
    assert all(tensor.dtype == dtype for tensor in results[0])
    assert_within_torch_error(*results, floor=1.0)


@each_dtype
def test_a_model_of_16_bits_trains(dtype: torch.dtype) -> None:
    model = nn.ModuleDict({"layer": fused.GRU(3, 16), "head": nn.Linear(16, 1)}).to(dtype)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.2)
    x = torch.randn(6, 32, 3, dtype=dtype)
    target = x[:, :, 0].float().mean(0)
    losses = []
    for _ in range(60):
        y, _ = model["layer"](x)
        loss = (model["head"](y[-1]).squeeze(-1).float() - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


@each_dtype
@each_layer
def test_replaced_modules_of_16_bits_compute_fused(
    ours: Any, theirs: Any, dtype: torch.dtype
) -> None:
    model = nn.Sequential(theirs(3, 4, dtype=dtype))
    x = torch.randn(5, 2, 3, dtype=dtype)
    expected = flat(model(x))
    report: list[fused.NotReplaced] = []
    s2s.replace_modules(model, report=report)
    assert type(model[0]) is ours
    assert report == []
    for found, given in zip(flat(model(x)), expected, strict=True):
        torch.testing.assert_close(found, given, rtol=0.05, atol=0.02)


@each_dtype
def test_strides_make_no_difference(dtype: torch.dtype) -> None:
    layer = fused.LSTM(4, 6, 2, bidirectional=True, dtype=dtype)
    x = torch.randn(5, 3, 8, dtype=dtype)[..., ::2].requires_grad_()
    y, _ = layer(x)
    expected, _ = layer(x.contiguous())
    assert torch.equal(y, expected)
    found = torch.autograd.grad(y.sum(), [x, *layer.parameters()])  # an expanded gradient
    plain = torch.autograd.grad((expected * torch.ones_like(y)).sum(), [x, *layer.parameters()])
    for a, b in zip(found, plain, strict=True):
        assert torch.equal(a, b)
    one = torch.randn(1, 1, 4, dtype=dtype).expand(5, 3, 4)
    assert torch.equal(layer(one)[0], layer(one.contiguous())[0])


def test_other_dtypes_are_refused_by_name() -> None:
    for dtype in (torch.float8_e4m3fn, torch.complex64):
        layer, cell = fused.GRU(3, 4).eval(), fused.GRUCell(3, 4)
        for module in (layer, cell):
            for parameter in module.parameters():
                parameter.data = parameter.data.to(dtype)
            with pytest.raises(RuntimeError, match="Expected weights of float32, float64, float16"):
                module(torch.ones(5, 3).to(dtype))
    with pytest.raises(ValueError, match=r"input dtype \(torch.float32\) does not match weight"):
        fused.GRU(3, 4, dtype=torch.bfloat16)(torch.ones(5, 2, 3))
    with pytest.raises(RuntimeError, match=r"weights\[0\]: expected dtype Half, got BFloat16"):
        s2s.ops.rnn(
            torch.ones(5, 2, 3, dtype=torch.float16),
            None,
            None,
            [torch.ones(3, 3, dtype=torch.bfloat16)] * 2,
            "rnn_tanh",
        )


@pytest.mark.cpu_kernels
@each_dtype
@pytest.mark.parametrize("cell", NAMES)
def test_operators_keep_the_rules_of_torch(cell: str, dtype: torch.dtype) -> None:
    layer = make(cell, 3, 4, 2, bidirectional=True, dtype=dtype)
    hx = [s.requires_grad_() for s in states(random_state(layer, 3))]
    x = torch.randn(5, 3, 3, dtype=dtype, requires_grad=True)
    number = s2s.ops.CELLS.index(cell)
    given = (x, hx[0], hx[1] if len(hx) == 2 else None, list(layer.parameters()), number, 2, True)
    torch.library.opcheck(
        torch.ops.seq2seq_ext.rnn.default,
        (*given, True),
        test_utils=("test_schema", "test_faketensor"),
    )
    arguments = call(cell, ("norm",), "dense", T=3, B=2, H=3, dtype=dtype)
    names = {k: v for k, v in arguments.items() if k in operator.Tensors._fields}
    options = operator.Options(operator.CELLS.index(cell))
    torch.library.opcheck(
        torch.ops.seq2seq_ext.recurrence.default,
        (*operator.Tensors(**names), *options, True, False),
        test_utils=("test_schema", "test_faketensor"),
    )


@pytest.mark.cpu_kernels
@each_dtype
@pytest.mark.parametrize("kept", [None, torch.bfloat16, torch.int8], ids=str)
@pytest.mark.parametrize("cell", NAMES)
def test_prepacked(cell: str, kept: torch.dtype | None, dtype: torch.dtype) -> None:
    """From the weights as they are, and from them again when they change."""
    layer, x = make(cell, 20, 40, dtype=dtype).eval(), torch.randn(6, 3, 20, dtype=dtype)
    with torch.no_grad():
        for _ in range(2):
            layer.__dict__.pop("_packed", None)
            expected = flat(layer(x))
            s2s.prepack(layer, kept)
            block = layer._packed._made.block
            tolerance = 0.05 if kept is torch.int8 else 2 * torch.finfo(torch.bfloat16).eps
            for a, b in zip(flat(layer(x)), expected, strict=True):
                assert a.dtype == dtype
                torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
            assert layer._packed._made.block is block
            layer.weight_hh_l0.mul_(0.5)
            layer(x)
            assert layer._packed._made.block is not block
    wide = s2s.prepack(make(cell, 20, 40).eval(), kept)._packed._made.block
    if kept is None and dtype == torch.bfloat16:
        assert block.numel() < 0.6 * wide.numel()


# Autocast.


@each_dtype
@each_layer
@pytest.mark.parametrize("form", ["dense", "state", "lengths", "packed", "unbatched", "resets"])
def test_autocast_rounds_what_goes_in_and_what_comes_out(
    ours: Any, theirs: Any, form: str, dtype: torch.dtype
) -> None:
    layer, low = ours(3, 4, 2, bidirectional=True), ours(3, 4, 2, bidirectional=True, dtype=dtype)
    low.load_state_dict(layer.state_dict())
    x: Any = torch.randn(5, 2, 3)
    hx: Any = None
    options: dict[str, Any] = {}
    if form == "lengths":
        options["lengths"] = torch.tensor([2, 5])
    elif form == "resets":
        options["resets"] = torch.rand(5, 2) < 0.4
    elif form == "packed":
        x = pack_padded_sequence(x, torch.tensor([2, 5]), enforce_sorted=False)
    elif form == "unbatched":
        x = x[:, 0]
    elif form == "state":
        hx = random_state(layer, 2)
    narrow = x.to(dtype)
    with torch.autocast("cpu", dtype):
        y, h_n = layer(x, hx, **options)
        again = layer(narrow, hx, **options)
    low_hx = None if hx is None else [s.to(dtype) for s in states(hx)]
    expected, h_expected = low(
        narrow, low_hx[0] if low_hx is not None and len(low_hx) == 1 else low_hx, **options
    )
    if form == "packed":
        y, expected, again = y.data, expected.data, (again[0].data, again[1])
    assert y.dtype == dtype
    for a, b in zip([y, *states(h_n)], [expected, *states(h_expected)], strict=True):
        assert torch.equal(a, b)
    for a, b in zip([y, *states(h_n)], [again[0], *states(again[1])], strict=True):
        assert torch.equal(a, b)
    backward([y])
    backward([expected])
    for a, b in zip(layer.parameters(), low.parameters(), strict=True):
        assert a.grad is not None
        assert a.grad.dtype == torch.float32
        assert torch.equal(a.grad, b.grad.float())


@pytest.mark.parametrize(("ours", "theirs"), [LAYERS[0], LAYERS[2]], ids=["LSTM", "RNN"])
def test_autocast_gives_torchs_dtypes(ours: Any, theirs: Any) -> None:
    """torch.nn's GRU answers in float32 on the CPU, in autocast's dtype on CUDA; ours always so."""
    for module in (ours(3, 4), theirs(3, 4)):
        x = torch.randn(5, 2, 3, requires_grad=True)
        try:
            with torch.autocast("cpu", torch.bfloat16):
                outputs = flat(module(x))
        except RuntimeError as error:
            if type(module) is theirs and "primitive descriptor" in str(error):
                pytest.skip("ours does; oneDNN has no LSTM in bfloat16 for this CPU's torch.nn")
            raise
        assert {output.dtype for output in outputs} == {torch.bfloat16}
        backward(outputs)
        assert x.grad is not None
        assert {t.grad.dtype for t in (x, *module.parameters())} == {torch.float32}


@each_dtype
@each_variant
def test_autocast_of_layers_with_variants(name: str, dtype: torch.dtype) -> None:
    layer, x = with_variants(name), torch.randn(5, 3, 4)
    with torch.autocast("cpu", dtype):
        outputs = flat(layer(x, lengths=torch.tensor([5, 2, 3])))
    assert {output.dtype for output in outputs} == {dtype}
    backward(outputs)
    for parameter in layer.parameters():
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
    layer.eval()
    expected = flat(layer(x))
    with torch.autocast("cpu", dtype):
        found = flat(layer(x))
    for a, b in zip(found, expected, strict=True):  # normalizing few units makes single ones large
        assert (a.float() - b).abs().mean() < 0.01


def test_autocast_leaves_float64_alone() -> None:
    for layer in (fused.LSTM(3, 4).double(), fused.GRU(3, 4, layer_norm=True).double()):
        x = torch.randn(5, 2, 3).double()
        expected = flat(layer(x))
        with torch.autocast("cpu", torch.bfloat16):
            for given in (x, x.float().double()):
                assert {output.dtype for output in flat(layer(given))} == {torch.float64}
            for a, b in zip(flat(layer(x)), expected, strict=True):
                assert torch.equal(a, b)
            assert layer(x.float())[0].dtype == torch.float64


def test_autocast_that_is_off_or_of_another_device_changes_nothing() -> None:
    layer, x = fused.LSTM(3, 4), torch.randn(5, 2, 3)
    expected = layer(x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        with torch.autocast("cpu", enabled=False):
            assert torch.equal(layer(x)[0], expected)
        meta = fused.LSTM(3, 4, device="meta")(x.to("meta"))[0]
    assert meta.dtype == torch.float32
    assert torch.equal(layer(x)[0], expected)


def test_autocast_refuses_an_input_of_integers() -> None:
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(ValueError, match=r"input dtype \(torch.int64\) does not match"),
    ):
        fused.LSTM(3, 4)(torch.ones(5, 2, 3, dtype=torch.int64))


@pytest.mark.cpu_kernels
@pytest.mark.parametrize("kept", [None, torch.bfloat16, torch.int8], ids=str)
def test_autocast_of_a_prepacked_layer_uses_the_weights_kept(kept: torch.dtype | None) -> None:
    layer, x = s2s.prepack(fused.LSTM(20, 40), kept), torch.randn(6, 3, 20)
    with torch.no_grad():
        expected = flat(layer(x))
        block = layer._packed._made.block
        with torch.autocast("cpu", torch.bfloat16):
            found = flat(layer(x))
    assert layer._packed._made.block is block
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b.bfloat16())


@pytest.mark.parametrize("inside", [False, True], ids=["outside", "inside"])
@pytest.mark.parametrize("name", ["lstm", "gru", "plain"])
def test_autocast_compiles_as_one_graph(name: str, inside: bool) -> None:
    """Autocast around the compiled model, and within it."""
    torch._dynamo.reset()
    layer = fused.LSTM(4, 6, 2) if name == "plain" else with_variants(name)
    layer.eval()

    def run(x: Tensor, lengths: Tensor) -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16) if inside else nullcontext():
            return flat(layer(x, lengths=lengths))

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    x, lengths = torch.randn(5, 3, 4, requires_grad=True), torch.tensor([5, 2, 3])
    results = []
    for function in (run, compiled):
        with nullcontext() if inside else torch.autocast("cpu", torch.bfloat16):
            outputs = function(x, lengths)
        assert {output.dtype for output in outputs} == {torch.bfloat16}
        loss = sum(output.float().square().sum() for output in outputs)
        results.append([*outputs, *torch.autograd.grad(loss, [x, *layer.parameters()])])
    for a, b in zip(*results, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b)
    torch._dynamo.reset()


@each_dtype
def test_layers_of_16_bits_compile_as_one_graph(dtype: torch.dtype) -> None:
    torch._dynamo.reset()
    model = nn.ModuleList([fused.GRU(4, 6), fused.LSTM(6, 5, layer_norm=True)]).to(dtype)

    def run(x: Tensor) -> list[Tensor]:
        return flat(model[1](model[0](x)[0]))

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    x = torch.randn(5, 3, 4, dtype=dtype, requires_grad=True)
    results = []
    for function in (run, compiled):
        outputs = function(x)
        loss = sum(output.float().square().sum() for output in outputs)
        results.append([*outputs, *torch.autograd.grad(loss, [x, *model.parameters()])])
    for a, b in zip(*results, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b)
    torch._dynamo.reset()


# Scaled gradients.


@pytest.mark.parametrize("name", ["plain", "lstm", "gru"])
def test_a_gradient_scaler_trains(name: str) -> None:
    """Under float16: a step whose scaled gradients overflow is left out, and others count."""
    layer = fused.LSTM(4, 6, 2, bidirectional=True) if name == "plain" else with_variants(name)
    head = nn.Linear(12, 1)
    parameters = [*layer.parameters(), *head.parameters()]
    optimiser = torch.optim.Adam(parameters, lr=0.02)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, growth_interval=1000)
    x, lengths = torch.randn(6, 32, 4), torch.randint(1, 7, (32,))
    target = x[0].sum(-1)
    before = [parameter.detach().clone() for parameter in parameters]
    losses: list[float] = []
    for _ in range(120):
        with torch.autocast("cpu", torch.float16):
            y = layer(x, lengths=lengths)[0]
            loss = (head(y[0]).squeeze(-1).float() - target).square().mean()
        optimiser.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimiser)
        nn.utils.clip_grad_norm_(parameters, 5.0, error_if_nonfinite=False)
        scaler.step(optimiser)
        scaler.update()
        if not losses:  # the first step overflows
            assert scaler.get_scale() == 2.0**39
            assert all(torch.equal(a, b) for a, b in zip(parameters, before, strict=True))
        losses.append(loss.item())
    assert scaler.get_scale() > 1
    assert losses[-1] < 0.2 * losses[0]
    assert all(parameter.isfinite().all() for parameter in parameters)


@pytest.mark.skipif(not PAGE.exists(), reason="the documentation is not beside the tests")
def test_examples_of_the_page() -> None:
    examples = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert examples
    for example in examples:
        exec(compile(example, str(PAGE), "exec"), {})
