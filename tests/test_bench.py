"""Measuring: arithmetic of known timings, fair turns, peers that agree, the command as a whole."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
import threading
import time

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from seq2seq_ext import _C, reference
from seq2seq_ext.benchmark import busy, limits, measuring, peers, shapes, timing, workloads
from seq2seq_ext.benchmark.comparison import compare
from seq2seq_ext.benchmark.limits import Limits
from seq2seq_ext.benchmark.results import BusyRow, Results, Row, Sweep
from seq2seq_ext.benchmark.scaling import (
    exponent,
    flop_exponent,
    shape_at,
    sweep_cases,
    time_exponent,
)
from seq2seq_ext.benchmark.shapes import SHAPE_SETS, Case, Shape, cases
from seq2seq_ext.benchmark.tables import as_markdown, comparison_as_markdown
from seq2seq_ext.benchmark.targets import targets
from seq2seq_ext.benchmark.timing import Timing, take_turns
from seq2seq_ext.benchmark.workloads import (
    OURS,
    PREPACKED,
    TORCH,
    Contestant,
    WrongResultError,
    check,
)
from seq2seq_ext.cli import main


def needs(*packages):
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs the extra [bench]: {missing}")


needs_numpy = needs("numpy")
needs_plots = needs("matplotlib", "numpy", "rich")
needs_peers = needs("numpy", "onnx", "onnxruntime", "openvino", "rich")


@pytest.fixture(autouse=True)
def threads_kept():
    """A case sets torch's number of threads, which is everybody's."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def case_of(kind="dense", cell="LSTM", work="inference", threads=2, **sizes):
    sizes = {"hidden_size": 256, "batch_size": 32, "time_steps": 50} | sizes
    sizes.setdefault("input_size", sizes["hidden_size"])
    return Case(kind=kind, cell=cell, work=work, threads=threads, shape=Shape(**sizes))


def steady(seconds, spread=0.0):
    """A Timing without noise, or with some."""
    return Timing(best=seconds, median=seconds, mean=seconds, spread=spread)


def row_of(case, **seconds):
    """A Row; ``ours=`` is ours, ``ours_packed=`` ours packed, others are peers."""
    names = {name: name.replace("ours", OURS).replace("__", " ") for name in seconds}
    return Row(case=case, times={names[name]: steady(value) for name, value in seconds.items()})


LIMITS = Limits(
    threads=2,
    fma=400e9,
    product=300e9,
    bandwidth={"L1": 800e9, "L2": 500e9, "L3": 200e9, "memory": 50e9},
    capacity={"L1": 48 << 10, "L2": 1 << 20, "L3": 16 << 20},
)
MACHINE = {
    "processor": "Abacus",
    "cores": "2",
    "instruction set": "beads",
    "compiler": "none",
    "system": "wood",
}


