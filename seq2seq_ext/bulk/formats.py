"""What a line of a file means, and what a line about its result looks like.

============  ==============================  ====================================================
format        read                            written
============  ==============================  ====================================================
``"lines"``   the line is the text            the result; with ``n_best`` a line for each, with its
                                              score behind a tab
``"tsv"``     one of its columns is           the columns that were read, behind them the result;
                                              with ``n_best`` a line for each, with its score
``"jsonl"``   a string, or one field of an    the object that was read with ``"result"``, or with
              object                          ``"n_best"``, a list of ``{"text", "score"}``
============  ==============================  ====================================================

An empty text has an empty result. In ``"lines"`` and ``"tsv"`` what would break a line or a column
(tab, line feed, carriage return) is written as a space.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any, NamedTuple

from seq2seq_ext.training.run import Hypothesis

FORMATS = ("lines", "tsv", "jsonl")
BAD_LINES = ("stop", "empty")
MAX_LINE_BYTES = 1 << 20
_SUFFIXES = {".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
_SPACES = str.maketrans("\t\n\r", "   ")


class BadLineError(ValueError):
    """A line that is not what its format says."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BulkOptions:
    """How a file is read, converted and written.

    Args:
        input_format: one of `FORMATS`.
        output_format: one of `FORMATS`.
        column: of ``"tsv"``, which holds the text; the first is 1.
        field: of ``"jsonl"``, which holds the text.
        n_best: if given, so many results of each text are written, with their scores.
        window: lines that are read before they are decoded, sorted by length.
        batch_size: texts decoded at once.
        bad_lines: ``"stop"`` raises at a line that cannot be read, ``"empty"`` takes it for an
            empty one and goes on.
        search: options of `GenerationOptions`.

    Raises:
        ValueError: if an option is out of range.

    Example:
        >>> BulkOptions(column=0)
        Traceback (most recent call last):
        ValueError: column must be at least 1, got 0
    """

    input_format: str = "lines"
    output_format: str = "lines"
    column: int = 1
    field: str = "text"
    n_best: int | None = None
    window: int = 8192
    batch_size: int = 256
    bad_lines: str = "stop"
    search: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, choices in {
            "input_format": FORMATS,
            "output_format": FORMATS,
            "bad_lines": BAD_LINES,
        }.items():
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name} must be one of {list(choices)}, got {getattr(self, name)!r}"
                )
        for name in ("column", "window", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.n_best is not None and self.n_best < 1:
            raise ValueError(f"n_best must be at least 1, got {self.n_best}")


class Record(NamedTuple):
    """A line that was read.

    Args:
        text: what is converted.
        content: what else its output holds: the columns of ``"tsv"``, the object of ``"jsonl"``.
    """

    text: str
    content: list[str] | dict[str, Any]


def format_of(path: str) -> str:
    """The format that a file's name tells, ``.gz`` left out.

    >>> [format_of(name) for name in ("a.tsv", "a.jsonl.gz", "a.txt", "-")]
    ['tsv', 'jsonl', 'lines', 'lines']
    """
    return _SUFFIXES.get(PurePath(path.removesuffix(".gz")).suffix, "lines")


def read(line: bytes, options: BulkOptions) -> Record:
    """What a line says; its end may still be there.

    Raises:
        BadLineError: if it is too long, not UTF-8 or not of the format; the message goes on from
            the line's name.
    """
    if len(line) > MAX_LINE_BYTES:
        raise BadLineError(f"has more than {MAX_LINE_BYTES} bytes")
    try:
        text = line.decode().rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise BadLineError(f"is not UTF-8 text: {error}") from None
    if options.input_format == "lines":
        return Record(text, [text])
    if options.input_format == "jsonl":
        return _read_json(text, options.field)
    columns = text.split("\t")
    if not text:
        return Record("", columns)
    if options.column > len(columns):
        raise BadLineError(f"must have a column {options.column}, has {len(columns)}")
    return Record(columns[options.column - 1], columns)


def _read_json(line: str, name: str) -> Record:
    if not line.strip():
        return Record("", {name: ""})
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadLineError(f"is not valid JSON: {error}") from None
    content = {name: value} if isinstance(value, str) else value
    if not isinstance(content, dict) or not isinstance(content.get(name), str):
        raise BadLineError(f"must be a string, or an object with a string {name!r}")
    text = content[name]
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise BadLineError("must hold Unicode, has half of a surrogate pair")
    return Record(text, content)


def empty(options: BulkOptions) -> Record:
    """What stands for a line that cannot be read."""
    if options.input_format == "jsonl":
        return Record("", {options.field: ""})
    return Record("", [""])


def written(record: Record, best: Sequence[Hypothesis], options: BulkOptions) -> str:
    """The output for a line, with its line ends.

    Args:
        record: the line.
        best: its results, best first; none if the text is empty.
        options: the output's format.
    """
    if options.output_format == "jsonl":
        return _written_json(record, best, options)
    lines = []
    for rank in range(options.n_best or 1):
        hypothesis = best[rank] if rank < len(best) else None
        cells = [] if options.output_format == "lines" else _columns(record)
        cells.append("" if hypothesis is None else hypothesis.text)
        if options.n_best is not None and hypothesis is not None:
            cells.append(f"{hypothesis.score:.4f}")
        elif options.n_best is not None and options.output_format == "tsv":
            cells.append("")
        lines.append("\t".join(cell.translate(_SPACES) for cell in cells) + "\n")
    return "".join(lines)


def _columns(record: Record) -> list[str]:
    return list(record.content) if isinstance(record.content, list) else [record.text]


def _written_json(record: Record, best: Sequence[Hypothesis], options: BulkOptions) -> str:
    content = record.content if isinstance(record.content, dict) else {options.field: record.text}
    result: dict[str, Any] = {"result": best[0].text if best else ""}
    if options.n_best is not None:
        result = {
            "n_best": [
                {"text": each.text, "score": round(each.score, 6)}
                for each in best
                if each.score is not None and math.isfinite(each.score)
            ]
        }
    # A number that JSON does not know, NaN, was read by Python's leave and is written so.
    return json.dumps(content | result, ensure_ascii=False) + "\n"
