"""Greedy and beam search as one operator: all steps of all sources, with no Python between them.

The decoder's weights are packed for it, as :func:`seq2seq_ext.prepack` packs those of layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor

from seq2seq_ext.generation.options import GenerationOptions
from seq2seq_ext.kernels import CELLS, prepack_decoder_op, search_op
from seq2seq_ext.packed import Packed

__all__ = ["DecoderWeights", "PackedDecoder", "Sources"]

_EARLY_STOPPING = {True: 0, False: 1, "never": 2}

# What stands in the list of weights for one that a decoder does not have.
_NOTHING = torch.nn.Parameter(torch.empty(0), requires_grad=False)


class DecoderWeights(NamedTuple):
    """A decoder that `PackedDecoder.search` runs, as ``csrc/search.h`` describes it.

    Args:
        cell: one of `seq2seq_ext.kernels.CELLS`.
        embedding: (V, E).
        layers: w_ih, w_hh, b_ih and b_hh of each layer; the first w_ih reads the token's embedding,
            then what sources add, then what attention feeds.
        head: the others that there are, by their names in ``csrc/cpu/search_weights.h``.
        source_features: how many features sources add to the input of every step.
        heads: of the attention.
        residual: the first layer whose input is added to its output; 0: none.
        query_first: whether attention comes before the cells.
        scale: of products of queries and keys.
    """

    cell: str
    embedding: Tensor
    layers: Sequence[Tensor]
    head: dict[str, Tensor | None]
    source_features: int
    heads: int
    residual: int
    query_first: bool
    scale: float

    def tensors(self) -> list[Tensor]:
        """As the operators take them."""
        head = (self.head.get(name) for name in _HEAD)
        return [
            self.embedding,
            *self.layers,
            *(_NOTHING if weight is None else weight for weight in head),
        ]


_HEAD = (
    "w_query",
    "v",
    "gain",
    "w_coverage",
    "w_out",
    "b_out",
    "w_state",
    "b_state",
    "w_token",
    "w_context",
    "w_rank",
    "w_vocab",
    "b_vocab",
)


class Sources(NamedTuple):
    """What a search begins with, for M sources.

    Args:
        h_0: (L, M, H).
        c_0: (L, M, H), of an LSTM.
        gates: (M, G*H), what each adds to the gates of every step; with ``source_features``.
        pieces: (M, 2U), what each adds to the maxout layer; or None.
        keys: (M, S, A); None, as the next two, without attention.
        values: (M, S, C).
        lengths: int64 (M,), on the CPU.
    """

    h_0: Tensor
    c_0: Tensor | None
    gates: Tensor | None
    pieces: Tensor | None
    keys: Tensor | None
    values: Tensor | None
    lengths: Tensor | None


class PackedDecoder(Packed[Tensor]):
    """A decoder's weights as one block for ``decoder_search``.

    Args:
        dtype: in which the matrices are kept; see `Packed`.
        checks_all: whether every call looks at all weights, and so sees any change; else it looks
            at a share of them, as calls of prepacked layers do, each call counting as 16 steps.
    """

    def __init__(self, dtype: torch.dtype | None, checks_all: bool) -> None:
        super().__init__(dtype)
        self._checked = 1024 if checks_all else 16

    @property
    def serves(self) -> tuple[torch.dtype | None, bool]:
        """The arguments that it was made with."""
        return self.dtype, self._checked == 1024

    def __reduce__(self) -> tuple[type[PackedDecoder], tuple[torch.dtype | None, bool]]:
        return type(self), self.serves

    def _pack(
        self, weights: list[Tensor], options: tuple[int, ...], dtype: torch.dtype | None
    ) -> Tensor:
        return cast("Tensor", prepack_decoder_op(weights, *options, dtype))

    def search(
        self,
        decoder: DecoderWeights,
        sources: Sources,
        options: GenerationOptions,
        special: tuple[int, int, int],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
        """Sequences, lengths, scores and alignments, as `GenerationOutput` has them.

        Args:
            decoder: its weights as they are now, and the layout.
            sources: where the search begins.
            options: of which nothing but the number of beams, limits of lengths, the length
                penalty, early stopping and what is returned is read.
            special: the ids of ``<pad>``, ``<s>`` and ``</s>``.

        Returns:
            None where the weights cannot be packed, since they are computed in each call.
        """
        layout = (CELLS.index(decoder.cell), len(decoder.layers) // 4, decoder.source_features)
        tensors = decoder.tensors()

        def call(block: Tensor | None, turn: int) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
            if block is None:
                return None
            found = search_op(
                tensors,
                block,
                turn,
                self._checked,
                *sources,
                *layout,
                decoder.heads,
                decoder.residual,
                decoder.query_first,
                decoder.scale,
                options.num_beams,
                options.num_return_sequences,
                options.max_new_tokens,
                options.min_new_tokens,
                *special,
                options.length_penalty,
                options.length_penalty_kind == "wu",
                _EARLY_STOPPING[options.early_stopping],
                options.output_scores,
                options.return_attention,
            )
            return cast("tuple[Tensor, Tensor, Tensor, Tensor]", found)

        return self.run(tensors, layout, self._checked, call)
