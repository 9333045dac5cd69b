"""A file as windows of lines: what is in memory at once, whatever the file's size.

A window ends after so many lines or bytes, which the file alone decides, so that every process, and
a later one that goes on, sees the same windows.
"""

from __future__ import annotations

import gzip
import hashlib
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, NamedTuple, cast

from seq2seq_ext.bulk.formats import MAX_LINE_BYTES

_WINDOW_BYTES = 16 << 20
_BOM = b"\xef\xbb\xbf"


class Window(NamedTuple):
    """Some lines of a file.

    Args:
        number: its place among the windows, from 0.
        first: the number of its first line, from 1.
        lines: with their ends; one that is too long is cut behind `MAX_LINE_BYTES`.
        digest: SHA-256 of the file up to the window's end.
    """

    number: int
    first: int
    lines: list[bytes]
    digest: str


@contextmanager
def opened(path: str) -> Iterator[BinaryIO]:
    """A file for reading; ``-`` is the standard input, ``.gz`` is decompressed.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is damaged.
    """
    if path == "-":
        yield sys.stdin.buffer
        return
    compressed = path.endswith(".gz")
    with gzip.open(path) if compressed else open(path, "rb") as file:
        try:
            yield cast("BinaryIO", file)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path} is damaged: {error}") from error


def windows(file: BinaryIO, size: int) -> Iterator[Window]:
    """Cut a file into windows.

    Args:
        file: read from where it stands to its end.
        size: lines of a window.
    """
    digest = hashlib.sha256()
    lines: list[bytes] = []
    held = number = 0
    first = 1
    for line in _lines(file, digest):
        lines.append(line.removeprefix(_BOM) if first == 1 and not held else line)
        held += len(line)
        if len(lines) == size or held >= _WINDOW_BYTES:
            yield Window(number, first, lines, digest.hexdigest())
            number, first = number + 1, first + len(lines)
            lines, held = [], 0
    if lines:
        yield Window(number, first, lines, digest.hexdigest())


def _lines(file: BinaryIO, digest: hashlib._Hash) -> Iterator[bytes]:
    while line := file.readline(MAX_LINE_BYTES + 1):
        digest.update(line)
        yield line
        rest = line
        # The rest of a line that is too long is read, and not kept.
        while len(rest) > MAX_LINE_BYTES and not rest.endswith(b"\n"):
            rest = file.readline(MAX_LINE_BYTES + 1)
            digest.update(rest)
