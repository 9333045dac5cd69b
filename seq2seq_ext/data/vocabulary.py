"""Characters to ids and back, with the four special tokens in front."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from seq2seq_ext.data.files import read_json, write_json_atomically

PAD, UNK, BOS, EOS = "<pad>", "<unk>", "<s>", "</s>"
SPECIAL_TOKENS = (PAD, UNK, BOS, EOS)
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Vocabulary:
    """A fixed list of characters; ids 0 to 3 are ``<pad>``, ``<unk>``, ``<s>`` and ``</s>``.

    Args:
        characters: the characters, in the order of their ids, which begin at 4.

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

    def __init__(self, characters: Iterable[str]) -> None:
        self.characters = tuple(characters)
        for character in self.characters:
            if not isinstance(character, str) or len(character) != 1:
                raise ValueError(f"characters must be single characters, got {character!r}")
        if len(set(self.characters)) != len(self.characters):
            twice = sorted({c for c in self.characters if self.characters.count(c) > 1})
            raise ValueError(f"characters must differ, got {twice} more than once")
        first = len(SPECIAL_TOKENS)
        self._ids = {character: first + i for i, character in enumerate(self.characters)}

    @classmethod
    def from_texts(cls, texts: Iterable[str]) -> Vocabulary:
        """The vocabulary of all characters in `texts`, in the order of their code points."""
        return cls(sorted({character for text in texts for character in text}))

    def encode(self, text: str, *, add_eos: bool = False) -> list[int]:
        """Ids of a text's characters, ``<unk>`` for the unknown, ``</s>`` at the end if asked."""
        ids = [self._ids.get(character, self.unk_token_id) for character in text]
        if add_eos:
            ids.append(self.eos_token_id)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text up to the first ``</s>``; ``<pad>`` and ``<s>`` are left out.

        ``<unk>`` becomes U+FFFD, the replacement character.

        Raises:
            ValueError: if an id is not in the vocabulary.
        """
        characters: list[str] = []
        for index in ids:
            if index == self.eos_token_id:
                break
            if index == self.unk_token_id:
                characters.append(REPLACEMENT)
            elif len(SPECIAL_TOKENS) <= index < len(self):
                characters.append(self.characters[index - len(SPECIAL_TOKENS)])
            elif index not in (self.pad_token_id, self.bos_token_id):
                raise ValueError(f"ids must be in [0, {len(self)}), got {index}")
        return "".join(characters)

    def unknown(self, text: str) -> list[str]:
        """The characters of `text` that have no id, each once, in the order of the text."""
        return list(dict.fromkeys(c for c in text if c not in self._ids))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the vocabulary as JSON, atomically."""
        write_json_atomically(path, self.to_list())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Vocabulary:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is no vocabulary; the message names it.
        """
        try:
            return cls.from_list(read_json(path))
        except ValueError as error:
            if str(path) in str(error):
                raise
            raise ValueError(f"{path} is not a vocabulary: {error}") from error

    def to_list(self) -> list[str]:
        """All tokens in the order of their ids."""
        return [*SPECIAL_TOKENS, *self.characters]

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
        return len(SPECIAL_TOKENS) + len(self.characters)

    def __contains__(self, character: object) -> bool:
        return character in self._ids

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.characters == other.characters

    def __hash__(self) -> int:
        return hash(self.characters)

    def __repr__(self) -> str:
        return f"Vocabulary({len(self)} tokens: {''.join(self.characters[:40])!r})"
