"""What follows from known timings: rows, tables, targets, exponents, comparisons."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest
import torch
from bench_cases import MACHINE, case_of, full_results, needs_numpy, results_of, row_of, steady

from seq2seq_ext.benchmark.comparison import compare
from seq2seq_ext.benchmark.results import Results, Row, Sweep
from seq2seq_ext.benchmark.scaling import (
    exponent,
    flop_exponent,
    shape_at,
    sweep_cases,
    time_exponent,
)
from seq2seq_ext.benchmark.tables import as_markdown, comparison_as_markdown
from seq2seq_ext.benchmark.targets import targets
from seq2seq_ext.benchmark.timing import Timing
from seq2seq_ext.benchmark.workloads import OURS, PREPACKED, TORCH

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
