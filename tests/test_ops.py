"""The operators alone: what torch asks of one, every form of x, every way a call can take."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from layer_cases import NAMES, make
from torch import Tensor
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode

from seq2seq_ext import ops, reference

each_cell = pytest.mark.parametrize("cell", NAMES)
each_form = pytest.mark.parametrize("form", ["dense", "packed", "step"])
with_state = pytest.mark.parametrize("state", [True, False], ids=["state", "nostate"])

T, B, I, H = 4, 3, 2, 3
CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")


def leaf(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(size, dtype=dtype, requires_grad=True)


def arguments(
    cell: str, form: str, state: bool, dtype: torch.dtype = torch.float32, num_layers: int = 1
) -> tuple[list[Any], dict[str, Any]]:
    """``[x, h_0, c_0, weights]`` and what follows by name; all leaves that require a gradient."""
    layer = make(cell, I, H, num_layers, dtype=dtype)
    weights = [w.detach().requires_grad_() for w in layer.parameters()]
    sizes = {"dense": (T, B, I), "packed": (6, I), "step": (B, I)}
    x = leaf(*sizes[form], dtype=dtype)
    h_0 = c_0 = None
    if state:
        rows = (B, H) if form == "step" else (num_layers, B, H)
        h_0 = leaf(*rows, dtype=dtype)
        c_0 = leaf(*rows, dtype=dtype) if cell == "lstm" else None
    options: dict[str, Any] = {"cell": ops.CELLS.index(cell), "num_layers": num_layers}
    if form == "packed":
        options["batch_sizes"] = torch.tensor([3, 2, 1])
    return [x, h_0, c_0, weights], options


def run(cell: str, form: str, tensors: list[Any], options: dict[str, Any]) -> list[Tensor]:
    """All outputs there are, through the wrappers in Python."""
    if form == "step":
        outputs: Any = ops.step(*tensors, cell)
    else:
        outputs = ops.rnn(
            *tensors, cell, options["num_layers"], batch_sizes=options.get("batch_sizes")
        )
    return [t for t in outputs if t is not None]


@pytest.mark.parametrize(
    ("form", "state"),
    [("dense", True), ("dense", False), ("packed", True), ("step", True), ("step", False)],
)
@each_cell
def test_opcheck(cell: str, form: str, state: bool) -> None:
    tensors, options = arguments(cell, form, state)
    results = opcheck(
        torch.ops.seq2seq_ext.rnn.default,
        tuple(tensors),
        {**options, "save": True},
        test_utils=(*CHECKS, "test_aot_dispatch_dynamic"),
    )
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("wanted", [(True, True, True), (False, False, True), (True, False, False)])
@each_form
@each_cell
def test_opcheck_of_backward(cell: str, form: str, wanted: tuple[bool, bool, bool]) -> None:
    tensors, options = arguments(cell, form, state=True)
    y, h_n, c_n, reserve = torch.ops.seq2seq_ext.rnn(*tensors, **options, save=True)
    cotangents = [torch.randn_like(y), None, None]
    if form != "step":
        cotangents[1] = torch.randn_like(h_n)
    if cell == "lstm":
        cotangents[2] = torch.randn_like(c_n)
    x, h_0, c_0 = (None if t is None else t.detach() for t in tensors[:3])
    weights = [w.detach() for w in tensors[3]]
    batch_sizes = options.pop("batch_sizes", None)
    results = opcheck(
        torch.ops.seq2seq_ext.rnn_backward.default,
        (
            *cotangents,
            x,
            h_0,
            c_0,
            weights,
            y.detach(),
            reserve,
            options["cell"],
            options["num_layers"],
            False,
            *wanted,
            None,
            batch_sizes,
        ),
        test_utils=CHECKS,
    )
    assert set(results.values()) == {"SUCCESS"}


@with_state
@each_cell
def test_step_equals_a_sequence_of_one(cell: str, state: bool) -> None:
    tensors, options = arguments(cell, "step", state)
    found = run(cell, "step", tensors, options)
    x, h_0, c_0, weights = tensors
    rows = [None if t is None else t.unsqueeze(0) for t in (x, h_0, c_0)]
    y, h_n, c_n = ops.rnn(*rows, weights, cell)
    expected = [h_n[0]] if c_n is None else [h_n[0], c_n[0]]
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(y[0], h_n[0])
    leaves = [t for t in (x, h_0, c_0) if t is not None] + weights
    loss = sum(t.sin().sum() for t in found)
    grads = torch.autograd.grad(loss, leaves)
    expected_grads = torch.autograd.grad(sum(t.sin().sum() for t in expected), leaves)
    torch.testing.assert_close(grads, expected_grads, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_layers", [1, 2])
@each_cell
def test_no_state_is_a_state_of_zeros(cell: str, num_layers: int) -> None:
    tensors, options = arguments(cell, "dense", False, torch.float64, num_layers)
    zeros = torch.zeros(num_layers, B, H, dtype=torch.float64)
    given = [tensors[0], zeros, zeros if cell == "lstm" else None, tensors[3]]
    found = run(cell, "dense", tensors, options)
    expected = run(cell, "dense", given, options)
    leaves = [tensors[0], *tensors[3]]
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)
        first = torch.autograd.grad(a.sin().sum(), leaves, retain_graph=True)
        second = torch.autograd.grad(b.sin().sum(), leaves, retain_graph=True)
        for left, right in zip(first, second, strict=True):
            assert torch.equal(left, right)


@with_state
@pytest.mark.parametrize("form", ["dense", "step"])
@each_cell
def test_first_and_second_derivatives(cell: str, form: str, state: bool) -> None:
    tensors, options = arguments(cell, form, state, torch.float64)
    if cell == "rnn_relu":  # finite differences need room on both sides of the kink
        tensors[3] = [(w + 0.05 * w.sign()).detach().requires_grad_() for w in tensors[3]]
    leaves = [t for t in tensors[:3] if t is not None] + tensors[3]

    def outputs(*_: Tensor) -> tuple[Tensor, ...]:
        return tuple(run(cell, form, tensors, options))

    assert torch.autograd.gradcheck(outputs, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(outputs, leaves, fast_mode=True)


class Seen(TorchDispatchMode):
    """The names of the operators that reach the end of the dispatcher."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


