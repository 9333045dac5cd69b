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
from seq2seq_ext.generation.state import SearchState, StateT, alignments_of


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
    search = BeamSearch(options, special, prefix, source_lengths, device)
    return search.run(step, state)


class Hypotheses(NamedTuple):
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

    def map(self, function: Callable[[Tensor], Tensor]) -> Hypotheses:
        return Hypotheses(*(None if x is None else function(x) for x in self))  # type: ignore[arg-type]

    def at(self, *index: Tensor | slice) -> Hypotheses:
        """Of all tensors the part ``[index]``."""
        return self.map(lambda x: x[index])

    def take(self, index: Tensor) -> Hypotheses:
        """Of every group the beams `index`, ``(n, G, k')``."""
        n, groups = index.shape[:2]
        source = torch.arange(n, device=index.device)[:, None, None]
        group = torch.arange(groups, device=index.device)[:, None]
        return self.at(source, group, index)

    def best(self, k: int) -> Hypotheses:
        """Of every group the k best, best first; of equals the earlier one."""
        return self.take(self.scores.argsort(dim=-1, descending=True, stable=True)[..., :k])

    def cat(self, others: Hypotheses) -> Hypotheses:
        """The beams of both."""
        pairs = zip(self, others, strict=True)
        joined = (None if x is None or y is None else torch.cat((x, y), 2) for x, y in pairs)
        return Hypotheses(*joined)  # type: ignore[arg-type]

    def put(self, sources: Tensor, others: Hypotheses) -> None:
        """Write the hypotheses of `sources`."""
        for mine, theirs in zip(self, others, strict=True):
            if mine is not None and theirs is not None:
                mine[sources] = theirs

    def only(self, mask: Tensor) -> Hypotheses:
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


class Beams(NamedTuple):
    """Where the search of n sources stands.

    Args:
        running: ``(n, G, k')``.
        finished: ``(n, G, k)``.
        rows: int64 ``(n, G, k')``, the row of the latest step that each running beam continues.
        tokens: int64 ``(n, G, k')``, the latest.
    """

    running: Hypotheses
    finished: Hypotheses
    rows: Tensor
    tokens: Tensor

    @property
    def exist(self) -> Tensor:
        """Which of the running beams there are: bool ``(n, G, k')``, in every group the first."""
        return self.running.scores > float("-inf")

    def take(self, index: Tensor) -> Beams:
        """Of every group the running beams `index`, ``(n, G, k'')``."""
        rows, tokens = (x.gather(2, index) for x in (self.rows, self.tokens))
        return Beams(self.running.take(index), self.finished, rows, tokens)

    def at(self, *index: Tensor | slice) -> Beams:
        """Of the running beams the part ``[index]``, and all that its sources have finished."""
        rows, tokens = self.rows[index], self.tokens[index]
        return Beams(self.running.at(*index), self.finished.at(index[0]), rows, tokens)


