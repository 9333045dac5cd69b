"""Several models that write as one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from seq2seq_ext.generation.mixin import GenerationMixin
from seq2seq_ext.generation.processors import log_probabilities
from seq2seq_ext.generation.state import SearchState


class EnsembleState(NamedTuple):
    """The states of all members.

    Args:
        states: one for each member.
    """

    states: tuple[SearchState, ...]

    @property
    def alignments(self) -> Tensor | None:
        """The mean ``(N, S)`` of the members' alignments; None where one has none."""
        alignments = [getattr(state, "alignments", None) for state in self.states]
        if any(weights is None for weights in alignments):
            return None
        return torch.stack(alignments).mean(0)  # type: ignore[arg-type]

    def select(self, rows: Tensor) -> EnsembleState:
        """The states of the given rows."""
        return EnsembleState(tuple(state.select(rows) for state in self.states))


class Ensemble(GenerationMixin[EnsembleState], nn.Module):
    """Models over one vocabulary whose probabilities are averaged at every step.

    ``log p(y) = log mean_m p_m(y)``, computed in log space.

    Args:
        models: at least one model with ``generate``.

    Raises:
        TypeError: if a member is no model with ``generate``.
        ValueError: if there is none, or two disagree on special tokens or the vocabulary's size.

    Example:
        >>> from seq2seq_ext import Seq2Seq, Seq2SeqConfig
        >>> config = Seq2SeqConfig(source_vocab_size=9, target_vocab_size=9)
        >>> ensemble = Ensemble([Seq2Seq(config), Seq2Seq(config)]).eval()
        >>> ensemble.generate(torch.tensor([[4, 5, 6]]), num_beams=3, max_new_tokens=5).shape[0]
        1
    """

    def __init__(self, models: Sequence[GenerationMixin[Any]]) -> None:
        super().__init__()
        members: list[Any] = list(models)
        if not members:
            raise ValueError("models must hold at least one model, got none")
        for model in members:
            if not isinstance(model, GenerationMixin) or not isinstance(model, nn.Module):
                raise TypeError(
                    f"models must hold models with generate, got {type(model).__name__}"
                )
        self.config = members[0].config
        for name in ("pad_token_id", "bos_token_id", "eos_token_id", "target_vocab_size"):
            values = [getattr(model.config, name, None) for model in members]
            if len(set(values)) > 1:
                raise ValueError(f"models must have one {name}, got {values}")
        self.models = nn.ModuleList(members)

    def start(self, source: Tensor, source_lengths: Tensor | None = None) -> EnsembleState:
        """Read the source with every member."""
        return EnsembleState(
            tuple(model.start(source, source_lengths) for model in self._members())
        )

    def _members(self) -> list[GenerationMixin[SearchState]]:
        return list(self.models)  # type: ignore[arg-type]

    def step(self, tokens: Tensor, state: EnsembleState) -> tuple[Tensor, EnsembleState]:
        """One step: int64 ``(N,)`` -> log-probabilities ``(N, V)`` and the new state."""
        steps = [
            model.step(tokens, own)
            for model, own in zip(self._members(), state.states, strict=True)
        ]
        sizes = [logits.size(1) for logits, _ in steps]
        if len(set(sizes)) > 1:
            raise ValueError(f"models must have one vocabulary, got logits of {sizes} tokens")
        each = torch.stack([log_probabilities(logits) for logits, _ in steps])
        mean = each.logsumexp(0) - math.log(len(steps))
        return mean, EnsembleState(tuple(own for _, own in steps))
