"""Pairs of texts from files: two columns, JSON lines, or two files line by line; gzipped or not.

Files are read line by line, so that none need fit into memory. What is wrong with a line is told
with its number: it ends the reading, or the line is left out and told of at the end.
"""

from __future__ import annotations

import gzip
import json
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import IO, Any, TypeGuard

from seq2seq_ext.data.split import Pair

STDIN = "-"
FORMATS = ("tsv", "jsonl")
ON_BAD_LINE = ("stop", "skip")
_JSONL = (".jsonl", ".ndjson")
_SHOWN = 10


@dataclass
class BadLines:
    """What becomes of lines that are no pair.

    Args:
        skip: whether they are left out; else the first ends the reading.
        count: how many have been left out.
        shown: what is wrong with the first ones.
    """

    skip: bool = False
    count: int = 0
    shown: list[str] = field(default_factory=list)

    def add(self, where: str, number: int, what: str) -> None:
        """Take one down.

        Raises:
            ValueError: if it ends the reading.
        """
        message = f"{where}, line {number} {what}"
        if not self.skip:
            raise ValueError(message)
        self.count += 1
        if len(self.shown) < _SHOWN:
            self.shown.append(message)

    def summary(self) -> str | None:
        """One line on what was left out; None if nothing was."""
        if not self.count:
            return None
        more = f"; and {self.count - len(self.shown):,} more" if self.count > _SHOWN else ""
        lines = "line" if self.count == 1 else "lines"
        return f"skipped {self.count:,} bad {lines}: {'; '.join(self.shown)}{more}"


def read_pairs(
    paths: str | Sequence[str],
    *,
    format: str | None = None,
    source_key: str = "source",
    target_key: str = "target",
    bad_lines: BadLines | None = None,
) -> Iterator[Pair]:
    """Pairs in the order of the lines.

    Args:
        paths: a file of pairs, ``"-"`` for the standard input; or two files, of sources and of
            targets, line by line. A gzipped one is known by its first bytes.
        format: of a file of pairs, ``"tsv"`` or ``"jsonl"``; None goes by its name, and takes two
            columns where that does not end in ``.jsonl`` or ``.ndjson``, perhaps with ``.gz``.
        source_key: of a JSON object the source, a string.
        target_key: the target, a string, or a list of several, which makes a pair of each.
        bad_lines: what becomes of lines that are no pair; None stops at the first.

    Raises:
        ValueError: if a line is no pair, a file is damaged, or two files differ in length; the
            message names file and line.
        OSError: if a file cannot be read.
    """
    bad_lines = bad_lines or BadLines()
    if not isinstance(paths, str):
        if len(paths) != 2:
            raise ValueError(
                f"paths must be one file of pairs, or two of sources and targets, got {len(paths)}"
            )
        yield from _parallel(paths[0], paths[1], bad_lines)
        return
    name = paths.removesuffix(".gz")
    if (format or ("jsonl" if name.endswith(_JSONL) else "tsv")) == "jsonl":
        parse: Callable[[str], list[Pair]] = _JsonPairs(source_key, target_key)
    else:
        parse = _columns
    with _lines(paths) as (where, lines):
        for number, line in enumerate(lines, 1):
            try:
                pairs = parse(_text(line))
            except ValueError as error:
                bad_lines.add(where, number, str(error))
                continue
            yield from pairs


@contextmanager
def _lines(path: str) -> Iterator[tuple[str, Iterator[bytes]]]:
    """What a file is called, and its lines."""
    if path == STDIN:
        where = "standard input"
        yield where, _unpacked(where, sys.stdin.buffer)
        return
    with open(path, "rb") as file:
        yield path, _unpacked(path, file)


def _unpacked(where: str, file: IO[bytes]) -> Iterator[bytes]:
    peek: Callable[[int], bytes] = file.peek  # type: ignore[attr-defined]
    if peek(2)[:2] != b"\x1f\x8b":
        yield from file
        return
    try:
        with gzip.open(file) as unpacked:
            yield from unpacked
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{where} is no whole gzip file: {error}") from error


def _text(line: bytes) -> str:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"must be UTF-8 text: {error}") from error
    return text.removeprefix("\ufeff").rstrip("\r\n")


def _columns(line: str) -> list[Pair]:
    columns = line.split("\t")
    if len(columns) != 2:
        raise ValueError(f"must have two columns with a tab between, got {len(columns)}")
    return [_pair(columns[0], columns[1])]


def _pair(source: str, target: str) -> Pair:
    for name, text in (("source", source), ("target", target)):
        if not text.strip():
            raise ValueError(f"must have a source and a target, got a {name} without text")
    return source, target


@dataclass(frozen=True)
class _JsonPairs:
    source_key: str
    target_key: str

    def __call__(self, line: str) -> list[Pair]:
        try:
            value = json.loads(line)
        except ValueError as error:
            raise ValueError(f"must be JSON: {error}") from error
        except RecursionError:
            raise ValueError("must be JSON, got one too deep") from None
        if not isinstance(value, dict):
            raise ValueError(f"must be a JSON object, got {type(value).__name__}")
        source, targets = value.get(self.source_key), value.get(self.target_key)
        if isinstance(targets, str):
            targets = [targets]
        if not isinstance(source, str) or not _is_strings(targets):
            raise ValueError(
                f"must have a string {self.source_key!r}, and a string or a list of strings "
                f"{self.target_key!r}"
            )
        return [_pair(source, target) for target in targets]


def _is_strings(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and bool(value) and all(isinstance(v, str) for v in value)


def _parallel(source: str, target: str, bad_lines: BadLines) -> Iterator[Pair]:
    if STDIN in (source, target):
        raise ValueError("paths must be two files, or '-' alone, got '-' beside another")
    where = f"{source} and {Path(target).name}"
    with _lines(source) as (_, sources), _lines(target) as (_, targets):
        for number, (left, right) in enumerate(zip_longest(sources, targets), 1):
            if left is None or right is None:
                shorter = source if left is None else target
                raise ValueError(
                    f"{source} and {target} must have equally many lines, but {shorter} ends "
                    f"after {number - 1:,}"
                )
            try:
                yield _pair(_text(left), _text(right))
            except ValueError as error:
                bad_lines.add(where, number, str(error))
