"""The operator ``attention_decoder``: every cell and way of attending, against the reference.

On the CPU on every instruction set; through the CUDA kernels with ``--cuda-on-cpu``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from decoder_cases import GATES, WAYS, Call, call, converted, expected, leaves, outcome, run
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.library import opcheck

import seq2seq_ext as s2s
from seq2seq_ext.decoder import DecoderResult, attention_decoder, operator


@pytest.fixture(params=s2s.available_cpu_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.config.getoption("--cuda-on-cpu") and request.param != s2s.cpu_isa():
        pytest.skip("the CUDA kernels have no instruction sets")
    before = s2s.cpu_isa()
    s2s.set_cpu_isa(request.param)
    yield request.param
    s2s.set_cpu_isa(before)


def equal(one: DecoderResult, other: DecoderResult) -> bool:
    return all(
        (a is None and b is None) or (a is not None and b is not None and torch.equal(a, b))
        for a, b in zip(one, other, strict=True)
    )


def compare(arguments: Call, tolerance: float) -> None:
    """Results and gradients against the reference in float64."""
    exact = converted(arguments, torch.float64)
    for tensor in (*leaves(arguments).values(), *leaves(exact).values()):
        tensor.requires_grad_()
    got, want = run(arguments), expected(exact)
    pairs = [(a, b) for a, b in zip(got, want, strict=True) if b is not None]
    assert len(pairs) == sum(a is not None for a in got)
    for a, b in pairs:
        torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=tolerance)
    cotangents = [torch.randn_like(b) for _, b in pairs]
    of_ours = torch.autograd.grad(
        [a for a, _ in pairs],
        list(leaves(arguments).values()),
        [d.to(a.dtype) for d, (a, _) in zip(cotangents, pairs, strict=True)],
    )
    of_reference = torch.autograd.grad(
        [b for _, b in pairs], list(leaves(exact).values()), cotangents
    )
    for name, a, b in zip(leaves(arguments), of_ours, of_reference, strict=True):
        error = float((a.double() - b).abs().max())
        assert error <= 10 * tolerance * max(1.0, float(b.abs().max())), f"{name}: {error}"


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("cell", GATES)
def test_equals_the_reference(cell: str, way: str, layers: int, isa: str) -> None:
    compare(call(cell, way, layers=layers), 1e-11)
    compare(call(cell, way, layers=layers, dtype=torch.float32, H=20, ragged=False), 3e-6)


@pytest.mark.parametrize("way", WAYS)
def test_batches_wider_than_a_tile(way: str) -> None:
    compare(call("gru", way, B=37, S=40, H=33, T=4), 1e-11)


@pytest.mark.parametrize("sizes", [{"B": 0}, {"S": 0}, {"T": 1, "B": 1, "S": 1}])
@pytest.mark.parametrize("way", WAYS)
def test_smallest_sizes(way: str, sizes: dict[str, int]) -> None:
    arguments = call("lstm", way, layers=2, ragged=False, **sizes)
    want = outcome(expected, arguments)
    for name, got in outcome(run, arguments).items():
        torch.testing.assert_close(got, want[name], rtol=1e-10, atol=1e-10)


@pytest.mark.cpu_kernels
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("way", WAYS)
def test_sixteen_bits_round_once(way: str, dtype: torch.dtype) -> None:
    arguments = call("lstm", way, dtype=dtype, layers=1)
    got = run(arguments)
    wide = run(converted(arguments, torch.float32))
    for a, b in zip(got, wide, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            assert a.dtype == dtype
            assert torch.equal(a, b.to(dtype))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("cell", GATES)
def test_a_row_alone_gives_what_it_gives_in_a_batch(cell: str, way: str) -> None:
    arguments = call(cell, way, B=6, dtype=torch.float32)
    whole = run(arguments)
    axes = {"x": 1, "h_0": 1, "c_0": 1, "dropout_mask": 2}
    batched = (*axes, "feed_0", "coverage_0", "keys", "values", "lengths", "source_lengths")
    for b in range(6):
        one = {
            name: value.narrow(axes.get(name, 0), b, 1) if name in batched else value
            for name, value in arguments.items()
        }
        for name, a, w in zip(whole._fields, run(one), whole, strict=True):
            if a is not None and w is not None:
                axis = 0 if name in ("feed_n", "coverage_n") else 1
                torch.testing.assert_close(a, w.narrow(axis, b, 1), rtol=1e-5, atol=1e-6)


@pytest.mark.cpu_kernels
@pytest.mark.parametrize("way", WAYS)
def test_threads_change_no_bit(way: str) -> None:
    arguments = call("lstm", way, B=19, H=40, S=21, T=6, dtype=torch.float32)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(run(arguments))
    finally:
        torch.set_num_threads(before)
    assert all(equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("cell", GATES)
def test_two_halves_equal_the_whole(cell: str, way: str) -> None:
    # z of the step before is the state, but for what residuals add.
    layers = 1 if way == "previous" else 2
    arguments = call(cell, way, ragged=False, layers=layers)
    whole = run(arguments)
    cut = {name: arguments[name] for name in arguments}
    first = run(cut | _steps(arguments, slice(0, 2)))
    states: dict[str, Any] = {"h_0": first.h_n, "c_0": first.c_n, "coverage_0": first.coverage_n}
    if way != "previous":
        states["feed_0"] = first.feed_n
    second = run(cut | states | _steps(arguments, slice(2, None)))
    for name in ("z", "context", "alignments", "attentional"):
        parts = [getattr(half, name) for half in (first, second)]
        if getattr(whole, name) is not None:
            torch.testing.assert_close(torch.cat(parts), getattr(whole, name))
    for name in ("h_n", "c_n", "feed_n", "coverage_n"):
        if getattr(whole, name) is not None:
            torch.testing.assert_close(getattr(second, name), getattr(whole, name))


def _steps(arguments: Call, steps: slice) -> Call:
    parts = {"x": arguments["x"][steps]}
    if "dropout_mask" in arguments:
        parts["dropout_mask"] = arguments["dropout_mask"][:, steps]
    return parts


@pytest.mark.parametrize("way", WAYS)
def test_rows_may_share_a_memory(way: str) -> None:
    arguments = call("gru", way, B=6, dtype=torch.float32)
    memory = torch.tensor([1, 0, 1, 1, 0, 0])
    shared, copied = dict(arguments), dict(arguments)
    for name in ("keys", "values", "source_lengths"):
        shared[name] = arguments[name][:2]
        copied[name] = shared[name][memory]
    assert equal(run(shared | {"memory": memory}), run(copied))
    shared["x"].requires_grad_()
    with pytest.raises(RuntimeError, match="memory"):
        run(shared | {"memory": memory}).z.sum().backward()


def test_padding_is_not_read() -> None:
    arguments = call("lstm", "coverage", layers=1)
    spoilt = converted(arguments, torch.float64)
    for b, (length, source) in enumerate(
        zip(arguments["lengths"].tolist(), arguments["source_lengths"].tolist(), strict=True)
    ):
        spoilt["x"][length:, b] = torch.nan
        spoilt["keys"][b, source:] = torch.nan
        spoilt["values"][b, source:] = torch.nan
    assert equal(run(arguments), run(spoilt))
    for each in (arguments, spoilt):
        for tensor in leaves(each).values():
            tensor.requires_grad_()
    gradients = [
        torch.autograd.grad(run(each).z.sum(), list(leaves(each).values()))
        for each in (arguments, spoilt)
    ]
    for a, b in zip(*gradients, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("cell", ["lstm", "gru", "gru_reset_before", "rnn_tanh"])
def test_gradcheck(cell: str, way: str) -> None:
    arguments = call(cell, way, T=3, B=2, S=3, H=4)
    names = list(leaves(arguments))
    values = [tensor.requires_grad_() for tensor in leaves(arguments).values()]

    def outputs(*given: Tensor) -> list[Tensor]:
        replaced = dict(zip(names, given, strict=True))
        weights = [replaced.pop(f"weights[{i}]") for i in range(4)]
        return [t for t in run(arguments | replaced | {"weights": weights}) if t is not None]

    assert torch.autograd.gradcheck(outputs, values, fast_mode=True)
    assert torch.autograd.gradgradcheck(outputs, values, fast_mode=True)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("cell", ["lstm", "gru", "gru_reset_before"])
def test_operator_passes_opcheck(cell: str, way: str) -> None:
    arguments = call(cell, way, layers=1)
    given = [arguments.get(name) for name in operator.Tensors._fields]
    for tensor in leaves(arguments).values():
        tensor.requires_grad_()
    options = (
        list(GATES).index(cell),
        1,
        arguments.get("heads", 1),
        0,
        arguments.get("query_first", False),
        1.0,
        True,
    )
    results = opcheck(
        torch.ops.seq2seq_ext.attention_decoder.default,
        (given[0], arguments["weights"], *given[1:], *options),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )
    assert set(results.values()) == {"SUCCESS"}


def test_one_graph_when_compiled() -> None:
    arguments = call("gru", "dot", layers=1, dtype=torch.float32)
    for tensor in leaves(arguments).values():
        tensor.requires_grad_()

    def loss(x: Tensor) -> Tensor:
        return run(arguments | {"x": x}).z.square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    leaf = list(leaves(arguments).values())
    got = torch.autograd.grad(compiled(arguments["x"]), leaf)
    want = torch.autograd.grad(loss(arguments["x"]), leaf)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


def test_function_transforms() -> None:
    arguments = call("lstm", "coverage", layers=1)
    leaf = leaves(arguments)

    def loss(x: Tensor) -> Tensor:
        return run(arguments | {"x": x}).z.square().sum()

    got = torch.func.grad(loss)(arguments["x"])
    (want,) = torch.autograd.grad(loss(leaf["x"].requires_grad_()), leaf["x"])
    torch.testing.assert_close(got, want)


WRONG = {
    "x": [torch.zeros(5, 3), torch.zeros(5, 3, 29), torch.zeros(0, 3, 28), torch.zeros(5, 3, 28)],
    "keys": [torch.zeros(3, 6), torch.zeros(3, 6, 7)],
    "values": [torch.zeros(3, 6, 4), torch.zeros(3, 5, 4, dtype=torch.float64)],
    "heads": [0, 2, -1],
    "residual": [-1, 2, 7],
    "scale": [float("nan"), float("inf")],
    "lengths": [torch.tensor([6, 0, 0]), torch.tensor([-1, 0, 0]), torch.tensor([1, 2])],
    "source_lengths": [torch.tensor([7, 0, 0]), torch.tensor([1.0, 2.0, 3.0])],
    "memory": [torch.tensor([0, 1, 3]), torch.tensor([0, -1, 2])],
    "b_hn": [torch.zeros(2, 7, dtype=torch.float64)],
    "c_0": [torch.zeros(2, 3, 8, dtype=torch.float64)],
    "h_0": [torch.zeros(1, 3, 7, dtype=torch.float64)],
    "feed_0": [torch.zeros(3, 4, dtype=torch.float64)],
    "coverage_0": [torch.zeros(3, 6, dtype=torch.float64)],
    "w_coverage": [torch.zeros(7, dtype=torch.float64)],
    "w_query": [torch.zeros(6, 7, dtype=torch.float64)],
    "w_out": [torch.zeros(5, 10, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)],
    "b_out": [torch.zeros(6, dtype=torch.float64)],
    "bias": [torch.zeros(2, 27, dtype=torch.float64)],
    "dropout_mask": [torch.zeros(2, 5, 3, 7, dtype=torch.float64)],
    "query_first": [True],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in WRONG.items() for value in values]
)
def test_what_is_wrong_is_named(name: str, value: Any) -> None:
    named = "feed_0|w_out" if name == "query_first" else name
    with pytest.raises(RuntimeError, match=rf"^({named}|weights\[0\]): expected"):
        run(call("lstm", "dot") | {name: value})


def test_wrong_weights_are_named() -> None:
    arguments = call("lstm", "dot")
    arguments["weights"][2] = torch.zeros(28, 8, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"weights\[2\]: expected shape \(28, 7\)"):
        run(arguments)
    with pytest.raises(RuntimeError, match="weights: expected 2 tensors"):
        attention_decoder(
            arguments["x"], arguments["weights"][:3], arguments["keys"], arguments["values"],
            cell="lstm",
        )  # fmt: skip


@given(
    cell=st.sampled_from(list(GATES)),
    way=st.sampled_from(WAYS),
    layers=st.integers(1, 3),
    T=st.integers(1, 6),
    B=st.integers(0, 9),
    S=st.integers(0, 20),
    H=st.sampled_from([2, 8, 17]),
    ragged=st.booleans(),
)
def test_any_size_equals_the_reference(
    cell: str, way: str, layers: int, T: int, B: int, S: int, H: int, ragged: bool
) -> None:
    arguments = call(cell, way, layers=layers, T=T, B=B, S=S, H=H, ragged=ragged and S > 2)
    if "lengths" in arguments:
        arguments["lengths"].clamp_(max=T)
        arguments["source_lengths"].clamp_(max=S)
    with torch.no_grad():
        for a, b in zip(run(arguments), expected(arguments), strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)
