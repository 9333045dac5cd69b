"""Processes that share the windows of a file: the one of rank r takes r, r + N, r + 2N and so on.

They are those of ``torchrun``, on one machine or several that see the same folder. Every process
reads the whole file, which is cheap beside decoding, and writes a part of its own. When all have
done theirs, rank 0 puts the windows in order; what comes out does not depend on N.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch

from seq2seq_ext.bulk.journal import path_of, read_entries, sync_folder

_BLOCK = 1 << 20


@dataclass(frozen=True)
class Shard:
    """One of N processes.

    Args:
        rank: from 0.
        world_size: N.
    """

    rank: int = 0
    world_size: int = 1

    @classmethod
    def of_environment(cls) -> Shard:
        """What ``torchrun`` has set, else the only one.

        Raises:
            ValueError: if ``RANK`` and ``WORLD_SIZE`` are no numbers that fit.
        """
        rank, world_size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
        if not (rank.isdecimal() and world_size.isdecimal() and int(rank) < int(world_size)):
            raise ValueError(
                f"RANK must be below WORLD_SIZE, got RANK={rank!r} WORLD_SIZE={world_size!r}"
            )
        return cls(int(rank), int(world_size))

    def takes(self, window: int) -> bool:
        """Whether a window is this process's."""
        return window % self.world_size == self.rank

    def parts(self, output: Path) -> list[Path]:
        """The parts of all processes, by rank."""
        if self.world_size == 1:
            return [output.with_name(output.name + ".part")]
        numbers = range(self.world_size)
        return [output.with_name(f"{output.name}.part-{r}-of-{self.world_size}") for r in numbers]

    @contextmanager
    def together(self) -> Iterator[None]:
        """While the processes may wait for one another."""
        if self.world_size == 1:
            yield
            return
        # Whoever is ready first waits for the others as long as they take; if one fails,
        # torchrun ends them all.
        torch.distributed.init_process_group("gloo", timeout=timedelta(days=365))
        try:
            yield
        finally:
            torch.distributed.destroy_process_group()

    def wait(self) -> None:
        """Until all processes have come here."""
        if self.world_size > 1:
            torch.distributed.barrier()


def merge(parts: Sequence[Path], output: Path) -> None:
    """Put the windows of all parts into one file, in order, and remove the parts.

    Killed meanwhile, it can be done again as long as all parts are there.
    """
    merged = output.with_name(output.name + ".merging")
    entries = [read_entries(part) for part in parts]
    files = [open(part, "rb") for part in parts]  # noqa: SIM115
    try:
        with open(merged, "wb") as file:
            for window in range(sum(map(len, entries))):
                shard, place = window % len(parts), window // len(parts)
                left = entries[shard][place].size
                while left:
                    block = files[shard].read(min(_BLOCK, left))
                    if not block:
                        raise ValueError(f"{parts[shard]} is shorter than its journal says")
                    file.write(block)
                    left -= len(block)
            file.flush()
            os.fsync(file.fileno())
    finally:
        for part in files:
            part.close()
    os.replace(merged, output)
    sync_folder(output.parent)
    for name in parts:
        name.unlink()
        path_of(name).unlink()
