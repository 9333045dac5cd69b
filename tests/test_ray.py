"""examples/ray_translate.py: a run inside Ray Data's map_batches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from serving_cases import WORDS, new_run

import seq2seq_ext
from seq2seq_ext.training import save_run

pytest.importorskip("ray.data", reason="needs the extra [ray]")
SCRIPT = Path(__file__).parents[1] / "examples" / "ray_translate.py"


@pytest.mark.skipif(not SCRIPT.exists(), reason="examples/ is not beside the tests")
def test_every_line_has_its_result(tmp_path):
    run = new_run()
    save_run(tmp_path / "run", run)
    (tmp_path / "words.txt").write_text("".join(f"{word}\n" for word in WORDS))
    environment = {
        "PYTHONPATH": str(Path(seq2seq_ext.__file__).parents[1]),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    }
    subprocess.run(
        [sys.executable, SCRIPT, "run", "words.txt", tmp_path / "out", "--num-beams", "2"],
        check=True, cwd=tmp_path, env=os.environ | environment, timeout=300,
    )  # fmt: skip
    rows = [
        json.loads(line)
        for path in (tmp_path / "out").iterdir()
        for line in path.read_text().splitlines()
    ]
    expected = run.translate(WORDS, num_beams=2)
    assert sorted((row["text"], row["result"]) for row in rows) == sorted(
        zip(WORDS, expected, strict=True)
    )
