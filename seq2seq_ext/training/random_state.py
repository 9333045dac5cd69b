"""The random numbers of a process: Python's, numpy's and torch's, kept and put back."""

from __future__ import annotations

import random
from typing import Any

import numpy
import torch
import torch.distributed as dist


def seed_all(*seeds: int) -> None:
    """Seed every generator of this process by all of some numbers; (n, 0) is n alone.

    Args:
        *seeds: at least 0: the run's seed, then whatever tells apart who draws.
    """
    seed = seeds[0]
    for more in seeds[1:]:
        seed = (seed + 1_000_003 * more) % 2**63
    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_state() -> dict[str, Any]:
    """The state of every generator, as tensors, numbers and lists."""
    version, numbers, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = numpy.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": [version, list(numbers), gauss],
        "numpy": [kind, numpy.asarray(keys).tolist(), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: dict[str, Any]) -> None:
    """Put back what `random_state` gave."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, *rest = state["numpy"]
    numpy.random.set_state((kind, numpy.array(keys, dtype=numpy.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def gather_random_states() -> list[dict[str, Any]]:
    """Those of all processes, by rank, in each of them."""
    own = random_state()
    if not (dist.is_available() and dist.is_initialized()):
        return [own]
    states: list[dict[str, Any]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(states, own)
    return states
