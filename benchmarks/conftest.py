"""How the benchmarks are run by pytest-benchmark: briefly, warmed up, and never unchecked.

`measure` times one side and compares its results with the peer's, so that no speed is bought with a
wrong answer and ``--benchmark-disable`` is a test of its own. pytest-benchmark times the sides one
after another: good for work on one shape. Figures to be quoted come from ``seq2seq-ext bench``,
where they take turns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

import seq2seq_ext
from seq2seq_ext.benchmark.workloads import Contestant, check

Measure = Callable[[str, Sequence[Contestant], str], None]

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
    """Time the contestant named, in the group named; check it against the first, the peer."""

    def run(group: str, entrants: Sequence[Contestant], name: str) -> None:
        benchmark.group = group
        by_name = {entrant.name: entrant for entrant in entrants}
        benchmark(by_name[name].call)
        if name != entrants[0].name:
            check([entrants[0], by_name[name]], group)

    return run
