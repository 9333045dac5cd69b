"""Encoded pairs in files that are mapped into memory, for more of them than memory holds.

==========================  ====================================================================
``source.tokens``           ids of all sources end to end, int32
``source.lengths``          of each source, int32
``target.*``                likewise the targets
``pairs.json``              how many, and what they were made from; written last
==========================  ====================================================================

The operating system reads pages of them when a batch asks, and drops them when memory is short. In
memory are some 60 bytes a pair, for lengths, places and an epoch's order.
"""

from __future__ import annotations

import os
import sys
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from seq2seq_ext.data.dataset import EncodedPairs, Rows, encode_pair
from seq2seq_ext.data.files import read_json, write_json_atomically
from seq2seq_ext.data.split import Pair
from seq2seq_ext.data.vocabulary import Vocabulary

_INDEX = "pairs.json"
_SIDES = ("source", "target")
# Tokens that are gathered before they are written.
_BUFFER = 1 << 20


def write_mapped(
    folder: Path,
    pairs: Iterable[Pair],
    source: Vocabulary,
    target: Vocabulary,
    about: Any,
    *,
    copies: bool = False,
) -> None:
    """Encode pairs, read once, into a folder, atomically file by file.

    Args:
        folder: made if there is none.
        pairs: the texts.
        source: encodes the sources.
        target: encodes the targets, to which ``</s>`` is added.
        about: what they were made from, as JSON can hold it.
        copies: as of `encode_pair`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not _is_of(folder, about):  # else another process has just written the same
        (folder / _INDEX).unlink(missing_ok=True)
    writers = [_SideWriter(folder, side) for side in _SIDES]
    try:
        count = 0
        for pair in pairs:
            for writer, ids in zip(
                writers, encode_pair(pair, source, target, copies=copies), strict=True
            ):
                writer.add(ids)
            count += 1
        tokens = [writer.close() for writer in writers]
    except BaseException:
        for writer in writers:
            writer.discard()
        raise
    described = {"pairs": count, "tokens": tokens, "byte_order": sys.byteorder, "about": about}
    write_json_atomically(folder / _INDEX, described)


def open_mapped(
    folder: Path, source: Vocabulary, target: Vocabulary, about: Any
) -> EncodedPairs | None:
    """What `write_mapped` wrote; None if there is nothing, or it was made from something else.

    Raises:
        ValueError: if a file has not the size that it should have.
    """
    if not _is_of(folder, about):
        return None
    index = read_json(folder / _INDEX)
    rows = [
        _open_side(folder, side, index["pairs"], tokens)
        for side, tokens in zip(_SIDES, index["tokens"], strict=True)
    ]
    return EncodedPairs(rows[0], rows[1], source, target)


def _is_of(folder: Path, about: Any) -> bool:
    """Whether the folder holds pairs made of `about`, on a machine like this."""
    if not (folder / _INDEX).is_file():
        return False
    index = read_json(folder / _INDEX)
    return isinstance(index, dict) and [index.get("about"), index.get("byte_order")] == [
        about,
        sys.byteorder,
    ]


def _open_side(folder: Path, side: str, pairs: int, tokens: int) -> Rows:
    sizes = {"lengths": pairs, "tokens": tokens + 1}
    for name, size in sizes.items():
        path = folder / f"{side}.{name}"
        found = path.stat().st_size if path.is_file() else 0
        if found != 4 * size:
            raise ValueError(f"{path} must have {4 * size} bytes, got {found}; delete {folder}")
    mapped = torch.from_file(
        str(folder / f"{side}.tokens"), shared=False, size=tokens + 1, dtype=torch.int32
    )
    content = bytearray((folder / f"{side}.lengths").read_bytes())
    lengths = torch.frombuffer(content, dtype=torch.int32) if content else torch.zeros(0)
    return Rows(lengths.long(), mapped)


class _SideWriter:
    """Writes one side's two files beside their places, and moves them there when it is closed."""

    def __init__(self, folder: Path, side: str) -> None:
        self._paths = [folder / f"{side}.{name}" for name in ("tokens", "lengths")]
        # Of this process: of several that write the same, the last one's files stay.
        self._temporary = [p.with_name(f".{p.name}.{os.getpid()}") for p in self._paths]
        self._files = [open(path, "wb") for path in self._temporary]  # noqa: SIM115
        self._tokens, self._lengths = array("i"), array("i")
        self._written = 0

    def add(self, ids: list[int]) -> None:
        self._tokens.extend(ids)
        self._lengths.append(len(ids))
        if len(self._tokens) >= _BUFFER:
            self._flush()

    def close(self) -> int:
        """Put the files in their places; returns how many tokens there are."""
        self._tokens.append(0)  # something for an empty last row to point at
        self._flush()
        for file, temporary, path in zip(self._files, self._temporary, self._paths, strict=True):
            file.flush()
            os.fsync(file.fileno())
            file.close()
            os.replace(temporary, path)
        return self._written - 1

    def discard(self) -> None:
        for file, temporary in zip(self._files, self._temporary, strict=True):
            file.close()
            temporary.unlink(missing_ok=True)

    def _flush(self) -> None:
        self._written += len(self._tokens)
        for file, values in zip(self._files, (self._tokens, self._lengths), strict=True):
            values.tofile(file)
        self._tokens, self._lengths = array("i"), array("i")
