"""Tokens of any length to ids and back: what a vocabulary of another package holds.

Other packages order their special tokens as they like. Here ``<pad>``, ``<unk>``, ``<s>`` and
``</s>`` come first, as in every vocabulary of this package, and rows of weights are moved likewise.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from seq2seq_ext.data.vocabulary import SPECIAL_TOKENS


class TokenVocabulary:
    """A fixed list of tokens; ids 0 to 3 are ``<pad>``, ``<unk>``, ``<s>`` and ``</s>``.

    Args:
        tokens: the other tokens, in the order of their ids, which begin at 4.

    Raises:
        ValueError: if an entry is no text, is empty, or comes twice or as a special token.

    Example:
        >>> vocabulary = TokenVocabulary(["AA1", "B", "K"])
        >>> vocabulary.encode(["B", "AA1", "ZH"], add_eos=True)
        [5, 4, 1, 3]
        >>> vocabulary.decode([5, 4, 1, 3, 0])
        ['B', 'AA1', '<unk>']
    """

    pad_token_id, unk_token_id, bos_token_id, eos_token_id = range(4)

    def __init__(self, tokens: Iterable[str]) -> None:
        self.tokens = (*SPECIAL_TOKENS, *tokens)
        self._ids: dict[str, int] = {}
        for index, token in enumerate(self.tokens):
            if not isinstance(token, str) or not token:
                raise ValueError(f"tokens must hold texts that are not empty, got {token!r}")
            if self._ids.setdefault(token, index) != index:
                raise ValueError(f"tokens must differ, got {token!r} more than once")

    def encode(self, tokens: Sequence[str], *, add_eos: bool = False) -> list[int]:
        """Ids of tokens, ``<unk>`` for the unknown, ``</s>`` at the end if asked.

        A text may stand for the sequence of its characters.
        """
        ids = [self._ids.get(token, self.unk_token_id) for token in tokens]
        return [*ids, self.eos_token_id] if add_eos else ids

    def decode(self, ids: Iterable[int]) -> list[str]:
        """The tokens up to the first ``</s>``; ``<pad>`` and ``<s>`` are left out.

        Raises:
            ValueError: if an id is not in the vocabulary.
        """
        tokens: list[str] = []
        for index in ids:
            if not 0 <= index < len(self):
                raise ValueError(f"ids must be in [0, {len(self)}), got {index}")
            if index == self.eos_token_id:
                break
            if index not in (self.pad_token_id, self.bos_token_id):
                tokens.append(self.tokens[index])
        return tokens

    def __len__(self) -> int:
        return len(self.tokens)

    def __contains__(self, token: object) -> bool:
        return token in self._ids

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TokenVocabulary) and self.tokens == other.tokens

    def __hash__(self) -> int:
        return hash(self.tokens)

    def __repr__(self) -> str:
        return f"TokenVocabulary({len(self)} tokens: {', '.join(self.tokens[4:12])}, ...)"


def reordered(tokens: Sequence[str], names: Sequence[str]) -> tuple[TokenVocabulary, list[int]]:
    """The vocabulary of another package's tokens, and where each came from.

    Args:
        tokens: of the other package, in the order of its ids.
        names: how it calls ``<pad>``, ``<unk>``, ``<s>`` and ``</s>``.

    Returns:
        The vocabulary, and for each of its ids the other package's; -1 for a special token that
        the other package does not have.

    >>> reordered(["<s>", "a", "<unk>", "<blank>", "b"], ["<blank>", *SPECIAL_TOKENS[1:]])[1]
    [3, 2, 0, -1, 1, 4]
    """
    places = {token: index for index, token in enumerate(tokens)}
    others = [index for index, token in enumerate(tokens) if token not in names]
    special = [places.get(name, -1) for name in names]
    return TokenVocabulary(tokens[index] for index in others), [*special, *others]
