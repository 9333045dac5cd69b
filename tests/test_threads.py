"""Calls beside other programs, within other parallel work, in workers: none hangs, all agree."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nested_calls
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import seq2seq_ext as s2s


def layer_and_input() -> tuple[s2s.LSTM, torch.Tensor]:
    torch.manual_seed(0)
    return s2s.LSTM(32, 96, num_layers=2), torch.randn(30, 6, 32)


class Outputs(Dataset):
    """Items that a layer computes in the worker's process."""

    def __init__(self) -> None:
        self.layer, self.x = layer_and_input()

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        with torch.no_grad():
            return self.layer(self.x * (index + 1))[0]


@pytest.mark.parametrize("threads_in_worker", [1, 2])
def test_forked_workers_compute_what_their_parent_does(threads_in_worker):
    data = Outputs()
    expected = torch.stack([data[index] for index in range(len(data))])

    def use_threads(_: int) -> None:
        torch.set_num_threads(threads_in_worker)

    loader = DataLoader(
        data,
        num_workers=2,
        worker_init_fn=use_threads,
        multiprocessing_context="fork",
        timeout=60,
    )
    assert torch.equal(torch.cat(list(loader)), expected)


def test_python_threads_call_one_layer_at_once():
    layer, x = layer_and_input()

    def results(scale: float) -> list[torch.Tensor]:
        leaf = (x * scale).requires_grad_()
        y = layer(leaf)[0]
        return [y, *torch.autograd.grad(y.sum(), [leaf, *layer.parameters()])]

    scales = [1.0, 2.0, 3.0, 4.0] * 6
    expected = {scale: results(scale) for scale in scales[:4]}
    with ThreadPoolExecutor(4) as pool:
        for scale, got in zip(scales, pool.map(results, scales), strict=True):
            for a, b in zip(got, expected[scale], strict=True):
                assert torch.equal(a, b)


def test_a_process_on_every_core_changes_no_bit_and_stops_no_call():
    layer, x = layer_and_input()
    s2s.set_plan(split="units")
    try:
        with torch.no_grad():
            expected = layer(x)[0]
            burners = [
                subprocess.Popen([sys.executable, "-c", "while True: pass"])
                for _ in range(torch.get_num_threads())
            ]
            try:
                end = time.monotonic() + 2
                calls = 0
                while time.monotonic() < end:
                    assert torch.equal(layer(x)[0], expected)
                    calls += 1
            finally:
                for burner in burners:
                    burner.kill()
                    burner.wait()
        # Each takes half a millisecond alone. At one time slice a step it would be a few.
        assert calls >= 20
    finally:
        s2s.set_plan()


@pytest.fixture(scope="module")
def run_apart(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., None]:
    """Runs one of the ways of nested_calls.py in a process of its own, which may not hang."""
    file = tmp_path_factory.mktemp("nested") / "expected.pt"
    torch.save(nested_calls.results(nested_calls.calls()), file)

    def run(way: str, environment: dict[str, str], seconds: float = nested_calls.SECONDS) -> None:
        process = subprocess.Popen(
            [sys.executable, str(Path(nested_calls.__file__)), way, str(file)],
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # workers of its own included
            pytest.fail(f"hangs:\n{process.communicate()[0]}")
        assert process.returncode == 0, output

    return run


@pytest.mark.parametrize(
    ("way", "environment"),
    [
        *((way, {}) for way in nested_calls.WAYS),
        ("plain", {"OMP_NUM_THREADS": "8"}),
        ("python_threads", {"OMP_NUM_THREADS": "8"}),
        ("plain", {"OMP_NUM_THREADS": "8", "OMP_THREAD_LIMIT": "3"}),
        ("plain", {"OMP_NUM_THREADS": "8", "OMP_DYNAMIC": "true"}),
        ("openmp_region", {"OMP_NESTED": "true"}),
        ("openmp_region", {"OMP_MAX_ACTIVE_LEVELS": "3", "OMP_NUM_THREADS": "2,2,2"}),
        ("openmp_region", {"OMP_MAX_ACTIVE_LEVELS": "1"}),
        ("plain", {"OMP_MAX_ACTIVE_LEVELS": "0"}),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(map("=".join, value.items())),
)
def test_calls_within_parallel_work_end_and_agree(run_apart, way, environment):
    run_apart(way, environment)


def test_what_hangs_and_what_differs_fails(run_apart):
    with pytest.raises(pytest.fail.Exception, match="hangs"):
        run_apart("wait_for_ever", {}, seconds=0.5)
    with pytest.raises(AssertionError, match="AssertionError: rows: "):
        run_apart("other_weights", {})
