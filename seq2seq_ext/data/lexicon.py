"""English words and their forms, from the lexicon that the package lemminflect ships.

The lexicon is a gzipped table of lines ``lemma,part of speech,form/variant,...``, made from the
SPECIALIST lexicon of the US National Library of Medicine. Only its file is read; lemminflect's own
code, and what that imports, stays out.
"""

from __future__ import annotations

import gzip
import importlib.util
import re
from pathlib import Path

from seq2seq_ext.data.extras import check

# Task: part of speech, and the column of the form behind it.
_TASKS = {"plural": ("noun", 0), "past": ("verb", 0)}
_WORD = re.compile("[a-z]+")


def word_pairs(task: str) -> list[tuple[str, str]]:
    """Lemmas and forms, in the lexicon's order.

    Both are of the letters a to z alone, they differ, and of several forms the first is taken.

    Args:
        task: ``"plural"`` (noun to plural, 13,668 pairs) or ``"past"`` (verb to past tense, 6,414
            pairs), the numbers being those of lemminflect 0.2.3.

    Raises:
        ValueError: if `task` is neither.
        ModuleNotFoundError: if lemminflect is not installed.
        FileNotFoundError: if its lexicon is not where it used to be.
    """
    if task not in _TASKS:
        raise ValueError(f"task must be one of {list(_TASKS)}, got {task!r}")
    category, column = _TASKS[task]
    pairs: list[tuple[str, str]] = []
    with gzip.open(_lexicon_path(), "rt", encoding="utf-8") as lines:
        for line in lines:
            lemma, part_of_speech, *forms = line.rstrip("\n").split(",")
            if part_of_speech != category or len(forms) <= column:
                continue
            form = forms[column].split("/")[0]
            if lemma != form and _WORD.fullmatch(lemma) and _WORD.fullmatch(form):
                pairs.append((lemma, form))
    return pairs


def _lexicon_path() -> Path:
    check("lemminflect", extra="demo", purpose="the English word lists")
    spec = importlib.util.find_spec("lemminflect")
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    for folder in folders:
        path = Path(folder) / "resources" / "infl_lu.csv.gz"
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"lemminflect is installed but has no resources/infl_lu.csv.gz in {folders}; "
        "version 0.2.3 has it: pip install lemminflect==0.2.3"
    )
