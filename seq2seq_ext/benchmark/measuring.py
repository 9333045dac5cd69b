"""How a case becomes a row: its contestants made, checked and timed, everyone in turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

import seq2seq_ext
from seq2seq_ext.benchmark import peers
from seq2seq_ext.benchmark.machine import OtherPrograms, wait_for_quiet
from seq2seq_ext.benchmark.results import Row
from seq2seq_ext.benchmark.shapes import Case
from seq2seq_ext.benchmark.timing import Timing, take_turns
from seq2seq_ext.benchmark.workloads import OURS, TORCH, Contestant, check, contestants

_ATTEMPTS = 3


def measure(case: Case, *, peer_names: Sequence[str], repeats: int, seconds: float = 0.0) -> Row:
    """Time a case, again where other programs disturbed it, and keep the quietest attempt.

    Sets torch's number of threads to that of the case.

    Args:
        case: the work.
        peer_names: ``"torch"`` and runtimes of `peers.RUNTIMES`; all are installed.
        repeats: turns of each contestant at least.
        seconds: take turns for so long at least.

    Raises:
        WrongResultError: if a contestant computes something else than `torch.nn`.
    """
    entrants = checked_contestants(case, peer_names)
    rows: list[Row] = []
    while not rows or (rows[-1].disturbed and len(rows) < _ATTEMPTS):
        if rows:
            wait_for_quiet()
        others = OtherPrograms()
        times = times_of(entrants, repeats=repeats, seconds=seconds)
        rows.append(Row(case=case, times=times, cores_used_by_others=others.cores_used()))
    return min(rows, key=lambda row: row.cores_used_by_others)


def checked_contestants(case: Case, peer_names: Sequence[str]) -> list[Contestant]:
    """Ours, then the peers that were asked for, their results compared with `torch.nn`'s."""
    torch.set_num_threads(case.threads)
    entrants = contestants(case, [name for name in peer_names if name != TORCH])
    check(entrants, case)
    if TORCH not in peer_names:
        entrants = [each for each in entrants if not each.name.startswith(TORCH)]
    return ours_first(entrants)


def ours_first(entrants: Sequence[Contestant]) -> list[Contestant]:
    """Ours in every way, then the others, each in the order given."""
    return sorted(entrants, key=lambda each: not each.name.startswith(OURS))


def times_of(entrants: Sequence[Contestant], *, repeats: int, **options: Any) -> dict[str, Timing]:
    """Timings by contestant; the options are those of `timing.take_turns`."""
    timings = take_turns([entrant.call for entrant in entrants], repeats=repeats, **options)
    return {entrant.name: timing for entrant, timing in zip(entrants, timings, strict=True)}


def versions(peer_names: Sequence[str]) -> dict[str, str]:
    """Versions by name, ours first; torch's too where it is only what results are compared with."""
    found = {OURS: seq2seq_ext.__version__, TORCH: torch.__version__}
    found.update({name: peers.version(name) for name in peer_names if name != TORCH})
    return found
