"""`generate`, for any model that can start from a source and make a step."""

from __future__ import annotations

from typing import Generic, Literal, Protocol, overload

import torch
from torch import Tensor

from seq2seq_ext.generation.greedy import GenerationOutput, StateT, greedy_search


class GenerationTokens(Protocol):
    """What `generate` reads of a model's config."""

    @property
    def pad_token_id(self) -> int: ...

    @property
    def bos_token_id(self) -> int: ...

    @property
    def eos_token_id(self) -> int: ...


class GenerationMixin(Generic[StateT]):
    """Adds `generate` to a model with ``config``, ``start`` and ``step``."""

    config: GenerationTokens

    def start(self, source: Tensor, source_lengths: Tensor | None = None) -> StateT:
        """Read the source: the state of every row before its first token."""
        raise NotImplementedError

    def step(self, tokens: Tensor, state: StateT) -> tuple[Tensor, StateT]:
        """One step: int64 ``(N,)`` -> logits ``(N, V)``, a fresh tensor, and the new state."""
        raise NotImplementedError

    @overload
    def generate(
        self,
        source: Tensor,
        source_lengths: Tensor | None = ...,
        *,
        max_new_tokens: int = ...,
        min_new_tokens: int = ...,
        return_dict_in_generate: Literal[False] = ...,
        output_scores: bool = ...,
    ) -> Tensor: ...

    @overload
    def generate(
        self,
        source: Tensor,
        source_lengths: Tensor | None = ...,
        *,
        max_new_tokens: int = ...,
        min_new_tokens: int = ...,
        return_dict_in_generate: Literal[True],
        output_scores: bool = ...,
    ) -> GenerationOutput: ...

    @torch.no_grad()
    def generate(
        self,
        source: Tensor,
        source_lengths: Tensor | None = None,
        *,
        max_new_tokens: int = 64,
        min_new_tokens: int = 0,
        return_dict_in_generate: bool = False,
        output_scores: bool = False,
    ) -> Tensor | GenerationOutput:
        """Write a target for every source, greedily.

        The arguments carry Hugging Face's names. The model stays in its mode: call ``eval()``
        first, or dropout acts on the search.

        Args:
            source: int64 ``(B, T)``.
            source_lengths: int64 ``(B,)``; None takes rows up to their last token not ``<pad>``.
            max_new_tokens: at most this many tokens a row, ``</s>`` counted.
            min_new_tokens: at least this many tokens before ``</s>``.
            return_dict_in_generate: whether to return a `GenerationOutput` and not the sequences
                alone.
            output_scores: whether the `GenerationOutput` holds log-probabilities.

        Returns:
            int64 ``(B, U)``: the tokens after ``<s>``, ``</s>`` included where it came, ``<pad>``
            after it. U is the length of the longest row.

        Raises:
            ValueError: if `max_new_tokens` is less than 1 or `min_new_tokens` is not in
                ``[0, max_new_tokens]``.
        """
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
        if not 0 <= min_new_tokens <= max_new_tokens:
            raise ValueError(
                f"min_new_tokens must be in [0, max_new_tokens={max_new_tokens}], "
                f"got {min_new_tokens}"
            )
        output = greedy_search(
            self.step,
            self.start(source, source_lengths),
            source.size(0),
            bos_token_id=self.config.bos_token_id,
            eos_token_id=self.config.eos_token_id,
            pad_token_id=self.config.pad_token_id,
            max_new_tokens=max_new_tokens,
            min_new_tokens=min_new_tokens,
            output_scores=output_scores,
            device=source.device,
        )
        return output if return_dict_in_generate else output.sequences
