"""The machine that was measured: its names, the limit of its arithmetic, and who else used it."""

from __future__ import annotations

import os
import time

import torch

from seq2seq_ext.cli.info import facts
from seq2seq_ext.cli.timing import take_turns


def description() -> dict[str, str]:
    """Processor, cores, instruction set, threads and versions, as text."""
    known = dict(facts())
    return {
        "processor": known["processor"],
        "cores": str(len(os.sched_getaffinity(0))),
        "instruction set": known["instruction set"],
        "threads": str(torch.get_num_threads()),
        "torch": known["torch"],
        "seq2seq_ext": known["seq2seq_ext"],
        "compiler": known["build compiler"],
        "system": known["system"],
    }


def fma_peak(*, size: int = 2048, repeats: int = 5) -> float:
    """FLOP a second of a large float32 matrix product, the best of `repeats`.

    A product of two (`size`, `size`) matrices is as near to the peak of the fused multiply-adds as
    any program gets on the threads that torch has.
    """
    a, b = torch.randn(2, size, size)
    out = torch.empty(size, size)
    with torch.inference_mode():
        (timing,) = take_turns([lambda: torch.mm(a, b, out=out)], repeats=repeats)
    return 2.0 * size**3 / timing.best


class OtherPrograms:
    """How many of our cores others used since this object was made, the hypervisor included.

    Where a thread loses its core, those that wait for it lose the time as well; and as not every
    program waits as often, ratios are distorted too, and not only the times.
    """

    def __init__(self) -> None:
        self._start = self._reading()

    def cores_used(self) -> float:
        """The average number of cores, since the start, that others kept busy."""
        busy, own, wall = (
            now - then for now, then in zip(self._reading(), self._start, strict=True)
        )
        return max(0.0, busy - own) / wall

    @staticmethod
    def _reading() -> tuple[float, float, float]:
        """Seconds: of all programs on our cores, of this process, and on the wall."""
        ours = {f"cpu{index}" for index in os.sched_getaffinity(0)}
        ticks = 0
        with open("/proc/stat", encoding="ascii") as lines:
            for line in lines:
                name, *fields = line.split()
                if name in ours:
                    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
                    ticks += user + nice + system + irq + softirq + steal
        return ticks / os.sysconf("SC_CLK_TCK"), time.process_time(), time.perf_counter()