class BeamSearch:
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
        self.source_lengths = None if source_lengths is None else source_lengths.to(device or "cpu")
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
        beams = self.begin(torch.zeros(0), None)
        finished = beams.finished
        for t in range(self.max_length):
            if sources.numel() == 0:
                break
            logits, state = step(tokens, state)
            own, alignments = self.read(logits, state)
            if t == 0:
                beams = self.begin(own, alignments)
                finished = beams.finished.map(torch.clone)
            beams = self.advance(beams, own, alignments, sources, t)
            if t + 1 >= self.options.max_new_tokens:
                beams = self.end(beams, sources, t)
            finished.put(sources, beams.finished)

            exist = beams.exist
            kept = exist.flatten(1).any(1).nonzero()[:, 0]
            sources = sources[kept]
            if sources.numel():
                beams = beams.at(kept, slice(None), slice(int(exist.sum(-1).max())))
                tokens = beams.tokens.flatten()
                state = state.select(beams.rows.flatten())
        return self.output(finished)

    def read(self, logits: Tensor, state: SearchState) -> tuple[Tensor, Tensor | None]:
        """Of what a step gave the log-probabilities, and the alignments that the options want."""
        wanted = self.attention_for
        return log_probabilities(logits), alignments_of(state, wanted) if wanted else None

    def advance(
        self,
        beams: Beams,
        own: Tensor,
        alignments: Tensor | None,
        sources: Tensor,
        t: int | Tensor,
    ) -> Beams:
        """The beams behind one more token.

        Args:
            beams: whose running ones are the rows of the step, in their order.
            own: ``(N, V)``, the model's own log-probabilities.
            alignments: ``(N, S)``, or None.
            sources: int64 ``(n,)``, their places in the batch.
            t: tokens written so far. As an int64 ``(1,)`` tensor it may be another in each run of
                the operators that this calls, none of which then waits for the device; the options
                must not read what was written.
        """
        running, best = beams.running, beams.finished
        totals = running.scores[..., None] + self._scores(own, running, t, sources)
        rows = torch.arange(len(own), device=self.device).view_as(running.scores)
        if rows.size(1) < self.options.num_beam_groups:  # behind the first step
            totals, rows = self._to_groups(totals), self._to_groups(rows)
            running = running.map(self._to_groups)
        made = _Step(rows, own, alignments)
        following = self._continue(totals, t, sources)
        is_end = following.tokens == self.special.eos_token_id

        leaves = (is_end & (following.scores > float("-inf")))[..., : self.group_size]
        if isinstance(t, Tensor) or bool(leaves.any()):
            first = _Continuations(*(x[..., : self.group_size] for x in following))
            ended = self._extend(running, made, first, t).only(leaves)
            best = self._finish(best, ended, sources)

        stays = is_end.long().argsort(dim=-1, stable=True)[..., : self.group_size]
        following, is_end = following.take(stays), is_end.gather(2, stays)
        running = self._extend(running, made, following, t).only(~is_end)
        running = running.only(~self._is_done(best, running, sources)[..., None])
        return Beams(running, best, rows.gather(2, following.beams), following.tokens)

    def end(self, beams: Beams, sources: Tensor, t: int) -> Beams:
        """The beams whose last token was the t-th, counted from 0, are finished."""
        goes_on = (self.limits[sources] > t + 1)[:, None, None]
        best = self._finish(beams.finished, beams.running.only(~goes_on), sources)
        return beams._replace(running=beams.running.only(goes_on), finished=best)

    def begin(self, own: Tensor, alignments: Tensor | None) -> Beams:
        """One empty hypothesis a source, for all groups: ``(B, 1, 1)``; none is finished."""
        shape = (self.batch_size, 1, 1)
        weights = own.new_empty(0, 0) if alignments is None else alignments
        positions = weights.size(1)
        attends, covers = self.options.return_attention, bool(self.options.coverage_penalty)
        no_tokens = torch.zeros(shape, dtype=torch.int64, device=self.device)
        padding = no_tokens.new_full((*shape, self.max_length), self.special.pad_token_id)
        running = Hypotheses(
            own.new_zeros(shape),
            own.new_zeros(shape),
            no_tokens,
            padding,
            weights.new_zeros((*shape, self.max_length, positions)) if attends else None,
            own.new_zeros((*shape, positions)) if covers else None,
        )
        of_groups = (self.batch_size, self.options.num_beam_groups, self.group_size)
        finished = running.map(lambda x: x.expand(*of_groups, *x.shape[3:]).clone())
        nothing = torch.zeros(of_groups, dtype=torch.bool, device=self.device)
        return Beams(running, finished.only(nothing), no_tokens, no_tokens)

    def _scores(self, own: Tensor, running: Hypotheses, t: int | Tensor, sources: Tensor) -> Tensor:
        """The processed log-probabilities of every beam's next token: ``(n, G, k, V)``."""
        n, groups, k = running.scores.shape
        written = 0 if isinstance(t, Tensor) else t
        scores = self.processors(
            own.clone() if self.processors.overwrites else own,
            running.sequences[..., :written].flatten(0, 2),
            t,
            sources.repeat_interleave(groups * k),
        )
        return scores.view(n, groups, k, -1)

    def _to_groups(self, x: Tensor) -> Tensor:
        """``(B, 1, ...)`` for all groups, which begin alike."""
        return x.expand(-1, self.options.num_beam_groups, *x.shape[2:])

    def _continue(self, totals: Tensor, t: int | Tensor, sources: Tensor) -> _Continuations:
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
        self, running: Hypotheses, made: _Step, following: _Continuations, t: int | Tensor
    ) -> Hypotheses:
        """The hypotheses that `following` makes of `running`, of t + 1 tokens."""
        taken = running.take(following.beams)  # copies, so that they may be written to
        rows = made.rows.gather(2, following.beams)
        place = t if isinstance(t, Tensor) else torch.full((1,), t, device=self.device)
        taken.sequences.index_copy_(3, place, following.tokens[..., None])
        if made.alignments is not None:
            attention = made.alignments[rows]
            if taken.alignments is not None:
                taken.alignments.index_copy_(3, place, attention[..., None, :])
            if taken.coverage is not None:
                taken.coverage.add_(attention)
        return taken._replace(
            scores=following.scores,
            model_scores=taken.model_scores + made.log_probabilities[rows, following.tokens],
            lengths=(place + 1).expand_as(taken.lengths),
        )

    def _finish(self, best: Hypotheses, ended: Hypotheses, sources: Tensor) -> Hypotheses:
        """The best of finished hypotheses and of others that end now."""
        ended = ended._replace(
            scores=self._final(ended.scores, ended, sources),
            model_scores=self._final(ended.model_scores, ended, sources),
        )
        return best.cat(ended).best(self.group_size)

    def _is_done(self, best: Hypotheses, running: Hypotheses, sources: Tensor) -> Tensor:
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

    def _final(self, scores: Tensor, ended: Hypotheses, sources: Tensor) -> Tensor:
        """Sums ``(n, G, k)`` of log-probabilities -> scores that rank (Wu et al. 2016, eq. 14)."""
        scores = scores / self._divisor(ended.lengths).to(scores.dtype)
        if ended.coverage is None:
            return scores
        # No position is left without any attention in exact arithmetic: the floor is for underflow.
        covered = ended.coverage.clamp(torch.finfo(scores.dtype).tiny, 1.0).log()
        if self.source_lengths is not None:
            position = torch.arange(covered.size(-1), device=covered.device)
            inside = position < self.source_lengths[sources, None]
            covered = covered.masked_fill(~inside[:, None, None], 0.0)
        return scores + self.options.coverage_penalty * covered.sum(-1)

    def _divisor(self, lengths: Tensor) -> Tensor:
        n = lengths.double()
        if self.options.length_penalty_kind == "wu":
            n = (5.0 + n) / 6.0
        return n**self.options.length_penalty

    def output(self, finished: Hypotheses) -> GenerationOutput:
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
