"""Measuring: fair turns, contestants that agree with torch, a core that is kept busy."""

from __future__ import annotations

import dataclasses
import math
import os
import subprocess
import threading
import time

import pytest
import torch
from bench_cases import needs_peers, tiny

from seq2seq_ext.benchmark import busy, measuring, peers, shapes, timing, workloads
from seq2seq_ext.benchmark.timing import take_turns
from seq2seq_ext.benchmark.workloads import (
    OURS,
    PREPACKED,
    TORCH,
    Contestant,
    WrongResultError,
    check,
)

# turns


def test_turns_rotate_and_every_sample_is_of_one_call():
    told = []
    calls = [lambda name=name: (told.append(name), time.sleep(0.002)) for name in "abc"]
    timings = take_turns(calls, repeats=3, turn_seconds=1e-9, sample_seconds=1e-3)
    # One warm-up call and one sample of one call in each turn; whoever began comes last next time.
    assert "".join(told)[-18:] == "aabbccbbccaaccaabb"
    for each in timings:
        assert 0.002 <= each.best <= each.median
        assert each.best <= each.mean
        assert each.spread >= 0.0


def test_short_calls_share_a_sample():
    (each,) = take_turns([lambda: None], repeats=2)
    assert each.best < 1e-4


@pytest.mark.parametrize(
    ("calls", "repeats", "message"),
    [([], 1, "calls must hold at least one call"), ([print], 0, "repeats must be at least 1")],
)
def test_turns_refuse(calls, repeats, message):
    with pytest.raises(ValueError, match=message):
        take_turns(calls, repeats=repeats)


def test_rest_waits_for_threads_that_spin():
    end = time.perf_counter() + 0.15

    def spin():
        while time.perf_counter() < end:
            pass

    thread = threading.Thread(target=spin)
    thread.start()
    timing.rest()
    assert time.perf_counter() >= end
    thread.join()
    # And not for those that sleep.
    asleep = threading.Event()
    sleeper = threading.Thread(target=asleep.wait)
    sleeper.start()
    start = time.perf_counter()
    timing.rest()
    asleep.set()
    sleeper.join()
    assert time.perf_counter() - start < 0.5


# contestants


@needs_peers
@pytest.mark.parametrize("kind", ["dense", "odd", "lengths", "resets", "step"])
@pytest.mark.parametrize("work", shapes.WORKS)
@pytest.mark.parametrize("cell", shapes.CELLS)
def test_all_contestants_agree_with_torch(cell, work, kind):
    case = tiny(kind, cell, work)
    entrants = workloads.contestants(case, list(peers.RUNTIMES))
    check(entrants, case)
    names = [entrant.name for entrant in entrants]
    assert names[:1] == [TORCH]
    assert OURS in names
    runtimes = work == "inference" and kind != "resets"
    assert set(peers.RUNTIMES) & set(names) == (set(peers.RUNTIMES) if runtimes else set())
    assert (PREPACKED in names) == (work == "inference" and kind in ("dense", "odd", "step"))


@needs_peers
@pytest.mark.parametrize("name", peers.RUNTIMES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("cell", shapes.CELLS)
def test_runtimes_take_states_of_stacks(cell, num_layers, bias, name):
    layer = workloads.LAYERS[cell](4, 5, num_layers, bias=bias, bidirectional=True)
    x, *states = torch.randn(6, 2, 4), *torch.randn(2, 2 * num_layers, 2, 5)
    states = states[: 2 if cell == "LSTM" else 1]
    actual = peers.call(name, layer, x, states=states, threads=1)()
    with torch.no_grad():
        expected = workloads.tensors(layer(x, tuple(states) if cell == "LSTM" else states[0]))
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda y: [y + 1e-3], "off by 0.001"),
        (lambda y: [y * math.nan], "off by nan"),
        (lambda y: [y[:1]], r"shape \(1, 3\), torch's \(2, 3\)"),
        (lambda y: [y, y], "returned 2 tensors, torch 1"),
    ],
)
def test_wrong_results_are_found(wrong, message):
    y = torch.linspace(-1, 1, 6).view(2, 3)
    right = Contestant(name=TORCH, call=lambda: y, results=lambda y: [y])
    check([right, dataclasses.replace(right, name="close", results=lambda y: [y + 1e-6])], "here")
    check([right, dataclasses.replace(right, name="another work", results=None)], "here")
    with pytest.raises(WrongResultError, match=f"here: liar.*{message}"):
        check([right, dataclasses.replace(right, name="liar", results=wrong)], "here")


def test_prepacked_contestants():
    case = tiny("prepack", "GRU", "inference")
    entrants = workloads.contestants(case, [])
    check(entrants, case)
    names = [entrant.name for entrant in entrants]
    assert names == [TORCH, OURS, PREPACKED, f"{OURS} bfloat16", f"{OURS} int8"]
    _, plain, *packed = [workloads.tensors(entrant.call())[0] for entrant in entrants]
    # Only narrow types change a bit.
    assert [torch.equal(y, plain) for y in packed] == [True, False, False]


def test_a_row_holds_ours_first_and_the_peers_asked_for():
    case = tiny("resets", "GRU", "inference")
    row = measuring.measure(case, peer_names=[TORCH], repeats=1)
    assert list(row.times) == [OURS, f"{OURS} without resets", TORCH, f"{TORCH} cells"]
    row = measuring.measure(case, peer_names=[], repeats=1)
    assert list(row.times) == [OURS, f"{OURS} without resets"]


# a busy core


def test_busy_core_computes_and_ends():
    with busy.busy_core():
        children = subprocess.run(
            ["ps", "--ppid", str(os.getpid()), "-o", "pid=,args="],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        (pid,) = [int(line.split()[0]) for line in children.splitlines() if "burning" in line]
        ticks = [cpu_ticks(pid)]
        time.sleep(0.3)
        ticks.append(cpu_ticks(pid))
    assert ticks[1] - ticks[0] >= 0.05 * os.sysconf("SC_CLK_TCK")
    assert not os.path.exists(f"/proc/{pid}")


def cpu_ticks(pid):
    with open(f"/proc/{pid}/stat", encoding="utf-8") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_busy_row():
    row = busy.measure_busy(tiny("dense", "RNN", "inference"), peer_names=[TORCH], repeats=1)
    assert list(row.alone) == list(row.busy) == [OURS, PREPACKED, TORCH]
    assert row.slowdown(OURS) > 0
