"""``prepack`` of layers with variants: the rules of plain layers, and the operators beneath."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_cases import states
from prepack_cases import NARROW, assert_equal, block, each_narrow, is_in_use, run, run_plain
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils import _pytree as pytree
from variant_cases import LSTMS, call, has

import seq2seq_ext as s2s
import seq2seq_ext.nn as fused
from seq2seq_ext.variants import operator

Make = Callable[..., Any]

LAYERS: dict[str, Make] = {
    "lstm layer_norm": lambda I, H, **k: fused.LSTM(I, H, 2, layer_norm=True, **k),
    "lstm zoneout": lambda I, H, **k: fused.LSTM(I, H, zoneout=(0.1, 0.05), **k),
    "lstm peephole": lambda I, H, **k: fused.LSTM(I, H, peephole=True, cell_clip=2.0, **k),
    "lstm coupled": lambda I, H, **k: fused.LSTM(I, H, coupled=True, return_cells=True, **k),
    "lstm projection": lambda I, H, **k: fused.LSTM(
        I, H, 2, proj_size=H // 2, proj_clip=0.5, bidirectional=True, **k
    ),
    "lstm sizes": lambda I, H, **k: fused.LSTM(I, [H, H // 3], bidirectional=True, **k),
    "lstm initial state": lambda I, H, **k: fused.LSTM(
        I, H, learn_initial_state=True, hard_sigmoid=True, bias=False, **k
    ),
    "gru layer_norm": lambda I, H, **k: fused.GRU(I, H, layer_norm=True, bidirectional=True, **k),
    "gru residual": lambda I, H, **k: fused.GRU(I, H, 3, residual=True, **k),
    "gru reset before": lambda I, H, **k: fused.GRU(
        I, H, 2, reset_after=False, layer_norm=True, zoneout=0.1, **k
    ),
    "rnn layer_norm": lambda I, H, **k: fused.RNN(I, H, 2, layer_norm=True, **k),
    "rnn dropout": lambda I, H, **k: fused.RNN(
        I, H, recurrent_dropout=0.2, nonlinearity="relu", **k
    ),
}
CELLS: dict[str, Make] = {
    "lstm": lambda I, H: fused.LSTMCell(I, H, layer_norm=True, peephole=True),
    "gru": lambda I, H: fused.GRUCell(I, H, zoneout=0.1),
    "gru reset before": lambda I, H: fused.GRUCell(I, H, reset_after=False, layer_norm=True),
    "rnn": lambda I, H: fused.RNNCell(I, H, layer_norm=True),
}
each_layer = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
each_cell = pytest.mark.parametrize("make", CELLS.values(), ids=CELLS)
each_dtype = pytest.mark.parametrize("dtype", [None, *NARROW], ids=str)
FORMS = ["dense", "unbatched", "lengths", "resets", "packed", "state"]


@pytest.fixture(params=s2s.available_cpu_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = s2s.cpu_isa()
    s2s.set_cpu_isa(request.param)
    yield request.param
    s2s.set_cpu_isa(before)


def arguments(layer: Any, form: str, T: int, B: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
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
        with torch.no_grad():
            return (x, layer(x)[1]), {}
    return (x,), {}


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, (Tensor, PackedSequence)):
        return [value if isinstance(value, Tensor) else value.data]
    return [tensor for part in value for tensor in tensors(part)]


def outputs(layer: nn.Module, *args: Any, **options: Any) -> list[Tensor]:
    with torch.no_grad():
        found = layer(*args, **options)
    return tensors(found)


# Numbers.


@pytest.mark.parametrize("form", FORMS)
@each_layer
def test_layers_give_the_same_bits(make: Make, form: str, isa: str) -> None:
    for dtype in (torch.float32, torch.float64):
        layer = make(9, 21, dtype=dtype).eval()
        for T, B in [(1, 1), (6, 3), (3, 19)]:
            args, kwargs = arguments(layer, form, T, B)
            expected = outputs(layer, *args, **kwargs)
            s2s.prepack(layer)
            made = block(layer)
            assert_equal(outputs(layer, *args, **kwargs), expected)
            assert block(layer) is made
            s2s.unpack(layer)


def rounded(module: Any, narrow: torch.dtype) -> Any:
    """A copy in float64 whose matrices are what ``narrow`` keeps of them."""
    twin = copy.deepcopy(module).double()
    for name, weight in twin.named_parameters():
        if name.startswith("weight") and narrow is torch.bfloat16:
            weight.data = weight.data.bfloat16().double()
        elif name.startswith("weight"):
            step = weight.data.abs().amax(1, keepdim=True) / 127
            weight.data = (weight.data / step).round() * step
    return twin


def assert_rounded(found: list[Tensor], expected: list[Tensor], plain: list[Tensor]) -> None:
    """What 16 bits of inputs and states add is small; what the weights lose is there."""
    for a, b, c in zip(found, expected, plain, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=0, atol=3e-3)
        assert (a - b).abs().mean() < 0.2 * (b - c).abs().mean()


@each_narrow
@each_layer
def test_narrow_weights_are_rounded_and_nothing_else(
    make: Make, narrow: torch.dtype, isa: str
) -> None:
    layer = make(40, 72).eval()
    twin = rounded(layer, narrow)
    for form in ("dense", "lengths", "packed"):
        for T, B in [(12, 5), (12, 1)]:
            args, kwargs = arguments(layer, form, T, B)
            plain = outputs(s2s.unpack(layer), *args, **kwargs)
            found = outputs(s2s.prepack(layer, narrow), *args, **kwargs)
            exact = outputs(twin, *(arg.to(torch.float64) for arg in args), **kwargs)
            assert_rounded(found, exact, plain)


@each_narrow
@each_cell
def test_cells(make: Make, narrow: torch.dtype, isa: str) -> None:
    module = make(40, 72).eval()
    twin = rounded(module, narrow)
    for B in (1, 5):
        x = torch.randn(B, 40)
        h = run(module, x)
        hx = tuple(h) if len(h) == 2 else h[0]
        expected = run(s2s.unpack(module), x, hx)
        assert_equal(run(s2s.prepack(module), x, hx), expected)
        found = run(s2s.prepack(module, narrow), x, hx)
        wide = [h.double() for h in states(hx)]
        exact = run(twin, x.double(), tuple(wide) if len(wide) == 2 else wide[0])
        assert_rounded(found, exact, expected)
        assert is_in_use(module)


@each_narrow
@each_layer
def test_any_number_of_threads_gives_the_same_bits(make: Make, narrow: torch.dtype) -> None:
    """With None the input's product is torch's, whose bits go by the number of threads."""
    layer = s2s.prepack(make(48, 52).eval(), narrow)
    for B in (1, 2, 7, 40):
        x = torch.randn(5, B, 48)
        found = []
        try:
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                s2s.set_plan(threads=threads)
                found.append(outputs(layer, x))
        finally:
            s2s.set_plan()
        assert_equal(found[1], found[0])
        assert_equal(found[2], found[0])


@pytest.mark.parametrize("kept", [None, *NARROW], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@each_layer
def test_layers_of_16_bits(make: Make, dtype: torch.dtype, kept: torch.dtype | None) -> None:
    layer, x = make(20, 40, dtype=dtype).eval(), torch.randn(6, 3, 20, dtype=dtype)
    expected = outputs(layer, x)
    s2s.prepack(layer, kept)
    tolerance = 0.08 if kept is torch.int8 else 4 * torch.finfo(torch.bfloat16).eps
    for a, b in zip(outputs(layer, x), expected, strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
        if kept is None and dtype == torch.float16:
            assert torch.equal(a, b)


@each_narrow
def test_narrow_weights_take_less_memory(narrow: torch.dtype) -> None:
    layer = s2s.prepack(fused.GRU(256, 256, reset_after=False, layer_norm=True), narrow)
    found = sum(tensor.numel() for direction in block(layer) for tensor in tensors(list(direction)))
    weights = 4 * (layer.weight_ih_l0.numel() + layer.weight_hh_l0.numel())
    assert found < weights * narrow.itemsize / 4 * 1.1


# Who uses them.


@each_layer
def test_gradients_are_those_of_the_parameters(make: Make) -> None:
    layer = make(5, 9)
    plain = copy.deepcopy(layer)
    s2s.prepack(layer, torch.int8)
    x = torch.randn(6, 3, 5)
    results = []
    for module in (layer, plain):
        torch.manual_seed(1)
        y = module(x)[0]
        results.append([y, *torch.autograd.grad(y.sum(), list(module.parameters()))])
    assert_equal(*results)
    frozen = layer.eval().requires_grad_(False)
    expected = plain.eval().requires_grad_(False)(x)[0]
    assert not torch.equal(frozen(x)[0], expected)  # nothing requires a gradient: int8
    assert torch.equal(frozen(x.requires_grad_())[0], expected)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_modes_without_gradients_use_packed_weights(mode: Callable[[], Any]) -> None:
    layer = s2s.prepack(fused.GRU(5, 7, layer_norm=True), torch.bfloat16)
    x = torch.randn(6, 3, 5)
    with mode():
        y = layer(x)[0]
    assert not torch.equal(y, layer(x)[0])
    assert y.is_inference() == (mode is torch.inference_mode)


def test_noise_while_training_is_the_same() -> None:
    layer, x = (
        fused.LSTM(5, 7, 3, dropout=0.5, zoneout=0.2, recurrent_dropout=0.3),
        torch.randn(6, 3, 5),
    )
    torch.manual_seed(1)
    expected = outputs(layer, x)
    s2s.prepack(layer)
    torch.manual_seed(1)
    assert_equal(outputs(layer, x), expected)
    assert is_in_use(layer)


def test_dropped_weights_are_computed_in_each_call() -> None:
    layer, x = fused.LSTM(5, 7, weight_drop=0.5), torch.randn(6, 3, 5)
    torch.manual_seed(1)
    expected = outputs(layer, x)
    s2s.prepack(layer, torch.int8)
    torch.manual_seed(1)
    assert_equal(outputs(layer, x), expected)
    assert not torch.equal(outputs(layer.eval(), x)[0], outputs(s2s.unpack(layer), x)[0])


@each_dtype
def test_compiled_and_exported_models_compute_with_the_parameters(dtype: Any) -> None:
    torch._dynamo.reset()
    layer, x = fused.GRU(5, 7, layer_norm=True).eval(), torch.randn(6, 3, 5)
    expected = outputs(layer, x)
    s2s.prepack(layer, dtype)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for a, b in zip(outputs(compiled, x), expected, strict=True):
        torch.testing.assert_close(a, b)
    program = torch.export.export(layer, (x,))
    for a, b in zip(outputs(program.module(), x), expected, strict=True):
        torch.testing.assert_close(a, b)
    with torch.autocast("cpu", torch.bfloat16):
        assert outputs(compiled, x)[0].dtype == torch.bfloat16


@each_dtype
def test_autocast_uses_the_weights_kept(dtype: Any) -> None:
    layer, x = s2s.prepack(fused.LSTM(20, 40, layer_norm=True), dtype), torch.randn(6, 3, 20)
    expected = outputs(layer, x)
    made = block(layer)
    with torch.autocast("cpu", torch.bfloat16):
        found = outputs(layer, x)
        assert layer(x)[0].dtype == torch.bfloat16  # with gradients: the parameters
    assert block(layer) is made
    assert_equal(found, [tensor.bfloat16() for tensor in expected])


def test_transforms_compute_with_the_parameters() -> None:
    layer, xs = fused.GRU(5, 7, layer_norm=True).eval(), torch.randn(4, 6, 3, 5)
    expected = torch.stack([outputs(layer, x)[0] for x in xs])
    s2s.prepack(layer, torch.int8)
    with torch.no_grad():
        found = torch.vmap(lambda x: layer(x)[0])(xs)
    torch.testing.assert_close(found, expected)


def test_functional_call_and_parametrizations_compute_in_each_call() -> None:
    layer, other = fused.GRU(40, 48, zoneout=0.1).eval(), fused.GRU(40, 48, zoneout=0.1).eval()
    x = torch.randn(4, 2, 40)
    expected, own = outputs(other, x), outputs(s2s.prepack(layer), x)
    with torch.no_grad():
        for weights in (dict(other.named_parameters()), dict(other.state_dict())):
            found = torch.func.functional_call(layer, weights, (x,))
            assert_equal(tensors(found), expected)
            assert_equal(outputs(layer, x), own)
    parametrizations.weight_norm(layer, "weight_hh_l0")
    made = layer._packed._made
    for parameter in layer.parameters():
        parameter.data.view(-1)[7] += 0.5
    assert_equal(outputs(layer, x), run_plain(layer, x))
    assert layer._packed._made is made


# Changes.


def test_any_change_is_noticed_within_1024_steps() -> None:
    for make in LAYERS.values():
        layer, x = s2s.prepack(make(30, 66).eval(), torch.int8), torch.randn(50, 1, 30)
        outputs(layer, x)
        for name, weight in layer.named_parameters():
            if not name.startswith("weight"):
                continue
            made, flat = block(layer), weight.data.view(-1)
            flat[torch.randint(len(flat), ())] += 2.0**-20
            for _ in range(-(-1024 // 50) + 1):
                outputs(layer, x)
            assert block(layer) is not made, name
        made = block(layer)
        for _ in range(25):
            outputs(layer, x)
        assert block(layer) is made


@each_layer
def test_vectors_are_read_as_they_are(make: Make) -> None:
    layer, x = s2s.prepack(make(9, 21).eval()), torch.randn(6, 3, 9)
    before = outputs(layer, x)
    made = block(layer)
    for name, weight in layer.named_parameters():
        if not name.startswith("weight"):
            weight.data.view(-1)[3] += 1.5
            found = outputs(layer, x)
            assert not all(map(torch.equal, found, before)), name
            assert_equal(found, tensors(run_plain_all(layer, x)))
            before = found
    assert block(layer) is made


def run_plain_all(layer: nn.Module, x: Tensor) -> list[Tensor]:
    packed = layer.__dict__.pop("_packed")
    found = outputs(layer, x)
    layer._packed = packed
    return found


@each_dtype
@each_layer
def test_copies_pack_their_own(make: Make, dtype: Any) -> None:
    layer, x = s2s.prepack(make(9, 21).eval(), dtype), torch.randn(6, 3, 9)
    names, expected = list(layer.state_dict()), outputs(layer, x)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert twin._packed.dtype is dtype
        assert twin._packed._made is None
        assert list(twin.state_dict()) == names
        assert_equal(outputs(twin, x), expected)
    assert len(pickle.dumps(layer)) < len(pickle.dumps(s2s.unpack(layer))) + 500


def test_moves_of_dtype_and_device() -> None:
    layer = s2s.prepack(fused.LSTM(40, 48, layer_norm=True), torch.bfloat16)
    x = torch.randn(4, 2, 40)
    narrow = outputs(layer, x)
    layer.double()
    plain = s2s.unpack(copy.deepcopy(layer))
    assert_equal(outputs(layer, x.double()), outputs(plain, x.double()))
    layer.float()
    assert_equal(outputs(layer, x), narrow)
    layer.to("meta")
    assert outputs(layer, x.to("meta"))[0].device.type == "meta"
    layer.to_empty(device="cpu").load_state_dict(plain.float().state_dict())
    assert_equal(outputs(layer, x), narrow)


def test_strides_and_batch_first() -> None:
    layer, x = fused.LSTM(40, 48, zoneout=0.1, batch_first=True).eval(), torch.randn(2, 4, 40)
    expected = outputs(layer, x)
    layer.weight_hh_l0.data = layer.weight_hh_l0.data.t().contiguous().t()
    layer.weight_ih_l0.data = layer.weight_ih_l0.data.t().contiguous().t()
    s2s.prepack(layer)
    for a, b in zip(outputs(layer, x), expected, strict=True):
        torch.testing.assert_close(a, b)
    s2s.prepack(layer, torch.int8)
    found = outputs(layer, x)
    made = block(layer)
    assert_equal(outputs(layer, x), found)
    assert block(layer) is made


def test_float64_is_not_narrowed() -> None:
    layer = fused.LSTM(3, 4, layer_norm=True).double()
    with pytest.raises(ValueError, match=r"those of the model \(LSTM\)"):
        s2s.prepack(layer, torch.int8)
    assert layer._packed is None


# The operators.


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 9), (5, 9), (4, 3, 9), (130, 2, 9), (0, 9), (3, 0, 9)])
@pytest.mark.parametrize("N", [1, 16, 31, 130])
def test_linear(N: int, shape: tuple[int, ...], bias: bool, isa: str) -> None:
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        x, w = torch.randn(shape, dtype=dtype), torch.randn(N, 9, dtype=dtype)
        b = torch.randn(N, dtype=dtype) if bias else None
        exact = nn.functional.linear(x.double(), w.double(), None if b is None else b.double())
        for kept in (None, *(NARROW if dtype != torch.float64 else ())):
            packed = torch.ops.seq2seq_ext.prepack_matrix(w, kept)
            y = torch.ops.seq2seq_ext.linear(x, w, b, packed, 3)
            assert y.dtype == dtype
            tolerance = {torch.int8: 0.1, torch.bfloat16: 0.06}.get(
                torch.bfloat16 if kept is None and dtype == torch.bfloat16 else kept,
                8 * torch.finfo(dtype).eps,
            )
            scale = 1 if exact.numel() == 0 else float(exact.abs().max().clamp(min=1))
            torch.testing.assert_close(y.double(), exact, rtol=0, atol=tolerance * scale)
            strided = x.transpose(0, -1).contiguous().transpose(0, -1)
            assert torch.equal(torch.ops.seq2seq_ext.linear(strided, w, b, packed), y)


def full_call(cell: str, dtype: Any, B: int = 2) -> tuple[tuple[Any, ...], list[Tensor]]:
    """Arguments of ``recurrence`` up to ``packed``, and that."""
    variants = tuple(v for v in ("norm", "peephole", "projected") if has(cell, v))
    made = call(cell, variants, T=3, B=B, H=6, dtype=torch.float32)
    made = {k: v.detach() if isinstance(v, Tensor) else v for k, v in made.items()}
    options = operator.Options(operator.CELLS.index(cell), made["reverse"])
    given = operator.Tensors(**{k: v for k, v in made.items() if k in operator.Tensors._fields})
    packed = operator.pack(given.w_hh, given.w_hr, cell, dtype)
    return (*given, *options, False, cell in LSTMS), packed


@pytest.mark.parametrize("cell", operator.CELLS)
def test_operators_keep_the_rules_of_torch(cell: str) -> None:
    """opcheck's other tests copy the arguments, and a block serves the tensors it was made of."""
    ops, tests = torch.ops.seq2seq_ext, ("test_autograd_registration", "test_faketensor")
    for dtype in (None, *NARROW):
        given, packed = full_call(cell, dtype)
        w, x, bias = torch.randn(7, 5), torch.randn(3, 5), torch.randn(7)
        matrix = ops.prepack_matrix(w, dtype)
        opcheck(ops.prepack_matrix.default, (w, dtype), test_utils=("test_schema", *tests))
        for op, args in (
            (ops.recurrence.default, (*given, packed, 5)),
            (ops.linear.default, (x, w, bias, matrix, 2)),
        ):
            opcheck(op, args, test_utils="test_autograd_registration")
            given_tensors = [a for a in pytree.tree_leaves(args) if isinstance(a, Tensor)]
            before = [a.clone() for a in given_tensors]
            found = tensors(op(*args))
            assert_equal(given_tensors, before)  # threads share them
            with FakeTensorMode() as mode:
                fakes = tensors(op(*pytree.tree_map_only(Tensor, mode.from_tensor, args)))
            for fake, real in zip(fakes, found, strict=True):
                assert (fake.shape, fake.dtype) == (real.shape, real.dtype)


