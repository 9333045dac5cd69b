"""The batches of a run, each process's part of them, from any step on.

A step's batch is a function of ``(seed, epoch, step)`` alone. It is cut into parts, one for each
process and each pass of gradient accumulation, so neither their number nor an interruption changes
what a step learns from.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from seq2seq_ext.data import Batch, EncodedPairs, LengthBuckets


class Position(NamedTuple):
    """A place between two steps of a run.

    Args:
        epoch: whole passes over the training set.
        steps: steps of the pass after them.
    """

    epoch: int = 0
    steps: int = 0


START = Position()


class Part(NamedTuple):
    """What a process works off at once.

    Args:
        batch: its pairs.
        weight: what the mean loss of its tokens counts. Where the parts of a step are averaged, as
            DDP and gradient accumulation do, the mean over all the step's tokens comes out.
        source_tokens: of the whole step.
        target_tokens: of the whole step.
        begin: where the step begins.
        end: where it ends.
        epochs: passes that are over after the step, the last perhaps in part.
        first: whether the process's share of the step begins with this part.
        last: whether the process's share of the step ends with this part.
    """

    batch: Batch
    weight: float
    source_tokens: int
    target_tokens: int
    begin: Position
    end: Position
    epochs: float
    first: bool
    last: bool


class Stream:
    """All parts of a process, in order, from a position to the end of the run.

    Args:
        dataset: the pairs.
        sampler: the steps' rows; its ``epoch`` says which pass an iterator goes over.
        epochs: passes.
        start: where to begin.
        rank: which process this is.
        world_size: how many there are.
        accumulate: parts of a process.
    """

    def __init__(
        self,
        dataset: EncodedPairs,
        sampler: LengthBuckets,
        epochs: int,
        *,
        start: Position = START,
        rank: int = 0,
        world_size: int = 1,
        accumulate: int = 1,
    ) -> None:
        self.dataset, self.sampler, self.epochs, self.start = dataset, sampler, epochs, start
        self.accumulate = accumulate
        self._first = rank * accumulate
        self._parts = world_size * accumulate

    def __iter__(self) -> Iterator[Part]:
        for epoch in range(self.start.epoch, self.epochs):
            self.sampler.epoch = epoch
            skipped = self.start.steps if epoch == self.start.epoch else 0
            steps = len(self.sampler)
            for step, rows in islice(enumerate(self.sampler), skipped, None):
                begin = Position(epoch, step)
                end = Position(epoch, step + 1) if step + 1 < steps else Position(epoch + 1)
                yield from self._cut(rows, begin, end, epoch + (step + 1) / steps)

    def _cut(
        self, rows: list[int], begin: Position, end: Position, epochs: float
    ) -> Iterator[Part]:
        source_tokens = int(self.dataset.source.lengths[rows].sum())
        target_tokens = int(self.dataset.target.lengths[rows].sum())
        for i in range(self.accumulate):
            # Rows of a batch are sorted by length: every n-th gives parts of about equal length.
            own = rows[self._first + i :: self._parts]
            batch = self.dataset[own or rows[:1]]  # a process without pairs still takes its turn
            tokens = int(batch.target_lengths.sum()) if own else 0
            weight = tokens * self._parts / target_tokens
            yield Part(
                batch,
                weight,
                source_tokens,
                target_tokens,
                begin,
                end,
                epochs,
                first=i == 0,
                last=i == self.accumulate - 1,
            )
