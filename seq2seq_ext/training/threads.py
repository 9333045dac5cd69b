"""How many threads a small model trains best with, found by trying.

A step of a small model is a few milliseconds of many short parallel pieces, and its threads wait
for one another after each. Where other programs hold a core, that wait is a time slice of the
scheduler and not a microsecond, and one thread is several times as fast as two.
"""

from __future__ import annotations

import copy
import statistics
import time

import torch

from seq2seq_ext.data import Batch
from seq2seq_ext.models import Seq2Seq

# One thread must win clearly: a run's last bits depend on the number, and chance should not.
_CLEARLY = 0.85


def fastest_num_threads(model: Seq2Seq, batch: Batch, *, rounds: int = 5) -> int:
    """The better of torch's present number of threads and one, for training steps on a batch.

    Steps are taken by a copy of the model; the model, torch's random numbers and its number of
    threads stay as they are.

    Args:
        model: on the CPU.
        batch: of the size and lengths that training will see.
        rounds: steps timed with each number, in turn.
    """
    present = torch.get_num_threads()
    if present == 1:
        return 1
    trial = copy.deepcopy(model).train()
    optimizer = torch.optim.AdamW(trial.parameters(), fused=True)
    seconds: dict[int, list[float]] = {present: [], 1: []}
    try:
        with torch.random.fork_rng(devices=()):
            for turn in range(rounds + 1):
                for num_threads, taken in seconds.items():
                    torch.set_num_threads(num_threads)
                    start = time.perf_counter()
                    optimizer.zero_grad()
                    trial(*batch).loss.backward()
                    optimizer.step()
                    if turn > 0:  # the first round warms up
                        taken.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(present)
    alone, together = (statistics.median(seconds[n]) for n in (1, present))
    return 1 if alone < _CLEARLY * together else present
