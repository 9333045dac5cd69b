"""Minimum-risk training: the expected cost of what a model writes, over outputs that it draws.

Shen et al. 2016 (arXiv 1512.02433, sections 3 and 4). For a source x with the reference y, S(x)
is a set of outputs drawn from the model, and y. The model's probabilities, sharpened and
renormalised on S(x), weigh the costs:

    Q(s | x) = P(s | x) ** sharpness / sum over s' in S(x) of P(s' | x) ** sharpness
    risk(x)  = sum over s in S(x) of Q(s | x) * cost(s, y)

Drawing has no gradient; the risk has one through Q.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from seq2seq_ext.data import Batch
from seq2seq_ext.metrics import edit_distances
from seq2seq_ext.models import Seq2Seq


def edit_distance_costs(
    outputs: Sequence[Sequence[int]], references: Sequence[Sequence[int]]
) -> Tensor:
    """Of each output the edit distance over the reference's length: float64 ``(N,)``.

    Example:
        >>> edit_distance_costs([[5, 6, 6], [5]], [[5, 6, 7, 8], [5]]).tolist()
        [0.5, 0.0]
    """
    lengths = torch.tensor([max(1, len(reference)) for reference in references])
    return edit_distances(outputs, references).double() / lengths


def sentence_bleu_costs(
    outputs: Sequence[Sequence[int]], references: Sequence[Sequence[int]]
) -> Tensor:
    """Of each output `sentence_bleu_cost`: float64 ``(N,)``."""
    pairs = zip(outputs, references, strict=True)
    return torch.tensor([sentence_bleu_cost(*pair) for pair in pairs], dtype=torch.float64)


def sentence_bleu_cost(output: Sequence[int], reference: Sequence[int]) -> float:
    """One minus sentence BLEU of up to 4-grams (Papineni et al. 2002), in [0, 1].

    One is added to the counts of n-grams above unigrams (Lin & Och 2004, BLEU+1).

    Example:
        >>> sentence_bleu_cost([5, 6, 7], [5, 6, 7])
        0.0
        >>> sentence_bleu_cost([8], [5, 6, 7])
        1.0
    """
    logarithms = 0.0
    for n in range(1, 5):
        found = Counter(tuple(output[i : i + n]) for i in range(len(output) - n + 1))
        wanted = Counter(tuple(reference[i : i + n]) for i in range(len(reference) - n + 1))
        added = int(n > 1)
        matches, total = (found & wanted).total() + added, found.total() + added
        if matches == 0 or total == 0:
            return float(list(output) != list(reference))
        logarithms += math.log(matches / total) / 4
    brevity = min(0.0, 1.0 - len(reference) / max(1, len(output)))
    return 1.0 - math.exp(brevity + logarithms)


COSTS: dict[str, Callable[[Sequence[Sequence[int]], Sequence[Sequence[int]]], Tensor]] = {
    "edit_distance": edit_distance_costs,
    "sentence_bleu": sentence_bleu_costs,
}


def expected_risk(
    model: Seq2Seq,
    batch: Batch,
    *,
    cost: str = "edit_distance",
    samples: int = 10,
    sharpness: float = 0.005,
) -> Tensor:
    """Mean over a batch of the expected cost, a scalar with a gradient.

    Args:
        model: draws, with torch's global generator, and scores; in the mode that it is in.
        batch: sources and references of B pairs.
        cost: one of `COSTS`, over token ids, ``</s>`` left out.
        samples: outputs drawn for each source; what is drawn twice counts once.
        sharpness: the exponent, alpha in the paper.

    Raises:
        ValueError: if `cost` is no known name.
    """
    if cost not in COSTS:
        raise ValueError(f"cost must be one of {', '.join(COSTS)}, got {cost!r}")
    pad, eos = model.config.pad_token_id, model.config.eos_token_id
    references = _rows(batch.target, batch.target_lengths)
    room = 2 * batch.target.size(1)
    training = model.training
    model.eval()
    with torch.no_grad():
        drawn = model.generate(
            batch.source,
            batch.source_lengths,
            do_sample=True,
            num_return_sequences=samples,
            max_new_tokens=room,
        )
    model.train(training)
    rows: list[int] = []
    outputs: list[list[int]] = []
    drawn_rows = _cut(drawn.tolist(), eos, pad)
    for i, reference in enumerate(references):
        subset = {tuple(reference): None}
        subset |= {tuple(ids): None for ids in drawn_rows[i * samples : (i + 1) * samples]}
        for ids in subset:
            rows.append(i)
            outputs.append(list(ids))
    costs = COSTS[cost](
        [_without(ids, eos) for ids in outputs], [_without(references[i], eos) for i in rows]
    )
    device = batch.source.device
    index = torch.tensor(rows, device=device)
    lengths = torch.tensor([len(ids) for ids in outputs], device=device)
    target = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(ids, device=device) for ids in outputs], batch_first=True, padding_value=pad
    )
    logits = model(batch.source[index], target, batch.source_lengths[index], lengths).logits
    tokens = functional.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none")
    inside = torch.arange(target.size(1), device=device) < lengths[:, None]
    scores = -sharpness * tokens.view(target.shape).where(inside, 0.0).sum(1)
    # A softmax within each source's outputs; the largest score goes first, against overflow.
    top = scores.new_full((len(references),), -math.inf)
    top = top.scatter_reduce(0, index, scores.detach(), "amax")
    weights = (scores - top[index]).exp()
    sums = weights.new_zeros(len(references)).index_add(0, index, weights)
    risks = weights / sums[index] * costs.to(device, weights.dtype)
    return risks.sum() / len(references)


def _rows(tokens: Tensor, lengths: Tensor) -> list[list[int]]:
    return [row[:n] for row, n in zip(tokens.tolist(), lengths.tolist(), strict=True)]


def _cut(rows: list[list[int]], eos: int, pad: int) -> list[list[int]]:
    """Each row up to its first ``</s>``, or without the padding where it was cut off before."""
    return [
        row[: row.index(eos) + 1] if eos in row else [token for token in row if token != pad]
        for row in rows
    ]


def _without(ids: Sequence[int], eos: int) -> Sequence[int]:
    return ids[:-1] if ids and ids[-1] == eos else ids
