"""The layers on a GPU: values and gradients at small and real sizes, streams, graphs, memory.

The truth is torch.nn in float64; torch.nn in the same precision on the same device may err as it
does, and ours twice as much.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from layer_cases import (
    LAYER_IDS,
    LAYERS,
    NAMES,
    Problem,
    assert_within_torch_error,
    gradients,
    make,
    random_state,
    run_layer,
    run_reference,
    run_torch,
    states,
)
from torch import Tensor, nn
from torch.library import opcheck
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import seq2seq_ext
from seq2seq_ext import ops
from seq2seq_ext.benchmark.cuda.shapes import precision_set
from seq2seq_ext.cuda_graphs import capture

pytestmark = [
    pytest.mark.cuda,
    # torch's operators are called with weights that do not lie one after the other.
    pytest.mark.filterwarnings("ignore:RNN module weights are not part of single contiguous"),
]

DEVICE = "cuda"
DTYPES = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp64": torch.float64,
}
# Units in the last place of the dtype that count as nothing. TF32 has 13 bits less than float32;
# in float64 torch.nn is its own truth, so that only the floor is left.
FLOORS = {"fp32": 8.0, "tf32": 8.0 * 2**13, "fp16": 8.0, "bf16": 8.0, "fp64": 64.0}
MANY_SUMMANDS_FP64 = 4096.0
FORMS = ["dense", "lengths", "packed", "resets"]
STACKS = [(cell, 0) for cell in NAMES] + [("lstm", 5)]
STACK_IDS = [*NAMES, "lstm_proj"]

each_cell = pytest.mark.parametrize("cell", NAMES)
each_precision = pytest.mark.parametrize("precision", list(DTYPES))


@pytest.fixture(autouse=True)
def set_precision(request: pytest.FixtureRequest) -> Iterator[None]:
    """TF32 only where the test's precision says so."""
    callspec = getattr(request.node, "callspec", None)
    with precision_set(callspec.params.get("precision", "fp32") if callspec else "fp32"):
        yield


def run_nn(p: Problem) -> list[Tensor]:
    """torch.nn's own operator over the whole stack at once, packed where lengths differ."""
    if p.resets is not None:
        return run_torch(p)
    hx: Any = p.h_0 if p.c_0 is None else [p.h_0, p.c_0]
    biased = len(p.weights) // (p.num_layers * (1 + p.bidirectional)) >= 4
    options = (biased, p.num_layers, 0.0, True, p.bidirectional)
    operator = getattr(torch._VF, p.cell)
    if p.lengths is None:
        return list(operator(p.x, hx, p.weights, *options, False))
    packed = pack_padded_sequence(p.x, p.lengths, enforce_sorted=False)
    data, batch_sizes, order, back = packed
    h_0, *c_0 = (s.index_select(1, order) for s in (p.h_0, p.c_0) if s is not None)
    hx = [h_0, *c_0] if c_0 else h_0
    y, *h_n = operator(data, batch_sizes, hx, p.weights, *options)
    y, _ = pad_packed_sequence(packed._replace(data=y), total_length=p.x.shape[0])
    return [y, *(h.index_select(1, back) for h in h_n)]


def with_gradients(run: Callable[[Problem], list[Tensor]], p: Problem) -> list[Tensor]:
    """Outputs, then the gradients of all leaves."""
    for leaf in p.leaves():
        leaf.requires_grad_()
    outputs = run(p)
    found = gradients(outputs, p.leaves())
    return [output.detach() for output in outputs] + found


def problem(
    cell: str, form: str, precision: str, T: int, B: int, I: int, H: int, *args: Any, **options: Any
) -> tuple[nn.RNNBase, Problem]:
    """A layer on the device and one call of it; drawn on the CPU, alike in all precisions."""
    layer = make(cell, I, H, *args, **options)
    given = Problem.of(cell, form, layer, T, B)
    dtype = DTYPES[precision]
    return layer.to(DEVICE, dtype), given.to(dtype, DEVICE)


