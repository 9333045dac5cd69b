"""Greedy search: the best next token, again and again, until every row has ended.

`search_tokens` is the loop of every search that keeps one hypothesis a row; how a token is chosen
is its argument, the best here and a draw in `sampling`. Rows that have ended leave the batch, so
that the last long row does not pay for those that ended long ago.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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


class TokenStep(NamedTuple):
    """What one step wrote, for the n rows that had not ended before.

    Args:
        rows: int64 ``(n,)``, their places among all rows.
        tokens: int64 ``(n,)``.
        log_probabilities: ``(n,)``, the model's own, of the tokens; None unless asked for.
        alignments: ``(n, S)``; None unless asked for.
    """

    rows: Tensor
    tokens: Tensor
    log_probabilities: Tensor | None
    alignments: Tensor | None


def greedy_search(
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
    """Take the most probable token at every step.

    Args:
        step: from int64 ``(N,)`` tokens and the state of N rows to logits ``(N, V)``, a fresh
            tensor, and the next state.
        state: the state of all rows before the first token.
        batch_size: B.
        options: what else is wanted; see `GenerationOptions`.
        bos_token_id: every row's first input.
        eos_token_id: ends a row.
        pad_token_id: fills a row past its end; neither it nor `bos_token_id` is ever generated.
        decoder_input_ids: int64 ``(B, P)``, tokens with which the outputs begin, ``<pad>`` behind
            short rows.
        device: where the tokens live.
        **changes: options by name, over those of `options`.

    Raises:
        TypeError, ValueError: if an argument has another type, shape or range.
    """
    options = GenerationOptions.of(options, changes)
    special = SpecialTokens(pad_token_id, bos_token_id, eos_token_id)
    prefix = ForcedPrefix.read(decoder_input_ids, batch_size, special, device)
    steps = search_tokens(step, state, batch_size, options, special, prefix, most_probable, device)
    return collect(steps, batch_size, options, special, prefix, device)


def most_probable(scores: Tensor) -> Tensor:
    """Scores ``(N, V)`` -> int64 ``(N,)``."""
    return scores.argmax(-1)


def search_tokens(
    step: Callable[[Tensor, StateT], tuple[Tensor, StateT]],
    state: StateT,
    num_rows: int,
    options: GenerationOptions,
    special: SpecialTokens,
    prefix: ForcedPrefix,
    choose: Callable[[Tensor], Tensor],
    device: torch.device | str | None,
) -> Iterator[TokenStep]:
    """Write one token after another.

    Args:
        step: as in `greedy_search`.
        state: the state of all rows before the first token.
        num_rows: rows; equally many, side by side, for each source of `prefix`.
        options: what limits the tokens, and what is to be told of them.
        special: the ids that matter.
        prefix: what outputs begin with.
        choose: from scores ``(n, V)`` to int64 ``(n,)`` tokens.
        device: where the tokens live.
    """
    processors = ScoreProcessors(options, special, prefix)
    with_log_probabilities = options.output_scores or processors.penalizes
    rows = torch.arange(num_rows, device=device)
    sentences = rows // max(1, num_rows // max(1, len(prefix.tokens)))
    tokens = torch.full((num_rows,), special.bos_token_id, dtype=torch.int64, device=device)
    history = torch.empty(num_rows, 0, dtype=torch.int64, device=device)
    limits = (prefix.lengths + options.max_new_tokens)[sentences]

    for t in range(prefix.tokens.size(1) + options.max_new_tokens):
        if rows.numel() == 0:
            return
        logits, state = step(tokens, state)
        own = log_probabilities(logits) if with_log_probabilities else None
        scores = logits if own is None else own.clone() if processors.overwrites else own
        tokens = choose(processors(scores, history, t, sentences))
        yield TokenStep(
            rows,
            tokens,
            own.gather(1, tokens[:, None])[:, 0] if own is not None else None,
            alignments_of(state, "return_attention=True") if options.return_attention else None,
        )
        if processors.needs_history:
            history = torch.cat((history, tokens[:, None]), dim=1)
        goes_on = tokens != special.eos_token_id
        if t + 1 >= options.max_new_tokens:
            goes_on &= t + 1 < limits
        active = goes_on.nonzero()[:, 0]
        if active.numel() < rows.numel():
            rows, sentences, limits = rows[active], sentences[active], limits[active]
            tokens, history = tokens[active], history[active]
            if active.numel():
                state = state.select(active)


def collect(
    steps: Iterator[TokenStep],
    num_rows: int,
    options: GenerationOptions,
    special: SpecialTokens,
    prefix: ForcedPrefix,
    device: torch.device | str | None,
) -> GenerationOutput:
    """Put together what `search_tokens` writes."""
    limit = prefix.tokens.size(1) + options.max_new_tokens
    sequences = torch.full(
        (num_rows, limit), special.pad_token_id, dtype=torch.int64, device=device
    )
    lengths = torch.zeros(num_rows, dtype=torch.int64, device=device)
    scores = torch.zeros(num_rows, dtype=torch.float64, device=device)
    alignments: Tensor | None = None
    for t, written in enumerate(steps):
        rows = written.rows
        sequences[rows, t] = written.tokens
        lengths[rows] = t + 1
        if options.output_scores and written.log_probabilities is not None:
            scores[rows] += written.log_probabilities
        if written.alignments is not None:
            if alignments is None:
                shape = (num_rows, limit, written.alignments.size(1))
                alignments = written.alignments.new_zeros(shape)
            alignments[rows, t] = written.alignments
    longest = int(lengths.max()) if num_rows else 0
    return GenerationOutput(
        sequences[:, :longest],
        lengths,
        scores.float() if options.output_scores else None,
        None if alignments is None else alignments[:, :longest],
    )
