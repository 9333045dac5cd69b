"""Files of pairs: every kind, gzipped or not, and lines that are no pair."""

from __future__ import annotations

import gzip
import io
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from seq2seq_ext.data import BadLines, read_pairs

PAIRS = [("ox", "oxen"), ("naïve 水", "a b"), (" x ", "y\u2028z")]
TSV = "".join(f"{s}\t{t}\n" for s, t in PAIRS).encode()
JSONL = (
    b'{"source": "ox", "target": "oxen", "note": 1}\n'
    b'{"source": "na\\u00efve \\u6c34", "target": ["a b"]}\n'
    b'{"source": " x ", "target": "y\\u2028z"}\n'
)


def plain(content: bytes) -> bytes:
    return content


@pytest.mark.parametrize("packed", [plain, gzip.compress])
@pytest.mark.parametrize(
    ("name", "content", "options"),
    [
        ("pairs.tsv", TSV, {}),
        ("pairs", TSV.replace(b"\n", b"\r\n"), {}),
        ("pairs.txt", b"\xef\xbb\xbf" + TSV[:-1], {}),
        ("pairs.jsonl", JSONL, {}),
        ("pairs.ndjson.gz", JSONL, {}),
        ("pairs.tsv.gz", TSV, {}),
        ("pairs.txt", JSONL, {"format": "jsonl"}),
        ("pairs.jsonl", JSONL.replace(b'"source"', b'"en"'), {"source_key": "en"}),
    ],
)
def test_every_format_gives_its_pairs(
    tmp_path: Path,
    name: str,
    content: bytes,
    options: dict[str, str],
    packed: Callable[[bytes], bytes],
) -> None:
    path = tmp_path / name
    path.write_bytes(packed(content))
    assert list(read_pairs(str(path), **options)) == PAIRS


@pytest.mark.parametrize("packed", [plain, gzip.compress])
def test_the_standard_input_is_read(
    packed: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = io.BufferedReader(io.BytesIO(packed(TSV)))
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=buffer))
    assert list(read_pairs("-")) == PAIRS


def test_two_files_are_read_line_by_line(tmp_path: Path) -> None:
    (tmp_path / "a.en").write_text("".join(f"{s}\n" for s, _ in PAIRS))
    (tmp_path / "a.de.gz").write_bytes(gzip.compress("".join(f"{t}\n" for _, t in PAIRS).encode()))
    paths = [str(tmp_path / "a.en"), str(tmp_path / "a.de.gz")]
    assert list(read_pairs(paths)) == PAIRS
    with open(paths[0], "a") as file:
        file.write("one more\n")
    with pytest.raises(ValueError, match=r"equally many lines, but .*a\.de\.gz ends after 3"):
        list(read_pairs(paths))


def test_several_targets_make_a_pair_each(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"source": "dove", "target": ["D AH V", "D OW V"]}\n')
    assert list(read_pairs(str(path))) == [("dove", "D AH V"), ("dove", "D OW V")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"one", "must have two columns with a tab between, got 1"),
        (b"a\tb\tc", "must have two columns with a tab between, got 3"),
        (b"", "must have two columns with a tab between, got 1"),
        (b"\tb", "must have a source and a target, got a source without text"),
        (b"a\t  ", "must have a source and a target, got a target without text"),
        (b"\xff\t\xfe", "must be UTF-8 text"),
    ],
)
def test_a_bad_line_is_told_with_its_number(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_bytes(b"a\tb\n" + line + b"\nc\td\n")
    with pytest.raises(ValueError, match=rf"pairs\.tsv, line 2 {message}"):
        list(read_pairs(str(path)))
    bad_lines = BadLines(skip=True)
    assert list(read_pairs(str(path), bad_lines=bad_lines)) == [("a", "b"), ("c", "d")]
    summary = bad_lines.summary()
    assert summary is not None
    assert summary.startswith(f"skipped 1 bad line: {path}, line 2 {message}")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "must be JSON: "),
        ("[" * 100_000, "must be JSON, got one too deep"),
        ("[1]", "must be a JSON object, got list"),
        ('{"source": "a"}', "must have a string 'source', and a string or a list"),
        ('{"source": "a", "target": []}', "must have a string 'source', and a string or a list"),
        ('{"source": "a", "target": ["b", 1]}', "must have a string 'source', and a string or"),
        ('{"source": 1, "target": "b"}', "must have a string 'source', and a string or a list"),
        ('{"source": "a", "target": ""}', "must have a source and a target, got a target without"),
    ],
)
def test_a_bad_object_is_told_with_its_number(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(f'{{"source": "a", "target": "b"}}\n{line}\n')
    with pytest.raises(ValueError, match=rf"pairs\.jsonl, line 2 {message}"):
        list(read_pairs(str(path)))


def test_of_many_bad_lines_the_first_are_told(tmp_path: Path) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text("bad\n" * 1_500 + "a\tb\n")
    bad_lines = BadLines(skip=True)
    assert list(read_pairs(str(path), bad_lines=bad_lines)) == [("a", "b")]
    summary = bad_lines.summary()
    assert summary is not None
    assert summary.startswith("skipped 1,500 bad lines: ")
    assert summary.endswith("and 1,490 more")
    assert ", line 10 must" in summary
    assert BadLines().summary() is None


def test_a_torn_gzip_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "pairs.tsv.gz"
    whole = gzip.compress(TSV * 1_000)
    for content in (whole[: len(whole) // 2], whole[:20] + b"garbage" * 9, whole[:2] + b"\0" * 30):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"pairs\.tsv\.gz is no whole gzip file"):
            list(read_pairs(str(path)))


def test_wrong_paths_are_refused() -> None:
    with pytest.raises(ValueError, match="one file of pairs, or two of sources and targets, got 3"):
        list(read_pairs(["a", "b", "c"]))
    with pytest.raises(ValueError, match="two files, or '-' alone"):
        list(read_pairs(["a", "-"]))
    with pytest.raises(FileNotFoundError, match="nothing"):
        list(read_pairs("no/such/nothing"))