def check(
    layer: nn.RNNBase, p: Problem, precision: str, *, floor: float = 0.0, backward: bool = True
) -> None:
    """Compare one call with torch.nn in the same precision and in float64."""
    run = with_gradients if backward else lambda run, p: run(p)
    # torch.nn has no such cell: the reference stands in.
    oracle = run_reference if p.cell == "gru_reset_before" else run_nn
    ours = run(lambda p: run_layer(layer, p), p.to(p.x.dtype))
    theirs = run(oracle, p.to(p.x.dtype))
    truth = run(oracle, p.to(torch.float64))
    assert all(t.device.type == torch.device(DEVICE).type for t in ours)
    assert all(t.dtype == DTYPES[precision] for t in ours)
    assert_within_torch_error(ours, theirs, truth, floor=max(floor, FLOORS[precision]))


# Values and gradients.


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bidirectional", [False, True], ids=["D1", "D2"])
@pytest.mark.parametrize("num_layers", [1, 2], ids=["L1", "L2"])
@each_precision
@pytest.mark.parametrize(("cell", "proj_size"), STACKS, ids=STACK_IDS)
def test_equals_torch(
    cell: str, proj_size: int, precision: str, num_layers: int, bidirectional: bool, form: str
) -> None:
    options = {"proj_size": proj_size} if proj_size else {}
    layer, p = problem(
        cell, form, precision, 7, 5, 6, 11, num_layers, bidirectional=bidirectional, **options
    )
    # At relu's kink rounding decides whether a gradient is there at all.
    coarse = precision in ("tf32", "fp16", "bf16")
    check(layer, p, precision, backward=not (cell == "rnn_relu" and coarse))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("T", "B", "I", "H"),
    [(1, 1, 1, 1), (3, 1, 5, 33), (5, 2, 40, 128), (19, 3, 1, 7), (9, 17, 33, 130), (2, 64, 2, 31)],
)
@each_precision
@pytest.mark.parametrize("cell", ["lstm", "gru", "gru_reset_before", "rnn_tanh"])
def test_equals_torch_at_uneven_sizes(
    cell: str, precision: str, T: int, B: int, I: int, H: int, form: str
) -> None:
    layer, p = problem(cell, form, precision, T, B, I, H)
    check(layer, p, precision)


@pytest.mark.parametrize(
    ("form", "T", "B", "I", "H"),
    [
        ("dense", 1024, 16, 768, 768),
        ("dense", 1024, 1, 256, 256),
        ("dense", 300, 64, 80, 256),
        ("dense", 128, 200, 1024, 1024),
        ("dense", 200, 16, 33, 33),
        ("dense", 64, 64, 2048, 2048),
        ("dense", 100, 1, 512, 2048),
        ("lengths", 300, 64, 80, 256),
        ("lengths", 200, 200, 768, 768),
        ("packed", 300, 16, 1024, 1024),
    ],
)
@each_precision
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
def test_equals_torch_at_real_sizes(
    cell: str, precision: str, form: str, T: int, B: int, I: int, H: int
) -> None:
    layer, p = problem(cell, form, precision, T, B, I, H)
    check(layer, p, precision, floor=MANY_SUMMANDS_FP64 * (precision == "fp64"))


@pytest.mark.parametrize(
    "options",
    [{"num_layers": 2}, {"bidirectional": True}, {"num_layers": 2, "bidirectional": True}],
    ids=["L2", "D2", "L2-D2"],
)
@each_precision
@pytest.mark.parametrize(("cell", "proj_size"), [("lstm", 0), ("gru", 0), ("lstm", 256)])
def test_stacks_equal_torch_at_real_sizes(
    cell: str, proj_size: int, precision: str, options: dict[str, Any]
) -> None:
    if proj_size:
        options = {**options, "proj_size": proj_size}
    layer, p = problem(cell, "dense", precision, 128, 32, 256, 512, **options)
    check(layer, p, precision, floor=MANY_SUMMANDS_FP64 * (precision == "fp64"))


