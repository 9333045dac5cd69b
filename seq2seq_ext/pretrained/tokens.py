"""The tokens of another package in the order of this package's ids.

Other packages order their special tokens as they like. Here ``<pad>``, ``<unk>``, ``<s>`` and
``</s>`` come first, as in every vocabulary of this package, and rows of weights are moved likewise.
"""

from __future__ import annotations

from collections.abc import Sequence

from seq2seq_ext.data.words import WordVocabulary


def reordered(
    tokens: Sequence[str], names: Sequence[str], origin: object
) -> tuple[WordVocabulary, list[int]]:
    """The vocabulary of another package's tokens, and where each came from.

    Args:
        tokens: of the other package, in the order of its ids.
        names: how it calls ``<pad>``, ``<unk>``, ``<s>`` and ``</s>``.
        origin: what the tokens were read from, for messages.

    Returns:
        The vocabulary, and for each of its ids the other package's; -1 for a special token that
        the other package does not have.

    Raises:
        ValueError: if a token is empty, holds a blank or comes twice.

    >>> names = ["<blank>", "<unk>", "<s>", "</s>"]
    >>> reordered(["<s>", "a", "<unk>", "<blank>", "b"], names, "a file")[1]
    [3, 2, 0, -1, 1, 4]
    """
    places = {token: index for index, token in enumerate(tokens)}
    others = [index for index, token in enumerate(tokens) if token not in names]
    special = [places.get(name, -1) for name in names]
    try:
        vocabulary = WordVocabulary(tokens[index] for index in others)
    except ValueError as error:
        raise ValueError(f"the tokens in {origin} are none: {error}") from error
    return vocabulary, [*special, *others]
