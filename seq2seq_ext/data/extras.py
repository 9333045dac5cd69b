"""Optional libraries: imported when they are needed, with a message on how to get them."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType


class MissingExtraError(ModuleNotFoundError):
    """A library of an extra of this package is not installed."""


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import an optional library.

    Args:
        module: its import name.
        extra: the extra of seq2seq_ext that installs it.
        purpose: what needs it, for the message.

    Raises:
        MissingExtraError: if it is not installed.
    """
    check(module, extra=extra, purpose=purpose)
    return importlib.import_module(module)


def check(module: str, *, extra: str, purpose: str) -> None:
    """Raise MissingExtraError if an optional library is not installed, without importing it."""
    package = module.partition(".")[0]  # looking for a part of it would import the rest
    if importlib.util.find_spec(package) is None:
        raise MissingExtraError(
            f"{purpose} needs the package {package!r}, which is not installed; "
            f"install it with: pip install 'seq2seq_ext[{extra}]'",
            name=package,
        )
