"""What changes the scores of a step before a token is chosen: penalties, bans and forced tokens.

The same for every search. A score is a log-probability, or a logit where nothing reads its value
but the choice of the best. A token that is ruled out has the score -inf; nothing is normalized
again, so that the scores of the others stay the model's own.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from seq2seq_ext.generation.options import GenerationOptions


class GenerationTokens(Protocol):
    """What a search reads of a model's config."""

    @property
    def pad_token_id(self) -> int: ...

    @property
    def bos_token_id(self) -> int: ...

    @property
    def eos_token_id(self) -> int: ...


class SpecialTokens(NamedTuple):
    """The ids that a search knows, in the order in which its operators take them."""

    pad_token_id: int
    bos_token_id: int
    eos_token_id: int

    @classmethod
    def of(cls, config: GenerationTokens) -> SpecialTokens:
        """Those of a model's config."""
        return cls(config.pad_token_id, config.bos_token_id, config.eos_token_id)


class ForcedPrefix(NamedTuple):
    """Tokens with which outputs begin: int64 ``(B, P)``, right-padded, and lengths ``(B,)``."""

    tokens: Tensor
    lengths: Tensor

    @classmethod
    def read(
        cls,
        decoder_input_ids: Tensor | None,
        batch_size: int,
        special: SpecialTokens,
        device: torch.device | str | None,
    ) -> ForcedPrefix:
        """Check `decoder_input_ids`; a leading ``<s>`` of all rows is left out.

        Raises:
            TypeError: if it is not int64.
            ValueError: if its shape is not ``(B, P)``, or it holds ``</s>`` or ids below 0, or
                ``<pad>`` or ``<s>`` in front of another token.
        """
        if decoder_input_ids is None:
            return cls(
                torch.empty(batch_size, 0, dtype=torch.int64, device=device),
                torch.zeros(batch_size, dtype=torch.int64, device=device),
            )
        tokens = decoder_input_ids
        if tokens.dtype != torch.int64:
            raise TypeError(f"decoder_input_ids must be int64, got {tokens.dtype}")
        if tokens.dim() != 2 or tokens.size(0) != batch_size:
            raise ValueError(
                f"decoder_input_ids must have shape ({batch_size}, P), got {tuple(tokens.shape)}"
            )
        tokens = tokens.to(device or "cpu")
        if tokens.numel() and bool((tokens[:, 0] == special.bos_token_id).all()):
            tokens = tokens[:, 1:]
        filled = tokens != special.pad_token_id
        lengths = filled.sum(1)
        if bool((filled != (torch.arange(tokens.size(1), device=device) < lengths[:, None])).any()):
            raise ValueError("decoder_input_ids must hold <pad> only behind a row's last token")
        for name, token in (("</s>", special.eos_token_id), ("<s>", special.bos_token_id)):
            if bool(((tokens == token) & filled).any()):
                raise ValueError(
                    f"decoder_input_ids must hold tokens that an output goes on from, got {name}"
                )
        if tokens.numel() and int(tokens.min()) < 0:
            raise ValueError(f"decoder_input_ids must hold ids, got {int(tokens.min())}")
        return cls(tokens, lengths)


