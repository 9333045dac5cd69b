"""Argument types for lists and names."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from typing import Any


def several(one: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """The type of an option that takes a list with commas; what is named twice counts once."""

    def parse(text: str) -> list[Any]:
        return list(dict.fromkeys(one(part.strip()) for part in text.split(",")))

    return parse


def one_of(names: Iterable[str]) -> Callable[[str], str]:
    """The type of an option that takes one of some names."""
    known = list(names)

    def parse(text: str) -> str:
        if text not in known:
            raise argparse.ArgumentTypeError(f"expected one of {', '.join(known)}; got {text!r}")
        return text

    return parse
