"""Measuring on a GPU, as far as it goes without one: the CPU stands in for the device."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re

import pytest
import torch
from bench_cases import needs_plots, steady

from seq2seq_ext.benchmark.cuda import device as devices
from seq2seq_ext.benchmark.cuda import measuring
from seq2seq_ext.benchmark.cuda.cudnn import (
    NATIVE,
    PERSISTENT,
    PERSISTENT_SMALL,
    STANDARD,
    Traits,
    cudnn_algorithm,
)
from seq2seq_ext.benchmark.cuda.device import Device, driver_version, sample_by_events
from seq2seq_ext.benchmark.cuda.measuring import measure_row, measure_rows
from seq2seq_ext.benchmark.cuda.results import CudaResults, CudaRow
from seq2seq_ext.benchmark.cuda.shapes import (
    CUDA_SHAPE_SETS,
    PRECISIONS,
    CudaCase,
    allow_tf32_in_cudnn,
    cuda_cases,
    precision_set,
)
from seq2seq_ext.benchmark.cuda.tables import as_markdown
from seq2seq_ext.benchmark.shapes import WORKS, Shape
from seq2seq_ext.benchmark.timing import sample_by_clock, take_turns
from seq2seq_ext.benchmark.workloads import OURS, PREPACKED, TORCH, Contestant
from seq2seq_ext.cli import bench, main

V100 = Traits(capability=(7, 0), processors=80, cudnn=91501)
T4 = Traits(capability=(7, 5), processors=40, cudnn=91501)
A100 = Traits(capability=(8, 0), processors=108, cudnn=91501)
A30 = Traits(capability=(8, 0), processors=56, cudnn=91501)
A40 = Traits(capability=(8, 6), processors=84, cudnn=91501)
RTX3090TI = Traits(capability=(8, 6), processors=108, cudnn=91501)
H100 = Traits(capability=(9, 0), processors=132, cudnn=91501)
GRAPH = "{} graph"

# torch's choice


def algorithm(cell="LSTM", dtype=torch.float16, traits=H100, **sizes):
    reference = {"time_steps": 1024, "batch_size": 16, "input_size": 768, "hidden_size": 768}
    return cudnn_algorithm(cell, dtype, traits=traits, **(reference | sizes))


def test_reference_shape_is_the_persistent_algorithms():
    assert algorithm() == PERSISTENT
    assert algorithm(backward=True) == PERSISTENT


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_only_fp16_persists_beyond_few_units(dtype):
    assert algorithm(dtype=dtype) == STANDARD


@pytest.mark.parametrize(
    "other",
    [
        {"cell": "GRU"},
        {"num_layers": 2},
        {"num_directions": 2},
        {"packed": True},
        {"proj_size": 256},
        {"hidden_size": 1152},
        {"hidden_size": 760},
        {"input_size": 80},
        {"batch_size": 1},
        {"batch_size": 12},
        {"batch_size": 136},
        {"traits": T4},
        {"traits": A30},
        {"traits": A40},
        {"traits": RTX3090TI},
    ],
    ids=str,
)
def test_what_rules_the_persistent_algorithm_out(other):
    assert algorithm(**other) == STANDARD


def test_limits_of_the_persistent_algorithm():
    assert algorithm(hidden_size=1024, batch_size=128, time_steps=1) == PERSISTENT
    assert algorithm(traits=A100) == PERSISTENT
    assert algorithm("RNN", batch_size=128) == PERSISTENT
    assert algorithm("RNN", batch_size=128, hidden_size=896) == STANDARD
    assert algorithm("RNN", batch_size=88, hidden_size=896) == PERSISTENT


@pytest.mark.parametrize(
    ("batch_size", "time_steps", "persists"),
    [
        (8, 10, True),
        (8, 9, False),
        (24, 100, False),
        (32, 10, True),
        (48, 10, False),
        (48, 20, True),
        (80, 100, False),
        (96, 20, True),
        (112, 100, False),
        (128, 20, False),
        (128, 40, True),
        (144, 100, False),
    ],
)
def test_choice_on_volta_depends_on_batch_and_steps(batch_size, time_steps, persists):
    found = algorithm(traits=V100, batch_size=batch_size, time_steps=time_steps)
    assert found == (PERSISTENT if persists else STANDARD)


@pytest.mark.parametrize(
    ("cell", "backward", "largest"),
    [
        ("LSTM", False, 192),
        ("LSTM", True, 128),
        ("GRU", False, 192),
        ("GRU", True, 128),
        ("RNN", False, 384),
        ("RNN", True, 256),
    ],
)
def test_few_units_have_an_algorithm_of_their_own(cell, backward, largest):
    options = {"dtype": torch.float32, "backward": backward, "batch_size": 1}
    assert algorithm(cell, hidden_size=largest, **options) == PERSISTENT_SMALL
    assert algorithm(cell, hidden_size=largest + 1, **options) == STANDARD
    many = {"num_layers": 3, "num_directions": 2}
    assert algorithm(cell, hidden_size=largest, **options, **many) == PERSISTENT_SMALL
    assert algorithm(cell, hidden_size=largest, **options, packed=True) == STANDARD
    options["dtype"] = torch.float64
    assert algorithm(cell, hidden_size=largest, **options) == STANDARD


def test_without_cudnn_torch_steps_itself():
    assert algorithm(traits=H100._replace(cudnn=0)) == NATIVE
    old = H100._replace(cudnn=91002)
    assert algorithm(dtype=torch.bfloat16, traits=old) == NATIVE
    assert algorithm(dtype=torch.float16, traits=old) == PERSISTENT
    assert algorithm(dtype=torch.bfloat16, traits=V100) == NATIVE


# what is measured


def case_of(kind="dense", cell="LSTM", work="inference", precision="fp32", **sizes):
    sizes = {"hidden_size": 8, "batch_size": 3, "time_steps": 5} | sizes
    sizes.setdefault("input_size", sizes["hidden_size"])
    shape = Shape(**sizes)
    return CudaCase(kind=kind, cell=cell, work=work, precision=precision, shape=shape, place="cpu")


def all_cases(sets=tuple(CUDA_SHAPE_SETS), cells=("LSTM", "GRU"), **options):
    return cuda_cases(sets, cells=cells, works=WORKS, precisions=PRECISIONS, **options)


def test_reference_comes_first():
    first, second, *_ = found = all_cases()
    assert str(first) == "LSTM inference, fp16, dense, H 768 B 16 T 1024"
    assert str(second) == "LSTM training, fp16, dense, H 768 B 16 T 1024"
    assert len(found) == len(set(found))
    assert 250 <= len(found) <= 350  # at a second and a half each, ten minutes
    of_reference = all_cases(["reference"])
    assert found[: len(of_reference)] == of_reference


def test_only_lstms_are_projected():
    projected = [case for case in all_cases() if case.shape.proj_size]
    assert projected
    assert {case.cell for case in projected} == {"LSTM"}


def test_other_sizes():
    (shape,) = {case.shape for case in all_cases(["lengths"], hidden_sizes=[64])}
    assert (shape.hidden_size, shape.batch_size, shape.time_steps) == (64, 32, 512)
    with pytest.raises(ValueError, match="the shapes of 'stacks' are fixed"):
        all_cases(["stacks"], hidden_sizes=[64])


def test_flop_of_a_projection_counts_every_weight():
    case = case_of(hidden_size=6, proj_size=2, num_layers=2, num_directions=2, input_size=5)
    layer = torch.nn.LSTM(5, 6, 2, bidirectional=True, proj_size=2, bias=False)
    weights = sum(p.numel() for p in layer.parameters())
    assert case.flop == 2 * 3 * 5 * weights


def test_bytes_of_a_step():
    case = case_of(hidden_size=4, batch_size=2, time_steps=10, input_size=3, precision="fp16")
    # x, y, h written and read, in numbers of two bytes
    exchanged = 2 * (3 + 4 + 2 * 4)
    weights, recurrent = 16 * 3, 16 * 4
    persistent = exchanged + (weights + recurrent) / 10
    standard = exchanged + weights / 10 + recurrent
    assert case.bytes_per_step(persistent=True) == pytest.approx(2 * persistent)
    assert case.bytes_per_step(persistent=False) == pytest.approx(2 * standard)
    training = dataclasses.replace(case, work="training")
    more = (weights + recurrent) / 10 + 2 * 2 * 4 * 4
    assert training.bytes_per_step(persistent=True) == pytest.approx(2 * (2 * persistent + more))
    single = dataclasses.replace(case, precision="tf32")
    assert single.bytes_per_step(persistent=True) == 2 * case.bytes_per_step(persistent=True)


@pytest.mark.parametrize("before", [(True, "highest"), (False, "medium")])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_precision_is_set_and_put_back(precision, before):
    def state():
        return torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()

    kept = state()
    try:
        allow_tf32_in_cudnn(before[0])
        torch.set_float32_matmul_precision(before[1])
        with precision_set(precision):
            assert state() == ((True, "high") if precision == "tf32" else (False, "highest"))
            assert torch.backends.cuda.matmul.allow_tf32 == (precision == "tf32")
        assert state() == before
    finally:
        allow_tf32_in_cudnn(kept[0])
        torch.set_float32_matmul_precision(kept[1])


# the device


class Event:
    """An event of a device on which every call takes a millisecond."""

    now = 0.0

    def __init__(self):
        self.waited = False

    def record(self):
        self.time = Event.now

    def synchronize(self):
        self.waited = True

    def elapsed_time(self, end):
        assert end.waited
        return end.time - self.time


def test_events_around_the_calls():
    def call():
        Event.now += 1.0

    assert sample_by_events(call, 7, event=Event) == pytest.approx(7e-3)
    (timing,) = take_turns(
        [call],
        repeats=2,
        turn_seconds=1e-4,
        sample_seconds=4e-3,
        sample=lambda call, loops: sample_by_events(call, loops, event=Event),
        pause=lambda: None,
    )
    assert timing.best == timing.median == pytest.approx(1e-3)


def test_turns_end_when_they_have_taken_long():
    told = []
    take_turns(
        [lambda: told.append(None)],
        repeats=10**9,
        most_seconds=0.05,
        turn_seconds=1e-9,
        sample_seconds=1e-9,
        pause=lambda: None,
    )
    assert told


def test_driver_of_a_machine_without_one(tmp_path):
    assert driver_version(str(tmp_path / "none")) == "unknown"
    tool = tmp_path / "tool"
    for script, expected in (("echo 570.1; echo 570.1", "570.1"), ("exit 9", "unknown")):
        tool.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        tool.chmod(0o755)
        assert driver_version(str(tool)) == expected


DESCRIPTION = {
    "device": "Abacus",
    "capability": "9.0",
    "multiprocessors": "132",
    "memory": "1.0 GiB",
    "driver": "1",
    "CUDA": "2",
    "torch": "3",
    "cuDNN": "4",
    "seq2seq_ext": "5",
    "date": "2000-01-01",
}


def stand_in(capture=lambda call: call, sample=sample_by_clock):
    return Device(place="cpu", description=DESCRIPTION, traits=H100, sample=sample, capture=capture)


def test_description_of_a_gpu_has_what_the_tables_want(monkeypatch):
    properties = argparse.Namespace(
        name="Abacus", major=9, minor=0, multi_processor_count=132, total_memory=2**34
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91501)
    monkeypatch.setattr(torch.nn.Module, "to", lambda module, *args: module)
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *args: tensor)
    found = devices.cuda_device()
    assert set(found.description) == set(DESCRIPTION)
    assert found.traits == H100
    assert found.place == "cuda"


# rows


KINDS = ["dense", "lengths", "resets"]


@pytest.mark.parametrize("work", WORKS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
def test_row_of_every_kind(cell, kind, work):
    row = measure_row(case_of(kind, cell, work), stand_in(), repeats=1)
    assert (row.wrong, row.failed) == ("", "")
    names = {
        "dense": [OURS, GRAPH.format(OURS), TORCH, GRAPH.format(TORCH)],
        "lengths": [OURS, f"{OURS} packed", f"{OURS} dense", TORCH],
        "resets": [
            OURS,
            f"{OURS} without resets",
            GRAPH.format(OURS),
            TORCH,
            f"{TORCH} cells",
        ],
    }[kind]
    # The CPU that stands in prepacks too.
    assert [name for name in row.times if name != PREPACKED] == names
    small_enough = PERSISTENT_SMALL if kind != "lengths" else STANDARD
    assert row.algorithms == (small_enough,)
    assert all(row.speedup(name) > 0 for name in row.others)


def test_row_of_a_projection():
    row = measure_row(
        case_of(work="training", proj_size=2, num_layers=2, num_directions=2),
        stand_in(),
        repeats=1,
    )
    assert row.times
    assert row.algorithms == (STANDARD,)


def test_forward_and_backward_may_differ_in_algorithm():
    case = case_of(work="training", hidden_size=160)
    row = measure_row(case, stand_in(), repeats=1)
    assert row.algorithms == (PERSISTENT_SMALL, STANDARD)


def test_an_error_while_it_runs_is_told(monkeypatch):
    def refuse():
        raise RuntimeError("no kernel\nmore")

    def failing(case, peers):
        return [
            Contestant(name=TORCH, call=lambda: None, results=None),
            Contestant(name=OURS, call=refuse, results=None),
        ]

    monkeypatch.setattr(measuring, "contestants", failing)
    assert measure_row(case_of(), stand_in(), repeats=1).failed == "seq2seq_ext: no kernel"


def test_wrong_results_are_never_timed(monkeypatch):
    def wrong(case, peers):
        y = torch.ones(3)
        calls = {TORCH: lambda: [y], OURS: lambda: [1.5 * y]}
        return [
            Contestant(name=name, call=call, results=lambda result: result)
            for name, call in calls.items()
        ]

    monkeypatch.setattr(measuring, "contestants", wrong)
    row = measure_row(case_of(), stand_in(sample=None), repeats=1)
    assert "seq2seq_ext's result 0 is off by 0.5" in row.wrong
    assert not row.times
    assert not row.failed


def test_a_replay_that_differs_is_wrong():
    def capture(call):
        y, state = call()
        return lambda: (torch.zeros_like(y), state)

    row = measure_row(case_of(), stand_in(capture), repeats=1)
    assert "graph's result 0 is off" in row.wrong


def test_what_cannot_run_is_told(monkeypatch):
    monkeypatch.setattr("seq2seq_ext.nn.replace.DTYPES", (torch.float32,))
    row = measure_row(case_of(precision="fp16"), stand_in(), repeats=1)
    assert row.failed.startswith("seq2seq_ext: replace_modules leaves the layer, ")
    assert "float16" in row.failed
    assert not row.times


def test_what_cannot_be_captured_is_noted():
    def capture(call):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    row = measure_row(case_of(), stand_in(capture), repeats=1)
    assert list(row.times) == [OURS, PREPACKED, TORCH]
    assert row.notes == [
        f"{name} graph: operation not permitted when stream is capturing" for name in (TORCH, OURS)
    ]


def test_budget_cuts_the_last_rows(monkeypatch):
    now = [0.0]

    def slow(case, device, **options):
        now[0] += 100.0
        return case

    monkeypatch.setattr(measuring, "measure_row", slow)
    cases = all_cases()
    found = list(measure_rows(cases, stand_in(), repeats=1, clock=lambda: now[0]))
    assert found == cases[:5]  # after 500 s of 540 none of 100 s fits
    assert now[0] <= measuring.BUDGET_SECONDS <= 600


# results


def row_of(case, wrong="", failed="", notes=(), **seconds):
    names = {name: name.replace("ours", OURS).replace("__", " ") for name in seconds}
    return CudaRow(
        case=case,
        algorithms=("standard",),
        times={names[name]: steady(value) for name, value in seconds.items()},
        wrong=wrong,
        failed=failed,
        notes=notes,
    )


def full_results():
    gpu = dataclasses.replace
    reference = case_of(hidden_size=768, batch_size=16, time_steps=1024, precision="fp16")
    times = {"ours": 1e-3, "ours__graph": 8e-4, "torch": 2e-3, "torch__graph": 2e-3}
    resets = {"ours": 1e-3, "ours__without__resets": 1e-3, "torch": 5e-2, "torch__cells": 8e-2}
    return CudaResults(
        device=DESCRIPTION,
        repeats=3,
        seconds=12.0,
        rows=[
            row_of(reference, **times),
            row_of(gpu(reference, precision="bf16"), ours=2e-3, torch=1e-3, notes=["no graph"]),
            row_of(gpu(reference, work="training", cell="GRU"), ours=2e-3, torch=3e-3),
            row_of(gpu(reference, kind="resets"), **resets),
            row_of(case_of(cell="GRU"), wrong="off by 3"),
            row_of(case_of(cell="RNN"), failed="no such kernel"),
        ],
        cut=[case_of(precision="tf32")],
    )


def test_figures_of_a_row():
    row = full_results().rows[0]
    assert row.speedup(TORCH) == 2.0
    assert row.speedup("torch graph") == 2.5
    assert row.speedup(f"{OURS} graph") == pytest.approx(0.8)
    assert row.step_seconds(OURS) == pytest.approx(1e-3 / 1024)
    assert row.rate(OURS) == pytest.approx(row.case.flop / 1e-3)
    assert row.case.flop == 2 * 1024 * 16 * 4 * 768 * 1536


def test_table_hides_nothing():
    text = as_markdown(full_results())
    assert "**2 of 6 rows are wrong or failed**" in text
    assert re.search(r"GRU inference.* \| wrong +\| off by 3", text)
    assert re.search(r"RNN inference.* \| failed +\| no such kernel", text)
    assert "**1 rows were cut**" in text
    assert "LSTM inference, tf32, dense, H 8 B 3 T 5" in text
    assert "0.50x!" in text
    assert "- no graph" in text
    assert "standard" in text
    header = next(line for line in text.splitlines() if line.startswith("| shape"))
    for column in ("µs a step", "TFLOP/s", "KiB a step, persistent", "torch graph best, ms"):
        assert column in header


def test_json_says_all():
    value = json.loads(json.dumps(full_results().as_json()))
    assert value["format"] == "cuda 1"
    assert value["device"] == DESCRIPTION
    row = value["rows"][0]
    assert row["case"]["precision"] == "fp16"
    assert row["case"]["shape"]["hidden_size"] == 768
    assert row["torch_algorithms"] == ["standard"]
    assert row["speedup"][TORCH] == 2.0
    assert row["bytes_per_step"]["persistent"] < row["bytes_per_step"]["standard"]
    assert value["rows"][4]["wrong"] == "off by 3"
    assert value["rows"][4]["times"] == {}
    assert len(value["cut"]) == 1


@needs_plots
def test_plot():
    from seq2seq_ext.benchmark.cuda.plots import results_as_png

    assert results_as_png(full_results())[:4] == b"\x89PNG"
    empty = dataclasses.replace(full_results(), rows=full_results().rows[4:])
    with pytest.raises(ValueError, match="no row has times"):
        results_as_png(empty)


# the command


@needs_plots
def test_command_on_what_stands_in_for_a_gpu(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "cuda_device", stand_in)
    files = {kind: tmp_path / f"figures.{kind}" for kind in ("json", "md", "png")}
    arguments = ["bench", "--device", "cuda", "--shapes", "reference,lengths,resets"]
    arguments += ["--hidden-sizes", "8", "--batch-sizes", "2", "--time-steps", "3"]
    arguments += ["--repeats", "1", "--json", str(files["json"]), "--plot", str(files["png"])]
    arguments += ["--markdown", str(files["md"])]
    assert main([*arguments, "--precisions", "fp32,tf32"]) == 0
    out, err = capsys.readouterr()
    assert files["md"].read_text(encoding="utf-8") == out
    assert out.startswith("Abacus, capability 9.0")
    assert len(err.splitlines()) == 24
    assert files["png"].read_bytes()[:4] == b"\x89PNG"
    assert len(json.loads(files["json"].read_text(encoding="utf-8"))["rows"]) == 24
    # A row that fails is told, and by the status too.
    files["png"].unlink()
    monkeypatch.setattr("seq2seq_ext.nn.replace.DTYPES", (torch.float32,))
    assert main([*arguments, "--precisions", "fp16", "--cells", "RNN"]) == 1
    out, err = capsys.readouterr()
    assert "**6 of 6 rows are wrong or failed**" in out
    assert "failed: seq2seq_ext: " in err
    assert not files["png"].exists()


@needs_plots
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_command_without_a_gpu(capsys):
    assert main(["bench", "--device", "cuda"]) == 1
    assert "--device cuda needs an NVIDIA GPU; torch sees none" in capsys.readouterr().err


@needs_plots
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "tpu"], "argument --device: invalid choice: 'tpu'"),
        (["--device", "cuda", "--threads", "1"], "argument --threads: not with --device cuda"),
        (["--device", "cuda", "--peers", "torch"], "argument --peers: not with --device cuda"),
        (["--device", "cuda", "--scaling"], "argument --scaling: not with --device cuda"),
        (["--device", "cuda", "--with-busy-core"], "--with-busy-core: not with --device cuda"),
        (["--device", "cuda", "--compare", "a.json"], "--compare: not with --device cuda"),
        (["--device", "cuda", "--shapes", "odd"], "--shapes: expected one of reference, .*'odd'"),
        (["--precisions", "fp16"], "argument --precisions: only with --device cuda"),
        (["--device", "cuda", "--precisions", "fp8"], "expected one of fp16, .*; got 'fp8'"),
    ],
)
def test_wrong_usage(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["bench", *arguments])
    assert re.search(message, capsys.readouterr().err)
