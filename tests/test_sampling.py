"""Sampling, streaming and ensembles."""

import math

import pytest
import torch
from generation_cases import (
    EOS,
    PAD,
    SOURCES,
    SPECIAL,
    Slow,
    TableModel,
    slow_distribution,
    small_model,
    sources,
    table_sources,
)
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

from seq2seq_ext.generation import Ensemble, GenerationOptions, sample
from seq2seq_ext.generation.sampling import Sampler

EVERYTHING = {"return_dict_in_generate": True, "output_scores": True}


def assert_drawn_from(counts, probabilities):
    """Pearson's chi-square, five standard deviations wide; what is impossible never comes."""
    total = sum(counts)
    statistic, cells = 0.0, 0
    for count, p in zip(counts, probabilities, strict=True):
        if p == 0.0:
            assert count == 0
            continue
        assert total * p >= 5, "too few draws for this cell"
        statistic += (count - total * p) ** 2 / (total * p)
        cells += 1
    freedom = cells - 1
    assert statistic < freedom + 5 * math.sqrt(2 * freedom) if freedom else statistic < 1e-9


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.6},
        {"temperature": 1.7, "top_k": 3},
        {"top_p": 0.7},
        {"temperature": 1.3, "top_k": 4, "top_p": 0.8},
    ],
    ids=str,
)
def test_sequences_are_drawn_from_the_distribution(options):
    """All sequences of two tokens, by the product of what their tokens are drawn from."""
    model = TableModel(scale=0.7)
    source, lengths = table_sources(2)
    draws = 8000
    output = model.generate(
        source, do_sample=True, num_return_sequences=draws, max_new_tokens=2, seed=3, **options
    ).view(2, draws, 2)
    for b in range(2):
        slow = Slow(model, b, int(lengths[b]), max_new_tokens=2)

        def distribution(tokens, slow=slow):
            scores = slow.scores(tokens)
            every = [scores.get(token, -math.inf) for token in range(7)]
            return slow_distribution(every, **options)

        expected = {}
        for first, p in enumerate(distribution([])):
            if first == EOS or p == 0.0:
                expected[first, PAD] = p
                continue
            for second, q in enumerate(distribution([first])):
                expected[first, second] = p * q
        drawn = [tuple(tokens) for tokens in output[b].tolist()]
        assert set(drawn) <= set(expected)
        # Rare sequences share a cell, or the statistic would not be chi-square.
        rare = [pair for pair, p in expected.items() if 0.0 < draws * p < 5]
        cells = {pair: p for pair, p in expected.items() if pair not in rare}
        counts = [drawn.count(pair) for pair in cells]
        probabilities = list(cells.values())
        together = sum(expected[pair] for pair in rare)
        if draws * together >= 5:
            counts.append(sum(drawn.count(pair) for pair in rare))
            probabilities.append(together)
        assert_drawn_from(counts, probabilities)


scores = st.lists(st.floats(-6, 6, width=32), min_size=2, max_size=12, unique=True)


@given(
    scores,
    st.sampled_from([0.3, 1.0, 2.5]),
    st.integers(0, 14),
    st.sampled_from([0.05, 0.35, 0.8, 0.999, 1.0]),
)
@example([-1.401298464324817e-45, 0.0], 0.3, 0, 0.05)  # scores that differ, equal probabilities
def test_probabilities_against_a_slow_cut(row, temperature, top_k, top_p):
    options = GenerationOptions(do_sample=True, temperature=temperature, top_k=top_k, top_p=top_p)
    ours = Sampler(options).probabilities(torch.tensor([row], dtype=torch.float64))[0]
    slow = slow_distribution(row, temperature, top_k, top_p)
    expected = torch.tensor(slow, dtype=torch.float64)
    if top_p == 1.0 or abs(ours - expected).max() < 1e-9:
        torch.testing.assert_close(ours, expected)
    else:  # a sum of probabilities within rounding of top_p may fall to either side
        nudged = [slow_distribution(row, temperature, top_k, top_p + e) for e in (-1e-12, 1e-12)]
        assert any(abs(ours - torch.tensor(n).double()).max() < 1e-9 for n in nudged)


