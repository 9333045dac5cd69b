"""The CUDA operators, glue and kernels, on CPU tensors: every cell, dtype and mask, both paths.

They run where ``pytest --cuda-on-cpu LIBRARY`` has put them in the place of the CPU's kernels
(``make test-cuda-on-cpu``), every GPU thread as a fiber, so sizes are small.  The other tests named
there run through them as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from seq2seq_ext import ops, reference

GATES = {"lstm": 4, "gru": 3, "gru_reset_before": 3, "rnn_tanh": 1, "rnn_relu": 1}
# General: library products and a kernel a step. The others share the persistent kernels' work
# differently: tiles, slices, groups, sequences of a group.
WAYS = {
    "general": (1, 0, 0, 0, 0),
    "one_tile": (2, 1, 4, 2, 3),
    "two_tiles": (2, 2, 4, 1, 0),
    "many_slices": (2, 1, 8, 1, 0),
}


@pytest.fixture(autouse=True)
def cuda_on_cpu(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.config.getoption("--cuda-on-cpu") is None:
        pytest.skip("runs with --cuda-on-cpu, see make test-cuda-on-cpu")
    yield
    torch.ops.seq2seq_ext.force_cuda_plan(0, 0, 0, 0, 0)


class Call:
    """A call of the operator and its outputs' cotangents, drawn at random."""

    def __init__(
        self,
        cell: str,
        dtype: torch.dtype,
        T: int,
        B: int,
        I: int,
        H: int,
        L: int = 1,
        D: int = 1,
        P: int | None = None,
        mode: str = "dense",
        states: bool = True,
        bias: bool = True,
    ) -> None:
        self.cell, self.L, self.D = cell, L, D
        G, out = GATES[cell], P or H
        shapes: list[tuple[int, ...]] = []
        for layer in range(L):
            for _ in range(D):
                shapes += [(G * H, I if layer == 0 else D * out), (G * H, out)]
                shapes += [(G * H,)] * 2 if bias else []
                shapes += [(P, H)] if P else []
        bound = H**-0.5
        self.weights = [torch.empty(shape).uniform_(-bound, bound).to(dtype) for shape in shapes]
        x = torch.randn(T, B, I)
        self.lengths = self.batch_sizes = self.resets = self.mask = None
        if mode == "lengths":
            self.lengths = torch.randint(0, T + 1, (B,))
        if mode == "packed":
            lengths = torch.randint(1, T + 1, (B,)).sort(descending=True).values
            self.batch_sizes = (torch.arange(int(lengths.max()))[:, None] < lengths).sum(1)
            x = torch.cat([x[t, :n] for t, n in enumerate(self.batch_sizes.tolist())])
        if mode in ("resets", "packed"):
            self.resets = torch.rand(x.shape[:-1]) < 0.3
        if L > 1:
            self.mask = (torch.rand(L - 1, *x.shape[:-1], D * out) < 0.7).to(dtype)
        self.x = x.to(dtype)
        self.h_0 = self.c_0 = None
        if states or mode == "packed":
            self.h_0 = torch.randn(L * D, B, out).to(dtype)
            self.c_0 = torch.randn(L * D, B, H).to(dtype) if cell == "lstm" else None
        self.sizes = (L * D, B, out, H)

    def run(self, function: Any, dtype: torch.dtype) -> list[Tensor]:
        """Outputs and the gradients of all inputs, of the operator or the reference."""

        def leaf(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(dtype).requires_grad_()

        x, h_0, c_0 = leaf(self.x), leaf(self.h_0), leaf(self.c_0)
        weights = [leaf(weight) for weight in self.weights]
        mask = None if self.mask is None else self.mask.to(dtype)
        outputs = [t for t in function(x, h_0, c_0, weights, mask) if t is not None]
        generator = torch.Generator().manual_seed(1)
        seeds = [torch.randn(t.shape, generator=generator).to(self.x.dtype) for t in outputs]
        inputs = [t for t in (x, h_0, c_0, *weights) if t is not None]
        gradients = torch.autograd.grad(outputs, inputs, [seed.to(dtype) for seed in seeds])
        return [*outputs, *gradients]

    def ours(self) -> list[Tensor]:
        def call(x: Any, h_0: Any, c_0: Any, weights: Any, mask: Any) -> Any:
            sequence = (self.lengths, self.batch_sizes, self.resets, mask)
            return ops.rnn(x, h_0, c_0, weights, self.cell, self.L, self.D == 2, *sequence)

        return self.run(call, self.x.dtype)

    def expected(self, dtype: torch.dtype) -> list[Tensor]:
        layers, B, out, H = self.sizes

        def call(x: Any, h_0: Any, c_0: Any, weights: Any, mask: Any) -> Any:
            if h_0 is None:
                h_0 = x.new_zeros(layers, B, out)
                c_0 = x.new_zeros(layers, B, H) if self.cell == "lstm" else None
            return reference.rnn(
                x,
                h_0,
                c_0,
                weights,
                cell=self.cell,
                num_layers=self.L,
                bidirectional=self.D == 2,
                lengths=self.lengths,
                batch_sizes=self.batch_sizes,
                resets=self.resets,
                dropout_mask=mask,
            )

        return self.run(call, dtype)

    def check(self) -> None:
        """Errors are at most twice those of plain torch in the dtype, or 16 ulp of a tensor."""
        dtype = self.x.dtype
        ours = self.ours()
        exact, plain = self.expected(torch.float64), self.expected(dtype)
        for index, (a, b, c) in enumerate(zip(ours, exact, plain, strict=True)):
            if a.numel() == 0:
                continue
            error = (a.double() - b).abs().max().item()
            allowed = 2 * (c.double() - b).abs().max().item()
            allowed += 16 * torch.finfo(dtype).eps * b.abs().max().item()
            assert error <= allowed, f"tensor {index}: error {error:.3g}, allowed {allowed:.3g}"


DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mode", ["dense", "lengths", "packed", "resets"])
@pytest.mark.parametrize("cell", GATES)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def test_equals_reference(dtype: torch.dtype, cell: str, mode: str, way: str) -> None:
    torch.ops.seq2seq_ext.force_cuda_plan(*WAYS[way])
    for T, B, H, L, D, bias in (
        (4, 3, 33, 1, 2, True),
        (3, 9, 8, 2, 1, False),
        (2, 1, 24, 2, 2, True),
    ):
        Call(cell, dtype, T, B, 5, H, L, D, mode=mode, bias=bias, states=B != 9).check()


@pytest.mark.parametrize("mode", ["dense", "lengths", "packed", "resets"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def test_projection_equals_reference(dtype: torch.dtype, mode: str) -> None:
    for T, B, H, P, L, D in ((4, 3, 12, 5, 1, 2), (3, 2, 16, 8, 2, 1)):
        Call("lstm", dtype, T, B, 5, H, L, D, P, mode=mode).check()


@pytest.mark.parametrize("way", WAYS)
def test_runs_are_bitwise_equal(way: str) -> None:
    torch.ops.seq2seq_ext.force_cuda_plan(*WAYS[way])
    call = Call("lstm", torch.float16, 5, 20, 4, 24, 2, 2, mode="lengths")
    for a, b in zip(call.ours(), call.ours(), strict=True):
        assert torch.equal(a, b)


def test_tf32_rounds_the_recurrent_product_and_nothing_else() -> None:
    torch.ops.seq2seq_ext.force_cuda_plan(*WAYS["one_tile"])
    call = Call("gru", torch.float32, 3, 2, 4, 24)
    options = (call.x, call.h_0, None, call.weights, 1, 1, False, False, None, 0, *(None,) * 4)
    exact = torch.ops.seq2seq_ext.rnn(*options, False)[0]
    rounded = torch.ops.seq2seq_ext.rnn(*options, True)[0]
    difference = (exact - rounded).abs().max().item()
    assert 0 < difference < 2**-9


@pytest.mark.parametrize("way", ["general", "one_tile"])
def test_nan_in_states_and_inputs_ends(way: str) -> None:
    """A NaN is a number that has come: nobody waits for it, and it stays in its sequence."""
    torch.ops.seq2seq_ext.force_cuda_plan(*WAYS[way])
    for dtype in DTYPES:
        call = Call("lstm", dtype, 3, 3, 2, 24)
        assert call.h_0 is not None
        call.h_0[0, 1] = float("nan")
        if dtype == torch.float32:  # the bits that mean "not yet" among the kernels
            call.h_0.view(torch.int32)[0, 1] = -1
        y, *_ = call.ours()
        assert y[:, 1].isnan().all()
        assert not y[:, [0, 2]].isnan().any()


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_an_occupied_device_takes_the_general_way(
    cell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks that wait for each other have to run at the same time, or not at all."""
    call = Call(cell, torch.float32, 3, 2, 4, 24, 2)
    torch.ops.seq2seq_ext.force_cuda_plan(*WAYS["general"])
    general = call.ours()
    torch.ops.seq2seq_ext.force_cuda_plan(*WAYS["one_tile"])
    persistent = call.ours()
    monkeypatch.setenv("CUDA_CPU_OCCUPIED", "100000")
    occupied = call.ours()
    assert all(torch.equal(a, b) for a, b in zip(occupied, general, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(persistent, general, strict=True))


def test_empty_batches() -> None:
    for cell in GATES:
        for tensor in Call(cell, torch.float32, 3, 0, 2, 8, states=False).ours():
            assert tensor.numel() == 0 or not tensor.any()


def test_impossible_plans_are_refused() -> None:
    for plan in ((1, 1, 0, 0, 0), (0, 3, 0, 0, 0), (0, 1, 2, 0, 0), (0, 0, 0, -1, 0)):
        with pytest.raises(ValueError, match="plan: expected"):
            torch.ops.seq2seq_ext.force_cuda_plan(*plan)