class Marked(Tensor):
    """A tensor of another class, as libraries define them."""


@pytest.mark.filterwarnings("ignore:.torch.jit.trace. is deprecated:DeprecationWarning")
@each_form
@each_cell
def test_all_ways_give_the_same_numbers(cell: str, form: str) -> None:
    tensors, options = arguments(cell, form, state=True)
    expected = [t.detach() for t in run(cell, form, tensors, options)]

    def same(found: list[Tensor]) -> None:
        for a, b in zip(found, expected, strict=True):
            assert torch.equal(a.as_subclass(Tensor), b)

    with torch.no_grad():
        found = run(cell, form, tensors, options)
        assert not any(t.requires_grad for t in found)
        same(found)
    with torch.inference_mode():
        found = run(cell, form, tensors, options)
        assert all(t.is_inference() for t in found)
        same(found)
    for context in (torch.enable_grad(), torch.no_grad()):
        with Seen() as mode, context:
            same(run(cell, form, tensors, options))
        assert mode.names.count("seq2seq_ext.rnn.default") == 1
    marked = [tensors[0].detach().as_subclass(Marked), *tensors[1:]]
    found = run(cell, form, marked, options)
    assert all(isinstance(t, Marked) for t in found)
    same(found)
    plain = [t.detach() if isinstance(t, Tensor) else t for t in tensors[:3]]
    frozen = [*plain, [w.detach() for w in tensors[3]]]
    found = run(cell, form, frozen, options)
    assert not any(t.requires_grad for t in found)
    same(found)
    with torch.no_grad():
        traced = torch.jit.trace(
            lambda x: tuple(run(cell, form, [x, *frozen[1:]], options)), frozen[0]
        )
        assert "seq2seq_ext::rnn" in str(traced.graph)
        same(list(traced(frozen[0])))