def results_of(*rows, machine=MACHINE, **parts):
    return Results(
        machine=machine,
        versions={OURS: "1", TORCH: "2"},
        limits={1: dataclasses.replace(LIMITS, threads=1), 2: LIMITS},
        repeats=3,
        rows=rows,
        **parts,
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
    cases_ = cases(["quick", "odd", "step"], cells=[cell], works=[work], threads=[1])
    for case in cases_:
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


# contestants


def tiny(kind, cell, work):
    sizes = {"hidden_size": 6, "batch_size": 3, "time_steps": 5}
    if kind == "odd":
        sizes |= {"input_size": 4, "num_layers": 2, "num_directions": 2}
    if kind == "step":
        sizes["time_steps"] = 1
    return case_of(kind=kind, cell=cell, work=work, threads=1, **sizes)


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
    assert (PREPACKED in names) == (work == "inference" and kind in ("dense", "odd"))


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


# what rows say


def test_row_arithmetic():
    case = case_of(hidden_size=512, batch_size=64)
    row = row_of(case, ours=0.02, torch=0.03)
    results = results_of(row)
    flop = 2 * 50 * 64 * 4 * 512 * 1024
    assert row.speedup(TORCH) == pytest.approx(1.5)
    assert row.rate == pytest.approx(flop / 0.02)
    assert results.share_of_peak(row) == pytest.approx(flop / 0.02 / 400e9)
    assert results.limit_seconds(case) == pytest.approx(flop / 400e9)
    # Of one sequence the weights count: 8 MiB a thread, of which two caches hold some.
    single = case_of(hidden_size=1024, batch_size=1)
    sweep = 2 * ((7 << 20) - (48 << 10)) / 200e9
    assert results.limit_seconds(single) == pytest.approx(50 * sweep)


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


def test_limits_of_narrow_weights_are_of_fewer_bytes():
    case = case_of(hidden_size=4096, input_size=1, batch_size=1)
    for dtype, weight_bytes in ((torch.float32, 4), (torch.bfloat16, 2), (torch.int8, 1)):
        sweep = LIMITS.sweep_seconds(weight_bytes * 4 * 4096**2)
        assert results_of().limit_seconds(case, dtype) == pytest.approx(50 * sweep)


def test_speedups_over_runtimes_are_of_the_prepacked_layer():
    times = {"ours": 0.013, "ours__prepacked": 0.008}
    times |= {"torch": 0.026, "onnxruntime": 0.012, "openvino": 0.006}
    row = row_of(case_of(), **times)
    speedups = {name: row.speedup(name) for name in row.others}
    assert speedups == {
        PREPACKED: pytest.approx(8 / 13),
        TORCH: pytest.approx(2.0),
        "onnxruntime": pytest.approx(1.5),
        "openvino": pytest.approx(0.75),
    }
    assert row.median_speedup("onnxruntime") == pytest.approx(1.5)
    assert results_of(row).as_json()["rows"][0]["speedup"] == speedups
    text = as_markdown(results_of(row))
    header, _, line = text[text.rindex("| shape ") :].splitlines()[:3]
    columns = [column.strip() for column in header.split("|")]
    assert [name for name in columns if "speed-up" in name] == [
        "speed-up",
        "prepacked: speed-up",
        "prepacked: speed-up",
    ]
    # Lost is what is lost so.
    assert [cell.strip() for cell in line.split("|")][-11:-1:3] == [
        "0.62x",
        "2.00x",
        "1.50x",
        "0.75x!",
    ]
    assert re.search(r"plain +\| torch +\| +2.00x", text)
    assert re.search(r"prepacked \| openvino +\| +0.75x", text)
    # Without that contestant, as in earlier files, everyone is compared with the plain layer.
    del times["ours__prepacked"]
    assert row_of(case_of(), **times).speedup("openvino") == pytest.approx(6 / 13)


def test_rows_that_others_disturbed_are_marked():
    row = dataclasses.replace(row_of(case_of(), ours=1.0), cores_used_by_others=0.3)
    text = as_markdown(results_of(row))
    assert "H 256 B 32 T 50 ~" in text
    assert "not to be quoted" in text
    assert "not to be quoted" not in as_markdown(results_of(row_of(case_of(), ours=1.0)))


def full_results():
    sweep = [row_of(case_of(time_steps=T), ours=1e-4 * T, torch=2e-4 * T) for T in (25, 50, 100)]
    unequal = case_of(kind="lengths", time_steps=200)
    return results_of(
        row_of(case_of(), ours=0.004, torch=0.003, onnxruntime=0.008),
        row_of(case_of(cell="GRU", work="training"), ours=0.01, torch=0.03),
        row_of(unequal, ours=1.0, ours__packed=0.9, ours__dense=2.0, torch=7.0),
        sweeps=[Sweep(size="T", rows=sweep)],
        busy=[
            BusyRow(
                case=case_of(),
                alone={OURS: steady(0.1), TORCH: steady(0.1)},
                busy={OURS: steady(0.2), TORCH: steady(0.9)},
            )
        ],
    )


def test_tables_show_lost_rows_and_everything_else():
    text = as_markdown(full_results())
    (line,) = [line for line in text.splitlines() if "0.75x!" in line]
    assert "2.00x " in line
    assert "2.00x!" not in line
    for part in (
        "**Targets**",
        "**Speed-ups**",
        "**Scaling**",
        "2.00x |           9.00x",
        "Abacus",
    ):
        assert part in text
    assert text.count("**LSTM, inference, dense, 2 threads**") == 1


def test_json_round_trip():
    results = full_results()
    value = json.loads(json.dumps(results.as_json()))
    assert Results.from_json(value) == dataclasses.replace(
        results, rows=list(results.rows), sweeps=list(results.sweeps)
    )
    assert value["rows"][0]["speedup"] == {"torch": 0.75, "onnxruntime": 2.0}


@pytest.mark.parametrize("value", [None, [], {}, {"format": 0}, {"format": 1}])
def test_other_json_is_refused(value):
    with pytest.raises(ValueError, match="figures of 'seq2seq-ext bench"):
        Results.from_json(value)


# targets


def judged(*rows, **parts):
    return {t.what: (t.required, t.got, t.met) for t in targets(results_of(*rows, **parts))}


def test_targets_take_geometric_means_and_the_lowest_row():
    rows = [
        row_of(case_of(batch_size=1), ours=1.0, torch=1.0, onnxruntime=2.0),
        row_of(case_of(batch_size=8), ours=1.0, torch=4.0, onnxruntime=2.0),
        row_of(case_of(batch_size=64), ours=1.0, torch=1.4),
        row_of(case_of(batch_size=1, threads=1), ours=1.0, torch=3.0),
    ]
    found = judged(*rows)
    of = "LSTM inference, B 1–8, H 64–512, {}, geometric mean over {}"
    assert found[of.format("2 threads", TORCH)] == (">= 2.00x", "2.00x of 2 rows", True)
    assert found[of.format("2 threads", "onnxruntime")][2]
    assert found[of.format("1 thread", TORCH)] == (">= 2.00x", "3.00x of 1 rows", True)
    large = "LSTM inference, B 32–64, H 128–512, 2 threads, geometric mean over torch"
    assert found[large] == (">= 1.50x", "1.40x of 1 rows", False)
    lowest = "LSTM inference, every row, 2 threads, lowest over torch"
    assert found[lowest] == (">= 1.05x", "1.00x at H 256 B 1 T 50", False)


@pytest.mark.parametrize(
    ("ours", "torchs", "got", "at_limit", "verdict"),
    [  # seconds as multiples of the least time; 2.00x is required
        (1.25, (2.0, 4.5), "2.40x of 2 rows", "3.00x", "yes"),
        (2.0, (2.0, 4.5), "1.50x of 2 rows", "3.00x", "**no**"),
        (1.25, (1.0, 2.25), "1.20x of 2 rows", "1.50x", "**beyond the limit**"),
    ],
)
def test_targets_tell_what_the_limit_allows(ours, torchs, got, at_limit, verdict):
    rows = []
    for B, theirs in zip((1, 8), torchs, strict=True):
        case = case_of(batch_size=B, hidden_size=64 * B)
        least = results_of().limit_seconds(case)
        times = {"torch": theirs * least, "onnxruntime": theirs * least}
        rows.append(row_of(case, ours=ours * least, ours__prepacked=least, **times))
    found = {target.what: target for target in targets(results_of(*rows))}
    mean = found["LSTM inference, B 1–8, H 64–512, 2 threads, geometric mean over torch"]
    assert (mean.got, mean.at_limit, mean.verdict) == (got, at_limit, verdict)
    # Whichever of ours is compared, at the limit it takes the same time.
    of_prepacked = "LSTM inference, B 1–8, H 64–512, 2 threads, geometric mean of prepacked over {}"
    assert found[of_prepacked.format("onnxruntime")].at_limit == at_limit
    lowest = found["LSTM inference, every row, 2 threads, lowest over torch"]
    assert lowest.at_limit == f"{min(torchs):.2f}x"
    assert lowest.possible == (min(torchs) >= 1.05)
    text = as_markdown(results_of(*rows))
    beyond = [target for target in found.values() if target.verdict == "**beyond the limit**"]
    assert f", {len(beyond)} beyond this machine's limit" in text
    assert text.count("**beyond the limit**") == len(beyond)


def test_targets_of_training_and_of_narrow_types_have_their_own_limits():
    case = case_of(kind="lengths", work="training", time_steps=200)
    least = results_of().limit_seconds(case)
    row = row_of(case, ours=1.0, ours__packed=1.0, ours__dense=1.0, torch=5 * least)
    narrow = case_of(kind="prepack", hidden_size=4096, input_size=1, batch_size=1)
    times = {"ours__prepacked": 1.0, "ours__int8": 0.6, "ours__bfloat16": 0.7}
    found = {t.what: t for t in targets(results_of(row, row_of(narrow, ours=2.0, **times)))}
    lengths = "LSTM training, unequal lengths, lengths=, {}, 2 threads"
    over_torch = found[lengths.format("over torch packed")]
    assert (over_torch.at_limit, over_torch.verdict) == ("5.00x", "**beyond the limit**")
    # What is no speed-up has none.
    assert not found[lengths.format("ideal share of the dense time over ours")].at_limit
    for dtype in (torch.int8, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        target = found[f"LSTM H 4096 B 1 T 50 I 1, {name} over float32, 2 threads"]
        assert target.at_limit == f"{1.0 / results_of().limit_seconds(narrow, dtype):.2f}x"


def test_targets_of_the_peak():
    case = case_of(hidden_size=512, batch_size=64, work="training")
    name = "LSTM training, H 512 B 64, share of the FMA peak, 2 threads"
    at_peak = case.flop / 400e9
    assert judged(row_of(case, ours=at_peak / 0.76))[name] == (">= 75%", "76.0%", True)
    assert judged(row_of(case, ours=at_peak / 0.74))[name] == (">= 75%", "74.0%", False)


def test_targets_of_lengths_and_resets_and_types():
    case = case_of(kind="lengths", work="training", time_steps=200)
    dense = case.shape.time_steps * case.shape.batch_size / case.real_steps
    row = row_of(case, ours=1.0, ours__packed=2.0, ours__dense=0.9 * dense, torch=6.5)
    found = judged(row)
    what = "LSTM training, unequal lengths, {}, {}, 2 threads"
    ideal, peer = "ideal share of the dense time over ours", "over torch packed"
    assert found[what.format("lengths=", peer)] == (">= 6.00x", "6.50x", True)
    assert found[what.format("packed", peer)] == (">= 6.00x", "3.25x", False)
    assert found[what.format("lengths=", ideal)] == (">= 0.85x", "0.90x", True)
    assert found[what.format("packed", ideal)] == (">= 0.85x", "0.45x", False)

    resets = case_of(kind="resets", time_steps=128)
    found = judged(row_of(resets, ours=1.1, ours__without__resets=1.0, torch=22.0))
    assert not found["LSTM inference, resets over none, 2 threads"][2]
    assert found["LSTM inference, resets, 2 threads, geometric mean over torch"][2]

    packed = case_of(kind="prepack", batch_size=1, hidden_size=512)
    times = {"ours__prepacked": 1.0, "ours__int8": 0.4, "ours__bfloat16": 0.7}
    found = judged(row_of(packed, ours=2.0, **times))
    assert found["LSTM H 512 B 1 T 50, int8 over float32, 2 threads"] == (">= 2.00x", "2.50x", True)
    assert not found["LSTM H 512 B 1 T 50, bfloat16 over float32, 2 threads"][2]


@needs_numpy
def test_targets_of_scaling_and_busy_core():
    results = full_results()
    found = {t.what: (t.got, t.met) for t in targets(results)}
    assert found["LSTM inference, exponent of T, 2 threads"] == ("1.00", True)
    got, met = found["slowest row with a busy core, 2 threads"]
    assert (got[:5], met) == ("2.00x", True)


# scaling


@needs_numpy
def test_exponent_of_a_power_law():
    sizes = [10, 20, 40, 80]
    assert exponent(sizes, [3e-6 * size**1.5 for size in sizes]) == pytest.approx(1.5)
    with pytest.raises(ValueError, match="at least 2 points"):
        exponent([10], [1.0])


@needs_numpy
def test_exponent_from_a_size_on():
    rows = [row_of(case_of(batch_size=B), ours=1e-3 * max(B, 32)) for B in (1, 8, 32, 64, 128)]
    sweep = Sweep(size="B", rows=rows)
    assert time_exponent(sweep, OURS, least=32) == pytest.approx(1.0)
    assert time_exponent(sweep, OURS) < 0.5
    assert flop_exponent(sweep) == pytest.approx(1.0)


@needs_numpy
def test_exponents_of_the_operations_are_the_textbooks():
    for (size, *_), swept in sweep_cases(["GRU"], ["training"], [1]).items():
        rows = [row_of(case, ours=1.0) for case in swept]
        expected = {"T": 1.0, "B": 1.0, "H": 2.0, "I": 0.5}[size]
        assert flop_exponent(Sweep(size=size, rows=rows)) == pytest.approx(expected, abs=0.02)
    assert shape_at("H", 64).input_size == 64
    assert shape_at("I", 64).hidden_size == 256


# comparison


def noisy(seconds, spread, **peer):
    times = {OURS: steady(seconds, spread)}
    times |= {name: steady(value) for name, value in peer.items()}
    return Row(case=case_of(), times=times)


@pytest.mark.parametrize(
    ("seconds", "spread", "verdict"),
    [
        (1.04, 0.0, "same"),
        (1.06, 0.0, "slower"),
        (1.06, 0.2, "same"),
        (1.30, 0.2, "slower"),
        (0.90, 0.0, "faster"),
        (0.90, 0.2, "same"),
    ],
)
def test_only_changes_beyond_noise_count(seconds, spread, verdict):
    comparison = compare(results_of(noisy(1.0, 0.0)), results_of(noisy(seconds, spread)))
    assert comparison.same_machine
    (change,) = comparison.changes
    assert change.slower == (verdict == "slower") == bool(comparison.slower)
    assert change.faster == (verdict == "faster") == bool(comparison.faster)
    assert ("slower |" in comparison_as_markdown(comparison)) == (verdict == "slower")


def test_a_better_best_excuses_a_worse_median():
    worse = Row(case=case_of(), times={OURS: Timing(1.0, 1.5, 1.5, 0.0)})
    (change,) = compare(results_of(noisy(1.0, 0.0)), results_of(worse)).changes
    assert not change.slower


def test_on_another_machine_ratios_to_the_peers_count():
    old = results_of(noisy(1.0, 0.0, torch=2.0, onnxruntime=1.0))
    elsewhere = MACHINE | {"processor": "Napier's bones"}
    twice = noisy(2.0, 0.0, torch=4.0, onnxruntime=2.0)
    comparison = compare(old, results_of(twice, machine=elsewhere))
    assert not comparison.same_machine
    (change,) = comparison.changes
    assert change.best == pytest.approx(1.0)
    lagging = noisy(3.0, 0.0, torch=4.0, onnxruntime=2.0)
    assert compare(old, results_of(lagging, machine=elsewhere)).slower
    without_peers = compare(old, results_of(noisy(3.0, 0.0), machine=elsewhere))
    assert (without_peers.changes, without_peers.left_out) == ([], 1)


@pytest.mark.parametrize("machine", [MACHINE, MACHINE | {"processor": "Napier's bones"}])
def test_files_from_before_the_prepacked_layer_go_on_being_compared(machine):
    peers = {"torch": 2.0, "onnxruntime": 1.0}
    before = results_of(
        row_of(case_of(), ours=1.0, **peers),
        row_of(case_of(kind="prepack"), ours=1.0, ours__float32=0.5, ours__int8=0.25, **peers),
    )
    old = Results.from_json(json.loads(json.dumps(before.as_json())))
    new = results_of(
        row_of(case_of(), ours=1.0, ours__prepacked=0.8, **peers),
        row_of(case_of(kind="prepack"), ours=1.0, ours__prepacked=1.0, ours__int8=0.25, **peers),
        machine=machine,
    )
    comparison = compare(old, new)
    assert comparison.left_out == 0
    assert [(change.name, change.best) for change in comparison.changes] == [
        (OURS, pytest.approx(1.0)),
        (OURS, pytest.approx(1.0)),
        (PREPACKED, pytest.approx(2.0)),
        (f"{OURS} int8", pytest.approx(1.0)),
    ]


def test_rows_that_one_run_lacks_are_counted():
    comparison = compare(results_of(), results_of(noisy(1.0, 0.0)))
    assert (comparison.changes, comparison.left_out) == ([], 1)
    assert "1 rows have nothing to be compared with" in comparison_as_markdown(comparison)


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


# the command


TINY = ["--hidden-sizes", "8", "--batch-sizes", "2", "--time-steps", "3", "--repeats", "1"]


@needs_peers
@needs_plots
def test_command_from_end_to_end(tmp_path, capsys):
    files = {kind: tmp_path / "new" / f"figures.{kind}" for kind in ("json", "md", "png")}
    arguments = ["bench", *TINY, "--cells", "LSTM,GRU", "--threads", "1", "--json"]
    arguments += [str(files["json"]), "--markdown", str(files["md"]), "--plot", str(files["png"])]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert err.count("seq2seq_ext ") >= 4  # a line for each row
    assert files["md"].read_text(encoding="utf-8") == out
    for peer in ("torch", "onnxruntime", "openvino"):
        assert f"{peer} best" in out
    assert files["png"].read_bytes()[:4] == b"\x89PNG"
    results = Results.from_json(json.loads(files["json"].read_text(encoding="utf-8")))
    assert len(results.rows) == 4
    assert set(results.versions) == {OURS, "torch", "onnxruntime", "openvino"}
    assert sorted(path.name for path in files["json"].parent.iterdir()) == [
        "figures.json",
        "figures.md",
        "figures.png",
    ]


@needs_plots
def test_comparing_command_tells_by_its_status(tmp_path, capsys):
    old, scaling = tmp_path / "old.json", tmp_path / "plot-scaling.png"
    base = ["bench", *TINY, "--cells", "RNN", "--work", "training", "--peers", "none"]
    assert main([*base, "--json", str(old), "--with-busy-core"]) == 0
    assert "a core busy" in capsys.readouterr().err
    figures = json.loads(old.read_text(encoding="utf-8"))
    for factor, status in ((0.01, 1), (100.0, 0)):
        changed = json.loads(json.dumps(figures))
        for row in changed["rows"]:
            for times in row["times"].values():
                times.update({name: value * factor for name, value in times.items()})
                times["spread"] = 0.0
        path = tmp_path / f"{status}.json"
        path.write_text(json.dumps(changed), encoding="utf-8")
        assert main([*base, "--compare", str(path)]) == status
        assert "Since the earlier run" in capsys.readouterr().out
    assert not scaling.exists()


@needs_plots
def test_scaling_command(tmp_path, monkeypatch, capsys):
    small = {"T": (2, 4), "H": (2, 4), "B": (1, 2, 32, 64), "I": (2, 4)}
    monkeypatch.setattr("seq2seq_ext.benchmark.scaling._VALUES", small)
    base = Shape(hidden_size=4, batch_size=2, time_steps=2, input_size=4)
    monkeypatch.setattr("seq2seq_ext.benchmark.scaling.BASE", base)
    plot = tmp_path / "plot.png"
    arguments = ["bench", "--scaling", "--cells", "RNN", "--repeats", "1", "--plot", str(plot)]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "| B 32–64 " in out
    assert "exponent of T" in out
    assert [path.name for path in tmp_path.iterdir()] == ["plot-scaling.png"]


@needs_plots
def test_missing_peers_are_told_and_left_out(monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "openvino" else find(name)
    )
    arguments = ["bench", *TINY, "--cells", "RNN", "--work", "inference"]
    assert main([*arguments, "--peers", "torch,openvino"]) == 0
    out, err = capsys.readouterr()
    assert "without the peer openvino: openvino is not installed (pip install" in err
    assert "openvino" not in out
    assert "torch best" in out


@needs_plots
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shapes", "round"], "argument --shapes: expected one of standard, .*; got 'round'"),
        (["--cells", "LSTM,SRU"], "argument --cells: expected one of LSTM, GRU, RNN; got 'SRU'"),
        (["--work", "play"], "argument --work: expected one of inference, training; got 'play'"),
        (["--peers", "jax"], "argument --peers: expected one of torch, .*; got 'jax'"),
        (["--threads", "0"], "argument --threads: expected a whole number of at least 1, got '0'"),
        (["--hidden-sizes", "8,x"], "--hidden-sizes: expected a whole number .*, got 'x'"),
        (["--repeats", "none"], "argument --repeats: expected a whole number"),
        (["--plot", "figures.svg"], "argument --plot: expected a name that ends in .png"),
    ],
)
def test_wrong_usage(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["bench", *arguments])
    assert re.search(message, capsys.readouterr().err)


@needs_plots
def test_wrong_files_are_refused_before_anything_is_measured(tmp_path, capsys):
    other = tmp_path / "other.json"
    other.write_text("{}", encoding="utf-8")
    start = time.perf_counter()
    assert main(["bench", "--compare", str(other)]) == 1
    assert "expected figures of 'seq2seq-ext bench --json'" in capsys.readouterr().err
    assert main(["bench", "--compare", str(tmp_path / "none.json")]) == 1
    assert "none.json" in capsys.readouterr().err
    assert main(["bench", "--shapes", "odd", "--hidden-sizes", "8"]) == 1
    assert "the shapes of 'odd' are fixed" in capsys.readouterr().err
    assert main(["bench", "--shapes", "prepack", "--work", "training"]) == 1
    assert "nothing to measure" in capsys.readouterr().err
    assert time.perf_counter() - start < 5


def test_command_names_the_extra_that_it_needs():
    code = (
        "import importlib.util, sys\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name: None if name == 'numpy' else find(name)\n"
        "from seq2seq_ext.cli import main\n"
        "sys.exit(main(['bench']))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert "pip install 'seq2seq_ext[bench]'" in result.stderr
