"""What the machine can do at most, measured; and how long a layer takes there at least.

Two limits are put to a call, the roofline's two sides (S. Williams, A. Waterman, D. Patterson:
"Roofline: an insightful visual performance model", CACM 52(4), 2009):

- its multiplications and additions, over the peak of the fused multiply-adds;
- its recurrent weights, which every time step needs once more, split evenly between the threads: a
  cache keeps what it holds from one step to the next, and the rest of a thread's share comes
  through the level beyond it, at the bandwidth of that level.

Forward and backward follow one another, each with its own limit. The levels work side by side, so
the slowest counts. The gates' exponentials and divisions, packing and the reading of the input are
not counted, so the true limit lies above.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from seq2seq_ext import _C
from seq2seq_ext.benchmark.timing import rest, take_turns

MEMORY = "memory"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What `threads` threads can do together.

    Args:
        threads: how many.
        fma: float32 operations a second of multiply-adds on registers.
        product: float32 operations a second of a large matrix product by torch.
        bandwidth: bytes a second read, by level, the smallest first: ``"L1"``, ``"L2"``, ``"L3"``,
            ``"memory"``.
        capacity: bytes that a level holds for one thread when all read; memory is not named.
    """

    threads: int
    fma: float
    product: float
    bandwidth: dict[str, float]
    capacity: dict[str, int]

    @property
    def peak(self) -> float:
        """Float32 operations a second: the better of the two ways to reach it."""
        return max(self.fma, self.product)

    def seconds(self, *, flop: float, weight_bytes: float, sweeps: int) -> float:
        """How long forward takes at least, or backward.

        Args:
            flop: its operations.
            weight_bytes: of the recurrent weights of one layer and direction.
            sweeps: how often it reads such weights.
        """
        return max(flop / self.peak, sweeps * self.sweep_seconds(weight_bytes))

    def sweep_seconds(self, weight_bytes: float) -> float:
        """How long it takes at least to read weights once more; 0 where no cache is known."""
        seconds = 0.0
        beyond = weight_bytes / self.threads
        for name, rate in self.bandwidth.items():  # the smallest first
            seconds = max(seconds, self.threads * beyond / rate)
            beyond = max(0.0, beyond - self.capacity.get(name, 0))
        return seconds

    def better_of(self, other: Limits) -> Limits:
        """The higher of both in every figure: what disturbs a measurement only lowers it."""
        return Limits(
            threads=self.threads,
            fma=max(self.fma, other.fma),
            product=max(self.product, other.product),
            bandwidth={
                name: max(rate, other.bandwidth[name]) for name, rate in self.bandwidth.items()
            },
            capacity=self.capacity,
        )


def measure_limits(threads: int, *, seconds: float = 0.1, product_size: int = 2048) -> Limits:
    """Measure what `threads` threads can do together.

    Args:
        threads: how many; torch is set to this number too.
        seconds: for each figure.
        product_size: rows and columns of the matrices that torch multiplies.
    """
    torch.set_num_threads(threads)
    capacity = cache_capacities(threads)
    bandwidth = {}
    for name, size in buffer_sizes(capacity).items():
        rest()
        bandwidth[name] = _C.measure_read_bandwidth(size, threads, seconds)
    rest()
    fma = _C.measure_fma_peak(threads, seconds)
    a, b = torch.randn(2, product_size, product_size)
    out = torch.empty(product_size, product_size)
    with torch.inference_mode():
        (timing,) = take_turns([lambda: torch.mm(a, b, out=out)], repeats=3, seconds=seconds)
    return Limits(
        threads=threads,
        fma=fma,
        product=2.0 * product_size**3 / timing.best,
        bandwidth=bandwidth,
        capacity=capacity,
    )


def cache_capacities(
    threads: int, folder: Path = Path("/sys/devices/system/cpu/cpu0/cache")
) -> dict[str, int]:
    """Bytes of each data cache for one thread of several, smallest first; {} where unknown.

    A cache that several cores share is divided by the threads that may sit on it.
    """
    sizes: dict[int, int] = {}
    cores = max(1, len(os.sched_getaffinity(0)))
    for index in sorted(folder.glob("index*")):
        if (index / "type").read_text().strip() == "Instruction":
            continue
        size = _bytes((index / "size").read_text())
        sharing = min(_count((index / "shared_cpu_list").read_text()), cores, threads)
        sizes[int((index / "level").read_text())] = size // max(1, sharing)
    return {f"L{level}": sizes[level] for level in sorted(sizes)}


def buffer_sizes(capacity: dict[str, int]) -> dict[str, int]:
    """Bytes a thread reads to measure each level: well within it, well beyond the one below."""
    sizes = {}
    below = 0
    for name, size in capacity.items():
        sizes[name] = max(size // 2, min(2 * below, size * 3 // 4))
        below = size
    if below:
        sizes[MEMORY] = min(4 * below, 2**28)
    return sizes


def _bytes(text: str) -> int:
    """``32K`` or ``4M`` in bytes."""
    text = text.strip()
    unit = {"K": 2**10, "M": 2**20, "G": 2**30}.get(text[-1:], 1)
    return int(text.rstrip("KMG")) * unit


def _count(cpu_list: str) -> int:
    """How many processors a list such as ``0-3,8`` names."""
    count = 0
    for part in cpu_list.strip().split(","):
        first, _, last = part.partition("-")
        count += int(last or first) - int(first) + 1
    return count
