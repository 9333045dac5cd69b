"""The links of the documentation lead somewhere: to files that exist and to headings in them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]) if (ROOT / "docs").exists() else []


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", without_code(page.read_text()), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text())):
        if link.startswith(("https://", "http://")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


@pytest.mark.parametrize("folder", ["seq2seq_ext", "tests", "benchmarks", "csrc", "build_tools"])
def test_pages_that_code_names_exist(folder: str) -> None:
    if not PAGES:
        pytest.skip("the documentation is not beside the tests")
    for path in (ROOT / folder).rglob("*"):
        if path.suffix in (".py", ".h", ".cpp", ".cu", ".cuh"):
            for name in re.findall(r"\bdocs/[\w./-]+\.md\b", path.read_text()):
                assert (ROOT / name).exists(), f"{path}: {name}"
