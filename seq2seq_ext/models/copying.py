r"""The pointer-generator: a decoder that writes tokens of its vocabulary, or copies the source's.

.. math::
    p_{gen} = \sigma(w_c c_t + w_z z_t + w_x e_t + b), \quad
    P(w) = p_{gen} P_{vocab}(w) + (1 - p_{gen}) \sum_{j: x_j = w} \alpha_{tj}

of the context c, the decoder's state z, the embedding e of the token before and the alignments
(See, Liu & Manning 2017, https://arxiv.org/abs/1704.04368, equations 8 and 9).

A source token that is not in the vocabulary gets an id of its own, for this source: V, the size of
the vocabulary, for the first such token, V + 1 for the second. The encoder and the decoder's
embedding read ``<unk>`` in its place; the output has a score for it all the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from seq2seq_ext.models.config import Seq2SeqConfig
from seq2seq_ext.models.state import Memory

__all__ = ["PointerGenerator", "extend_source", "extend_target", "extended_tokens"]


class PointerGenerator(nn.Module):
    """Mixes the vocabulary's distribution with the source's tokens.

    Args:
        config: reads the sizes of context, state and embedding.
    """

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        self.from_context = nn.Linear(config.attended_size, 1)
        self.from_state = nn.Linear(config.decoder_hidden_size, 1, bias=False)
        self.from_token = nn.Linear(config.target_embedding_size, 1, bias=False)

    def forward(
        self,
        logits: Tensor,
        context: Tensor,
        z: Tensor,
        embedded: Tensor,
        alignments: Tensor,
        memory: Memory,
    ) -> Tensor:
        """Log-probabilities of every token, copied ones included.

        Args:
            logits: (T, B, V), of the vocabulary.
            context: (T, B, C).
            z: (T, B, H).
            embedded: (T, B, E), of the tokens before.
            alignments: (T, B, heads, S); the heads' mean points.
            memory: of the B rows, with ``tokens``.

        Returns:
            (T, B, memory.extended_size), natural logarithms. A token that nothing points to has
            the logarithm of the smallest number of its dtype, not -inf, so that gradients are
            finite. Where none are formed, as in a search, the unknown tokens of other sources,
            which this one cannot write, have -inf.
        """
        gate = self.from_context(context) + self.from_state(z) + self.from_token(embedded)
        tokens = memory.source_tokens()
        pointed = alignments.mean(2)
        T, B, V = logits.shape
        copied = pointed.new_zeros(T, B, memory.extended_size)
        copied = copied.scatter_add(2, tokens.expand(T, B, -1), pointed)
        copied = copied.clamp(min=torch.finfo(copied.dtype).tiny).log() + logsigmoid(-gate)
        written = logits.log_softmax(-1) + logsigmoid(gate)
        known, unknown = copied[..., :V], copied[..., V:]
        if not torch.is_grad_enabled() and unknown.size(-1):
            there = torch.zeros_like(copied[0], dtype=torch.bool).scatter(1, tokens, True)
            unknown = unknown.masked_fill(~there[:, V:], -torch.inf)
        return torch.cat((torch.logaddexp(written, known), unknown), dim=-1)


def extend_source(
    tokens: Sequence[str], ids: Sequence[int], vocab_size: int, unk_token_id: int = 1
) -> tuple[list[int], list[str]]:
    """Give the unknown tokens of a source ids of their own.

    Args:
        tokens: of one source.
        ids: theirs, `unk_token_id` for the unknown.
        vocab_size: V, the first such id.
        unk_token_id: id of ``<unk>``.

    Returns:
        The ids, and the unknown tokens in the order of theirs.

    Raises:
        ValueError: if there are not as many ids as tokens.

    >>> extend_source(["the", "emu", "and", "emu"], [4, 1, 5, 1], 9)
    ([4, 9, 5, 9], ['emu'])
    """
    if len(tokens) != len(ids):
        raise ValueError(f"ids must be as many as tokens, {len(tokens)}, got {len(ids)}")
    unknown: dict[str, int] = {}
    extended = [
        unknown.setdefault(token, vocab_size + len(unknown)) if index == unk_token_id else index
        for token, index in zip(tokens, ids, strict=True)
    ]
    return extended, list(unknown)


def extend_target(
    tokens: Sequence[str],
    ids: Sequence[int],
    unknown: Sequence[str],
    vocab_size: int,
    unk_token_id: int = 1,
) -> list[int]:
    """Ids of a target whose unknown tokens may stand in the source; the others stay ``<unk>``.

    Args:
        tokens: of one target, ``</s>`` not among them.
        ids: theirs; one more may follow, of ``</s>``.
        unknown: the source's unknown tokens, of `extend_source`.
        vocab_size: V.
        unk_token_id: id of ``<unk>``.

    >>> extend_target(["an", "emu", "ran"], [1, 1, 6, 3], ["emu"], 9)
    [1, 9, 6, 3]
    """
    places = {token: vocab_size + i for i, token in enumerate(unknown)}
    extended = [
        places.get(token, index) if index == unk_token_id else index
        for token, index in zip(tokens, ids, strict=False)
    ]
    return [*extended, *ids[len(tokens) :]]


def extended_tokens(
    ids: Sequence[int], vocabulary: Sequence[str], unknown: Sequence[str]
) -> list[str]:
    """Tokens of written ids, the copied ones as they stand in the source.

    Args:
        ids: of one sequence.
        vocabulary: its V tokens in the order of their ids.
        unknown: the source's unknown tokens, of `extend_source`.

    Raises:
        IndexError: if an id is none of either.

    >>> extended_tokens([2, 3], ["<pad>", "<unk>", "ox"], ["emu"])
    ['ox', 'emu']
    """
    every = (*vocabulary, *unknown)
    return [every[index] for index in ids]
