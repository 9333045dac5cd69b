"""A decoder with packed weights: a step, from tokens to logits, or a whole search, in one call.

The weights are packed as :func:`seq2seq_ext.prepack` packs those of layers; ``csrc/decoding.h`` and
``csrc/search.h`` describe what runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from seq2seq_ext.generation.options import GenerationOptions
from seq2seq_ext.kernels import (
    CELLS,
    decoder_search_op,
    decoder_step_op,
    prepack_decoder_op,
)
from seq2seq_ext.packed import Packed

__all__ = [
    "HEAD",
    "NOTHING",
    "STEPS_OF_A_SEARCH",
    "DecoderLayout",
    "PackedDecoder",
    "Sources",
    "search_arguments",
]

STEPS_OF_A_SEARCH = 16  # what it counts as where changes of weights are looked for
_EARLY_STOPPING = {True: 0, False: 1, "never": 2}

# The weights behind those of the layers, in the order of csrc/cpu/decoder_weights.h; their names
# are those of csrc/decoding.h.
HEAD = (
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

# What stands in the list of weights for one that a decoder does not have.
NOTHING = torch.nn.Parameter(torch.empty(0), requires_grad=False)


class DecoderLayout(NamedTuple):
    """How the weights of a decoder are put together.

    Args:
        cell: one of `seq2seq_ext.kernels.CELLS`.
        num_layers: of the decoder.
        source_features: how many features sources add to the input of every step.
        heads: of the attention.
        residual: the first layer whose input is added to its output; 0: none.
        query_first: whether attention comes before the cells.
        scale: of products of queries and keys.
    """

    cell: str
    num_layers: int
    source_features: int
    heads: int
    residual: int
    query_first: bool
    scale: float

    def arguments(self) -> tuple[Any, ...]:
        """As the operators take them."""
        return (CELLS.index(self.cell), *self[1:])

    def packing(self) -> tuple[int, int, int]:
        """What ``prepack_decoder`` wants to know of it."""
        return CELLS.index(self.cell), self.num_layers, self.source_features


class Sources(NamedTuple):
    """What steps read beside their state, of N rows that read M sources.

    Args:
        gates: (N, G*H), what is added to the gates of every step; with ``source_features``.
        pieces: (N, 2U), what is added to the maxout layer; or None.
        keys: (M, S, A); None, as the next two, without attention.
        values: (M, S, C).
        lengths: int64 (M,), on the CPU.
    """

    gates: Tensor | None
    pieces: Tensor | None
    keys: Tensor | None
    values: Tensor | None
    lengths: Tensor | None


class PackedDecoder(Packed[Tensor]):
    """A decoder's weights as one block for ``decoder_step`` and ``decoder_search``.

    Args:
        dtype: in which the matrices are kept; see `Packed`.
        checks_all: whether every call looks at all weights, and so sees any change; else it looks
            at a share of them, as calls of prepacked layers do. A search counts as 16 steps.
    """

    def __init__(self, dtype: torch.dtype | None, checks_all: bool) -> None:
        super().__init__(dtype)
        self.checks_all = checks_all

    def __reduce__(self) -> tuple[type[PackedDecoder], tuple[torch.dtype | None, bool]]:
        return type(self), (self.dtype, self.checks_all)

    def _pack(
        self, weights: list[Tensor], options: tuple[int, ...], dtype: torch.dtype | None
    ) -> Tensor:
        return cast("Tensor", prepack_decoder_op(weights, *options, dtype))

    def step(
        self,
        layout: DecoderLayout,
        weights: list[Tensor],
        sources: Sources,
        tokens: Tensor,
        state: tuple[Tensor, Tensor | None, Tensor | None, Tensor | None],
        memory: Tensor | None,
    ) -> tuple[Tensor, ...] | None:
        """Logits (N, V), the state after the step, and alignments (N, S); empty: there are none.

        Args:
            layout: of the weights.
            weights: as they are now: the embedding (V, E); w_ih, w_hh, b_ih and b_hh of each layer,
                the first w_ih reading the token's embedding, then what sources add, then what
                attention feeds; then those of `HEAD`, `NOTHING` for those that there are not.
            sources: what is read beside the state.
            tokens: int64 (N,).
            state: h and c (L, N, H), what is fed (N, F) and the coverage (N, S).
            memory: int64 (N,), on the CPU: the sources that rows read; None: their own.

        Returns:
            None where the weights cannot be packed, since they are computed in each call.
        """
        arguments = (tokens, *state, memory)
        return self._call(decoder_step_op, 1, layout, weights, sources, arguments)

    def search(
        self,
        layout: DecoderLayout,
        weights: list[Tensor],
        sources: Sources,
        state: tuple[Tensor, Tensor | None],
        options: GenerationOptions,
        special: tuple[int, int, int],
    ) -> tuple[Tensor, ...] | None:
        """Sequences, lengths, scores and alignments, as `GenerationOutput` has them.

        Args:
            layout, weights: as for `step`.
            sources: what is read beside the state.
            state: h and c (L, M, H) before the first token.
            options: of which nothing but the number of beams, limits of lengths, the length
                penalty, early stopping and what is returned is read.
            special: the ids of ``<pad>``, ``<s>`` and ``</s>``.

        Returns:
            None as `step`.
        """
        arguments = (*state, *search_arguments(options, special))
        return self._call(decoder_search_op, STEPS_OF_A_SEARCH, layout, weights, sources, arguments)

    def checked(self, steps: int) -> int:
        """The number of steps for which a call of so many looks at the weights."""
        return 1024 if self.checks_all else steps

    def _call(
        self,
        operator: Any,
        steps: int,
        layout: DecoderLayout,
        weights: list[Tensor],
        sources: Sources,
        arguments: Sequence[Any],
    ) -> tuple[Tensor, ...] | None:
        options = layout.arguments()
        checked = self.checked(steps)

        def call(block: Tensor | None, turn: int) -> tuple[Tensor, ...] | None:
            if block is None:
                return None
            found = operator(
                weights,
                block,
                turn,
                checked,
                *sources,
                *options,
                *arguments,
            )
            return cast("tuple[Tensor, ...]", found)

        return self.run(weights, layout.packing(), checked, call)


def search_arguments(options: GenerationOptions, special: tuple[int, int, int]) -> tuple[Any, ...]:
    """The options of a search as the operators take them."""
    return (
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
