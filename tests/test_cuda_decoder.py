"""The decoder that attends through the CUDA kernels: every dtype, sizes beyond a warp, devices.

On a GPU; or without one where ``pytest --cuda-on-cpu LIBRARY`` has put the kernels in the place of
the CPU's (``make test-cuda-on-cpu``), with the tests of ``test_attention_decoder.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from decoder_cases import GATES, WAYS, Call, call, converted, expected, outcome, run
from torch import Tensor

from seq2seq_ext.cuda_graphs import capture

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
INTEGERS = ("lengths", "source_lengths", "memory")


@pytest.fixture
def device(request: pytest.FixtureRequest) -> str:
    if torch.cuda.is_available():
        return "cuda"
    if request.config.getoption("--cuda-on-cpu") is None:
        pytest.skip("wants an NVIDIA GPU, or --cuda-on-cpu, see make test-cuda-on-cpu")
    return "cpu"


def moved(arguments: Call, device: str, but: Sequence[str] = ()) -> Call:
    """The same on a device, but for what stays where it is."""

    def move(value: Any) -> Any:
        if isinstance(value, list):
            return [move(item) for item in value]
        return value.to(device) if isinstance(value, Tensor) else value

    return {name: value if name in but else move(value) for name, value in arguments.items()}


def check(arguments: Call, device: str) -> None:
    """Errors are at most twice those of plain torch in the dtype, or some ulp of a tensor."""
    ours = outcome(run, moved(arguments, device))
    plain = outcome(expected, moved(arguments, device))
    exact = outcome(expected, converted(arguments, torch.float64))
    dtype = arguments["x"].dtype
    # In float64 plain torch is the truth itself, which leaves the ulp alone.
    floor = (64 if dtype == torch.float64 else 16) * torch.finfo(dtype).eps
    for name, want in exact.items():
        if want.numel() == 0:
            continue

        def error(got: Tensor, want: Tensor = want) -> float:
            return float((got.cpu().double() - want).abs().max())

        allowed = 2 * error(plain[name]) + floor * float(want.abs().max())
        assert error(ours[name]) <= allowed, f"{name}: {error(ours[name])}, allowed {allowed}"


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("cell", GATES)
def test_errs_no_more_than_torch(cell: str, way: str, dtype: torch.dtype, device: str) -> None:
    check(call(cell, way, layers=1, dtype=dtype), device)
    check(call(cell, way, layers=2, dtype=dtype, B=2, S=35, H=34, T=3), device)


@pytest.mark.parametrize("way", WAYS)
def test_repeats_are_equal_to_the_bit(way: str, device: str) -> None:
    arguments = moved(call("gru", way, dtype=torch.float32, B=4, S=21, H=40), device)
    once, again = (outcome(run, moved(arguments, device)) for _ in range(2))
    assert all(torch.equal(once[name], again[name]) for name in once)


@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_kept_where_no_gradient_is_wanted(way: str, device: str) -> None:
    arguments = moved(call("gru_reset_before", way, dtype=torch.float32, layers=3), device)
    kept = outcome(run, moved(arguments, device))
    with torch.no_grad():
        results = [t for t in run(arguments) if t is not None]
    assert all(torch.equal(t, kept[f"result {i}"]) for i, t in enumerate(results))


@pytest.mark.cuda
@pytest.mark.parametrize("way", WAYS)
def test_integers_on_the_device_are_kept_within_their_bounds(way: str) -> None:
    arguments = call("lstm", way, B=5, S=9, T=4) | {"memory": torch.tensor([1, 0, 2, 2, 1])}
    for name in ("keys", "values", "source_lengths"):
        arguments[name] = arguments[name][:3]
    wild = dict(arguments) | {
        "lengths": torch.tensor([9, 2, -3, 1, 4]),
        "source_lengths": torch.tensor([3, 90, -1]),
        "memory": torch.tensor([1, -5, 7, 2, 1]),
    }
    arguments["lengths"] = torch.tensor([4, 2, 0, 1, 4])
    arguments["source_lengths"] = torch.tensor([3, 9, 0])
    here = run(moved(arguments, "cuda", INTEGERS))
    there, kept = run(moved(arguments, "cuda")), run(moved(wild, "cuda"))
    for a, b, c in zip(here, there, kept, strict=True):
        if a is not None:
            assert torch.equal(a, b)
            assert torch.equal(a, c)


@pytest.mark.cuda
@pytest.mark.parametrize("way", WAYS)
def test_a_call_can_be_captured(way: str) -> None:
    arguments = moved(call("lstm", way, B=4, S=20, H=40, dtype=torch.float32), "cuda")
    with torch.no_grad():
        replay = capture(lambda: run(arguments))
        arguments["x"].copy_(torch.randn_like(arguments["x"]))
        for a, b in zip(replay(), run(arguments), strict=True):
            assert (a is None) == (b is None)
            assert a is None or torch.equal(a, b)