@pytest.mark.parametrize(("B", "H"), [(16, 256), (8, 768)])
@each_precision
@pytest.mark.parametrize("cell", ["lstm", "gru", "gru_reset_before"])
def test_resets_equal_torch_at_real_sizes(cell: str, precision: str, B: int, H: int) -> None:
    layer, p = problem(cell, "resets", precision, 64, B, 64, H)
    check(layer, p, precision, floor=MANY_SUMMANDS_FP64 * (precision == "fp64"))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_equals_torch_over_very_many_steps(cell: str, precision: str) -> None:
    layer, p = problem(cell, "dense", precision, 70_000, 2, 32, 32)
    check(layer, p, precision)


# Forms of a call.


@pytest.mark.parametrize(("ours", "theirs"), LAYERS, ids=LAYER_IDS)
def test_moved_layer_is_a_layer_of_the_device(ours: Any, theirs: Any) -> None:
    layer, other = ours(4, 6, 2), theirs(4, 6, 2)
    layer.load_state_dict(other.state_dict())
    x = torch.randn(5, 3, 4)
    expected = layer(x)[0]
    moved = layer.to(DEVICE)
    assert moved is layer
    torch.testing.assert_close(layer(x.to(DEVICE))[0].cpu(), expected)
    made = ours(4, 6, 2, device=DEVICE)
    made.load_state_dict(layer.state_dict())
    assert torch.equal(made(x.to(DEVICE))[0], layer(x.to(DEVICE))[0])
    replaced = seq2seq_ext.replace_modules(other.to(DEVICE))
    assert type(replaced) is ours
    assert torch.equal(replaced(x.to(DEVICE))[0], layer(x.to(DEVICE))[0])
    torch.testing.assert_close(layer.cpu()(x)[0], expected)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@each_cell
def test_batch_first_unbatched_and_strided(cell: str, precision: str) -> None:
    layer, p = problem(cell, "lengths", precision, 7, 5, 6, 16, bidirectional=True)
    y, h_n = layer(p.x, lengths=p.lengths)
    layer.batch_first = True
    y_swapped, h_n_swapped = layer(p.x.transpose(0, 1), lengths=p.lengths)
    torch.testing.assert_close(y_swapped.transpose(0, 1), y)
    torch.testing.assert_close(states(h_n_swapped), states(h_n))
    layer.batch_first = False
    single, _ = layer(p.x[:, 0].contiguous())
    torch.testing.assert_close(single, layer(p.x[:, :1].contiguous())[0].squeeze(1))
    wide = torch.randn(7, 5, 12, device=DEVICE).to(p.x.dtype)
    torch.testing.assert_close(layer(wide[..., ::2])[0], layer(wide[..., ::2].contiguous())[0])


@each_cell
def test_lengths_on_the_device(cell: str) -> None:
    layer, p = problem(cell, "lengths", "fp32", 9, 5, 6, 16, 2, bidirectional=True)
    lengths = torch.tensor([9, 0, 4, 1, 9])
    y, h_n = layer(p.x, lengths=lengths)
    y_too, h_n_too = layer(p.x, lengths=lengths.to(DEVICE))
    assert torch.equal(y, y_too)
    for a, b in zip(states(h_n), states(h_n_too), strict=True):
        assert torch.equal(a, b)
    for b, length in enumerate(lengths.tolist()):
        assert not y[length:, b].any()


@each_cell
def test_length_zero_returns_the_state_given(cell: str) -> None:
    layer = make(cell, 3, 4, 2, bidirectional=True)
    hx = [s.to(DEVICE) for s in states(random_state(layer, 3))]
    layer = layer.to(DEVICE)
    x = torch.randn(5, 3, 3).to(DEVICE)
    _, h_n = layer(x, hx[0] if len(hx) == 1 else hx, lengths=torch.tensor([0, 5, 0]))
    for given, found in zip(hx, states(h_n), strict=True):
        assert torch.equal(found[:, [0, 2]], given[:, [0, 2]])


