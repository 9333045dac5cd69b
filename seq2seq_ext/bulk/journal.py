"""What is done of a file, so that a later process goes on after a kill at any moment.

Two files stand beside the output until it is whole. The part holds the results of the windows that
are done and is only ever extended; the journal has a line for each of them, written when the part
is safe on the disk. What stands in the part behind the journal's last word is thrown away, and so
is a line of the journal that was cut short. The output itself appears in one step.

The journal's first line says what the results depend on; with another model, other options or
another input nothing is gone on with.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple


class Entry(NamedTuple):
    """A window that is done.

    Args:
        window: its index.
        digest: of the input up to its end.
        size: bytes of its results.
        lines: how many it has.
    """

    window: int
    digest: str
    size: int
    lines: int


class Journal:
    """A part and its journal, open for more; a context.

    Args:
        part: the results.
        identity: what they depend on, as JSON can hold it.
        resume: whether to go on with what is there; else it is thrown away.

    Raises:
        BlockingIOError: if another process writes them.
        ValueError: if `resume`, and what is there depends on something else.
    """

    def __init__(self, part: Path, identity: Mapping[str, Any], *, resume: bool) -> None:
        self.part = part
        self.path = path_of(part)
        part.parent.mkdir(parents=True, exist_ok=True)
        # Python opens with O_CLOEXEC, and the lock ends with the process, however that ends.
        self._journal = open(self.path, "a+b")  # noqa: SIM115
        try:
            self._lock()
            header, self.entries, end = _parsed(self._content())
            if not resume or header is None:
                self._restart(identity)
            else:
                _check(self.path, header, json.loads(json.dumps(identity)))
                self._journal.truncate(end)
            self._part = open(part, "ab")  # noqa: SIM115
        except BaseException:
            self._journal.close()
            raise
        safe = sum(entry.size for entry in self.entries)
        if os.path.getsize(part) < safe:
            # The disk lost what it had called safe, or someone cut the file.
            self._restart(identity)
            safe = 0
        self._part.truncate(safe)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(f"{self.part} is being written by another process") from None

    def _content(self) -> bytes:
        self._journal.seek(0)
        return self._journal.read()

    def _restart(self, identity: Mapping[str, Any]) -> None:
        self.entries = []
        self._journal.truncate(0)
        self._say(dict(identity))

    def _say(self, value: Any) -> None:
        self._journal.write(json.dumps(value).encode() + b"\n")
        self._journal.flush()
        os.fsync(self._journal.fileno())

    def append(self, window: int, digest: str, lines: int, content: bytes) -> None:
        """Keep a window's results; they are safe when this returns."""
        self._part.write(content)
        self._part.flush()
        os.fsync(self._part.fileno())
        entry = Entry(window, digest, len(content), lines)
        self._say(list(entry))
        self.entries.append(entry)

    def publish(self, output: Path) -> None:
        """Let the part become the output, in one step, and remove the journal."""
        os.replace(self.part, output)
        sync_folder(output.parent)
        os.unlink(self.path)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._part.close()
        self._journal.close()


def path_of(part: Path) -> Path:
    """The journal of a part."""
    return part.with_name(part.name + ".journal")


def read_entries(part: Path) -> list[Entry]:
    """The entries of a part that another process has written."""
    return _parsed(path_of(part).read_bytes())[1]


def sync_folder(folder: Path) -> None:
    """Let names that were moved in a folder survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _parsed(content: bytes) -> tuple[dict[str, Any] | None, list[Entry], int]:
    """The first line, the entries behind it, and where the last whole line ends."""
    header: dict[str, Any] | None = None
    entries: list[Entry] = []
    end = 0
    for line in content.splitlines(keepends=True):
        if not line.endswith(b"\n"):
            break
        try:
            value = json.loads(line)
            if header is None:
                header = dict(value)
            else:
                entries.append(Entry(*value))
        except (TypeError, ValueError):
            break  # written when the machine stopped; what comes behind counts no more
        end += len(line)
    return header, entries, end


def _check(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    other = [
        f"{name} was {found.get(name)!r} and is {wanted.get(name)!r}"
        for name in dict.fromkeys([*wanted, *found])
        if found.get(name) != wanted.get(name)
    ]
    if other:
        raise ValueError(
            f"{path} was begun otherwise: {'; '.join(other)}; without --resume all begins anew"
        )
