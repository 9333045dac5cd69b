"""Every option of `generate`, its default and its check, in one place."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

LENGTH_PENALTY_KINDS = ("power", "wu")


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """How `generate` searches. The names are Hugging Face's where they have the option.

    Without `do_sample` and with one beam the search is greedy. Options of beam search change
    nothing with one beam, which has nothing to rank.

    Args:
        max_new_tokens: at most this many tokens a row, ``</s>`` counted, a forced prefix not.
        min_new_tokens: at least this many tokens, a forced prefix not counted, before ``</s>``.
        num_beams: beams of each source; above 1 the search is a beam search.
        num_return_sequences: rows returned for each source: the best of the beams, or samples.
        early_stopping: when a source is done that has as many finished sequences as beams. True:
            at once. False: when no beam would beat the worst of them if it ended now. ``"never"``:
            when no beam can beat it any more, whatever it writes.
        length_penalty: the exponent a of the length penalty; above 0 favours long sequences.
        length_penalty_kind: what divides the log-probability of a sequence of n tokens, ``</s>``
            and forced prefix counted: ``"power"``, n ** a; ``"wu"``, ((5 + n) / 6) ** a (Wu et al.
            2016, arXiv 1609.08144, equation 14).
        coverage_penalty: b of the term b * sum over source positions of log(min(attention summed
            over the tokens, 1)) in a finished sequence's score (Wu et al. 2016, equation 14). Needs
            a model with attention.
        num_beam_groups: groups of diverse beam search (Vijayakumar et al. 2016, arXiv 1610.02424),
            num_beams / num_beam_groups beams in each.
        diversity_penalty: subtracted from a token's log-probability for every beam of an earlier
            group that takes the same token in the same step (the paper's Hamming diversity).
        do_sample: draw tokens and do not take the best.
        temperature: log-probabilities are divided by it before the draw.
        top_k: draw among the so many most probable tokens; 0 draws among all.
        top_p: draw among the fewest most probable tokens whose probabilities sum up to at least
            this (Holtzman et al. 2019, arXiv 1904.09751); after `temperature` and `top_k`.
        generator: draws; None takes torch's own, or one with `seed`.
        seed: of a generator made for this call.
        no_repeat_ngram_size: no n-gram of this size comes twice in a row's output; 0 lets all.
        repetition_penalty: multiplies the log-probability of every token that the row already
            holds; above 1 makes it rarer (after Keskar et al. 2019, arXiv 1909.05858, section 4.1).
            It acts on log-probabilities, since the zero of logits is arbitrary.
        prefix_allowed_tokens_fn: from a source's index in the batch and the tokens ``(t,)`` written
            so far, without ``<s>``, to the ids that may come next, at least one.
        output_scores: whether a `GenerationOutput` holds ``sequences_scores``.
        return_attention: whether a `GenerationOutput` holds ``alignments``. Needs a model with
            attention.
        cuda_graph: whether every step is one replay of a CUDA graph, for sources on a GPU and
            greedy or beam search without further options; see `seq2seq_ext.generation.graphs`.

    Raises:
        TypeError: if an option is of another type.
        ValueError: if an option is out of range, or two contradict each other.

    Example:
        >>> GenerationOptions(num_beams=4, length_penalty=0.6).num_return_sequences
        1
        >>> GenerationOptions(num_beams=4, num_return_sequences=5)
        Traceback (most recent call last):
        ValueError: num_return_sequences must be at most num_beams=4 without do_sample, got 5
    """

    max_new_tokens: int = 64
    min_new_tokens: int = 0
    num_beams: int = 1
    num_return_sequences: int = 1
    early_stopping: bool | str = False
    length_penalty: float = 1.0
    length_penalty_kind: str = "power"
    coverage_penalty: float = 0.0
    num_beam_groups: int = 1
    diversity_penalty: float = 0.0
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    generator: torch.Generator | None = None
    seed: int | None = None
    no_repeat_ngram_size: int = 0
    repetition_penalty: float = 1.0
    prefix_allowed_tokens_fn: Callable[[int, Tensor], Sequence[int]] | None = None
    output_scores: bool = False
    return_attention: bool = False
    cuda_graph: bool = False

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "num_beams", "num_return_sequences", "num_beam_groups"):
            self._check_int(name, 1)
        for name in ("min_new_tokens", "top_k", "no_repeat_ngram_size"):
            self._check_int(name, 0)
        for name in ("do_sample", "output_scores", "return_attention", "cuda_graph"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be a bool, got {getattr(self, name)!r}")
        self._check_number("length_penalty")
        for name in ("coverage_penalty", "diversity_penalty"):
            self._check_number(name, at_least=0.0)
        for name in ("temperature", "repetition_penalty", "top_p"):
            self._check_number(name, above=0.0)
        if self.top_p > 1.0:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens must be in [0, max_new_tokens={self.max_new_tokens}], "
                f"got {self.min_new_tokens}"
            )
        if not isinstance(self.early_stopping, bool) and self.early_stopping != "never":
            raise ValueError(
                f"early_stopping must be True, False or 'never', got {self.early_stopping!r}"
            )
        if self.length_penalty_kind not in LENGTH_PENALTY_KINDS:
            raise ValueError(
                f"length_penalty_kind must be one of {list(LENGTH_PENALTY_KINDS)}, "
                f"got {self.length_penalty_kind!r}"
            )
        self._check_beams()
        self._check_sampling()
        function = self.prefix_allowed_tokens_fn
        if function is not None and not callable(function):
            raise TypeError(f"prefix_allowed_tokens_fn must be callable, got {function!r}")
        if self.cuda_graph and not self.is_plain:
            raise ValueError(
                "cuda_graph=True needs greedy or beam search without further options, got "
                + ", ".join(f"{name}={getattr(self, name)}" for name in self._beyond_plain())
            )

    @cached_property
    def is_plain(self) -> bool:
        """Whether this is greedy or beam search by the model's own scores, and no more."""
        return not self._beyond_plain()

    def _beyond_plain(self) -> list[str]:
        """The options that make a search another than greedy or beam search by the own scores."""
        plain = {
            "do_sample": False,
            "coverage_penalty": 0.0,
            "num_beam_groups": 1,
            "no_repeat_ngram_size": 0,
            "repetition_penalty": 1.0,
            "prefix_allowed_tokens_fn": None,
        }
        return [name for name, default in plain.items() if getattr(self, name) != default]

    @classmethod
    def of(cls, options: GenerationOptions | None, changes: Mapping[str, Any]) -> GenerationOptions:
        """`options`, or the defaults, with `changes`.

        Raises:
            TypeError: if `options` is of another type or a change has no option's name.
        """
        if options is None:
            options = cls()
        elif not isinstance(options, GenerationOptions):
            raise TypeError(f"options must be GenerationOptions, got {options!r}")
        if not changes:
            return options
        known = [field.name for field in fields(cls)]
        unknown = [name for name in changes if name not in known]
        if unknown:
            raise TypeError(f"unknown options {unknown}, known are {known}")
        return replace(options, **changes)

    def _check_beams(self) -> None:
        if self.num_beams % self.num_beam_groups:
            raise ValueError(
                f"num_beam_groups must divide num_beams={self.num_beams}, "
                f"got {self.num_beam_groups}"
            )
        if self.diversity_penalty and self.num_beam_groups == 1:
            raise ValueError(
                f"diversity_penalty={self.diversity_penalty} needs num_beam_groups above 1, got 1"
            )
        if not self.do_sample and self.num_return_sequences > self.num_beams:
            raise ValueError(
                f"num_return_sequences must be at most num_beams={self.num_beams} without "
                f"do_sample, got {self.num_return_sequences}"
            )

    def _check_sampling(self) -> None:
        if self.do_sample and self.num_beams > 1:
            raise ValueError(f"num_beams must be 1 with do_sample=True, got {self.num_beams}")
        for name, default in (("temperature", 1.0), ("top_k", 0), ("top_p", 1.0)):
            if not self.do_sample and getattr(self, name) != default:
                raise ValueError(f"{name}={getattr(self, name)} needs do_sample=True, got False")
        if self.generator is not None and not isinstance(self.generator, torch.Generator):
            raise TypeError(f"generator must be a torch.Generator, got {self.generator!r}")
        if self.seed is not None:
            self._check_int("seed", 0)
            if self.generator is not None:
                raise ValueError(f"seed must be None beside a generator, got {self.seed}")

    def _check_int(self, name: str, low: int) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an int, got {value!r}")
        if value < low:
            raise ValueError(f"{name} must be at least {low}, got {value}")

    def _check_number(
        self, name: str, *, above: float | None = None, at_least: float | None = None
    ) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{name} must be a number, got {value!r}")
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite, got {value}")
        if above is not None and value <= above:
            raise ValueError(f"{name} must be above {above:g}, got {value}")
        if at_least is not None and value < at_least:
            raise ValueError(f"{name} must be at least {at_least:g}, got {value}")
