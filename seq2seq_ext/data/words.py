"""Words to ids and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from seq2seq_ext.data.vocabulary import Vocabulary


class WordVocabulary(Vocabulary):
    """A fixed list of words, which stand between blanks in a text; one blank when written.

    Args:
        tokens: the words, in the order of their ids, which begin at 4. A word that looks like a
            special token is a word like any other.

    Raises:
        ValueError: if an entry is empty or holds a blank or a line's end, or comes twice. Another
            white space in a word is let be, as vocabularies of other packages have it: such a word
            is written, but in a text it is no single word.

    Example:
        >>> vocabulary = WordVocabulary.from_texts(["HH AH L OW", "L OW"])
        >>> vocabulary.encode("L  OW")
        [6, 7]
        >>> vocabulary.decode([6, 7, 1])
        'L OW �'
    """

    unit = "word"
    _kind: ClassVar[str] = "words"

    @classmethod
    def _check(cls, token: object) -> None:
        if not isinstance(token, str) or not token or {" ", "\n"} & set(token):
            raise ValueError(f"words must be strings without blanks, got {token!r}")

    def tokenize(self, text: str) -> list[str]:
        """What stands between blanks."""
        return text.split()

    def detokenize(self, tokens: Sequence[str]) -> str:
        """The words with a blank between two."""
        return " ".join(tokens)

    def normalise(self, text: str) -> str:
        """The text with one blank between two words, and none around them."""
        return " ".join(text.split())

    def to_json(self) -> Any:
        """What `save` writes."""
        return {"unit": self.unit, "tokens": self.to_list()}
