"""A process that keeps one core busy, and what that does to those who wait for each other.

A layer whose threads meet at every time step stands still whenever one of them has lost its core.
How it waits then, spinning or giving way, decides whether it gets a little slower or a lot.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from seq2seq_ext.benchmark.measuring import checked_contestants, times_of
from seq2seq_ext.benchmark.results import BusyRow
from seq2seq_ext.benchmark.shapes import Case

# Ends by itself where the parent is gone.
_BURN = """
import os, sys
print("burning", flush=True)
while os.getppid() == int(sys.argv[1]):
    for _ in range(1_000_000):
        pass
"""


@contextmanager
def busy_core() -> Iterator[None]:
    """Within this context another process computes without a pause."""
    with subprocess.Popen(
        [sys.executable, "-c", _BURN, str(os.getpid())], stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield
        finally:
            process.terminate()


def measure_busy(case: Case, *, peer_names: Sequence[str], repeats: int) -> BusyRow:
    """Time a case alone, then with one core busy.

    A sample lasts long enough for several turns of the scheduler, for in a shorter one the other
    process may just not have run.
    """
    entrants = checked_contestants(case, peer_names)
    times = partial(times_of, entrants, repeats=repeats, turn_seconds=0.05, sample_seconds=0.025)
    alone = times()
    with busy_core():
        busy = times()
    return BusyRow(case=case, alone=alone, busy=busy)
