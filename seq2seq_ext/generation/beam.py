"""Beam search, plain and in diverse groups: the best few beginnings go on side by side.

Hypotheses lie in tensors (n, G, k, ...): n sources that are not done, G groups of up to k beams
each, best first. A step scores all n * G * k beams in one batch, and one `select` then moves the
state to the beams that go on; those of sources that are done are left out of it. The first step
runs on one row a source, since all beams begin alike.

A step takes the 2k best continuations of a group. Those with `</s>` among the first k leave for the
group's k best finished hypotheses; the first k of the others go on, which are enough, as every beam
has one `</s>` only. A score of -inf marks a beam that does not exist.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from seq2seq_ext.generation.options import GenerationOptions
from seq2seq_ext.generation.output import GenerationOutput
from seq2seq_ext.generation.processors import (
    ForcedPrefix,
    ScoreProcessors,
    SpecialTokens,
    log_probabilities,
)
from seq2seq_ext.generation.state import StateT, alignments_of


def beam_search(
    step: Callable[[Tensor, StateT], tuple[Tensor, StateT]],
    state: StateT,
    batch_size: int,
    options: GenerationOptions | None = None,
    *,
    bos_token_id: int,
    eos_token_id: int,
    pad_token_id: int,
    decoder_input_ids: Tensor | None = None,
    source_lengths: Tensor | None = None,
    device: torch.device | str | None = None,
    **changes: Any,
) -> GenerationOutput:
    """Keep the best beams at every step, and return the best of what they finish.

    The arguments are those of `greedy_search`, and one more. What is ranked is the sum of the
    scores that the search went by, penalties counted; the output's ``sequences_scores`` are the
    model's own, and only `repetition_penalty` and `diversity_penalty` make the two differ.

    Args:
        source_lengths: int64 ``(B,)``, the positions of each source that `coverage_penalty` counts;
            None counts all that the alignments have.

    Raises:
        TypeError, ValueError: if an argument has another type, shape or range, or an option needs
            attention that the model does not have.
    """
    options = GenerationOptions.of(options, changes)
    special = SpecialTokens(pad_token_id, bos_token_id, eos_token_id)
    prefix = ForcedPrefix.read(decoder_input_ids, batch_size, special, device)
    search = _BeamSearch(options, special, prefix, source_lengths, device)
    return search.run(step, state)


class _Hypotheses(NamedTuple):
    """Running beams, or finished ones, whose scores are then final.

    Args:
        scores: ``(n, G, k)``, what ranks: the sum of the processed log-probabilities.
        model_scores: ``(n, G, k)``, the same of the model's own log-probabilities.
        lengths: int64 ``(n, G, k)``.
        sequences: int64 ``(n, G, k, U)``, ``<pad>`` past the length.
        alignments: ``(n, G, k, U, S)``, or None.
        coverage: ``(n, G, k, S)``, the alignments' sum over the tokens; None if nothing reads it.
    """

    scores: Tensor
    model_scores: Tensor
    lengths: Tensor
    sequences: Tensor
    alignments: Tensor | None
    coverage: Tensor | None

    def map(self, function: Callable[[Tensor], Tensor]) -> _Hypotheses:
        return _Hypotheses(*(None if x is None else function(x) for x in self))  # type: ignore[arg-type]

    def at(self, *index: Tensor | slice) -> _Hypotheses:
        """Of all tensors the part ``[index]``."""
        return self.map(lambda x: x[index])

    def take(self, index: Tensor) -> _Hypotheses:
        """Of every group the beams `index`, ``(n, G, k')``."""
        n, groups = index.shape[:2]
        source = torch.arange(n, device=index.device)[:, None, None]
        group = torch.arange(groups, device=index.device)[:, None]
        return self.at(source, group, index)

    def best(self, k: int) -> _Hypotheses:
        """Of every group the k best, best first; of equals the earlier one."""
        return self.take(self.scores.argsort(dim=-1, descending=True, stable=True)[..., :k])

    def cat(self, others: _Hypotheses) -> _Hypotheses:
        """The beams of both."""
        pairs = zip(self, others, strict=True)
        joined = (None if x is None or y is None else torch.cat((x, y), 2) for x, y in pairs)
        return _Hypotheses(*joined)  # type: ignore[arg-type]

    def put(self, sources: Tensor, others: _Hypotheses) -> None:
        """Write the hypotheses of `sources`."""
        for mine, theirs in zip(self, others, strict=True):
            if mine is not None and theirs is not None:
                mine[sources] = theirs

    def only(self, mask: Tensor) -> _Hypotheses:
        """Those where `mask`, broadcast to ``(n, G, k)``, holds; the others exist no more."""
        return self._replace(scores=self.scores.masked_fill(~mask, float("-inf")))


class _Continuations(NamedTuple):
    """Tokens to follow beams, best first: all ``(n, G, c)``."""

    scores: Tensor
    beams: Tensor
    tokens: Tensor

    def take(self, index: Tensor) -> _Continuations:
        """Of every group those at `index`, ``(n, G, c')``."""
        return _Continuations(*(x.gather(2, index) for x in self))


class _Step(NamedTuple):
    """What the model gave for N rows, and which row each beam is.

    Args:
        rows: int64 ``(n, G, k)``.
        log_probabilities: ``(N, V)``, the model's own.
        alignments: ``(N, S)``, or None.
    """

    rows: Tensor
    log_probabilities: Tensor
    alignments: Tensor | None


class _BeamSearch:
    """The search of one batch: what does not change from step to step, and the steps."""

    def __init__(
        self,
        options: GenerationOptions,
        special: SpecialTokens,
        prefix: ForcedPrefix,
        source_lengths: Tensor | None,
        device: torch.device | str | None,
    ) -> None:
        self.options = options
        self.special = special
        self.processors = ScoreProcessors(options, special, prefix)
        self.source_lengths = source_lengths
        self.device = device
        self.batch_size = len(prefix.tokens)
        self.group_size = options.num_beams // options.num_beam_groups
        self.prefix_lengths = prefix.lengths
        self.limits = prefix.lengths + options.max_new_tokens
        self.max_length = prefix.tokens.size(1) + options.max_new_tokens
        # The argument that a model without attention cannot serve.
        self.attention_for: str | None = None
        if options.coverage_penalty:
            self.attention_for = f"coverage_penalty={options.coverage_penalty}"
        elif options.return_attention:
            self.attention_for = "return_attention=True"

    def run(
        self, step: Callable[[Tensor, StateT], tuple[Tensor, StateT]], state: StateT
    ) -> GenerationOutput:
        sources = torch.arange(self.batch_size, device=self.device)
        tokens = torch.full_like(sources, self.special.bos_token_id)
        running = finished = self._beginnings(torch.zeros(0), None)
        for t in range(self.max_length):
            if sources.numel() == 0:
                break
            logits, state = step(tokens, state)
            own = log_probabilities(logits)
            alignments = alignments_of(state, self.attention_for) if self.attention_for else None
            if t == 0:
                running = self._beginnings(own, alignments)
            totals = running.scores[..., None] + self._scores(own, running, t, sources)
            rows = torch.arange(len(own), device=self.device).view_as(running.scores)
            if t == 0:
                totals, rows, running = (
                    self._to_groups(totals),
                    self._to_groups(rows),
                    running.map(self._to_groups),
                )
                finished = self._nothing(running)
            made = _Step(rows, own, alignments)
            following = self._continue(totals, t, sources)
            is_end = following.tokens == self.special.eos_token_id

            best = finished.at(sources)
            leaves = (is_end & (following.scores > float("-inf")))[..., : self.group_size]
            if bool(leaves.any()):
                first = _Continuations(*(x[..., : self.group_size] for x in following))
                ended = self._extend(running, made, first, t).only(leaves)
                best = self._finish(best, ended, sources)

            stays = is_end.long().argsort(dim=-1, stable=True)[..., : self.group_size]
            following, is_end = following.take(stays), is_end.gather(2, stays)
            running = self._extend(running, made, following, t).only(~is_end)
            running = running.only(~self._is_done(best, running, sources)[..., None])
            goes_on = (self.limits[sources] > t + 1)[:, None, None]
            if not bool(goes_on.all()):
                best = self._finish(best, running.only(~goes_on), sources)
                running = running.only(goes_on)
            finished.put(sources, best)

            exists = running.scores > float("-inf")  # in every group the first ones
            width = int(exists.sum(-1).max())
            kept = exists.flatten(1).any(1).nonzero()[:, 0]
            sources = sources[kept]
            running = running.at(kept, slice(None), slice(width))
            tokens = running.sequences[..., t].flatten()
            if sources.numel():
                rows = rows.gather(2, following.beams)[kept, :, :width]
                state = state.select(rows.flatten())
        return self._output(finished)

    def _beginnings(self, own: Tensor, alignments: Tensor | None) -> _Hypotheses:
        """One empty hypothesis a source, for all groups: ``(B, 1, 1)``."""
        shape = (self.batch_size, 1, 1)
        weights = own.new_empty(0, 0) if alignments is None else alignments
        positions = weights.size(1)
        attends, covers = self.options.return_attention, bool(self.options.coverage_penalty)
        no_tokens = torch.zeros(shape, dtype=torch.int64, device=self.device)
        padding = no_tokens.new_full((*shape, self.max_length), self.special.pad_token_id)
        return _Hypotheses(
            own.new_zeros(shape),
            own.new_zeros(shape),
            no_tokens,
            padding,
            weights.new_zeros((*shape, self.max_length, positions)) if attends else None,
            own.new_zeros((*shape, positions)) if covers else None,
        )

    def _nothing(self, running: _Hypotheses) -> _Hypotheses:
        """Places for the finished hypotheses of every group, none of which exists."""
        n, groups, _ = running.scores.shape
        first = torch.zeros(n, groups, self.group_size, dtype=torch.int64, device=self.device)
        return running.take(first).only(torch.zeros_like(first, dtype=torch.bool))

    def _scores(self, own: Tensor, running: _Hypotheses, t: int, sources: Tensor) -> Tensor:
        """The processed log-probabilities of every beam's next token: ``(n, G, k, V)``."""
        n, groups, k = running.scores.shape
        scores = self.processors(
            own.clone() if self.processors.overwrites else own,
            running.sequences[..., :t].flatten(0, 2),
            t,
            sources.repeat_interleave(groups * k),
        )
        return scores.view(n, groups, k, -1)

    def _to_groups(self, x: Tensor) -> Tensor:
        """``(B, 1, ...)`` for all groups, which begin alike."""
        return x.expand(-1, self.options.num_beam_groups, *x.shape[2:])

    def _continue(self, totals: Tensor, t: int, sources: Tensor) -> _Continuations:
        """The 2k best continuations by scores ``(n, G, beams, V)``, those of later groups made to
        differ by the tokens of earlier ones (Vijayakumar et al. 2016, algorithm 1)."""
        if not self.options.diversity_penalty:
            return self._top(totals)
        free = (self.prefix_lengths[sources] <= t)[:, None, None, None]
        penalty = self.options.diversity_penalty * free.to(totals.dtype)
        taken = torch.zeros_like(totals[:, :1, :1])  # (n, 1, 1, V): how many beams take each token
        groups = []
        for g in range(totals.size(1)):
            group = self._top(totals[:, g : g + 1] - penalty * taken)
            groups.append(group)
            goes_on = group.tokens != self.special.eos_token_id
            goes_on &= goes_on.cumsum(-1) <= self.group_size
            goes_on &= group.scores > float("-inf")
            taken[:, 0].scatter_add_(2, group.tokens, goes_on.to(taken.dtype))
        return _Continuations(*(torch.cat(x, dim=1) for x in zip(*groups, strict=True)))

    def _top(self, totals: Tensor) -> _Continuations:
        flat = totals.flatten(2)
        scores, index = flat.topk(min(2 * self.group_size, flat.size(2)))
        vocab_size = totals.size(3)
        return _Continuations(scores, index // vocab_size, index % vocab_size)

    def _extend(
        self, running: _Hypotheses, made: _Step, following: _Continuations, t: int
    ) -> _Hypotheses:
        """The hypotheses that `following` makes of `running`, of t + 1 tokens."""
        taken = running.take(following.beams)  # copies, so that they may be written to
        rows = made.rows.gather(2, following.beams)
        taken.sequences[..., t] = following.tokens
        if made.alignments is not None:
            attention = made.alignments[rows]
            if taken.alignments is not None:
                taken.alignments[..., t, :] = attention
            if taken.coverage is not None:
                taken.coverage.add_(attention)
        return taken._replace(
            scores=following.scores,
            model_scores=taken.model_scores + made.log_probabilities[rows, following.tokens],
            lengths=torch.full_like(taken.lengths, t + 1),
        )

    def _finish(self, best: _Hypotheses, ended: _Hypotheses, sources: Tensor) -> _Hypotheses:
        """The best of finished hypotheses and of others that end now."""
        ended = ended._replace(
            scores=self._final(ended.scores, ended, sources),
            model_scores=self._final(ended.model_scores, ended, sources),
        )
        return best.cat(ended).best(self.group_size)

    def _is_done(self, best: _Hypotheses, running: _Hypotheses, sources: Tensor) -> Tensor:
        """Which groups need not go on, by `early_stopping`: bool ``(n, G)``."""
        worst = best.scores[..., -1]
        full = worst > float("-inf")
        if self.options.early_stopping is True:
            return full
        if self.options.early_stopping is False:
            attainable = self._final(running.scores, running, sources)
        else:
            # Sums only fall, the divisor is monotone and the coverage term is at most 0.
            longest = self.limits[sources][:, None, None]
            now, then = self._divisor(running.lengths), self._divisor(longest)
            attainable = torch.maximum(running.scores / now, running.scores / then)
        return full & (worst >= attainable.amax(-1))

    def _final(self, scores: Tensor, ended: _Hypotheses, sources: Tensor) -> Tensor:
        """Sums ``(n, G, k)`` of log-probabilities -> scores that rank (Wu et al. 2016, eq. 14)."""
        scores = scores / self._divisor(ended.lengths).to(scores.dtype)
        if ended.coverage is None:
            return scores
        # No position is left without any attention in exact arithmetic: the floor is for underflow.
        covered = ended.coverage.clamp(torch.finfo(scores.dtype).tiny, 1.0).log()
        if self.source_lengths is not None:
            position = torch.arange(covered.size(-1), device=covered.device)
            inside = position < self.source_lengths.to(self.device or "cpu")[sources, None]
            covered = covered.masked_fill(~inside[:, None, None], 0.0)
        return scores + self.options.coverage_penalty * covered.sum(-1)

    def _divisor(self, lengths: Tensor) -> Tensor:
        n = lengths.double()
        if self.options.length_penalty_kind == "wu":
            n = (5.0 + n) / 6.0
        return n**self.options.length_penalty

    def _output(self, finished: _Hypotheses) -> GenerationOutput:
        """The best of all groups, one row each."""
        merged = finished.map(lambda x: x.flatten(1, 2)[:, None])
        best = merged.best(self.options.num_return_sequences)
        exists = (best.scores > float("-inf")).flatten()
        lengths = best.lengths.flatten() * exists
        longest = int(lengths.max()) if lengths.numel() else 0
        sequences = best.sequences.flatten(0, 2)[:, :longest]
        alignments = best.alignments
        if alignments is not None:
            alignments = alignments.flatten(0, 2)[:, :longest] * exists[:, None, None]
        scores = best.model_scores.flatten().masked_fill(~exists, float("-inf"))
        return GenerationOutput(
            sequences.masked_fill(~exists[:, None], self.special.pad_token_id),
            lengths,
            scores.float() if self.options.output_scores else None,
            alignments,
        )
