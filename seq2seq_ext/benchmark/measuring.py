"""The run: every case timed, everyone in turn, with the machine's limits taken in between."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

import seq2seq_ext
from seq2seq_ext.benchmark import peers
from seq2seq_ext.benchmark.limits import measure_limits
from seq2seq_ext.benchmark.machine import OtherPrograms, description
from seq2seq_ext.benchmark.results import Results, Row
from seq2seq_ext.benchmark.shapes import Case
from seq2seq_ext.benchmark.timing import take_turns
from seq2seq_ext.benchmark.workloads import OURS, TORCH, Contestant, check, contestants


def measure(
    cases: Sequence[Case],
    *,
    peer_names: Sequence[str],
    repeats: int,
    seconds: float = 0.0,
    progress: Callable[[Row], None] = lambda row: None,
) -> Results:
    """Time the cases and measure the machine's limits before and after.

    Args:
        cases: what to time.
        peer_names: ``"torch"`` and runtimes of `peers.RUNTIMES`; all are installed.
        repeats: turns of each contestant at least.
        seconds: take turns for so long at least, for each case.
        progress: is told each row as soon as it stands.
    """
    others = OtherPrograms()
    numbers = sorted({case.threads for case in cases})
    before = torch.get_num_threads()
    try:
        limits = {threads: measure_limits(threads) for threads in numbers}
        rows = []
        for case in cases:
            row = measure_case(case, peer_names=peer_names, repeats=repeats, seconds=seconds)
            rows.append(row)
            progress(row)
        limits = {t: limits[t].better_of(measure_limits(t)) for t in numbers}
    finally:
        torch.set_num_threads(before)
    return Results(
        machine=description(),
        versions=versions(peer_names),
        limits=limits,
        repeats=repeats,
        cores_used_by_others=others.cores_used(),
        rows=rows,
    )


def measure_case(
    case: Case, *, peer_names: Sequence[str], repeats: int, seconds: float = 0.0
) -> Row:
    """Check and time the contestants of one case."""
    torch.set_num_threads(case.threads)
    entrants = contestants(case, [name for name in peer_names if name != TORCH])
    check(entrants, case)
    chosen = [each for each in entrants if TORCH in peer_names or not _is_torch(each)]
    # Ours first in the row; the order of the turns rotates.
    chosen.sort(key=lambda each: not each.name.startswith(OURS))
    timings = take_turns([each.call for each in chosen], repeats=repeats, seconds=seconds)
    return Row(case=case, times={e.name: t for e, t in zip(chosen, timings, strict=True)})


def versions(peer_names: Sequence[str]) -> dict[str, str]:
    """Versions by name, ours first."""
    found = {OURS: seq2seq_ext.__version__, TORCH: torch.__version__}
    for name in peer_names:
        if name != TORCH:
            found[name] = peers.version(name)
    return found


def _is_torch(entrant: Contestant) -> bool:
    return entrant.name.startswith(TORCH)
