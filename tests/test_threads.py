"""Calls beside other programs, in threads, in forked workers: none hangs, and all agree."""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

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
