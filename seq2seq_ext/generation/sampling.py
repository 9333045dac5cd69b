"""Sampling: the next token is drawn, from all of the vocabulary or its most probable part.

Scores become probabilities in this order: divided by the temperature, cut to the `top_k` best, cut
to the nucleus of `top_p` (Holtzman et al. 2019, arXiv 1904.09751, section 3.1), normalized.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from seq2seq_ext.generation.greedy import collect, search_tokens
from seq2seq_ext.generation.options import GenerationOptions
from seq2seq_ext.generation.output import GenerationOutput
from seq2seq_ext.generation.processors import ForcedPrefix, SpecialTokens
from seq2seq_ext.generation.state import StateT


class Sampler:
    """Draws tokens.

    Args:
        options: reads ``temperature``, ``top_k``, ``top_p``, ``generator`` and ``seed``.
        device: of the scores.

    Raises:
        ValueError: if the generator is of another kind of device.

    Example:
        >>> draw = Sampler(GenerationOptions(do_sample=True, top_k=1), "cpu")
        >>> draw(torch.tensor([[0.0, 2.0, 1.0], [5.0, 4.0, 3.0]]))
        tensor([1, 0])
    """

    def __init__(
        self, options: GenerationOptions, device: torch.device | str | None = None
    ) -> None:
        device = torch.device(device or "cpu")
        self.options = options
        self.generator = options.generator
        if options.seed is not None:
            self.generator = torch.Generator(device).manual_seed(options.seed)
        if self.generator is not None and self.generator.device.type != device.type:
            raise ValueError(
                f"generator must be on {device.type}, where the tokens are, "
                f"got one on {self.generator.device.type}"
            )

    def __call__(self, scores: Tensor) -> Tensor:
        """Log-probabilities or logits ``(N, V)`` -> int64 ``(N,)`` tokens."""
        probabilities = self.probabilities(scores)
        return torch.multinomial(probabilities, 1, generator=self.generator)[:, 0]

    def probabilities(self, scores: Tensor) -> Tensor:
        """What is drawn from: ``(N, V)``, every row summing up to 1."""
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        scores = scores / self.options.temperature
        if 0 < self.options.top_k < scores.size(1):
            least = scores.topk(self.options.top_k).values[:, -1:]
            scores = scores.masked_fill(scores < least, float("-inf"))
        probabilities = scores.softmax(-1)
        if self.options.top_p < 1.0:
            order = scores.argsort(descending=True)  # which tells apart what rounds to equal
            ordered = probabilities.gather(1, order)
            before = ordered.cumsum(-1) - ordered  # exactly 0 for the first, which stays
            ordered = ordered.masked_fill(before >= self.options.top_p, 0.0)
            probabilities = torch.zeros_like(ordered).scatter_(1, order, ordered)
            probabilities /= probabilities.sum(-1, keepdim=True)
        return probabilities


def sample(
    step: Callable[[Tensor, StateT], tuple[Tensor, StateT]],
    state: StateT,
    batch_size: int,
    options: GenerationOptions | None = None,
    *,
    bos_token_id: int,
    eos_token_id: int,
    pad_token_id: int,
    decoder_input_ids: Tensor | None = None,
    device: torch.device | str | None = None,
    **changes: Any,
) -> GenerationOutput:
    """Draw every token; the arguments are those of `greedy_search`.

    Raises:
        TypeError, ValueError: if an argument has another type, shape or range.
    """
    options = GenerationOptions.of(options, {"do_sample": True} | changes)
    special = SpecialTokens(pad_token_id, bos_token_id, eos_token_id)
    prefix = ForcedPrefix.read(decoder_input_ids, batch_size, special, device)
    choose = Sampler(options, device)
    state = repeated(state, batch_size, options.num_return_sequences, device)
    num_rows = batch_size * options.num_return_sequences
    steps = search_tokens(step, state, num_rows, options, special, prefix, choose, device)
    return collect(steps, num_rows, options, special, prefix, device)


def repeated(
    state: StateT, batch_size: int, times: int, device: torch.device | str | None
) -> StateT:
    """The state with every row `times` times, side by side."""
    if times == 1:
        return state
    return state.select(torch.arange(batch_size, device=device).repeat_interleave(times))