@each_cell
def test_padding_of_any_value_changes_nothing(cell: str) -> None:
    layer, p = problem(cell, "lengths", "fp32", 9, 4, 6, 33)
    lengths = torch.tensor([9, 2, 5, 0])
    past = torch.arange(9)[:, None] >= lengths
    filled = p.x.masked_fill(past.to(DEVICE)[..., None], 1e30)
    for a, b in zip(
        layer(p.x, lengths=lengths)[:1], layer(filled, lengths=lengths)[:1], strict=True
    ):
        assert torch.equal(a, b)


def test_bad_calls_are_named_and_leave_the_device_usable() -> None:
    layer = seq2seq_ext.LSTM(3, 4).to(DEVICE)
    x = torch.randn(5, 2, 3).to(DEVICE)
    expected = layer(x)[0]
    with pytest.raises(RuntimeError, match="same device"):
        layer(x.to("cpu"))
    with pytest.raises(ValueError, match="resets must be on the input's device"):
        layer(x, resets=torch.zeros(5, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="does not match weight dtype"):
        layer(x.half())
    for bad in (6, -1):
        with pytest.raises((RuntimeError, ValueError), match="lengths"):
            layer(x, lengths=torch.tensor([5, bad]))
    assert torch.equal(layer(x)[0], expected)


# What a GPU brings with it.


@pytest.mark.parametrize("form", FORMS)
@each_precision
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_repeats_are_equal_to_the_bit(cell: str, precision: str, form: str) -> None:
    layer, p = problem(cell, form, precision, 128, 16, 256, 768)
    first, *others = (
        with_gradients(lambda p: run_layer(layer, p), p.to(p.x.dtype)) for _ in range(4)
    )
    for other in others:
        for a, b in zip(first, other, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("form", ["dense", "resets"])
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@each_precision
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
def test_graph_replay_equals_eager(cell: str, precision: str, training: bool, form: str) -> None:
    layer, p = problem(cell, form, precision, 32, 16, 64, 256, 2, bidirectional=True)
    weights = list(layer.parameters())
    x = p.x.clone().requires_grad_(training)

    def call() -> list[Tensor]:
        with torch.set_grad_enabled(training):
            y, h_n = layer(x, resets=p.resets)
            outputs = [y, *states(h_n)]
            if training:
                outputs += torch.autograd.grad(y, [x, *weights], torch.ones_like(y))
        return [output.detach() for output in outputs]

    replay: Any = capture(call)
    for _ in range(3):
        with torch.no_grad():
            x.copy_(torch.randn(x.shape))
        found = [t.clone() for t in replay()]
        for a, b in zip(found, call(), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_work_goes_to_the_current_stream(cell: str, form: str) -> None:
    layer, p = problem(cell, form, "fp32", 32, 16, 64, 256)

    def run() -> list[Tensor]:
        # Late input: a kernel on another stream would read what was there before.
        late = p.to(torch.float32)
        late.x = torch.zeros_like(p.x)
        torch.cuda._sleep(20_000_000)
        late.x.copy_(p.x)
        return with_gradients(lambda p: run_layer(layer, p), late)

    expected = run()
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        found = run()
    stream.synchronize()
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


def test_two_streams_at_once() -> None:
    """Calls in flight on two streams share no scratch memory."""
    layers = [seq2seq_ext.LSTM(256, 512).to(DEVICE) for _ in range(2)]
    inputs = [torch.randn(128, 16, 256).to(DEVICE) for _ in range(2)]
    with torch.inference_mode():
        expected = [layer(x)[0] for layer, x in zip(layers, inputs, strict=True)]
        torch.cuda.synchronize()
        streams = [torch.cuda.Stream() for _ in range(2)]
        found: list[list[Tensor]] = [[], []]
        for _ in range(5):
            for k, stream in enumerate(streams):
                with torch.cuda.stream(stream):
                    found[k].append(layers[k](inputs[k])[0])
        torch.cuda.synchronize()
    for outputs, right in zip(found, expected, strict=True):
        assert all(torch.equal(y, right) for y in outputs)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_second_device_while_the_first_is_current() -> None:
    layer, x = seq2seq_ext.LSTM(8, 16, 2), torch.randn(5, 3, 8)
    expected = layer(x)[0]
    layer = layer.to("cuda:1")
    y, _ = layer(x.to("cuda:1").requires_grad_())
    y.sum().backward()
    assert y.device == torch.device("cuda:1")
    assert torch.cuda.current_device() == 0
    torch.testing.assert_close(y.detach().cpu(), expected)


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_calls_leave_no_memory_behind(cell: str, form: str, training: bool) -> None:
    layer, p = problem(cell, form, "fp16", 32, 16, 64, 256)

    def call() -> None:
        if training:
            with_gradients(lambda p: run_layer(layer, p), p)
        else:
            with torch.inference_mode():
                run_layer(layer, p)

    def memory() -> tuple[int, int]:
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated(), torch.cuda.memory_reserved()

    for _ in range(3):
        call()
    before = memory()
    for _ in range(20):
        call()
    assert memory() == before


# What torch asks of an operator.


def leaf(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(size, dtype=dtype).to(DEVICE).requires_grad_()


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@each_cell
def test_opcheck(cell: str, precision: str) -> None:
    dtype = DTYPES[precision]
    layer = make(cell, 3, 8).to(DEVICE, dtype)
    weights = [w.detach().requires_grad_() for w in layer.parameters()]
    state = [leaf(1, 2, 8, dtype=dtype) for _ in range(2)]
    c_0 = state[1] if cell == "lstm" else None
    results = opcheck(
        torch.ops.seq2seq_ext.rnn.default,
        (leaf(4, 2, 3, dtype=dtype), state[0], c_0, weights),
        {"cell": ops.CELLS.index(cell), "save": True},
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("form", ["dense", "lengths", "resets"])
@each_cell
def test_gradcheck(cell: str, form: str) -> None:
    layer, p = problem(cell, form, "fp64", 3, 2, 2, 3, 2, bidirectional=True)
    if cell == "rnn_relu":  # finite differences need room on both sides of the kink
        p.weights = [w + 0.05 * w.sign() for w in p.weights]
    leaves = [each.requires_grad_() for each in p.leaves()]

    def outputs(*_: Tensor) -> tuple[Tensor, ...]:
        return tuple(run_layer(layer, p))

    assert torch.autograd.gradcheck(outputs, leaves, fast_mode=True)


@each_cell
def test_gradgradcheck(cell: str) -> None:
    layer, p = problem(cell, "lengths", "fp64", 3, 2, 2, 3)
    leaves = [each.requires_grad_() for each in p.leaves()]

    def outputs(*_: Tensor) -> tuple[Tensor, ...]:
        return tuple(run_layer(layer, p))

    assert torch.autograd.gradgradcheck(outputs, leaves, fast_mode=True)


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@each_cell
def test_compiled_layer_equals_eager(cell: str, precision: str, training: bool) -> None:
    layer, p = problem(cell, "dense", precision, 7, 5, 6, 16, 2, bidirectional=True)
    compiled = torch.compile(copy.deepcopy(layer), fullgraph=True, backend="aot_eager")
    results = []
    for each in (layer, compiled):
        x = p.x.clone().requires_grad_(training)
        with torch.set_grad_enabled(training):
            y, h_n = each(x)
            outputs = [y, *states(h_n)]
            if training:
                outputs += torch.autograd.grad(y.float().sin().sum(), [x, *each.parameters()])
        results.append(outputs)
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
