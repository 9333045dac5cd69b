"""What a loader gives: the model, its vocabularies, and tokens in and out."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from seq2seq_ext.data.vocabulary import Vocabulary
from seq2seq_ext.generation import GenerationOptions
from seq2seq_ext.models import Seq2Seq


@dataclass(frozen=True, kw_only=True)
class PretrainedModel:
    """A model whose weights come from another package.

    ``Run(model, source_vocabulary, target_vocabulary)`` of `seq2seq_ext.training` is what
    `save_run` keeps, and what translates and is served; its texts are characters for a `Vocabulary`
    and tokens between blanks for a `WordVocabulary`.

    Args:
        model: in evaluation mode; its ids are those of the vocabularies here.
        source_vocabulary: what the encoder reads.
        target_vocabulary: what the decoder writes.
        options: how the other package searches by default.
    """

    model: Seq2Seq
    source_vocabulary: Vocabulary
    target_vocabulary: Vocabulary
    options: GenerationOptions

    def encode(self, sources: Sequence[Sequence[str]]) -> tuple[Tensor, Tensor]:
        """Sources as the model takes them: int64 ids ``(B, T)`` and lengths ``(B,)``.

        Args:
            sources: B sequences of tokens, ``<unk>`` where unknown, special tokens included; a
                text stands for its characters.
        """
        source, lengths = self._padded(sources)
        return source, torch.tensor(lengths, dtype=torch.int64)

    def _padded(self, sources: Sequence[Sequence[str]]) -> tuple[Tensor, list[int]]:
        ids = [self.source_vocabulary.convert_tokens_to_ids(source) for source in sources]
        lengths = [len(row) for row in ids]
        longest, pad = max(lengths, default=0), Vocabulary.pad_token_id
        padded = [row + [pad] * (longest - len(row)) for row in ids]
        source = torch.tensor(padded, dtype=torch.int64) if ids else torch.empty(0, 0).long()
        return source, lengths

    def generate(
        self,
        sources: Sequence[Sequence[str]],
        options: GenerationOptions | None = None,
        **changes: Any,
    ) -> list[list[str]]:
        """Targets of all sources, searched in one batch.

        Args:
            sources: B sequences of tokens; a text stands for its characters.
            options: None stands for the other package's way, ``self.options``.
            **changes: options by name, over those of `options`.

        Returns:
            ``B * num_return_sequences`` lists of tokens, ``</s>`` left out.

        Raises:
            TypeError, ValueError: as `seq2seq_ext.Seq2Seq.generate`.
        """
        device = self.model.encoder.embedding.weight.device
        source, lengths = self._padded(sources)
        # Without padding the model sees the ends by itself.
        ends = torch.tensor(lengths, device=device) if len(set(lengths)) > 1 else None
        options = self.options if options is None else options
        written = self.model.generate(source.to(device), ends, options, **changes)
        tokens, end = self.target_vocabulary.to_list(), Vocabulary.eos_token_id
        silent = (Vocabulary.pad_token_id, Vocabulary.bos_token_id)
        return [
            [tokens[index] for index in itertools.takewhile(end.__ne__, row) if index not in silent]
            for row in written.tolist()
        ]
