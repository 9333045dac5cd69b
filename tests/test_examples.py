"""The examples run, and the notebooks of the lessons are their scripts, executed."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from seq2seq_ext.cli import main
from seq2seq_ext.data import DataConfig, load_data

EXAMPLES = Path(__file__).parents[1] / "examples"
TEACHING = EXAMPLES / "teaching"
LESSONS = ["1_initial_state", "2_every_step", "3_attention"]
pytestmark = pytest.mark.skipif(
    not EXAMPLES.exists(), reason="the examples are not beside the tests"
)


def run(script: Path, *arguments: str, folder: Path) -> str:
    """What a script prints."""
    result = subprocess.run(
        [sys.executable, script, *arguments],
        cwd=folder,
        # The package under test, wherever the script lies.
        env=os.environ | {"PYTHONPATH": str(EXAMPLES.parent), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_a_model_in_training_goes_on_with_other_layers(tmp_path: Path) -> None:
    assert "x as fast" in run(EXAMPLES / "drop_in.py", "--steps", "2", folder=tmp_path)


def test_lessons_run_and_draw_their_figures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    folder = tmp_path / "teaching"
    shutil.copytree(TEACHING, folder, ignore=shutil.ignore_patterns("*.ipynb", "figures", "__*"))
    for lesson in LESSONS:
        printed = run(folder / f"{lesson}.py", "--steps", "5", folder=folder)
        assert "exact match on 1,000 new strings" in printed
    pictures = {path.name for path in (folder / "figures").glob("*.png")}
    assert pictures == {
        "1_loss.png",
        "1_length.png",
        "2_loss.png",
        "2_length.png",
        "3_loss.png",
        "3_length.png",
        "3_alignments.png",
    }


@pytest.mark.parametrize("lesson", LESSONS)
def test_notebooks_are_the_scripts_executed(lesson: str) -> None:
    if importlib.util.find_spec("jupytext") is None:
        pytest.skip("jupytext is not installed")
    import jupytext

    script = jupytext.read(TEACHING / f"{lesson}.py")
    notebook = json.loads((TEACHING / f"{lesson}.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"]]
    assert cells == [cell["source"] for cell in script.cells]
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2


def test_a_corpus_of_names_is_written(tmp_path: Path) -> None:
    pytest.importorskip("pycountry")
    script = EXAMPLES / "translation" / "corpus.py"
    known = {
        "fr": ("Peruvian Sign Language", "Langue des signes péruvienne"),
        "de": ("Argentine Sign Language", "Argentinische Gebärdensprache"),
    }
    for language, pair in known.items():
        printed = run(script, "names.tsv", "--language", language, folder=tmp_path)
        lines = (tmp_path / "names.tsv").read_text(encoding="utf-8").splitlines()
        pairs = [tuple(line.split("\t")) for line in lines]
        assert printed == f"{len(pairs):,} pairs\n"
        assert len(set(pairs)) == len(pairs) > 4000
        assert all(len(both) == 2 and all(both) and both[0] != both[1] for both in pairs)
        assert pair in pairs
    sets = load_data(DataConfig(pairs=str(tmp_path / "names.tsv")))
    assert sets.sizes["train"] > 0.8 * len(pairs)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*/*.yaml")), ids=lambda path: path.name)
def test_configurations_are_read(path, capsys):
    """Of a training that takes too long for a test."""
    assert main(["train", str(path), "--print-config"]) == 0
    told = capsys.readouterr().out
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            assert line in told.splitlines()
