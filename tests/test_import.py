"""What `import seq2seq_ext` costs, and what it leaves alone."""

from __future__ import annotations

import importlib.metadata
import math
import re
import subprocess
import sys
from pathlib import Path

# The best of several, for what else runs on the machine can only add.
REPEATS = 5
MAX_SECONDS = 0.3


def run(code: str) -> str:
    """What a fresh interpreter prints."""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_adds_little_to_importing_torch() -> None:
    code = (
        "import time, torch\n"
        "start = time.perf_counter()\n"
        "import seq2seq_ext\n"
        "print(time.perf_counter() - start)"
    )
    run(code)  # writes the byte code
    seconds: list[float] = []
    while len(seconds) < REPEATS and min(seconds, default=math.inf) > MAX_SECONDS:
        seconds.append(float(run(code)))
    assert min(seconds) <= MAX_SECONDS, seconds


def test_imports_no_extra() -> None:
    code = (
        "import sys, torch\n"
        "before = set(sys.modules)\n"
        "import seq2seq_ext\n"
        "print(*sorted({name.partition('.')[0] for name in set(sys.modules) - before}))"
    )
    imported = set(run(code).split())
    assert "seq2seq_ext" in imported
    assert imported & extra_modules() == set()


def extra_modules() -> set[str]:
    """Top-level modules of the distributions that the extras name."""
    extras = {
        normalised(re.split(r"[^\w.-]", requirement)[0])
        for requirement in importlib.metadata.requires("seq2seq_ext") or []
        if "extra ==" in requirement
    } - {"seq2seq-ext"}
    assert {"lightning", "rich", "safetensors", "lemminflect"} <= extras
    installed = {
        module
        for module, distributions in importlib.metadata.packages_distributions().items()
        if extras & {normalised(name) for name in distributions}
    }
    return installed | {name.replace("-", "_") for name in extras}


def normalised(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def test_works_without_torch_imported_before() -> None:
    assert run("import seq2seq_ext; print(seq2seq_ext.cpu_isa())").strip()


def test_works_from_any_folder(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", "import seq2seq_ext; print(seq2seq_ext.build_info()['version'])"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert result.stdout.strip() == importlib.metadata.version("seq2seq_ext")
