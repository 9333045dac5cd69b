"""Vectors of tokens that were learned elsewhere: read from a text file, put into an embedding.

The file is what word2vec and GloVe write: a line per token, the token and its numbers with single
spaces between them. word2vec's begins with a line of the number of tokens and of features. It may
be much larger than memory: only vectors of tokens that are asked for are kept.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TextIO

import torch
from torch import Tensor, nn

__all__ = ["TokenVectors", "read_token_vectors", "set_embeddings"]


class TokenVectors(NamedTuple):
    """Vectors of a vocabulary's tokens.

    Args:
        vectors: float32 ``(V, E)``, zero for tokens that have none.
        found: bool ``(V,)``, which tokens have one.
    """

    vectors: Tensor
    found: Tensor


def read_token_vectors(
    path: str | os.PathLike[str], tokens: Sequence[str], *, size: int | None = None
) -> TokenVectors:
    """Read the vectors of some tokens from a text file of word2vec or GloVe.

    Args:
        path: UTF-8 text; ``.gz`` is read through gzip.
        tokens: V tokens, in the order of their ids. Of a token that comes twice in the file the
            first vector counts.
        size: E, the features of a vector; None reads it off the first line. GloVe's tokens may
            hold spaces; where that of the first line does, E has to be given.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a line is no token with E numbers, named with its number; if the file is no
            UTF-8 text; or if it has a vector for none of the tokens.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "vectors.txt"
        ...     _ = path.write_text("ox 0.5 1\\nin 0.25 2\\n")
        ...     read_token_vectors(path, ["<pad>", "in"])
        TokenVectors(vectors=tensor([[0.0000, 0.0000],
                [0.2500, 2.0000]]), found=tensor([False,  True]))
    """
    wanted: dict[str, list[int]] = {}
    for index, token in enumerate(tokens):
        wanted.setdefault(token, []).append(index)
    found = torch.zeros(len(tokens), dtype=torch.bool)
    vectors: Tensor | None = None
    with _opened(Path(path)) as file:
        try:
            for number, line in enumerate(file, start=1):
                # Not split(): a token may be another kind of space.
                line = line.rstrip("\r\n ")
                if number == 1:
                    first = line.split(" ")
                    header = len(first) == 2 and all(part.isdecimal() for part in first)
                    declared = int(first[1]) if header else len(first) - 1
                    size = declared if size is None else size
                    if header and size != declared:
                        raise ValueError(f"size must be {declared} as line 1 says, got {size}")
                    if size < 1:
                        raise ValueError("line 1 must be a token and its vector, got no numbers")
                    vectors = torch.zeros(len(tokens), size)
                    if header:
                        continue
                assert vectors is not None
                assert size is not None
                token, *numbers = line.rsplit(" ", size)
                if len(numbers) != size:
                    raise ValueError(
                        f"line {number} must be a token and {size} numbers, got {len(numbers)}"
                    )
                rows = wanted.get(token)
                if rows is None or found[rows[0]]:
                    continue
                try:
                    vector = torch.tensor([float(x) for x in numbers])
                except ValueError as error:
                    raise ValueError(f"line {number}: {error}") from error
                if not vector.isfinite().all():
                    raise ValueError(f"line {number} must hold finite numbers")
                vectors[rows] = vector
                found[rows] = True
        except (ValueError, OSError, EOFError) as error:  # UnicodeDecodeError is a ValueError
            raise ValueError(f"{path} holds no vectors of tokens: {error}") from error
    if vectors is None or not found.any():
        raise ValueError(f"{path} has a vector for none of the {len(tokens)} tokens")
    return TokenVectors(vectors, found)


def set_embeddings(
    embedding: nn.Embedding,
    vectors: Tensor,
    found: Tensor | None = None,
    *,
    freeze: bool = False,
) -> None:
    """Put vectors into an embedding, in place; all that is tied to it sees them.

    Args:
        embedding: of V tokens and E features: ``model.encoder.embedding``,
            ``model.decoder.embedding``.
        vectors: floating, ``(V, E)``.
        found: bool ``(V,)``, the rows to write; None writes all. The row of ``<pad>`` stays zero.
        freeze: whether the embedding, all its rows, is no longer trained.

    Raises:
        TypeError: if `vectors` hold no floats or `found` no bools.
        ValueError: if a shape is another.

    Example:
        >>> embedding = nn.Embedding(3, 2, padding_idx=0)
        >>> set_embeddings(embedding, torch.ones(3, 2), freeze=True)
        >>> embedding.weight
        Parameter containing:
        tensor([[0., 0.],
                [1., 1.],
                [1., 1.]])
    """
    weight = embedding.weight
    if not vectors.is_floating_point():
        raise TypeError(f"vectors must be floating, got {vectors.dtype}")
    if vectors.shape != weight.shape:
        raise ValueError(
            f"vectors must have shape {tuple(weight.shape)}, got {tuple(vectors.shape)}"
        )
    chosen = torch.ones(len(weight), dtype=torch.bool) if found is None else found.cpu().clone()
    if chosen.dtype != torch.bool:
        raise TypeError(f"found must hold bools, got {chosen.dtype}")
    if chosen.shape != (len(weight),):
        raise ValueError(f"found must have shape ({len(weight)},), got {tuple(chosen.shape)}")
    if embedding.padding_idx is not None:
        chosen[embedding.padding_idx] = False
    rows = chosen.nonzero()[:, 0]
    with torch.no_grad():
        weight[rows.to(weight.device)] = vectors[rows.to(vectors.device)].to(weight)
    if freeze:
        weight.requires_grad_(False)


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    if not path.is_file():
        raise FileNotFoundError(f"path must be a file, got {path}")
    if path.suffix == ".gz":
        with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
            yield file
    else:
        with path.open(encoding="utf-8", newline="\n") as file:
            yield file