@given(scores, st.floats(0.01, 0.99))
def test_the_nucleus_is_the_smallest_set_of_mass_top_p(row, top_p):
    options = GenerationOptions(do_sample=True, top_p=top_p)
    values = torch.tensor([row], dtype=torch.float64)
    kept = Sampler(options).probabilities(values)[0] > 0
    full = values.softmax(-1)[0]
    mass, least = float(full[kept].sum()), float(full[kept].min())
    assert mass >= top_p - 1e-12
    assert mass - least < top_p + 1e-12
    assert not bool((full[~kept] > least).any())


def test_seeds_and_generators():
    model = TableModel()
    source, _ = table_sources()
    draw = {"do_sample": True, "max_new_tokens": 8, "num_return_sequences": 4}
    once = model.generate(source, seed=1, **draw)
    assert torch.equal(once, model.generate(source, seed=1, **draw))
    other = model.generate(source, seed=2, **draw)
    assert other.shape != once.shape or not torch.equal(once, other)
    generator = torch.Generator().manual_seed(1)
    assert torch.equal(once, model.generate(source, generator=generator, **draw))
    torch.manual_seed(5)
    first = model.generate(source, **draw)
    torch.manual_seed(5)
    assert torch.equal(first, model.generate(source, **draw))


def test_sampling_with_top_k_one_is_greedy():
    model = small_model()
    source, lengths = sources()
    options = {"max_new_tokens": 12, "repetition_penalty": 1.4} | EVERYTHING
    greedy = model.generate(source, lengths, **options)
    drawn = model.generate(source, lengths, do_sample=True, top_k=1, **options)
    assert torch.equal(greedy.sequences, drawn.sequences)
    torch.testing.assert_close(greedy.sequences_scores, drawn.sequences_scores)


@pytest.mark.parametrize("prefixes", [None, [[4], [5, 6], [], [6, 6, 6], [1]]])
def test_scores_and_alignments_are_the_models_own(prefixes):
    """Whatever is cut and penalized."""
    model = TableModel(attention=True)
    source, lengths = table_sources()
    forced = None
    if prefixes:
        forced = torch.tensor([prefix + [PAD] * (3 - len(prefix)) for prefix in prefixes])
    output = model.generate(
        source,
        decoder_input_ids=forced,
        do_sample=True,
        temperature=0.8,
        top_k=4,
        top_p=0.9,
        repetition_penalty=1.3,
        no_repeat_ngram_size=2,
        min_new_tokens=2,
        max_new_tokens=6,
        num_return_sequences=3,
        return_attention=True,
        seed=0,
        **EVERYTHING,
    )
    assert output.lengths.unique().numel() > 2
    for row in range(3 * SOURCES):
        b = row // 3
        tokens = output.sequences[row, : output.lengths[row]].tolist()
        prefix = prefixes[b] if prefixes else []
        assert tokens[: len(prefix)] == prefix
        assert EOS not in tokens[: len(prefix) + 2]
        assert len(tokens) <= len(prefix) + 6
        slow = Slow(model, b, int(lengths[b]))
        assert float(output.sequences_scores[row]) == pytest.approx(slow.own_sum(tokens), abs=1e-4)
        expected = torch.tensor(slow.alignments(tokens)).double()
        torch.testing.assert_close(output.alignments[row, : len(tokens)], expected)
        assert (output.alignments[row, len(tokens) :] == 0).all()


def test_sample_is_what_generate_calls():
    model = TableModel()
    source, _ = table_sources()
    options = {"max_new_tokens": 5, "seed": 4, "num_return_sequences": 2}
    ours = sample(model.step, model.start(source), SOURCES, **SPECIAL, **options).sequences
    assert torch.equal(ours, model.generate(source, do_sample=True, **options))


# streaming


@pytest.mark.parametrize(
    "options",
    [{}, {"do_sample": True, "seed": 6, "num_return_sequences": 2}, {"no_repeat_ngram_size": 1}],
    ids=str,
)
def test_a_stream_gives_the_columns_of_generate(options):
    model = TableModel()
    source, _ = table_sources()
    prefix = torch.tensor([[4], [5], [PAD], [6], [1]])
    options = {"decoder_input_ids": prefix, "max_new_tokens": 6} | options
    columns = list(model.stream(source, **options))
    assert torch.equal(torch.stack(columns, 1), model.generate(source, **options))
    assert all(column.dtype == torch.int64 for column in columns)


def test_a_stream_writes_no_further_than_it_is_read():
    model = TableModel()
    stream = model.stream(table_sources()[0], max_new_tokens=50, min_new_tokens=50)
    assert model.sizes == []
    next(stream)
    next(stream)
    assert len(model.sizes) == 2