class ScoreProcessors:
    """All changes of the scores that the options ask for.

    Where everything is ruled out, ``</s>`` is let through, so that no search is left without a
    token.

    Args:
        options: reads ``min_new_tokens`` and what limits or penalizes tokens.
        special: ``<pad>`` and ``<s>`` are never written.
        prefix: forced on rows that have not passed it; nothing is ruled out or penalized there.
    """

    def __init__(
        self, options: GenerationOptions, special: SpecialTokens, prefix: ForcedPrefix
    ) -> None:
        self.options = options
        self.special = special
        self.prefix = prefix
        self.first_end = prefix.lengths + options.min_new_tokens

    @property
    def penalizes(self) -> bool:
        """Whether scores change that are not ruled out; they must be log-probabilities then."""
        return self.options.repetition_penalty != 1.0

    @property
    def overwrites(self) -> bool:
        """Whether tokens that may be chosen lose the scores that were given for them."""
        return self.penalizes or self.prefix.tokens.size(1) > 0

    @property
    def needs_history(self) -> bool:
        """Whether the tokens written so far are read."""
        options = self.options
        return (
            options.repetition_penalty != 1.0
            or options.no_repeat_ngram_size > 0
            or options.prefix_allowed_tokens_fn is not None
        )

    def __call__(
        self, scores: Tensor, history: Tensor, t: int | Tensor, sentences: Tensor
    ) -> Tensor:
        """Change the scores of token t, counted from 0.

        Args:
            scores: ``(N, V)``; written over.
            history: int64 ``(N, t)``, each row's tokens so far; of any width if not needed.
            t: tokens written so far; without a history or a prefix it may be an int64 ``(1,)``
                tensor, whose value nothing waits for.
            sentences: int64 ``(N,)``, each row's source in the batch.

        Returns:
            The changed scores ``(N, V)``.
        """
        forced = isinstance(t, int) and t < self.prefix.tokens.size(1)
        own = scores.clone() if forced else scores
        # Only lists of tokens, or a vocabulary of hardly more than special ones, leave nothing.
        may_be_stuck = self.needs_history or scores.size(1) <= len(self.special)
        ends = scores[:, self.special.eos_token_id]
        own_ends = ends.clone() if may_be_stuck else ends
        if self.options.repetition_penalty != 1.0:
            seen = scores.gather(1, history) * self.options.repetition_penalty
            scores.scatter_(1, history, seen)
        for token in (self.special.pad_token_id, self.special.bos_token_id):
            scores[:, token].fill_(float("-inf"))
        if self.options.no_repeat_ngram_size:
            scores.masked_fill_(self._repeated(history, scores.size(1)), float("-inf"))
        last = self.options.min_new_tokens + self.prefix.tokens.size(1)
        if last and (isinstance(t, Tensor) or t < last):
            ends.masked_fill_(t < self.first_end[sentences], float("-inf"))
        if self.options.prefix_allowed_tokens_fn is not None:
            scores.masked_fill_(
                self._not_allowed(history, t, sentences, scores.size(1)), -torch.inf
            )
        if may_be_stuck:
            stuck = scores.amax(1) == float("-inf")
            ends.copy_(torch.where(stuck, own_ends, ends))
        return self._force(scores, own, t, sentences) if forced else scores

    def _repeated(self, history: Tensor, vocab_size: int) -> Tensor:
        """Whether each token would complete an n-gram a second time: bool ``(N, V)``."""
        n = self.options.no_repeat_ngram_size
        counts = torch.zeros(len(history), vocab_size, dtype=torch.int64, device=history.device)
        if history.size(1) >= n:
            ngrams = history.unfold(1, n, 1)  # (N, t - n + 1, n)
            latest = history[:, history.size(1) - n + 1 :]
            same = (ngrams[..., :-1] == latest[:, None]).all(-1)
            counts.scatter_add_(1, ngrams[..., -1], same.long())
        return counts > 0

    def _not_allowed(
        self, history: Tensor, t: int | Tensor, sentences: Tensor, vocab_size: int
    ) -> Tensor:
        """What `prefix_allowed_tokens_fn` leaves out: bool ``(N, V)``."""
        function = self.options.prefix_allowed_tokens_fn
        assert function is not None
        mask = torch.ones(len(history), vocab_size, dtype=torch.bool)
        forced = (t < self.prefix.lengths[sentences]).tolist()
        for row, sentence in enumerate(sentences.tolist()):
            if forced[row]:
                continue
            allowed = torch.as_tensor(function(sentence, history[row]), dtype=torch.int64).cpu()
            if allowed.dim() != 1 or not len(allowed):
                raise ValueError(
                    "prefix_allowed_tokens_fn must return at least one id, "
                    f"got {allowed.tolist()} for batch_id {sentence}"
                )
            if int(allowed.min()) < 0 or int(allowed.max()) >= vocab_size:
                raise ValueError(
                    f"prefix_allowed_tokens_fn must return ids in [0, {vocab_size}), "
                    f"got {allowed.tolist()} for batch_id {sentence}"
                )
            mask[row, allowed] = False
        return mask.to(history.device)

    def _force(self, scores: Tensor, own: Tensor, t: int | Tensor, sentences: Tensor) -> Tensor:
        """Leave nothing but the prefix's token, with its own score, where the prefix is longer."""
        if t == 0 and int(self.prefix.tokens.max()) >= scores.size(1):
            raise ValueError(
                f"decoder_input_ids must hold ids in [0, {scores.size(1)}), "
                f"got {int(self.prefix.tokens.max())}"
            )
        token = self.prefix.tokens[sentences, t][:, None]
        only = torch.full_like(own, float("-inf")).scatter_(1, token, own.gather(1, token))
        return torch.where((t < self.prefix.lengths[sentences])[:, None], only, scores)


def log_probabilities(logits: Tensor) -> Tensor:
    """``log softmax`` of logits ``(N, V)``, in float32 at least."""
    return logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
