"""`translate_file`: read, convert, keep, go on, share and put together."""

from __future__ import annotations

import ctypes
import gzip
import hashlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from seq2seq_ext.bulk.convert import convert
from seq2seq_ext.bulk.formats import BulkOptions
from seq2seq_ext.bulk.journal import Journal, path_of
from seq2seq_ext.bulk.lines import Window, opened, windows
from seq2seq_ext.bulk.shards import Shard, merge
from seq2seq_ext.training.run import Run

_JOURNAL_FORMAT = 1


def translate_file(
    run: Run,
    source: str,
    output: str,
    options: BulkOptions | None = None,
    *,
    resume: bool = False,
    shard: Shard | None = None,
    on_bad_line: Callable[[str], None] | None = None,
    on_texts: Callable[[list[str]], None] | None = None,
    on_lines: Callable[[int], None] | None = None,
) -> int:
    """Convert a file of any size, its lines' order kept.

    One window of lines is in memory at a time. Results are gathered beside `output`, which appears
    when it is whole; a kill at any moment loses no more than the window that was being decoded.
    With `resume` the output is the same in every byte as that of an undisturbed run.

    Args:
        run: the model.
        source: a path; ``.gz`` is decompressed, ``-`` is the standard input.
        output: a path; ``.gz`` is compressed, a member for each window; ``-`` is the standard
            output, which cannot be resumed.
        options: how to read, search and write; None stands for the defaults.
        resume: whether to go on where an earlier call with the same arguments was interrupted.
        shard: which of several processes this is; None takes what ``torchrun`` says.
        on_bad_line: with ``bad_lines="empty"`` told of each of them.
        on_texts: told of the texts of a window before they are converted.
        on_lines: told how many lines this process has done, the resumed ones included, after each
            window.

    Returns:
        The lines that this process has converted or resumed.

    Raises:
        BadLineError: at a line that cannot be read, unless they are taken for empty.
        OSError: if a file cannot be read or written, or another process writes the same output.
        ValueError: if a file is damaged, or what is to be resumed was begun with another model,
            input or options.
    """
    options = BulkOptions() if options is None else options
    shard = Shard.of_environment() if shard is None else shard
    arguments: dict[str, Any] = {
        "name": "the standard input" if source == "-" else source,
        "on_bad_line": on_bad_line,
        "on_texts": on_texts,
    }
    on_lines = on_lines or (lambda lines: None)
    if output == "-":
        if resume or shard.world_size > 1:
            raise ValueError("output must be a file for --resume or several processes, got '-'")
        done = 0
        with opened(source) as file:
            for window in windows(file, options.window):
                sys.stdout.write(convert(run, window, options, **arguments).decode())
                sys.stdout.flush()
                done += len(window.lines)
                on_lines(done)
        return done
    if source == "-" and shard.world_size > 1:
        raise ValueError("source must be a file for several processes, got '-'")
    target = Path(output)
    parts = shard.parts(target)
    if resume:
        _check_parts(target, parts)
        if target.exists() and not any(part.exists() for part in parts):
            path_of(parts[shard.rank]).unlink(missing_ok=True)
            return 0  # it was whole already
    identity = _identity(run, options, shard, compressed=output.endswith(".gz"))
    with shard.together(), Journal(parts[shard.rank], identity, resume=resume) as journal:
        shard.wait()  # until what each has thrown away is gone
        done = 0
        kept = iter(list(journal.entries))
        with opened(source) as file:
            for window in windows(file, options.window):
                if not shard.takes(window.number):
                    continue
                entry = next(kept, None)
                if entry is None:
                    content = convert(run, window, options, **arguments)
                    if output.endswith(".gz"):
                        content = gzip.compress(content, mtime=0)
                    journal.append(window.number, window.digest, len(window.lines), content)
                elif (entry.window, entry.digest) != (window.number, window.digest):
                    raise _changed(source, window)
                done += len(window.lines)
                on_lines(done)
        if next(kept, None) is not None:
            raise ValueError(f"{source} is shorter than when its results were begun")
        shard.wait()  # until all are done
        if shard.world_size == 1:
            journal.publish(target)
        elif shard.rank == 0:
            merge(parts, target)
        shard.wait()  # until it is there
    return done


def _changed(source: str, window: Window) -> ValueError:
    last = window.first + len(window.lines) - 1
    return ValueError(
        f"{source} is not the input that was begun with: something up to line {last} has changed; "
        "without --resume all begins anew"
    )


def _check_parts(target: Path, parts: list[Path]) -> None:
    """Raise where another number of processes has begun."""
    begun = {
        path
        for pattern in (".part", ".part-*-of-*")
        for path in target.parent.glob(f"{_escaped(target.name)}{pattern}")
        if not path.name.endswith(".journal")
    }
    strangers = sorted(str(path) for path in begun - set(parts))
    if strangers:
        raise ValueError(
            f"{strangers[0]} was begun by another number of processes; resume with as many, or "
            "remove it"
        )


def _escaped(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _identity(
    run: Run, options: BulkOptions, shard: Shard, *, compressed: bool
) -> Mapping[str, Any]:
    """What results depend on, as JSON."""
    return {
        "format": _JOURNAL_FORMAT,
        "model": _model_digest(run),
        "options": asdict(options),
        "shard": [shard.rank, shard.world_size],
        "compressed": compressed,
    }


def _model_digest(run: Run) -> str:
    """SHA-256 of the config, the vocabularies and all weights."""
    tokens = (run.source_vocabulary.to_list(), run.target_vocabulary.to_list())
    config = sorted(run.model.config.to_dict().items())
    digest = hashlib.sha256(repr((config, tokens)).encode())
    for name, tensor in run.model.state_dict().items():
        data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(ctypes.string_at(data.data_ptr(), data.numel()))  # numpy may not be there
    return digest.hexdigest()
