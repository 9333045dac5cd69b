"""Argument types that say what they expect."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable


def positive_int(text: str) -> int:
    """An int of at least 1."""
    return _int(text, 1)


def non_negative_int(text: str) -> int:
    """An int of at least 0."""
    return _int(text, 0)


def finite_float(text: str) -> float:
    """A number."""
    return _float(text, "a number", lambda value: True)


def positive_float(text: str) -> float:
    """A number above 0."""
    return _float(text, "a number above 0", lambda value: value > 0)


def non_negative_float(text: str) -> float:
    """A number of at least 0."""
    return _float(text, "a number of at least 0", lambda value: value >= 0)


def _int(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(
            f"expected a whole number of at least {least}, got {text!r}"
        )
    return value


def _float(text: str, expected: str, is_right: Callable[[float], bool]) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or not is_right(value):
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
    return value
