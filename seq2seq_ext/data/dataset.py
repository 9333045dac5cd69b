"""Pairs of sequences as two flat tensors, and batches cut from them.

Every text is encoded once. A side is all its tokens end to end with the offset of each row, so a
batch is a handful of tensor operations however long the rows are, and worker processes share the
memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from seq2seq_ext.data.vocabulary import Vocabulary

# By the target's tokens: the share of texts that are wrong, and that of tokens (`error_rate`).
_OTHER_NAMES = ("sequence error rate", "token error rate")
_ERROR_NAMES = {
    "char": ("sequence error rate", "CER"),
    "word": ("sequence error rate", "WER"),
}


class Batch(NamedTuple):
    """Padded pairs of one batch, all int64, in the order that `Seq2Seq.forward` takes them.

    Args:
        source: ``(B, T)``.
        target: ``(B, U)``, each row ending with ``</s>``.
        source_lengths: ``(B,)``.
        target_lengths: ``(B,)``, ``</s>`` counted.
    """

    source: Tensor
    target: Tensor
    source_lengths: Tensor
    target_lengths: Tensor


class Rows:
    """Rows of unequal length, end to end in one tensor.

    Args:
        rows: the rows' ids.
    """

    def __init__(self, rows: Sequence[Sequence[int]]) -> None:
        self.lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
        self.offsets = torch.zeros(len(rows), dtype=torch.int64)
        torch.cumsum(self.lengths[:-1], 0, out=self.offsets[1:])
        flat = [token for row in rows for token in row]
        # One element more, so that an empty last row has something to point at.
        self.tokens = torch.tensor([*flat, 0], dtype=torch.int64)

    def padded(self, indices: Tensor, padding: int) -> tuple[Tensor, Tensor]:
        """The rows at `indices` as ``(B, longest)``, filled up with `padding`, and lengths."""
        lengths = self.lengths[indices]
        position = torch.arange(int(lengths.max()) if len(indices) else 0)
        inside = position < lengths[:, None]
        at = (self.offsets[indices][:, None] + position).where(inside, torch.tensor(0))
        return self.tokens[at].masked_fill_(~inside, padding), lengths


class PairDataset(Dataset[Batch]):
    """Pairs of texts, encoded, indexed by lists of rows.

    Args:
        pairs: ``(source, target)`` texts.
        source_vocabulary: encodes the sources.
        target_vocabulary: encodes the targets, to which ``</s>`` is added.
        references: of each pair the texts that are right, its target among them; None takes the
            target alone.
        error_names: what the share of wrong texts and that of wrong tokens are called; None takes
            the names that go with the target's tokens.

    Raises:
        ValueError: if `references` are not as many as the pairs, or one is without text.

    Example:
        >>> vocabulary = Vocabulary("enox")
        >>> dataset = PairDataset([("ox", "oxen"), ("", "no")], vocabulary, vocabulary)
        >>> dataset[[0, 1]].target
        tensor([[6, 7, 4, 5, 3],
                [5, 6, 3, 0, 0]])
    """

    def __init__(
        self,
        pairs: Sequence[tuple[str, str]],
        source_vocabulary: Vocabulary,
        target_vocabulary: Vocabulary,
        *,
        references: Sequence[Sequence[str]] | None = None,
        error_names: tuple[str, str] | None = None,
    ) -> None:
        self.pairs = list(pairs)
        if references is None:
            references = [(target,) for _, target in self.pairs]
        if len(references) != len(self.pairs) or not all(references):
            raise ValueError(
                f"references must be {len(self.pairs)}, as the pairs are, of at least one text "
                f"each, got {len(references)}"
            )
        self.references = [
            tuple(target_vocabulary.normalise(text) for text in texts) for texts in references
        ]
        self.error_names = error_names or _ERROR_NAMES.get(target_vocabulary.unit, _OTHER_NAMES)
        self.source_vocabulary = source_vocabulary
        self.target_vocabulary = target_vocabulary
        self.source = Rows([source_vocabulary.encode(source) for source, _ in self.pairs])
        self.target = Rows(
            [target_vocabulary.encode(target, add_eos=True) for _, target in self.pairs]
        )

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, indices: Sequence[int] | Tensor) -> Batch:
        """The batch of the given rows.

        A `torch.utils.data.DataLoader` with ``batch_size=None`` and a sampler of index lists, such
        as `LengthBuckets`, hands whole batches over this way.
        """
        index = torch.as_tensor(indices, dtype=torch.int64)
        source, source_lengths = self.source.padded(index, Vocabulary.pad_token_id)
        target, target_lengths = self.target.padded(index, Vocabulary.pad_token_id)
        return Batch(source, target, source_lengths, target_lengths)


class LengthBuckets(Sampler[list[int]]):
    """Batches of rows of about equal length, in random order.

    Rows are shuffled, cut into pools of `pool_size` batches, sorted by length within a pool, cut
    into batches, and the batches shuffled: little padding, and new company for a row every epoch.
    An epoch is a function of ``(seed, epoch)`` alone. Iterating goes on to the next epoch.

    Args:
        dataset: the pairs; lengths are compared by source, then by target.
        batch_size: rows of a batch; the last of a pool may be smaller.
        shuffle: False sorts all rows by length and keeps that order.
        seed: of the shuffling.
        pool_size: batches in a pool.

    Raises:
        ValueError: if `batch_size` or `pool_size` is less than 1.
    """

    def __init__(
        self,
        dataset: PairDataset,
        batch_size: int,
        *,
        shuffle: bool = True,
        seed: int = 0,
        pool_size: int = 100,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("pool_size", pool_size)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.pool_size = pool_size
        self.epoch = 0
        longest = int(dataset.target.lengths.max()) if len(dataset) else 0
        # One key that orders by source length, then by target length.
        self._keys = dataset.source.lengths * (longest + 1) + dataset.target.lengths

    def __len__(self) -> int:
        rows, pool = len(self._keys), self.batch_size * self.pool_size
        if not self.shuffle:
            return -(-rows // self.batch_size)
        return (rows // pool) * self.pool_size + -(-(rows % pool) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        if not self.shuffle:
            order = torch.argsort(self._keys, stable=True)
            yield from (batch.tolist() for batch in torch.split(order, self.batch_size))
            return
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        self.epoch += 1
        shuffled = torch.randperm(len(self._keys), generator=generator)
        batches: list[Tensor] = []
        for pool in torch.split(shuffled, self.batch_size * self.pool_size):
            by_length = pool[torch.argsort(self._keys[pool], stable=True)]
            batches.extend(torch.split(by_length, self.batch_size))
        for i in torch.randperm(len(batches), generator=generator).tolist():
            yield batches[i].tolist()
