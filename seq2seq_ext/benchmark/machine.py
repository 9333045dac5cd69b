"""The machine that was measured: its names, and who else used it."""

from __future__ import annotations

import os
import platform
import time

import seq2seq_ext


def description() -> dict[str, str]:
    """Processor, cores, instruction set and versions, as text."""
    return {
        "processor": processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "instruction set": seq2seq_ext.cpu_isa(),
        "compiler": seq2seq_ext.build_info()["compiler"],
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def processor() -> str:
    """The processor's name; Linux keeps it in /proc, elsewhere the platform may know it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        return platform.processor() or "unknown"
    return platform.processor() or "unknown"


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


def wait_for_quiet(*, seconds: float = 10.0, sample_seconds: float = 0.2) -> None:
    """Sleep until other programs leave our cores alone, but no longer than some seconds."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        others = OtherPrograms()
        time.sleep(sample_seconds)
        if others.cores_used() < 0.05:
            return