def test_recurrence_refuses_what_was_not_packed_for_it() -> None:
    op = torch.ops.seq2seq_ext.recurrence
    arguments, packed = full_call("lstm", torch.int8)
    op(*arguments, packed)
    w_hh, w_hr = arguments[1], arguments[3]
    twins = operator.pack(w_hh.clone(), w_hr, "lstm", torch.int8)
    for bad, message in [
        (
            packed[:1],
            "packed: expected none or 2 blocks for the cell lstm with a projection, got 1",
        ),
        (packed + packed, "packed: expected none or 2 blocks"),
        (packed[::-1], "packed: expected what prepack makes of these weights"),
        ([packed[0][:-64].clone(), packed[1]], "packed: expected"),
        ([packed[0].float(), packed[1]], "packed: expected a tensor that prepack made"),
        (twins, "packed: the weights are other tensors"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            op(*arguments, bad)
    with pytest.raises(RuntimeError, match="turn: expected a number of steps, got -1"):
        op(*arguments, packed, -1)
    saving = (*arguments[:-2], True, arguments[-1])
    with pytest.raises(RuntimeError, match="packed: expected none with save"):
        op(*saving, packed)
    w_hr.add_(1)
    with pytest.raises(RuntimeError, match="packed: w_hr has changed since"):
        op(*arguments, packed)


def test_linear_and_prepack_matrix_name_bad_input() -> None:
    ops = torch.ops.seq2seq_ext
    x, w, bias = torch.zeros(3, 5), torch.zeros(7, 5), torch.zeros(7)
    packed = ops.prepack_matrix(w)
    ops.linear(x, w, bias, packed)
    for arguments, message in [
        ((torch.zeros(3, 4), w, bias, packed), r"x: expected shape \(N, 5\) or \(T, B, 5\), got"),
        ((torch.zeros(5), w, bias, packed), r"x: expected shape \(N, 5\)"),
        ((x.long(), w, bias, packed), "x: expected dtype Float, Double, Half or BFloat16"),
        ((x.double(), w, bias, packed), "w: expected dtype Double, got Float"),
        ((x, w, torch.zeros(6), packed), r"bias: expected shape \(7\), got \(6\)"),
        ((x, w[0], bias, packed), "w: expected 2 dimensions"),
        ((x, w, bias, packed, -2), "turn: expected a number of steps, got -2"),
        ((x, w.clone(), bias, packed), "packed: the weights are other tensors"),
        ((x, w, bias, packed[:-64].clone()), "packed: expected"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            ops.linear(*arguments)
    for w, dtype, message in [
        (torch.zeros(3), None, r"w: expected 2 dimensions, neither of size 0, got shape \(3\)"),
        (torch.zeros(0, 3), None, "w: expected 2 dimensions"),
        (torch.zeros(3, 3).long(), None, "w: expected dtype Float"),
        (torch.zeros(3, 3), torch.float16, "dtype: expected None, BFloat16 or Char, got Half"),
        (torch.zeros(3, 3).double(), torch.int8, "dtype: expected None for weights of Double"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            ops.prepack_matrix(w, dtype)


@each_dtype
@pytest.mark.parametrize("cell", operator.CELLS)
def test_recurrence_gives_the_same_bits_on_any_number_of_threads(cell: str, dtype: Any) -> None:
    arguments, packed = full_call(cell, dtype, B=23)
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            s2s.set_plan(threads=threads)
            found.append(list(torch.ops.seq2seq_ext.recurrence(*arguments, packed)))
    finally:
        s2s.set_plan()
    assert_equal(found[1], found[0])
    assert_equal(found[2], found[0])


def other_block(packed: Tensor, data: st.DataObject) -> Any:
    """A block that differs from ``packed``: in its head, its size, or altogether."""
    kind = data.draw(st.sampled_from(["byte", "cut", "grown", "shifted", "dtype", "rank", "meta"]))
    if kind == "byte":  # of the header or the address behind it: 128 and 8 bytes
        twin = packed.clone()
        place = data.draw(st.integers(0, 135))
        twin[place] ^= data.draw(st.integers(1, 255))
        return twin
    if kind == "cut":
        return packed[: data.draw(st.integers(0, len(packed) - 1))]
    if kind == "grown":
        return torch.cat([packed, torch.zeros(data.draw(st.integers(1, 300)), dtype=torch.uint8)])
    if kind == "shifted":
        return torch.cat([packed, packed])[data.draw(st.integers(1, 63)) :][: len(packed)]
    if kind == "dtype":
        return packed.to(data.draw(st.sampled_from([torch.int8, torch.float32, torch.bool])))
    return packed.view(1, -1) if kind == "rank" else packed.to("meta")


@pytest.mark.cpu_kernels
@settings(max_examples=200, deadline=None)
@given(data=st.data(), dtype=st.sampled_from([None, *NARROW]))
def test_bad_blocks_end_in_an_error(data: st.DataObject, dtype: Any) -> None:
    """A block is refused whatever is wrong with it, by every operator that takes one."""
    ops = torch.ops.seq2seq_ext
    weights, x = [torch.zeros(8, 3), torch.zeros(8, 2)], torch.zeros(2, 1, 3)
    which = data.draw(st.sampled_from(["rnn", "linear", "recurrence"]))
    if which == "rnn":
        bad = other_block(ops.prepack(weights, 0, dtype=dtype), data)
        attempt: Callable[[], Any] = lambda: ops.rnn(  # noqa: E731
            x, None, None, weights, 0, 1, False, False, bad
        )
    elif which == "linear":
        bad = other_block(ops.prepack_matrix(weights[0], dtype), data)
        attempt = lambda: ops.linear(x, weights[0], None, bad)  # noqa: E731
    else:
        given, packed = full_call("gru_reset_before", dtype)
        place = data.draw(st.integers(0, 1))
        packed[place] = bad = other_block(packed[place], data)
        attempt = lambda: ops.recurrence(*given, packed)  # noqa: E731
    with pytest.raises(RuntimeError, match=r"^packed: "):
        attempt()
