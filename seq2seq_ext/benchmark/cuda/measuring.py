"""How a case becomes a row on a GPU: checked, captured and timed; and many rows within a budget."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from seq2seq_ext.benchmark.cuda.cudnn import cudnn_algorithm
from seq2seq_ext.benchmark.cuda.device import Device
from seq2seq_ext.benchmark.cuda.results import GRAPH, CudaRow
from seq2seq_ext.benchmark.cuda.shapes import TOLERANCES, CudaCase, precision_set
from seq2seq_ext.benchmark.measuring import ours_first, times_of
from seq2seq_ext.benchmark.workloads import (
    OURS,
    TORCH,
    Contestant,
    WrongResultError,
    check,
    contestants,
)

# Of the ten minutes that a run may take, some are left for loading, tables and plots.
BUDGET_SECONDS = 540.0
MOST_ROW_SECONDS = 4.0
# Who is replayed as a graph too. Packed input keeps its sizes on the CPU.
_REPLAYED = {"dense": (TORCH, OURS), "resets": (OURS,)}


def measure_rows(
    cases: Sequence[CudaCase],
    device: Device,
    *,
    repeats: int,
    seconds: float = 0.0,
    budget_seconds: float = BUDGET_SECONDS,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[CudaRow]:
    """Rows in the order of the cases, as many as the budget allows.

    It ends before a row for which no more time is left than the longest so far took.

    Args:
        cases: the most telling first.
        device: where.
        repeats: turns of each contestant, fewer where a row takes long.
        seconds: take turns for so long at least.
        budget_seconds: for all rows.
        clock: seconds that pass.
    """
    end = clock() + budget_seconds
    longest = 0.0
    for case in cases:
        start = clock()
        if end - start <= longest:
            return
        yield measure_row(case, device, repeats=repeats, seconds=seconds)
        longest = max(longest, clock() - start)


def measure_row(case: CudaCase, device: Device, *, repeats: int, seconds: float = 0.0) -> CudaRow:
    """Time a case, but only once all contestants agree with `torch.nn`.

    What is wrong or fails is told in the row, whose times then are empty.
    """
    algorithms = _algorithms(case, device)
    with precision_set(case.precision):
        try:
            entrants = [
                replace(each, tolerance=TOLERANCES[case.precision])
                for each in contestants(case, ())
            ]
            _try_all(entrants)
            check(entrants, case)
            replays, notes = _replays(case, entrants, device)
            check([entrants[0], *replays], case)
            times = times_of(
                ours_first([*entrants, *replays]),
                repeats=repeats,
                seconds=seconds,
                most_seconds=max(seconds, MOST_ROW_SECONDS),
                sample_seconds=4e-3,
                sample=device.sample,
                pause=_no_pause,
            )
        except WrongResultError as error:
            return CudaRow(case=case, algorithms=algorithms, wrong=str(error))
        except Exception as error:  # of whatever kind: the other rows are still wanted
            return CudaRow(case=case, algorithms=algorithms, failed=_first_line(error))
    return CudaRow(case=case, algorithms=algorithms, times=times, notes=notes)


def _no_pause() -> None:
    """Threads that go on spinning on the CPU take nothing from the device."""


def _try_all(entrants: Sequence[Contestant]) -> None:
    for entrant in entrants:
        try:
            entrant.call()
        except Exception as error:
            raise RuntimeError(f"{entrant.name}: {_first_line(error)}") from error


def _replays(
    case: CudaCase, entrants: Sequence[Contestant], device: Device
) -> tuple[list[Contestant], list[str]]:
    """Contestants that are replayed as graphs, and why others are not."""
    replays, notes = [], []
    for entrant in entrants:
        if entrant.name not in _REPLAYED.get(case.kind, ()):
            continue
        name = f"{entrant.name} {GRAPH}"
        try:
            call = device.capture(entrant.call)
        except RuntimeError as error:
            notes.append(f"{name}: {_first_line(error)}")
        else:
            replays.append(replace(entrant, name=name, call=call))
    return replays, notes


def _algorithms(case: CudaCase, device: Device) -> tuple[str, ...]:
    """What `torch.nn` runs forward with, and in training backward, each once.

    Where sequences are reset it is called for one step at a time.
    """
    s = case.shape
    found = {
        cudnn_algorithm(
            case.cell,
            case.dtype,
            time_steps=1 if case.kind == "resets" else s.time_steps,
            batch_size=s.batch_size,
            input_size=s.input_size,
            hidden_size=s.hidden_size,
            num_layers=s.num_layers,
            num_directions=s.num_directions,
            proj_size=s.proj_size,
            packed=case.kind == "lengths",
            backward=backward,
            traits=device.traits,
        ): None
        for backward in ((False, True) if case.training else (False,))
    }
    return tuple(found)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
