"""Tokens to ids and back, with the four special tokens in front: characters here.

A vocabulary says what its tokens are by `tokenize` and `detokenize`; `WordVocabulary` and
`SubwordVocabulary` override them.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from seq2seq_ext.data.files import read_json, write_json_atomically

PAD, UNK, BOS, EOS = "<pad>", "<unk>", "<s>", "</s>"
SPECIAL_TOKENS = (PAD, UNK, BOS, EOS)
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Vocabulary:
    """A fixed list of characters; ids 0 to 3 are ``<pad>``, ``<unk>``, ``<s>`` and ``</s>``.

    Args:
        tokens: the characters, in the order of their ids, which begin at 4.

    Raises:
        ValueError: if an entry is no single character or comes twice.

    Example:
        >>> vocabulary = Vocabulary.from_texts(["ox", "oxen"])
        >>> vocabulary.encode("xo!")
        [7, 6, 1]
        >>> vocabulary.decode([7, 6, 3, 0])
        'xo'
    """

    pad_token_id, unk_token_id, bos_token_id, eos_token_id = range(4)
    unit: str = "char"
    _kind: ClassVar[str] = "characters"

    def __init__(self, tokens: Iterable[str]) -> None:
        self.tokens = tuple(tokens)
        for token in self.tokens:
            self._check(token)
        if len(set(self.tokens)) != len(self.tokens):
            twice = sorted(token for token, n in Counter(self.tokens).items() if n > 1)
            raise ValueError(f"{self._kind} must differ, got {twice} more than once")
        first = len(SPECIAL_TOKENS)
        self._ids = {token: first + i for i, token in enumerate(self.tokens)}

    @classmethod
    def _check(cls, token: object) -> None:
        if not isinstance(token, str) or len(token) != 1:
            raise ValueError(f"characters must be single characters, got {token!r}")

    def tokenize(self, text: str) -> list[str]:
        """The tokens of a text, known or not."""
        return list(text)

    def detokenize(self, tokens: Sequence[str]) -> str:
        """The text of which these are the tokens."""
        return "".join(tokens)

    @classmethod
    def from_texts(cls, texts: Iterable[str], *, max_size: int | None = None) -> Vocabulary:
        """The vocabulary of the tokens in `texts`, in the order of their code points.

        Args:
            texts: read once.
            max_size: ids at most, the special tokens counted; the most frequent tokens are kept, of
                equally frequent ones those first in order. None keeps all.

        Raises:
            ValueError: if `max_size` leaves no room beside the special tokens.
        """
        counts: Counter[str] = Counter()
        tokenize = cls(()).tokenize
        for text in texts:
            counts.update(tokenize(text))
        kept = sorted(counts)
        if max_size is not None:
            room = max_size - len(SPECIAL_TOKENS)
            if room < 1:
                raise ValueError(
                    f"max_size must be at least {len(SPECIAL_TOKENS) + 1}, got {max_size}"
                )
            kept = sorted(sorted(kept, key=lambda token: -counts[token])[:room])
        return cls(kept)

    def convert_tokens_to_ids(self, tokens: Iterable[str]) -> list[int]:
        """Ids of tokens, ``<unk>`` for the unknown, which special tokens are too.

        >>> Vocabulary("ab").convert_tokens_to_ids(["b", "a", "c", "</s>"])
        [5, 4, 1, 1]
        """
        return [self._ids.get(token, self.unk_token_id) for token in tokens]

    def encode(self, text: str, *, add_eos: bool = False) -> list[int]:
        """Ids of a text's tokens, ``<unk>`` for the unknown, ``</s>`` at the end if asked."""
        ids = self.convert_tokens_to_ids(self.tokenize(text))
        if add_eos:
            ids.append(self.eos_token_id)
        return ids

    def decode(self, ids: Sequence[int], unknown: Sequence[str] = ()) -> str:
        """The text up to the first ``</s>``; ``<pad>`` and ``<s>`` are left out.

        ``<unk>`` becomes U+FFFD, the replacement character.

        Args:
            ids: of the tokens.
            unknown: tokens with ids behind the vocabulary's, those that a source alone has.

        Raises:
            ValueError: if an id is not in the vocabulary.

        >>> Vocabulary("ox").decode([4, 5, 6, 3], ["\u00e9"])
        'oxé'
        """
        tokens: list[str] = []
        most = len(self) + len(unknown)
        for index in ids:
            if index == self.eos_token_id:
                break
            if index == self.unk_token_id:
                tokens.append(REPLACEMENT)
            elif len(SPECIAL_TOKENS) <= index < len(self):
                tokens.append(self.tokens[index - len(SPECIAL_TOKENS)])
            elif len(self) <= index < most:
                tokens.append(unknown[index - len(self)])
            elif index not in (self.pad_token_id, self.bos_token_id):
                raise ValueError(f"ids must be in [0, {most}), got {index}")
        return self.detokenize(tokens)

    def normalise(self, text: str) -> str:
        """The text as `decode` would write it, were all its tokens known."""
        return text

    def unknown(self, text: str) -> list[str]:
        """The tokens of `text` that have no id, each once, in the order of the text."""
        return list(dict.fromkeys(t for t in self.tokenize(text) if t not in self._ids))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the vocabulary as JSON, atomically."""
        write_json_atomically(path, self.to_json())

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Vocabulary:
        """Read what `save` wrote: the vocabulary that it was, of whichever unit.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is no vocabulary; the message names it.
        """
        try:
            return vocabulary_from_json(read_json(path))
        except ValueError as error:
            if str(path) in str(error):
                raise
            raise ValueError(f"{path} is not a vocabulary: {error}") from error

    def to_list(self) -> list[str]:
        """All tokens in the order of their ids."""
        return [*SPECIAL_TOKENS, *self.tokens]

    def to_json(self) -> Any:
        """What `save` writes; characters are told by a plain list."""
        return self.to_list()

    @classmethod
    def from_list(cls, tokens: object) -> Vocabulary:
        """The vocabulary that `to_list` described.

        Raises:
            ValueError: if `tokens` is no list that begins with the special tokens.
        """
        first = len(SPECIAL_TOKENS)
        if not isinstance(tokens, list) or tuple(tokens[:first]) != SPECIAL_TOKENS:
            raise ValueError(f"tokens must be a list that begins with {list(SPECIAL_TOKENS)}")
        return cls(tokens[first:])

    def __len__(self) -> int:
        return len(SPECIAL_TOKENS) + len(self.tokens)

    def __contains__(self, token: object) -> bool:
        return token in self._ids

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash((self.unit, self.tokens))

    def __repr__(self) -> str:
        shown = self.detokenize(self.tokens[:40])[:60]
        return f"{type(self).__name__}({len(self)} tokens: {shown!r})"


def vocabulary_from_json(value: object) -> Vocabulary:
    """The vocabulary that ``to_json`` described, of any unit.

    Raises:
        ValueError: if it is none.
        ModuleNotFoundError: if it is one of subwords, and tokenizers is not installed.
    """
    if not isinstance(value, dict):
        return Vocabulary.from_list(value)
    unit = value.get("unit")
    if unit == "word":
        from seq2seq_ext.data.words import WordVocabulary

        return WordVocabulary.from_list(value.get("tokens"))
    from seq2seq_ext.data.subwords import SUBWORD_UNITS, SubwordVocabulary

    if unit in SUBWORD_UNITS:
        return SubwordVocabulary.from_json(str(unit), value.get("tokenizer"))
    raise ValueError(f"unit must be one of word, {', '.join(SUBWORD_UNITS)}, got {unit!r}")
