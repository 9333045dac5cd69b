"""Models to search with: one that has learned a little, and one that is a table.

Every search over the table stands here once more in plain Python. The slow searches work on one
sentence, on lists and dictionaries, and share no code with the package.
"""

from __future__ import annotations

import copy
import functools
import math
from collections import Counter
from types import SimpleNamespace
from typing import NamedTuple
from unittest import mock

import torch
from torch import Tensor

from seq2seq_ext.generation import GenerationMixin
from seq2seq_ext.models import Seq2Seq, Seq2SeqConfig, decoding, encoding, translation

PAD, UNK, BOS, EOS = range(4)
SPECIAL = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
# Fields of a config for each of the operators' cells.
CELL = {
    "lstm": {"cell": "lstm"},
    "gru": {"cell": "gru"},
    "gru_reset_before": {"cell": "gru", "reset_after": False},
    "rnn_tanh": {"cell": "rnn"},
    "rnn_relu": {"cell": "rnn", "nonlinearity": "relu"},
}
SOURCES, POSITIONS = 5, 4  # sources that a table knows, and positions of the longest


@functools.cache
def small_model(**changes):
    """A model that has learned a little, or it would write the same text for every source."""
    torch.manual_seed(0)
    sizes = {"source_vocab_size": 11, "target_vocab_size": 11, "encoder_hidden_size": 12}
    model = Seq2Seq(Seq2SeqConfig(**(sizes | {"decoder_hidden_size": 10} | changes))).double()
    source, lengths = sources()
    target = torch.nn.functional.pad(source, (0, 1)).scatter(1, lengths[:, None], EOS)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(40):
        optimizer.zero_grad()
        model(source, target).loss.backward()
        optimizer.step()
    return model.eval()


def sources():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 7, (24,), generator=generator)
    source = torch.randint(4, 11, (24, 6), generator=generator)
    return source.masked_fill(torch.arange(6) >= lengths[:, None], PAD), lengths


