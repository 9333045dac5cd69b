"""What the tests of measuring share: cases, known timings, a machine with round figures."""

from __future__ import annotations

import dataclasses
import importlib.util

import pytest

from seq2seq_ext.benchmark.limits import Limits
from seq2seq_ext.benchmark.results import BusyRow, Results, Row, Sweep
from seq2seq_ext.benchmark.shapes import Case, Shape
from seq2seq_ext.benchmark.timing import Timing
from seq2seq_ext.benchmark.workloads import OURS, TORCH


def needs(*packages):
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs the extra [bench]: {missing}")


needs_numpy = needs("numpy")
needs_plots = needs("matplotlib", "numpy", "rich")
needs_peers = needs("numpy", "onnx", "onnxruntime", "openvino", "rich")


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


def tiny(kind, cell, work):
    sizes = {"hidden_size": 6, "batch_size": 3, "time_steps": 5}
    if kind == "odd":
        sizes |= {"input_size": 4, "num_layers": 2, "num_directions": 2}
    if kind == "step":
        sizes["time_steps"] = 1
    return case_of(kind=kind, cell=cell, work=work, threads=1, **sizes)


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
