"""What every test relies on: one seed, a state of torch that no test leaks, GPU marks."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

# Examples are drawn alike in every run, so that a failure is one that everybody sees.
settings.register_profile(
    "seq2seq_ext",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.differing_executors],
)
settings.load_profile("seq2seq_ext")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--cuda-on-cpu",
        metavar="LIBRARY",
        help="run the CUDA operators, built for CPU tensors, in place of the CPU kernels",
    )


def pytest_configure(config: pytest.Config) -> None:
    if library := config.getoption("--cuda-on-cpu"):
        import seq2seq_ext.kernels  # noqa: F401 - defines the operators that the library implements

        torch.ops.load_library(library)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--cuda-on-cpu"):
        skip = pytest.mark.skip(reason="is about the CPU kernels")
        for item in items:
            if "cpu_kernels" in item.keywords:
                item.add_marker(skip)
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs an NVIDIA GPU; torch sees none")
        for item in items:
            if "cuda" in item.keywords:
                item.add_marker(skip)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Seed torch and random for the test, and put back what was there, the dtype, the threads."""
    torch_state, random_state = torch.get_rng_state(), random.getstate()
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    torch.manual_seed(0)
    random.seed(0)
    yield
    torch.set_default_dtype(dtype)
    torch.set_num_threads(threads)
    torch.set_rng_state(torch_state)
    random.setstate(random_state)
