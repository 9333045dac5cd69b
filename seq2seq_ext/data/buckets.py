"""Which rows make a batch: rows of about one length, so many of them or so many tokens."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler

from seq2seq_ext.data.dataset import EncodedPairs


class LengthBuckets(Sampler[list[int]]):
    """Batches of rows of about equal length, in random order.

    Rows are shuffled, cut into pools of `pool_size` batches, sorted by length within a pool, cut
    into batches, and the batches shuffled: little padding, and new company for a row every epoch.
    An epoch is a function of ``(seed, epoch)`` alone. Iterating goes on to the next epoch.

    Args:
        dataset: the pairs; lengths are compared by source, then by target; with `batch_tokens` by
            the longer side first.
        batch_size: rows of a batch; the last of a pool may be smaller.
        shuffle: False sorts all rows by length and keeps that order.
        seed: of the shuffling.
        pool_size: batches in a pool.
        batch_tokens: in place of `batch_size`, the most tokens of a batch, padding counted, on
            either side: rows times the longest. A row that is longer makes a batch alone.

    Raises:
        ValueError: if `batch_size`, `batch_tokens` or `pool_size` is less than 1.
    """

    def __init__(
        self,
        dataset: EncodedPairs,
        batch_size: int,
        *,
        shuffle: bool = True,
        seed: int = 0,
        pool_size: int = 100,
        batch_tokens: int | None = None,
    ) -> None:
        for name, value in (
            ("batch_size", batch_size),
            ("pool_size", pool_size),
            ("batch_tokens", batch_tokens),
        ):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.batch_size = batch_size
        self.batch_tokens = batch_tokens
        self.shuffle = shuffle
        self.seed = seed
        self.pool_size = pool_size
        self.epoch = 0
        source, target = dataset.source.lengths, dataset.target.lengths
        longest = int(target.max()) if len(dataset) else 0
        # One key that orders by source length, then by target length.
        self._keys = source * (longest + 1) + target
        self._lengths = torch.maximum(source, target)
        if batch_tokens is not None and len(dataset):
            self._keys += self._lengths * (int(source.max()) + 1) * (longest + 1)
            mean = float(self._lengths.double().mean())
            batch_size = max(1, round(batch_tokens / max(1.0, mean)))
        self._pool = batch_size * pool_size
        self._cut: tuple[int, list[Tensor]] | None = None

    def __len__(self) -> int:
        """Batches of the epoch that comes next."""
        if self.batch_tokens is not None:
            return len(self._batches(self.epoch))
        rows = len(self._keys)
        if not self.shuffle:
            return -(-rows // self.batch_size)
        full, rest = divmod(rows, self._pool)
        return full * self.pool_size + -(-rest // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        batches = self._batches(self.epoch)
        self.epoch += 1
        yield from (batch.tolist() for batch in batches)

    def _batches(self, epoch: int) -> list[Tensor]:
        """All batches of an epoch, in order; the latest epoch's are kept."""
        if self._cut is None or self._cut[0] != epoch:
            self._cut = epoch, self._make_batches(epoch)
        return self._cut[1]

    def _make_batches(self, epoch: int) -> list[Tensor]:
        if not self.shuffle:
            return self._batches_of(torch.argsort(self._keys, stable=True))
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        shuffled = torch.randperm(len(self._keys), generator=generator)
        batches: list[Tensor] = []
        for pool in torch.split(shuffled, self._pool):
            batches.extend(self._batches_of(pool[torch.argsort(self._keys[pool], stable=True)]))
        order = torch.randperm(len(batches), generator=generator)
        return [batches[i] for i in order.tolist()]

    def _batches_of(self, rows: Tensor) -> list[Tensor]:
        """Rows, sorted by length, cut into batches."""
        if self.batch_tokens is None:
            return list(torch.split(rows, self.batch_size)) if len(rows) else []
        lengths = self._lengths[rows].clamp(min=1)
        batches: list[Tensor] = []
        first = 0
        while first < len(rows):
            most = max(1, self.batch_tokens // int(lengths[first]))
            candidates = lengths[first : first + most]
            # What n rows cost, padded to the longest, which is the last.
            cost = candidates * torch.arange(1, len(candidates) + 1)
            n = max(1, int((cost <= self.batch_tokens).sum()))
            batches.append(rows[first : first + n])
            first += n
        return batches
