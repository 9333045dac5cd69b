"""The examples of the pages on models and on weights of other packages run."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
NEEDS: dict[str, tuple[str, ...]] = {"models.md": (), "pretrained.md": ("g2p_en", "safetensors")}


@pytest.mark.parametrize("page", NEEDS)
def test_the_examples_run(page: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if not DOCS.exists():
        pytest.skip("the documentation is not beside the tests")
    for package in NEEDS[page]:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"the package {package} is not installed")
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), flags=re.DOTALL)
    assert examples
    scope: dict[str, object] = {}
    for example in examples:
        exec(example, scope)
