"""The timing loop: calls take turns, so that all of them see the same machine.

Whatever else runs slows one contestant as much as the other, and the order rotates from turn to
turn, so that none always follows the same one. The best time tells what the machine can do, the
median what it did.

Libraries keep pools of threads that go on spinning after a call, for the next one to start sooner:
8 ms in OpenMP as torch uses it, 45 ms in onnxruntime. On a machine of few cores they would take
those from whoever comes next. So a turn waits until this process has come to rest, makes some calls
that are not timed, to wake and warm what belongs to it, and only then takes its samples.
"""

from __future__ import annotations

import gc
import math
import os
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

Call = Callable[[], object]

# A sample is one call, or as many as last this long, so that the clock does not matter.
_SAMPLE_SECONDS = 1e-3
_REST_SECONDS = 1e-3
_MOST_REST_SECONDS = 0.5


class Timing(NamedTuple):
    """Seconds that one call took.

    Args:
        best: of all samples.
        median: of all samples.
        mean: of all samples.
        spread: between the lower and the upper quartile.
    """

    best: float
    median: float
    mean: float
    spread: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Timing:
        """The figures of the seconds that single calls took."""
        spread = 0.0
        if len(samples) > 1:
            lower, _, upper = statistics.quantiles(samples, n=4, method="inclusive")
            spread = upper - lower
        return cls(min(samples), statistics.median(samples), statistics.fmean(samples), spread)


def take_turns(
    calls: Sequence[Call], *, repeats: int, seconds: float = 0.0, turn_seconds: float = 1e-2
) -> list[Timing]:
    """Time the calls in turn, in rotating order, garbage collection off.

    Args:
        calls: the contestants.
        repeats: turns of each at least.
        seconds: go on taking turns until this long after the first.
        turn_seconds: how long a turn takes samples, at least one.

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
        loops = [_loops(call) for call in calls]
        samples: list[list[float]] = [[] for _ in calls]
        end = time.perf_counter() + seconds
        turn = 0
        while turn < repeats or time.perf_counter() < end:
            for position in range(len(calls)):
                index = (turn + position) % len(calls)
                rest()
                samples[index] += _turn(calls[index], loops[index], turn_seconds)
            turn += 1
    finally:
        if collecting:
            gc.enable()
    return [Timing.of(each) for each in samples]


def rest() -> None:
    """Sleep until no other thread of this process runs; no longer than half a second.

    Linux tells each thread's state. The CPU time of the process would not do: that of threads on
    other cores is brought up to date only with the scheduler's ticks, some milliseconds apart.
    """
    end = time.perf_counter() + _MOST_REST_SECONDS
    time.sleep(_REST_SECONDS)
    while _others_running() and time.perf_counter() < end:
        time.sleep(_REST_SECONDS)


def _others_running() -> bool:
    """Whether a thread of this process, other than this one, runs or waits for a core."""
    own = threading.get_native_id()
    for task in os.listdir("/proc/self/task"):
        if int(task) == own:
            continue
        try:
            with open(f"/proc/self/task/{task}/stat", encoding="utf-8") as stat:
                # The name before the state stands in parentheses and may hold anything.
                state = stat.read().rpartition(")")[2].split()[0]
        except FileNotFoundError:  # it has ended meanwhile
            continue
        if state == "R":
            return True
    return False


def _turn(call: Call, loops: int, seconds: float) -> list[float]:
    """Warm up for the length of a sample, then sample for so many seconds."""
    start = time.perf_counter()
    call()
    while time.perf_counter() < start + _SAMPLE_SECONDS:
        call()
    samples = []
    end = time.perf_counter() + seconds
    while not samples or time.perf_counter() < end:
        samples.append(_sample(call, loops) / loops)
    return samples


def _loops(call: Call) -> int:
    """Calls a sample so that even a fast sample lasts long enough; warms up on the way."""
    call()
    loops = 1
    while (seconds := min(_sample(call, loops) for _ in range(2))) < _SAMPLE_SECONDS:
        # Aim a little above; no more than tenfold, for the first guesses are of cold calls.
        wanted = 1.2 * loops * _SAMPLE_SECONDS / max(seconds, 1e-9)
        loops = max(loops + 1, math.ceil(min(wanted, 10.0 * loops)))
    return loops


def _sample(call: Call, loops: int) -> float:
    start = time.perf_counter()
    for _ in range(loops):
        call()
    return time.perf_counter() - start