def test_a_stream_keeps_no_graph_and_leaves_gradients_on():
    model = small_model()
    source, lengths = sources()
    for column in model.stream(source, lengths, max_new_tokens=3):
        assert torch.is_grad_enabled()
        assert not column.requires_grad


# ensembles


class TableModule(TableModel, nn.Module):
    """A table that an ensemble takes."""

    def __init__(self, **options):
        nn.Module.__init__(self)
        TableModel.__init__(self, **options)


@pytest.mark.parametrize(
    "options",
    [{}, {"num_beams": 3, "num_return_sequences": 2}, {"do_sample": True, "seed": 1}],
    ids=str,
)
@pytest.mark.parametrize("copies", [1, 2])
def test_an_ensemble_of_equals_is_the_model(options, copies):
    model = small_model()
    source, lengths = sources()
    options = {"max_new_tokens": 10, "repetition_penalty": 1.2} | options | EVERYTHING
    alone = model.generate(source, lengths, **options)
    ensemble = Ensemble([model] * copies).generate(source, lengths, **options)
    assert torch.equal(alone.sequences, ensemble.sequences)
    torch.testing.assert_close(alone.sequences_scores, ensemble.sequences_scores)


def test_an_ensemble_averages_probabilities_and_alignments():
    models = [TableModule(seed=seed, attention=True) for seed in range(3)]
    for model in models:
        model.steps.zero_()  # or the mean would be no table
    source, lengths = table_sources()
    options = {"num_beams": 3, "max_new_tokens": 6, "return_attention": True} | EVERYTHING
    output = Ensemble(models).generate(source, **options)
    slow = TableModel(attention=True)
    slow.steps.zero_()
    slow.table = torch.stack([model.table.softmax(-1) for model in models]).mean(0).log()
    for b in range(SOURCES):
        expected = Slow(slow, b, int(lengths[b]), num_beams=3, max_new_tokens=6)
        [(score, tokens)] = expected.beams()
        assert output.sequences[b, : output.lengths[b]].tolist() == tokens
        assert float(output.sequences_scores[b]) == pytest.approx(score, abs=1e-4)
        each = [Slow(model, b, int(lengths[b])).alignments(tokens) for model in models]
        mean = torch.tensor(each).double().mean(0)
        torch.testing.assert_close(output.alignments[b, : len(tokens)], mean)


def test_wrong_members_are_named():
    other = TableModule()
    other.config.eos_token_id = 5
    with pytest.raises(ValueError, match=r"models must have one eos_token_id, got \[3, 5\]"):
        Ensemble([TableModule(), other])
    with pytest.raises(ValueError, match="at least one model, got none"):
        Ensemble([])
    with pytest.raises(TypeError, match="models with generate, got Linear"):
        Ensemble([nn.Linear(2, 2)])
    ours, larger = TableModule(), TableModule(vocab_size=8)
    with pytest.raises(ValueError, match=r"one vocabulary, got logits of \[7, 8\] tokens"):
        Ensemble([ours, larger]).generate(table_sources()[0])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"temperature": 0.0, "do_sample": True}, ValueError, "temperature must be above 0"),
        ({"temperature": 0.7}, ValueError, "temperature=0.7 needs do_sample=True, got False"),
        ({"top_k": 5}, ValueError, "top_k=5 needs do_sample=True"),
        ({"top_k": -1, "do_sample": True}, ValueError, "top_k must be at least 0, got -1"),
        ({"top_p": 1.5, "do_sample": True}, ValueError, r"top_p must be in \(0, 1\], got 1.5"),
        ({"do_sample": True, "num_beams": 2}, ValueError, "num_beams must be 1 with do_sample"),
        ({"generator": 3}, TypeError, "generator must be a torch.Generator, got 3"),
        ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
        ({"seed": 1, "generator": torch.Generator()}, ValueError, "None beside a generator, got 1"),
    ],
    ids=str,
)
def test_wrong_options_are_named(arguments, error, message):
    source, _ = table_sources(2)
    with pytest.raises(error, match=message):
        TableModel().generate(source, **arguments)
    with pytest.raises(error, match=message):
        TableModel().stream(source, **arguments)


def test_beams_are_not_streamed():
    with pytest.raises(ValueError, match="num_beams must be 1 to stream tokens, got 2"):
        TableModel().stream(table_sources(2)[0], num_beams=2)