def test_saved_tensor_hooks_see_what_backward_reads() -> None:
    tensors, options = arguments("gru", "dense", state=True)
    packed: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        packed.append(tensor)
        return tensor.clone()

    expected = torch.autograd.grad(run("gru", "dense", tensors, options)[0].sum(), tensors[3])
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = run("gru", "dense", tensors, options)[0].sum()
    found = torch.autograd.grad(loss, tensors[3])
    assert any(
        tensor is tensors[0] or tensor.data_ptr() == tensors[0].data_ptr() for tensor in packed
    )
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


def test_a_call_that_saved_nothing_cannot_be_differentiated() -> None:
    tensors, options = arguments("gru", "dense", state=True)
    y, *_ = torch.ops.seq2seq_ext.rnn(*tensors, **options)
    with pytest.raises(RuntimeError, match="save: expected True"):
        y.sum().backward()


X, S = torch.randn(T, B, I), torch.randn(1, B, H)
WEIGHTS = {cell: [w.detach() for w in make(cell, I, H).parameters()] for cell in ("lstm", "gru")}
TWO_LAYERS = [w.detach() for w in make("gru", I, H, 2).parameters()]

REFUSALS: list[tuple[str, tuple[Any, ...], dict[str, Any], str]] = [
    ("cell", (X, None, None, WEIGHTS["gru"], 5), {}, r"cell: expected a number from 0 .* got 5"),
    ("layers", (X, None, None, WEIGHTS["gru"], 1, 0), {}, "num_layers: expected at least 1, got 0"),
    ("no steps", (X[:0], None, None, WEIGHTS["gru"], 1), {}, "x: expected at least one step"),
    ("x rank", (X[0, 0], None, None, WEIGHTS["gru"], 1), {}, r"x: expected 3 dimensions .* \(2\)"),
    ("x dtype", (X.long(), None, None, WEIGHTS["gru"], 1), {}, "x: expected dtype .* got Long"),
    ("step of two", (X[0], None, None, TWO_LAYERS, 1, 2), {}, "more than one layer or direction"),
    ("step resets", (X[0], None, None, WEIGHTS["gru"], 1), {"resets": X[0, :, 0] > 0}, "resets"),
    ("weights", (X, None, None, WEIGHTS["gru"][:1], 1), {}, "weights: expected 2 to 5 tensors"),
    (
        "weights[1]",
        (X, None, None, [WEIGHTS["gru"][0]] * 2, 1),
        {},
        r"weights\[1\]: expected shape",
    ),
    (
        "units",
        (X, None, None, WEIGHTS["gru"], 0),
        {},
        r"weights\[0\]: expected shape \(4 \* H, I\)",
    ),
    ("h_0", (X, S[..., :2], None, WEIGHTS["gru"], 1), {}, r"h_0: expected shape \(1, 3, 3\), got"),
    ("c_0 alone", (X, None, S, WEIGHTS["lstm"], 0), {}, "h_0: expected a tensor, as c_0 is one"),
    ("h_0 alone", (X, S, None, WEIGHTS["lstm"], 0), {}, "c_0: expected a tensor, as h_0 is one"),
    ("c_0 of gru", (X, S, S, WEIGHTS["gru"], 1), {}, "c_0: expected None for the cell gru"),
    (
        "packed without h_0",
        (X[0], None, None, WEIGHTS["gru"], 1),
        {"batch_sizes": torch.tensor([3])},
        "h_0: expected a tensor beside batch_sizes",
    ),
    (
        "batch sizes",
        (X[0], S, None, WEIGHTS["gru"], 1),
        {"batch_sizes": torch.tensor([1, 2])},
        "batch_sizes: expected sizes .* never increase, got 2 at step 1",
    ),
    (
        "lengths",
        (X, S, None, WEIGHTS["gru"], 1),
        {"lengths": torch.tensor([1, 2, 5])},
        r"lengths: expected values from 0 to 4 .* got 5 in row 2",
    ),
    (
        "no memory",
        (X[:1, :1].expand(1 << 45, 1, I), None, None, WEIGHTS["gru"], 1),
        {},
        "not enough memory for a tensor of shape",
    ),
]


