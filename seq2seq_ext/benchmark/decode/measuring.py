"""Both implementations decode the same batches in turn; first what they write is compared."""

from __future__ import annotations

import copy
import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from seq2seq_ext.benchmark.decode.models import MAX_NEW_TOKENS, make, sentences
from seq2seq_ext.benchmark.decode.peer import TorchDecoder, Written
from seq2seq_ext.benchmark.timing import rest
from seq2seq_ext.benchmark.workloads import OURS, TORCH, WrongResultError
from seq2seq_ext.models import Seq2Seq
from seq2seq_ext.nn import prepack

DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "int8": torch.int8}
PERCENTS = (50, 90, 95, 99)
_LEAST_SENTENCES = 16
_TOLERANCE = 1e-4  # of scores, nats a token
Batch = tuple[Tensor, Tensor]
Search = Callable[[Tensor, Tensor], Written]


@dataclass(frozen=True)
class DecodeCase:
    """One row of the grid.

    Args:
        model: a name of `MODELS`, or ``g2p_en``.
        hidden_size: of encoder and decoder.
        batch_size: sentences decoded at once.
        num_beams: 1 is greedy.
        dtype: of our recurrent weights, a name of `DTYPES`; the peer's are float32.
        threads: of torch.
    """

    model: str
    hidden_size: int
    batch_size: int
    num_beams: int
    dtype: str
    threads: int


@dataclass(frozen=True)
class DecodeTimes:
    """What one contestant took. Times are seconds of a batch.

    Args:
        average: of all samples.
        percentiles: of all samples, by per cent.
        best: the sum over all batches of each one's best.
        median: the sum over all batches of each one's median.
        sentences: in all batches.
        tokens: written for them, ends counted.
    """

    average: float
    percentiles: dict[int, float]
    best: float
    median: float
    sentences: int
    tokens: int

    @property
    def sentences_per_second(self) -> float:
        """By the median."""
        return self.sentences / self.median

    @property
    def tokens_per_second(self) -> float:
        """By the median."""
        return self.tokens / self.median


@dataclass(frozen=True)
class DecodeRow:
    """A case, its times by contestant, ours and one peer's, and the share of sentences for which
    both wrote the same.

    In float32 all must be the same, but for ties; rounded weights may write otherwise.
    """

    case: DecodeCase
    times: dict[str, DecodeTimes]
    same: float

    @property
    def peer(self) -> str:
        """The name of the other contestant."""
        return next(name for name in self.times if name != OURS)

    @property
    def speedup(self) -> float:
        """The peer's best over ours."""
        return self.times[self.peer].best / self.times[OURS].best

    @property
    def median_speedup(self) -> float:
        """The peer's median over ours."""
        return self.times[self.peer].median / self.times[OURS].median


def measure(case: DecodeCase, *, repeats: int) -> DecodeRow:
    """Compare and time a case; torch's number of threads becomes that of the case.

    Args:
        case: the work.
        repeats: how often each batch is decoded by each.

    Raises:
        WrongResultError: if in float32 the two write different sentences that are not tied.
    """
    torch.set_num_threads(case.threads)
    model = make(case.model, case.hidden_size)
    peer = TorchDecoder(copy.deepcopy(model))
    if DTYPES[case.dtype] is not None:
        prepack(model, DTYPES[case.dtype])
    count = max(_LEAST_SENTENCES, 2 * case.batch_size)
    source, lengths = sentences(count)
    batches = [
        (source[i : i + case.batch_size], lengths[i : i + case.batch_size])
        for i in range(0, count, case.batch_size)
    ]
    searches: dict[str, Search] = {
        OURS: lambda x, n: ours(model, x, n, case.num_beams),
        TORCH: lambda x, n: peer.search(x, n, case.num_beams, MAX_NEW_TOKENS),
    }
    written = {name: [search(*batch) for batch in batches] for name, search in searches.items()}
    same = agreement(written[OURS], written[TORCH], case=case if case.dtype == "float32" else None)
    samples = sampled(searches, batches, repeats)
    times = {name: times_of(samples[name], count, _tokens(written[name])) for name in searches}
    return DecodeRow(case, times, same)


@torch.inference_mode()
def ours(model: Seq2Seq, source: Tensor, lengths: Tensor, num_beams: int) -> Written:
    """What `generate` writes."""
    found = model.generate(
        source,
        lengths,
        num_beams=num_beams,
        max_new_tokens=MAX_NEW_TOKENS,
        output_scores=True,
        return_dict_in_generate=True,
    )
    assert found.sequences_scores is not None
    return Written(found.sequences, found.sequences_scores)


def agreement(
    ours: Sequence[Written], theirs: Sequence[Written], *, case: DecodeCase | None
) -> float:
    """The share of sentences that both wrote alike.

    Args:
        ours: of all batches.
        theirs: of all batches.
        case: if given, all must be alike, or tied.
    """
    same = total = 0
    for mine, other in zip(ours, theirs, strict=True):
        width = max(mine.sequences.size(1), other.sequences.size(1))
        a, b = (
            torch.nn.functional.pad(each.sequences, (0, width - each.sequences.size(1)))
            for each in (mine, other)
        )
        equal = (a == b).all(1)
        near = (mine.scores - other.scores).abs() <= _TOLERANCE * (1 + other.scores.abs())
        if case is not None and not bool(near.all()):
            row = int((~near).nonzero()[0, 0])
            raise WrongResultError(
                f"{case}: sentence {row} scores {float(mine.scores[row]):.6f}, in plain torch "
                f"{float(other.scores[row]):.6f}"
            )
        same += int(equal.sum())
        total += len(equal)
    if case is not None and same < 0.95 * total:
        raise WrongResultError(
            f"{case}: of {total} sentences {total - same} were written otherwise"
        )
    return same / total


def sampled(
    searches: Mapping[str, Callable[..., object]], batches: Sequence[tuple[Any, ...]], repeats: int
) -> dict[str, list[list[float]]]:
    """Seconds by contestant, for each batch `repeats` of them, taken in rotating order.

    Args:
        searches: the contestants.
        batches: the arguments of each call.
        repeats: turns of each contestant.
    """
    names = list(searches)
    samples: dict[str, list[list[float]]] = {name: [[] for _ in batches] for name in names}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for turn in range(repeats):
            for position in range(len(names)):
                name = names[(turn + position) % len(names)]
                rest()
                searches[name](*batches[0])  # wakes what belongs to it
                for i, batch in enumerate(batches):
                    begin = time.perf_counter()
                    searches[name](*batch)
                    samples[name][i].append(time.perf_counter() - begin)
    finally:
        if collecting:
            gc.enable()
    return samples


def times_of(samples: Sequence[Sequence[float]], sentences: int, tokens: int) -> DecodeTimes:
    """The figures of one contestant's samples, in which all batches hold so much."""
    every = sorted(sample for batch in samples for sample in batch)
    return DecodeTimes(
        statistics.fmean(every),
        {percent: percentile(every, percent) for percent in PERCENTS},
        sum(map(min, samples)),
        sum(map(statistics.median, samples)),
        sentences,
        tokens,
    )


def percentile(ordered: Sequence[float], percent: int) -> float:
    """The smallest of ascending values that so many per cent do not exceed.

    >>> percentile([1.0, 2.0, 3.0, 4.0], 50), percentile([1.0, 2.0, 3.0, 4.0], 99)
    (2.0, 4.0)
    """
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]


def _tokens(written: Sequence[Written]) -> int:
    return sum(int((each.sequences != 0).sum()) for each in written)
