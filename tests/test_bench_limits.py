"""What the machine can do at most, what a case asks of it, and how long that takes at least."""

from __future__ import annotations

import dataclasses
import math
import os

import pytest
import torch
from bench_cases import LIMITS, case_of, results_of
from torch.utils.flop_counter import FlopCounterMode

from seq2seq_ext import _C, reference
from seq2seq_ext.benchmark import limits, shapes, workloads
from seq2seq_ext.benchmark.shapes import SHAPE_SETS, cases

# limits


def test_measured_limits_are_above_zero_and_named():
    measured = limits.measure_limits(1, seconds=0.005, product_size=64)
    assert measured.threads == 1
    assert measured.peak >= measured.fma > 0
    assert measured.product > 0
    assert list(measured.bandwidth) == [*measured.capacity, "memory"] or not measured.bandwidth
    assert all(rate > 0 for rate in measured.bandwidth.values())


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: _C.measure_fma_peak(0, 0.1), "threads"),
        (lambda: _C.measure_fma_peak(1, 0.0), "seconds"),
        (lambda: _C.measure_fma_peak(1, math.nan), "seconds"),
        (lambda: _C.measure_read_bandwidth(0, 1, 0.1), "bytes_per_thread"),
    ],
)
def test_limits_refuse(call, name):
    with pytest.raises(ValueError, match=f"{name} must be above 0"):
        call()


def test_caches_are_shared_out(tmp_path):
    for index, (level, kind, size, sharing) in enumerate(
        [
            (1, "Data", "48K", "0"),
            (1, "Instruction", "32K", "0"),
            (2, "Unified", "2M", "0"),
            (3, "Unified", "32M", "0-1,4"),
        ]
    ):
        folder = tmp_path / f"index{index}"
        folder.mkdir()
        for name, text in (
            ("level", level),
            ("type", kind),
            ("size", size),
            ("shared_cpu_list", sharing),
        ):
            (folder / name).write_text(f"{text}\n")
    # Shared by three, but by no more than there are threads.
    assert limits.cache_capacities(1, tmp_path) == {"L1": 48 << 10, "L2": 2 << 20, "L3": 32 << 20}
    if len(os.sched_getaffinity(0)) > 1:
        assert limits.cache_capacities(2, tmp_path)["L3"] == 16 << 20
    assert limits.cache_capacities(1, tmp_path / "nowhere") == {}


def test_buffers_lie_within_their_level_and_beyond_the_one_below():
    sizes = limits.buffer_sizes(LIMITS.capacity)
    assert list(sizes) == ["L1", "L2", "L3", "memory"]
    below = 0
    for name, size in LIMITS.capacity.items():
        assert below < sizes[name] < size
        below = size
    assert sizes["memory"] > below
    assert limits.buffer_sizes({}) == {}


def test_least_time_is_that_of_the_slower_of_operations_and_weights():
    # 512 KiB a thread: second level, 1 MiB x 50 sweeps at 500 GB/s.
    weights = {"weight_bytes": 1 << 20, "sweeps": 50}
    moving = 50 * ((1 << 20) - 2 * (48 << 10)) / 500e9
    assert LIMITS.seconds(flop=1e6, **weights) == pytest.approx(moving)
    assert LIMITS.seconds(flop=1e9, **weights) == pytest.approx(1 / 400)
    unknown = dataclasses.replace(LIMITS, bandwidth={}, capacity={})
    assert unknown.seconds(flop=1e6, **weights) == pytest.approx(1e6 / 400e9)


@pytest.mark.parametrize(
    ("share", "beyond", "rate"),
    [
        (16 << 10, 0, 800e9),
        # All of it comes through the first level, and little through the second.
        (49 << 10, 0, 800e9),
        (1 << 20, 48 << 10, 500e9),
        # A little more than the caches hold, then much.
        (1200 << 10, 48 << 10, 500e9),
        (3 << 20, (1 << 20) + (48 << 10), 200e9),
        (40 << 20, (17 << 20) + (48 << 10), 50e9),
    ],
)
def test_a_level_brings_what_those_below_do_not_hold(share, beyond, rate):
    assert LIMITS.sweep_seconds(2 * share) == pytest.approx(2 * (share - beyond) / rate)


def test_more_weights_never_take_less_time():
    seconds = [LIMITS.sweep_seconds(size) for size in range(0, 64 << 20, 8 << 10)]
    assert seconds == sorted(seconds)


def test_better_limits():
    rates = {"L1": 1.0, "L2": 900e9, "L3": 900e9, "memory": 900e9}
    other = dataclasses.replace(LIMITS, fma=500e9, product=1e9, bandwidth=rates)
    best = LIMITS.better_of(other)
    assert (best.fma, best.product) == (500e9, 300e9)
    assert best.bandwidth == {"L1": 800e9, "L2": 900e9, "L3": 900e9, "memory": 900e9}


# shapes


