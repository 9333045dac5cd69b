"""How the benchmarks are run by pytest-benchmark: briefly, warmed up, and never unchecked.

`measure` times one side and compares our results with the peer's, so that no speed is bought with
a wrong answer and ``--benchmark-disable`` is a test of its own. pytest-benchmark times the sides
one after another; figures to be quoted come from compare.py, where they take turns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

import seq2seq_ext

Measure = Callable[..., None]

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(_HERE):
            item.add_marker(pytest.mark.benchmark(max_time=0.25, min_rounds=5, warmup=True))


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    machine_info["torch"] = torch.__version__
    machine_info["torch_threads"] = torch.get_num_threads()
    machine_info["instruction_set"] = seq2seq_ext.cpu_isa()


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Equal weights and inputs for all sides of a group; the generator is left as it was."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        yield


@pytest.fixture
def measure(benchmark: BenchmarkFixture) -> Measure:
    """Time ``calls[side]`` in the group named; check it against the first call, the peer's."""

    def run(
        group: str,
        calls: Mapping[str, Callable[[], Any]],
        side: str,
        compared: Callable[[Any], Any] = lambda result: result,
    ) -> None:
        benchmark.group = group
        result = benchmark(calls[side])
        peer = next(iter(calls))
        if side != peer:
            expected = calls[peer]()
            _check(_tensors(compared(result)), _tensors(compared(expected)), f"{side}, {group}")

    return run


def _tensors(result: Any) -> list[Tensor]:
    """All tensors of a result, tuples within tuples unfolded."""
    if isinstance(result, Tensor):
        return [result]
    return [tensor for part in result if part is not None for tensor in _tensors(part)]


def _check(actual: list[Tensor], expected: list[Tensor], what: str) -> None:
    """Equal but for rounding. Loosely: how exact the kernels are is what tests/ is about."""
    assert actual, what
    assert len(actual) == len(expected), what
    for a, e in zip(actual, expected, strict=True):
        atol = 1e-4 * float(e.abs().max()) if e.is_floating_point() else 0.0
        torch.testing.assert_close(a, e, rtol=0.0, atol=atol, msg=lambda text: f"{what}: {text}")
