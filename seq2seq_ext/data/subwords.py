"""Subwords to ids and back, by Hugging Face's tokenizers: BPE and unigram.

Byte-pair encoding: Sennrich et al. 2016 (arXiv 1508.07909); unigram: Kudo 2018 (arXiv 1804.10959).
Both read a text as SentencePiece does: a blank becomes ``▁``, the mark of a word's beginning, so
that tokens are readable in any script and go together to the text again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from seq2seq_ext.data.extras import require
from seq2seq_ext.data.vocabulary import SPECIAL_TOKENS, UNK, Vocabulary

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SUBWORD_UNITS = ("bpe", "unigram")
DEFAULT_SIZE = 8000


class SubwordVocabulary(Vocabulary):
    """The tokens of a trained tokenizer; ids 0 to 3 are the special tokens.

    Args:
        tokenizer: a ``tokenizers.Tokenizer`` whose first four ids are ``<pad>``, ``<unk>``, ``<s>``
            and ``</s>``. What looks like one of them in a text is text, or unknown.
        unit: ``"bpe"`` or ``"unigram"``.

    Raises:
        ValueError: if the unit is neither, or the first ids are others.
        ModuleNotFoundError: if tokenizers is not installed.
    """

    def __init__(self, tokenizer: Tokenizer, unit: str) -> None:
        if unit not in SUBWORD_UNITS:
            raise ValueError(f"unit must be one of {', '.join(SUBWORD_UNITS)}, got {unit!r}")
        size = tokenizer.get_vocab_size()
        tokens = [tokenizer.id_to_token(i) or "" for i in range(size)]
        if tuple(tokens[: len(SPECIAL_TOKENS)]) != SPECIAL_TOKENS or "" in tokens:
            raise ValueError(
                f"tokenizer must have the ids 0 to {size - 1}, of which the first are "
                f"{list(SPECIAL_TOKENS)}, got {tokens[:4]}"
            )
        tokenizer.encode_special_tokens = True
        self.tokenizer = tokenizer
        self.unit = unit
        self.tokens = tuple(tokens[len(SPECIAL_TOKENS) :])
        self._ids = {token: i for i, token in enumerate(tokens) if i >= len(SPECIAL_TOKENS)}

    @classmethod
    def from_texts(
        cls, texts: Iterable[str], *, max_size: int | None = None, unit: str = "bpe"
    ) -> SubwordVocabulary:
        """Learn a vocabulary from texts, which are read once.

        Args:
            texts: what to learn from.
            max_size: ids at most, the special tokens counted; None takes 8000. All characters of
                the texts are in a BPE, whatever the size.
            unit: ``"bpe"`` or ``"unigram"``.

        Raises:
            ValueError: if an argument is out of range.
            ModuleNotFoundError: if tokenizers is not installed.

        Example:
            >>> vocabulary = SubwordVocabulary.from_texts(["low lower lowest"] * 9, max_size=20)
            >>> vocabulary.tokenize("slow lowest")
            ['▁', 's', 'lo', 'w', '▁lowest']
            >>> vocabulary.decode(vocabulary.encode("slow lowest"))
            'slow lowest'
        """
        require("tokenizers", extra="train", purpose="a vocabulary of subwords")
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        size = DEFAULT_SIZE if max_size is None else max_size
        if size <= len(SPECIAL_TOKENS):
            raise ValueError(f"max_size must be at least {len(SPECIAL_TOKENS) + 1}, got {size}")
        common: dict[str, Any] = {
            "vocab_size": size,
            "special_tokens": list(SPECIAL_TOKENS),
            "show_progress": False,
        }
        if unit == "bpe":
            tokenizer = Tokenizer(models.BPE(unk_token=UNK))
            trainer: Any = trainers.BpeTrainer(**common)
        elif unit == "unigram":
            tokenizer = Tokenizer(models.Unigram())
            trainer = trainers.UnigramTrainer(**common, unk_token=UNK)
        else:
            raise ValueError(f"unit must be one of {', '.join(SUBWORD_UNITS)}, got {unit!r}")
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        tokenizer.train_from_iterator(texts, trainer)
        return cls(_in_order(tokenizer) if unit == "unigram" else tokenizer, unit)

    def tokenize(self, text: str) -> list[str]:
        """The subwords of a text; what is unknown as it stands there."""
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        pieces = zip(encoding.tokens, encoding.ids, encoding.offsets, strict=True)
        return [text[a:b] if _is_special(i) else token for token, i, (a, b) in pieces]

    def detokenize(self, tokens: Sequence[str]) -> str:
        """The text that the subwords make."""
        text: str = self.tokenizer.decoder.decode(list(tokens))
        return text

    def encode(self, text: str, *, add_eos: bool = False) -> list[int]:
        """Ids of a text's subwords, ``<unk>`` for the unknown, ``</s>`` at the end if asked."""
        found = self.tokenizer.encode(text, add_special_tokens=False).ids
        ids = [self.unk_token_id if _is_special(index) else index for index in found]
        return [*ids, self.eos_token_id] if add_eos else ids

    def normalise(self, text: str) -> str:
        """The text without a leading blank: the mark of the first word stands for it."""
        return self.detokenize(self.tokenize(text))

    def unknown(self, text: str) -> list[str]:
        """The parts of `text` that have no id, each once, in the order of the text."""
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        pieces = zip(encoding.ids, encoding.offsets, strict=True)
        return list(dict.fromkeys(text[a:b] for i, (a, b) in pieces if _is_special(i)))

    def to_json(self) -> Any:
        """What `save` writes."""
        return {"unit": self.unit, "tokenizer": json.loads(self.tokenizer.to_str())}

    @classmethod
    def from_json(cls, unit: str, tokenizer: object) -> SubwordVocabulary:
        """The vocabulary that `to_json` described.

        Raises:
            ValueError: if `tokenizer` describes none.
            ModuleNotFoundError: if tokenizers is not installed.
        """
        tokenizers = require("tokenizers", extra="train", purpose="a vocabulary of subwords")
        try:
            made = tokenizers.Tokenizer.from_str(json.dumps(tokenizer))
        except Exception as error:  # the library raises no class of its own
            raise ValueError(f"tokenizer must be one of Hugging Face's: {error}") from error
        return cls(made, unit)

    def __getstate__(self) -> Any:
        return self.to_json()

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(SubwordVocabulary.from_json(**state).__dict__)


def _in_order(tokenizer: Tokenizer) -> Tokenizer:
    """A unigram whose tokens stand in an order that does not depend on threads and hashes.

    From run to run the library's own order of equals differs, and so do the last bits of its
    scores. Characters that the model could do without get the lowest score, each 0.0001 above the
    one before, in an order that differs too: here they get the scores in the characters' order.
    """
    description = json.loads(tokenizer.to_str())
    vocabulary = description["model"]["vocab"]
    first = len(SPECIAL_TOKENS)
    scores = {token: round(score, 6) for token, score in vocabulary[first:]}
    characters = [token for token in scores if len(token) == 1]
    limit = min(scores.values(), default=0.0) + 1e-4 * len(characters)
    lowest = sorted(token for token in characters if scores[token] < limit)
    scores |= dict(zip(lowest, sorted(scores[token] for token in lowest), strict=True))
    pieces = sorted(scores.items(), key=lambda piece: (-piece[1], piece[0]))
    description["model"]["vocab"] = [*vocabulary[:first], *pieces]
    ordered: Tokenizer = type(tokenizer).from_str(json.dumps(description))
    return ordered


def _is_special(index: int) -> bool:
    """Whether no token of a text has this id: a unigram finds its own special tokens in texts."""
    return index < len(SPECIAL_TOKENS)
