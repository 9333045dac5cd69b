"""The timing loop: calls take turns, so that all of them see the same machine.

Whatever else runs slows one contestant as much as the other, and the order rotates from turn to
turn, so that none always follows the same one. The best time tells what the machine can do, the
median what it did.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

Call = Callable[[], object]


class Timing(NamedTuple):
    """Seconds that one call took: the best of all samples and their median."""

    best: float
    median: float


def take_turns(
    calls: Sequence[Call], *, repeats: int, seconds: float = 0.0, min_sample_seconds: float = 5e-3
) -> list[Timing]:
    """Time the calls in turn, in rotating order, garbage collection off.

    Args:
        calls: the contestants. Each is warmed up and then called as often per sample as it takes
            for the clock and the scheduler not to matter.
        repeats: samples of each at least.
        seconds: go on taking samples until this long after the first.
        min_sample_seconds: how long a sample is at least.

    Returns:
        A Timing for each call, in the order given.

    Raises:
        ValueError: if there are no calls or `repeats` is less than 1.

    >>> first, second = take_turns([lambda: sum(range(9)), lambda: None], repeats=3)
    >>> 0 < first.best <= first.median
    True
    """
    if not calls:
        raise ValueError("calls must hold at least one call, got none")
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    collecting = gc.isenabled()
    gc.disable()
    try:
        loops = [_loops(call, min_sample_seconds) for call in calls]
        samples: list[list[float]] = [[] for _ in calls]
        end = time.perf_counter() + seconds
        turn = 0
        while turn < repeats or time.perf_counter() < end:
            for position in range(len(calls)):
                index = (turn + position) % len(calls)
                taken = _sample(calls[index], loops[index])
                samples[index].append(taken / loops[index])
            turn += 1
    finally:
        if collecting:
            gc.enable()
    return [Timing(min(each), statistics.median(each)) for each in samples]


def _loops(call: Call, min_seconds: float) -> int:
    """Calls a sample so that even a fast sample lasts `min_seconds`; warms up on the way."""
    call()
    loops = 1
    while (seconds := min(_sample(call, loops) for _ in range(2))) < min_seconds:
        # Aim a little above; no more than tenfold, for the first guesses are of cold calls.
        wanted = 1.2 * loops * min_seconds / max(seconds, 1e-9)
        loops = max(loops + 1, math.ceil(min(wanted, 10.0 * loops)))
    return loops


def _sample(call: Call, loops: int) -> float:
    start = time.perf_counter()
    for _ in range(loops):
        call()
    return time.perf_counter() - start