@pytest.mark.parametrize(
    ("positional", "named", "message"), [r[1:] for r in REFUSALS], ids=[r[0] for r in REFUSALS]
)
def test_refusals(positional: tuple[Any, ...], named: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        torch.ops.seq2seq_ext.rnn(*positional, **named)


def test_refusals_of_backward() -> None:
    tensors, options = arguments("gru", "step", state=True)
    y, _, _, reserve = (
        t.detach() for t in torch.ops.seq2seq_ext.rnn(*tensors, **options, save=True)
    )
    rest = (*(t.detach() for t in tensors[:2]), None, [w.detach() for w in tensors[3]], y, reserve)
    flags = (1, 1, False, True, True, True)

    def backward(d_y: Any, d_h_n: Any, d_c_n: Any, rest: Any = rest) -> Any:
        return torch.ops.seq2seq_ext.rnn_backward(d_y, d_h_n, d_c_n, *rest, *flags)

    backward(y, None, None)
    with pytest.raises(RuntimeError, match="d_h_n: expected None for one step"):
        backward(y, y, None)
    with pytest.raises(RuntimeError, match="d_c_n: expected None for a cell other than lstm"):
        backward(y, None, y)
    with pytest.raises(RuntimeError, match=r"d_y: expected shape \(3, 3\), got \(2, 3\)"):
        backward(y[:2], None, None)
    with pytest.raises(RuntimeError, match=r"reserve: expected shape"):
        backward(y, None, None, (*rest[:-1], reserve[1:]))
    with pytest.raises(RuntimeError, match=r"y: expected dtype Float, got Double"):
        backward(y, None, None, (*rest[:-2], y.double(), reserve))


def test_calls_of_many_sizes_in_turn_share_memory() -> None:
    """What a call leaves in the thread's scratch memory is nothing to the next."""
    layers = [make(cell, 8, 24, 2, bidirectional=True) for cell in NAMES]
    expected: dict[Any, Tensor] = {}
    for _ in range(2):
        for t, b in [(1, 1), (40, 17), (3, 2), (90, 5), (1, 64), (7, 1)]:
            for n, layer in enumerate(layers):
                generator = torch.Generator().manual_seed(t * b)
                x = torch.randn(t, b, 8, generator=generator)
                lengths = torch.randint(0, t + 1, (b,), generator=generator)
                y = layer(x, lengths=lengths)[0]
                (grad,) = torch.autograd.grad(y.sum(), [layer.weight_hh_l0])
                found = torch.cat([y.detach().flatten(), grad.flatten()])
                assert torch.equal(expected.setdefault((n, t, b), found), found)


def test_threads_that_come_and_go() -> None:
    layer, x = make("lstm", 8, 16), torch.randn(12, 3, 8)
    expected = layer(x)[0].detach()
    failures: list[int] = []

    def work() -> None:
        with torch.no_grad():
            if not torch.equal(layer(x)[0], expected):
                failures.append(1)

    for _ in range(20):
        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures


@each_cell
def test_step_equals_the_reference(cell: str) -> None:
    tensors, options = arguments(cell, "step", True, torch.float64)
    found = run(cell, "step", tensors, options)
    x, h_0, c_0, weights = tensors
    y, _, c_n = reference.rnn(
        x.unsqueeze(0),
        h_0.unsqueeze(0),
        None if c_0 is None else c_0.unsqueeze(0),
        weights,
        cell=cell,
        num_layers=1,
        bidirectional=False,
    )
    torch.testing.assert_close(found[0], y[0])
    if c_n is not None:
        torch.testing.assert_close(found[1], c_n[0])
