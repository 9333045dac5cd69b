"""Strings of letters to copy, to reverse and to sort: what a model can learn, at its purest."""

from __future__ import annotations

import random
import string
from collections.abc import Callable

MADE_UP: dict[str, Callable[[str], str]] = {
    "copy": lambda text: text,
    "reverse": lambda text: text[::-1],
    "sort": lambda text: "".join(sorted(text)),
}


def made_up_pairs(
    task: str, *, pairs: int = 20_000, longest: int = 20, seed: int = 0
) -> list[tuple[str, str]]:
    """Random strings of the letters a to z, no string twice, and what the task makes of them.

    Args:
        task: ``"copy"``, ``"reverse"`` or ``"sort"``.
        pairs: how many.
        longest: letters of the longest; all lengths from 3 on are equally frequent.
        seed: of the strings, which are the same for all tasks.

    Raises:
        ValueError: if `task` is none of them, or `longest` is less than 5.

    Example:
        >>> made_up_pairs("sort", pairs=2)
        [('tkgnkuhmpxnhtqg', 'gghhkkmnnpqttux'), ('zvxisxrmclpxzmwguoas', 'acgilmmoprssuvwxxxzz')]
    """
    if task not in MADE_UP:
        raise ValueError(f"task must be one of {', '.join(MADE_UP)}, got {task!r}")
    if longest < 5:  # there are 26**3 strings of three letters: enough remain to be found
        raise ValueError(f"longest must be at least 5, got {longest}")
    chance = random.Random(seed)
    texts: dict[str, None] = {}
    while len(texts) < pairs:
        length = chance.randint(3, longest)
        texts["".join(chance.choices(string.ascii_lowercase, k=length))] = None
    return [(text, MADE_UP[task](text)) for text in texts]