def operations_of(case):
    """Those of the matrix products that plain torch computes for a case."""
    s = case.shape
    layer = workloads.layer_of(case)
    x = torch.randn(s.time_steps, s.batch_size, s.input_size, requires_grad=case.training)
    rows = s.num_layers * s.num_directions
    h_0, c_0 = torch.zeros(2, rows, s.batch_size, s.hidden_size)
    cell = {"LSTM": "lstm", "GRU": "gru", "RNN": "rnn_tanh"}[case.cell]
    options = {"cell": cell, "num_layers": s.num_layers, "bidirectional": s.num_directions == 2}
    weights = [weight.requires_grad_(case.training) for weight in layer.parameters()]
    with FlopCounterMode(display=False) as counter:
        y, _, _ = reference.rnn(x, h_0, c_0 if cell == "lstm" else None, weights, **options)
        if case.training:
            torch.autograd.grad(y.sum(), [x, *weights])
    return counter.get_total_flops()


@pytest.mark.parametrize("work", shapes.WORKS)
@pytest.mark.parametrize("cell", shapes.CELLS)
def test_operations_are_those_of_plain_torch(cell, work):
    for case in cases(["quick", "odd", "step"], cells=[cell], works=[work], threads=[1]):
        T = min(case.shape.time_steps, 3)
        case = dataclasses.replace(case, shape=dataclasses.replace(case.shape, time_steps=T))
        assert case.flop == operations_of(case)


@pytest.mark.parametrize("cell", shapes.CELLS)
def test_recurrent_weights_are_needed_in_every_step(cell):
    for case in cases(["odd", "step"], cells=[cell], threads=[1]):
        layer = workloads.layer_of(case)
        recurrent = sum(p.numel() for n, p in layer.named_parameters() if "weight_hh" in n)
        T = case.shape.time_steps
        # Backward has no use for those of the first step.
        steps = [T, T - 1] if case.training else [T]
        assert [p.sweeps * case.recurrent_weights for p in case.passes] == [
            recurrent * each for each in steps
        ]


def test_only_real_steps_are_counted():
    case = case_of(kind="lengths", time_steps=200)
    assert int(case.lengths.max()) == 200
    assert 32 < case.real_steps == int(case.lengths.sum()) < 0.6 * 32 * 200


def test_cases_of_sets():
    found = cases(["standard", "quick"], threads=[1, 2])
    assert len(found) == len(set(found)) == 3 * 2 * 16 * 2  # quick is part of standard
    assert {case.kind for case in cases(list(SHAPE_SETS), threads=[1])} == {
        "dense",
        "odd",
        "lengths",
        "resets",
        "step",
        "prepack",
    }
    (case,) = cases(
        ["standard"],
        cells=["GRU"],
        works=["training"],
        threads=[3],
        hidden_sizes=[96],
        batch_sizes=[4],
        time_steps=[7],
    )
    expected = case_of(
        cell="GRU", work="training", threads=3, hidden_size=96, batch_size=4, time_steps=7
    )
    assert case == expected
    assert all(c.shape.time_steps == 1 for c in cases(["step"], threads=[1], time_steps=[9]))
    with pytest.raises(ValueError, match="the shapes of 'odd' are fixed"):
        cases(["odd"], threads=[1], hidden_sizes=[8])


@pytest.mark.parametrize("cell", shapes.CELLS)
def test_limits_of_training_add_backward_and_those_of_stacks_their_layers(cell):
    sizes = {"hidden_size": 4096, "batch_size": 1, "time_steps": 30}
    limit = results_of().limit_seconds
    forward = limit(case_of(cell=cell, **sizes))
    assert forward > 2 * case_of(cell=cell, **sizes).flop / LIMITS.peak
    training = limit(case_of(cell=cell, work="training", **sizes))
    assert training == pytest.approx(forward * (30 + 29) / 30)
    stack = case_of(cell=cell, num_layers=3, num_directions=2, **sizes)
    assert limit(stack) == pytest.approx(6 * forward)
    # Where operations count, backward does twice as many, but for those of the first state.
    sizes |= {"batch_size": 512}
    forward = limit(case_of(cell=cell, **sizes))
    training = limit(case_of(cell=cell, work="training", **sizes))
    assert training == pytest.approx(forward * (3 - 1 / 60))


def test_limits_of_narrow_weights_are_of_fewer_bytes_and_of_products_of_bytes():
    limit = results_of().limit_seconds
    large = case_of(hidden_size=512, batch_size=512)
    assert limit(large) == pytest.approx(limit(large, torch.bfloat16))
    assert limit(large) == pytest.approx(4 * limit(large, torch.int8))
    case = case_of(hidden_size=4096, input_size=1, batch_size=1)
    for dtype, weight_bytes in ((torch.float32, 4), (torch.bfloat16, 2), (torch.int8, 1)):
        sweep = LIMITS.sweep_seconds(weight_bytes * 4 * 4096**2)
        assert results_of().limit_seconds(case, dtype) == pytest.approx(50 * sweep)