def changed_scale(model, factor=1.5):
    """The model with larger weights, whose texts end at different steps."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for weight in model.parameters():
            weight *= factor
    return model


def in_python(model, *arguments, **options):
    """What the model generates by modules, step by step."""
    with (
        mock.patch.multiple(decoding, search=lambda *_: None, step=lambda *_: None),
        mock.patch.object(translation, "translate", return_value=None),
        mock.patch.object(encoding, "read", return_value=None),
    ):
        return model.generate(*arguments, return_dict_in_generate=True, **options)


def in_one_call(model, *arguments, **options):
    """The same, sure that no step is called."""
    with mock.patch.object(type(model.decoder), "step", side_effect=AssertionError):
        return model.generate(*arguments, return_dict_in_generate=True, **options)


def assert_same(found, expected, tolerance=1e-12):
    assert torch.equal(found.sequences, expected.sequences)
    assert torch.equal(found.lengths, expected.lengths)
    torch.testing.assert_close(
        found.sequences_scores, expected.sequences_scores, atol=max(tolerance, 1e-6), rtol=1e-6
    )
    assert (found.alignments is None) == (expected.alignments is None)
    if found.alignments is not None:
        torch.testing.assert_close(
            found.alignments, expected.alignments, atol=tolerance, rtol=tolerance
        )


class TableState(NamedTuple):
    source: Tensor
    length: Tensor
    older: Tensor
    latest: Tensor
    alignments: Tensor | None
    t: int
    log: list[int]  # of rows in each select
    memory: object  # never copied

    def select(self, rows):
        self.log.append(len(rows))
        alignments = None if self.alignments is None else self.alignments[rows]
        parts = (x[rows] for x in self[:4])
        return TableState(*parts, alignments, self.t, self.log, self.memory)


class TableModel(GenerationMixin[TableState]):
    """Logits by source and the two latest tokens; with attention, weights likewise.

    Each step adds its own, or sequences of the same triples in another order would tie.
    A source is (1 + its place in the table, then anything up to its length).
    """

    def __init__(self, vocab_size=7, seed=0, scale=1.5, attention=False):
        generator = torch.Generator().manual_seed(seed)
        self.config = SimpleNamespace(**SPECIAL)
        shape = (SOURCES, vocab_size, vocab_size)
        options = {"generator": generator, "dtype": torch.float64}
        self.table = scale * torch.randn(*shape, vocab_size, **options)
        self.steps = 0.3 * torch.randn(32, vocab_size, **options)
        self.weights = torch.randn(*shape, POSITIONS, **options) if attention else None
        self.log = []
        self.memory = object()
        self.sizes = []

    def start(self, source, source_lengths=None):
        if source_lengths is None:
            source_lengths = (source != PAD).sum(1)
        nothing = torch.full((len(source),), PAD)
        first = source[:, 0] - 1
        return TableState(first, source_lengths, nothing, nothing, None, 0, self.log, self.memory)

    def step(self, tokens, state):
        assert state.memory is self.memory
        self.sizes.append(len(tokens))
        place = (state.source, state.latest, tokens)
        alignments = None
        if self.weights is not None:
            outside = torch.arange(POSITIONS) >= state.length[:, None]
            alignments = self.weights[place].masked_fill(outside, -torch.inf).softmax(-1)
        after = (state.latest, tokens, alignments, state.t + 1, self.log, self.memory)
        logits = self.table[place] + self.steps[state.t]
        return logits, TableState(state.source, state.length, *after)


def table_sources(batch=SOURCES):
    lengths = torch.tensor([4, 2, 3, 1, 4])[:batch]
    source = torch.arange(1, batch + 1)[:, None].expand(batch, POSITIONS)
    return source.masked_fill(torch.arange(POSITIONS) >= lengths[:, None], PAD), lengths


class Slow:
    """The searches for one source of a `TableModel`."""

    def __init__(self, model, source, length, prefix=(), **options):
        defaults = {
            "max_new_tokens": 64,
            "min_new_tokens": 0,
            "num_beams": 1,
            "num_return_sequences": 1,
            "early_stopping": False,
            "length_penalty": 1.0,
            "length_penalty_kind": "power",
            "coverage_penalty": 0.0,
            "num_beam_groups": 1,
            "diversity_penalty": 0.0,
            "no_repeat_ngram_size": 0,
            "repetition_penalty": 1.0,
            "prefix_allowed_tokens_fn": None,
        }
        assert set(options) <= set(defaults)
        self.o = SimpleNamespace(**(defaults | options))
        self.table, self.steps = model.table[source].tolist(), model.steps.tolist()
        self.weights = None if model.weights is None else model.weights[source].tolist()
        self.source, self.length, self.prefix = source, length, list(prefix)
        self.limit = len(prefix) + self.o.max_new_tokens

    @staticmethod
    def latest(tokens):
        return ([PAD, BOS, *tokens])[-2:]

    def log_p(self, tokens):
        """The model's own log-probabilities of the next token."""
        older, latest = self.latest(tokens)
        here = self.steps[len(tokens)]
        logits = [x + y for x, y in zip(self.table[older][latest], here, strict=True)]
        total = math.log(sum(math.exp(x) for x in logits))
        return [x - total for x in logits]

    def attention(self, tokens):
        older, latest = self.latest(tokens)
        e = [math.exp(x) for x in self.weights[older][latest][: self.length]]
        return [x / sum(e) for x in e] + [0.0] * (POSITIONS - self.length)

    def scores(self, tokens):
        """What may follow, and its score after all penalties."""
        own = self.log_p(tokens)
        if len(tokens) < len(self.prefix):
            forced = self.prefix[len(tokens)]
            return {forced: own[forced]}
        allowed = {}
        for token, score in enumerate(own):
            if token in (PAD, BOS):
                continue
            if token == EOS and len(tokens) - len(self.prefix) < self.o.min_new_tokens:
                continue
            n = self.o.no_repeat_ngram_size
            if n:
                longer = [*tokens, token]
                ngrams = [tuple(longer[i : i + n]) for i in range(len(longer) - n + 1)]
                if ngrams and ngrams[-1] in ngrams[:-1]:
                    continue
            function = self.o.prefix_allowed_tokens_fn
            if function and token not in function(self.source, torch.tensor(tokens)):
                continue
            allowed[token] = score * self.o.repetition_penalty if token in tokens else score
        return allowed or {EOS: own[EOS]}

    def own_sum(self, tokens):
        return sum(self.log_p(tokens[:i])[token] for i, token in enumerate(tokens))

    def alignments(self, tokens):
        return [self.attention(tokens[:i]) for i in range(len(tokens))]

    def divisor(self, n):
        if self.o.length_penalty_kind == "wu":
            return ((5 + n) / 6) ** self.o.length_penalty
        return n**self.o.length_penalty

    def final(self, total, tokens):
        score = total / self.divisor(len(tokens))
        if self.o.coverage_penalty:
            alignments = self.alignments(tokens)
            for i in range(self.length):
                seen = sum(weights[i] for weights in alignments)
                score += self.o.coverage_penalty * math.log(min(seen, 1.0))
        return score

    def greedy(self):
        tokens = []
        while len(tokens) < self.limit and tokens[-1:] != [EOS]:
            scores = self.scores(tokens)
            tokens.append(max(scores, key=scores.get))
        return tokens

    def beams(self):
        """The best finished sequences as (model's score, tokens), best first."""
        groups = self.o.num_beam_groups
        size = self.o.num_beams // groups
        running = [[(0.0, [])] for _ in range(groups)]
        finished = [[] for _ in range(groups)]
        for t in range(self.limit):
            taken = Counter()
            for g in range(groups):
                candidates = []
                for total, tokens in running[g]:
                    for token, score in self.scores(tokens).items():
                        if t >= len(self.prefix):
                            score -= self.o.diversity_penalty * taken[token]
                        candidates.append((total + score, [*tokens, token]))
                candidates.sort(key=lambda candidate: -candidate[0])
                running[g] = []
                for rank, (total, tokens) in enumerate(candidates[: 2 * size]):
                    if tokens[-1] != EOS:
                        running[g].append((total, tokens))
                    elif rank < size:
                        finished[g].append((self.final(total, tokens), tokens))
                running[g] = running[g][:size]
                taken.update(tokens[-1] for _, tokens in running[g])
                finished[g] = sorted(finished[g], key=lambda end: -end[0])[:size]
                if len(finished[g]) == size and self.is_done(finished[g][-1][0], running[g]):
                    running[g] = []
                if t + 1 == self.limit:
                    finished[g] += [(self.final(s, tokens), tokens) for s, tokens in running[g]]
                    finished[g] = sorted(finished[g], key=lambda end: -end[0])[:size]
        every = sorted((end for group in finished for end in group), key=lambda end: -end[0])
        best = [tokens for _, tokens in every[: self.o.num_return_sequences]]
        return [(self.final(self.own_sum(tokens), tokens), tokens) for tokens in best]

    def is_done(self, worst, running):
        if self.o.early_stopping is True:
            return True
        if self.o.early_stopping is False:
            return all(self.final(total, tokens) <= worst for total, tokens in running)
        return all(
            total / self.divisor(n) <= worst
            for total, tokens in running
            for n in range(len(tokens), self.limit + 1)
        )

    def every_sequence(self):
        """All sequences that the options let through, as (search's sum, tokens)."""
        open_ends, ended = [(0.0, [])], []
        while open_ends:
            total, tokens = open_ends.pop()
            if tokens and (tokens[-1] == EOS or len(tokens) == self.limit):
                ended.append((total, tokens))
                continue
            open_ends += [(total + s, [*tokens, x]) for x, s in self.scores(tokens).items()]
        return ended


def slow_distribution(scores, temperature=1.0, top_k=0, top_p=1.0):
    """What a token is drawn from: probabilities by token."""
    best = sorted(range(len(scores)), key=lambda token: -scores[token])
    best = [token for token in best if scores[token] > -math.inf]
    if top_k:
        best = best[:top_k]
    weight = {token: math.exp(scores[token] / temperature) for token in best}
    total = sum(weight.values())
    kept, mass = {}, 0.0
    for token in best:
        if mass >= top_p:
            break
        kept[token] = weight[token] / total
        mass += kept[token]
    return [kept.get(token, 0.0) / mass for token in range(len(scores))]
