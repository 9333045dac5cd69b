"""benchmarks/serving_load.py: it counts what is right and what is not, and its figures add up."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
from pathlib import Path

import pytest
from serving_cases import WORDS, new_run, served

from seq2seq_ext.training import save_run

pytest.importorskip("fastapi", reason="needs the extra [serve]")
pytest.importorskip("httpx", reason="needs the extra [test]")
SCRIPT = Path(__file__).parents[1] / "benchmarks" / "serving_load.py"
if not SCRIPT.exists():
    pytest.skip("benchmarks/ is not beside the tests", allow_module_level=True)


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("serving_load", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    # dataclasses look their module up by its name.
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "serving_load", module)
        spec.loader.exec_module(module)
        yield module


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "plain"
    save_run(folder, new_run())
    return folder


def test_all_clients_get_right_answers(script, folder, tmp_path, capsys):
    file = tmp_path / "load.json"
    arguments = [folder, "--clients", 9, "--requests", 3, "--threads", 1, "--json", file]
    assert script.main([str(argument) for argument in arguments]) == 0
    figures = json.loads(file.read_text())
    assert figures["answers"] == 27
    assert figures["errors"] == {}
    assert figures["service_status"] == 0
    assert 1 <= figures["mean_batch"] <= 9
    latency = figures["latency_ms"]
    assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"] <= 1000 * figures["seconds"]
    assert "27 answers" in capsys.readouterr().out


def test_wrong_answers_and_refusals_are_errors(script, folder):
    expected = new_run().translate(WORDS)
    expected[0] = "wrong"
    counts = {"clients": 2, "requests": 40, "seconds": 60}
    with served(folder, options=("--max-length", "10")) as process:
        load = asyncio.run(script.put_load(process.url, WORDS, expected, **counts))
    assert len(load.latencies) + sum(load.errors.values()) == 80
    assert set(load.errors) == {"another answer", "status 413"}


def test_a_percentile_is_a_latency_that_was_seen(script):
    load = script.Load(latencies=[float(n) for n in range(10, 0, -1)])
    assert [load.percentile(p) for p in (0, 10, 11, 50, 90, 99, 100)] == [1, 1, 2, 5, 9, 10, 10]


@pytest.mark.parametrize("argument", ["--clients=1001", "--seconds=601", "--clients=0"])
def test_it_is_bounded(script, argument, capsys):
    with pytest.raises(SystemExit, match="2"):
        script.main(["run", argument])
    assert argument[2:9] in capsys.readouterr().err
