"""Files that are either whole or as they were: written beside their place, then moved there."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any


def write_bytes_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Replace the file at `path` in one step; make its folder if there is none.

    A reader, or a run after a crash, finds the old content or the new, never a part of it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The same folder, so that the same file system: os.replace is atomic only within one.
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes the file private; give it the permissions open() would have given it.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def write_json_atomically(path: str | os.PathLike[str], value: Any) -> None:
    """Replace the file at `path` by `value` as indented UTF-8 JSON."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    write_bytes_atomically(path, f"{text}\n".encode())


def read_json(path: str | os.PathLike[str]) -> Any:
    """The value that a JSON file holds.

    Raises:
        ValueError: if the file is no JSON; the message names it.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise ValueError(f"{path} is not valid JSON: {error}") from error
