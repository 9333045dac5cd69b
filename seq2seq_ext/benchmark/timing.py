"""The timing loop: calls take turns, so that all of them see the same machine.

Whatever else runs slows one contestant as much as the other, and the order rotates from turn to
turn, so that none always follows the same one. The best time tells what the machine can do, the
median what it did.

Libraries keep pools of threads that go on spinning after a call, for the next one to start sooner:
8 ms in OpenMP as torch uses it, 45 ms and more in onnxruntime. On a machine of few cores they take
those from whoever comes next, who then runs at half the speed. So a turn waits until this process
has come to rest, makes some calls that are not timed, to wake and warm what belongs to it, and only
then takes its samples.
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
# Makes so many calls in a row and returns the seconds that all of them took.
Sample = Callable[[Call, int], float]

_REST_SECONDS = 1e-3
_MOST_REST_SECONDS = 2.0


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


def sample_by_clock(call: Call, loops: int) -> float:
    """Seconds on the clock of this machine."""
    start = time.perf_counter()
    for _ in range(loops):
        call()
    return time.perf_counter() - start


def take_turns(
    calls: Sequence[Call],
    *,
    repeats: int,
    seconds: float = 0.0,
    most_seconds: float = math.inf,
    turn_seconds: float = 1e-2,
    sample_seconds: float = 1e-3,
    sample: Sample = sample_by_clock,
    pause: Call | None = None,
) -> list[Timing]:
    """Time the calls in turn, in rotating order, garbage collection off.

    Args:
        calls: the contestants.
        repeats: turns of each at least.
        seconds: go on taking turns until this long after the first.
        most_seconds: take no more turns once this long has passed, though `repeats` were more; one
            each at least.
        turn_seconds: how long a turn takes samples, at least one.
        sample_seconds: a sample is one call, or as many as last so long, for the clock not to
            matter.
        sample: how the seconds of calls are found.
        pause: what comes before a turn; None for `rest`.

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
        last = time.perf_counter() + most_seconds
        loops = [_loops(call, sample_seconds, sample) for call in calls]
        samples: list[list[float]] = [[] for _ in calls]
        end = time.perf_counter() + seconds
        turn = 0
        while turn < repeats or time.perf_counter() < end:
            if turn and time.perf_counter() > last:
                break
            for position in range(len(calls)):
                index = (turn + position) % len(calls)
                (pause or rest)()
                samples[index] += _turn(
                    calls[index], loops[index], turn_seconds, sample_seconds, sample
                )
            turn += 1
    finally:
        if collecting:
            gc.enable()
    return [Timing.of(each) for each in samples]


def rest() -> None:
    """Sleep until no other thread of this process runs; no longer than two seconds.

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
        except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            continue
        if state == "R":
            return True
    return False


def _turn(
    call: Call, loops: int, seconds: float, warm_seconds: float, sample: Sample
) -> list[float]:
    """Warm up, by one call at least, then take samples, one at least."""
    start = time.perf_counter()
    sample(call, 1)
    while time.perf_counter() < start + warm_seconds:
        sample(call, 1)
    samples: list[float] = []
    end = time.perf_counter() + seconds
    while not samples or time.perf_counter() < end:
        samples.append(sample(call, loops) / loops)
    return samples


def _loops(call: Call, wanted: float, sample: Sample) -> int:
    """Calls a sample so that even a fast sample lasts long enough; warms up on the way."""
    sample(call, 1)
    loops = 1
    while (seconds := min(sample(call, loops) for _ in range(2))) < wanted:
        # Aim a little above; no more than tenfold, for the first guesses are of cold calls.
        aim = 1.2 * loops * wanted / max(seconds, 1e-9)
        loops = max(loops + 1, math.ceil(min(aim, 10.0 * loops)))
    return loops
