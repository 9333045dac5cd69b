"""The command ``seq2seq-ext bench`` as a whole."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import time

import pytest
from bench_cases import needs_peers, needs_plots

from seq2seq_ext.benchmark.results import Results
from seq2seq_ext.benchmark.shapes import Shape
from seq2seq_ext.benchmark.workloads import OURS
from seq2seq_ext.cli import main

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
