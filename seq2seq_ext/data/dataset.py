"""Pairs of sequences as two flat tensors, from which batches are cut.

Every text is encoded once. A side is all its tokens end to end with the offset of each row, so a
batch is a handful of tensor operations however long the rows are, and worker processes share the
memory. Where the tokens are a file that is mapped into memory, they may be more than it holds.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from seq2seq_ext.data.vocabulary import Vocabulary
from seq2seq_ext.models.copying import extend_source, extend_target

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


# Tokens of which a checksum is made at once.
_PIECE = 1 << 20


class Rows:
    """Rows of unequal length, end to end in one tensor.

    Args:
        lengths: int64 ``(N,)``.
        tokens: int64 or int32, as many as the lengths sum to and one more, so that an empty last
            row has something to point at.
    """

    def __init__(self, lengths: Tensor, tokens: Tensor) -> None:
        self.lengths = lengths
        self.tokens = tokens
        self.offsets = torch.zeros_like(lengths)
        torch.cumsum(lengths[:-1], 0, out=self.offsets[1:])

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> Rows:
        """Rows in memory.

        Args:
            rows: the rows' ids.
        """
        lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
        flat = [token for row in rows for token in row]
        return cls(lengths, torch.tensor([*flat, 0], dtype=torch.int64))

    def checksum(self, start: int = 0) -> int:
        """CRC-32 of all lengths and tokens, going on from `start`."""
        for tensor in (self.lengths, self.tokens):
            for piece in torch.split(tensor, _PIECE):
                start = zlib.crc32(piece.long().numpy().data, start)
        return start

    def padded(self, indices: Tensor, padding: int) -> tuple[Tensor, Tensor]:
        """The rows at `indices` as ``(B, longest)``, filled up with `padding`, and lengths."""
        lengths = self.lengths[indices]
        position = torch.arange(int(lengths.max()) if len(indices) else 0)
        inside = position < lengths[:, None]
        at = (self.offsets[indices][:, None] + position).where(inside, torch.tensor(0))
        return self.tokens[at].long().masked_fill_(~inside, padding), lengths


def encode_source(
    text: str, vocabulary: Vocabulary, *, copies: bool = False
) -> tuple[list[int], list[str]]:
    """Ids of a source, and its tokens that have them for this source alone.

    Args:
        text: the source.
        vocabulary: encodes it.
        copies: whether unknown tokens get ids behind the vocabulary's, for a model that copies;
            else they are ``<unk>``.

    Example:
        >>> encode_source("oxé", Vocabulary("ox"), copies=True)
        ([4, 5, 6], ['é'])
    """
    ids = vocabulary.encode(text)
    if not copies:
        return ids, []
    return extend_source(vocabulary.tokenize(text), ids, len(vocabulary), vocabulary.unk_token_id)


def encode_pair(
    pair: tuple[str, str],
    source_vocabulary: Vocabulary,
    target_vocabulary: Vocabulary,
    *,
    copies: bool = False,
) -> tuple[list[int], list[int]]:
    """Ids of a source and of its target, with ``</s>`` behind the target's.

    Args:
        pair: the texts.
        source_vocabulary: encodes the source.
        target_vocabulary: encodes the target; with `copies` the same one.
        copies: as of `encode_source`; unknown tokens of the target have the source's ids.
    """
    source, unknown = encode_source(pair[0], source_vocabulary, copies=copies)
    target = target_vocabulary.encode(pair[1], add_eos=True)
    if unknown:
        tokens, unk = target_vocabulary.tokenize(pair[1]), target_vocabulary.unk_token_id
        target = extend_target(tokens, target, unknown, len(target_vocabulary), unk)
    return source, target


class EncodedPairs(Dataset[Batch]):
    """Pairs of sequences, indexed by lists of rows.

    Args:
        source: the sources.
        target: as many targets, each row ending with ``</s>``.
        source_vocabulary: what the sources' ids mean.
        target_vocabulary: what the targets' ids mean.
    """

    def __init__(
        self,
        source: Rows,
        target: Rows,
        source_vocabulary: Vocabulary,
        target_vocabulary: Vocabulary,
    ) -> None:
        self.source, self.target = source, target
        self.source_vocabulary = source_vocabulary
        self.target_vocabulary = target_vocabulary

    def __len__(self) -> int:
        return len(self.source.lengths)

    def __getitem__(self, indices: Sequence[int] | Tensor) -> Batch:
        """The batch of the given rows.

        A `torch.utils.data.DataLoader` with ``batch_size=None`` and a sampler of index lists, such
        as `LengthBuckets`, hands whole batches over this way.
        """
        index = torch.as_tensor(indices, dtype=torch.int64)
        source, source_lengths = self.source.padded(index, Vocabulary.pad_token_id)
        target, target_lengths = self.target.padded(index, Vocabulary.pad_token_id)
        return Batch(source, target, source_lengths, target_lengths)

    @cached_property
    def fingerprint(self) -> int:
        """A checksum of all tokens and lengths, by which a resumed run knows its data again."""
        return self.target.checksum(self.source.checksum())


class PairDataset(EncodedPairs):
    """Pairs of texts, encoded.

    Args:
        pairs: ``(source, target)`` texts.
        source_vocabulary: encodes the sources.
        target_vocabulary: encodes the targets, to which ``</s>`` is added.
        references: of each pair the texts that are right, its target among them; None takes the
            target alone.
        error_names: what the share of wrong texts and that of wrong tokens are called; None takes
            the names that go with the target's tokens, and says that the targets are text, which
            words and characters are counted of.
        copies: whether tokens that the vocabulary lacks have ids in each source and its target,
            for a model that copies; see `encode_source`.

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
        copies: bool = False,
    ) -> None:
        self.pairs = list(pairs)
        self.copies = copies
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
        self.is_text = error_names is None
        self.error_names = error_names or _ERROR_NAMES.get(target_vocabulary.unit, _OTHER_NAMES)
        vocabularies = source_vocabulary, target_vocabulary
        encoded = [encode_pair(pair, *vocabularies, copies=copies) for pair in self.pairs]
        sources, targets = (Rows.of([ids[side] for ids in encoded]) for side in (0, 1))
        super().__init__(sources, targets, *vocabularies)

    def decode(self, row: int, ids: Sequence[int]) -> str:
        """The text that a model wrote for the source of a row."""
        unknown = self.source_vocabulary.unknown(self.pairs[row][0]) if self.copies else ()
        return self.target_vocabulary.decode(ids, unknown)
