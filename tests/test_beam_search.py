"""Beam search and what changes scores: against the slow searches, and against exhaustive search."""

import math

import pytest
import torch
from generation_cases import (
    BOS,
    EOS,
    PAD,
    POSITIONS,
    SOURCES,
    SPECIAL,
    Slow,
    TableModel,
    small_model,
    sources,
    table_sources,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from seq2seq_ext.generation import beam_search, greedy_search

EVERYTHING = {"return_dict_in_generate": True, "output_scores": True}


def no_four_after_five(batch_id, tokens):
    assert 0 <= batch_id < SOURCES
    return [1, EOS, 6] if 5 in tokens[-1:].tolist() else [4, 5, EOS]


def compare(model, batch, prefixes=None, **options):
    """Every sequence, score and alignment of `generate` against the slow search."""
    source, lengths = table_sources(batch)
    prefixes = prefixes or [[]] * batch
    forced = None
    if any(prefixes):
        width = max(len(prefix) for prefix in prefixes)
        forced = torch.tensor([prefix + [PAD] * (width - len(prefix)) for prefix in prefixes])
    attention = model.weights is not None
    output = model.generate(
        source, decoder_input_ids=forced, return_attention=attention, **EVERYTHING, **options
    )
    each = options.get("num_return_sequences", 1)
    assert len(output.sequences) == batch * each
    for b in range(batch):
        slow = Slow(model, b, int(lengths[b]), prefixes[b], **options)
        if options.get("num_beams", 1) > 1:
            expected = slow.beams()
        else:
            tokens = slow.greedy()
            expected = [(slow.own_sum(tokens), tokens)]
        expected += [(-math.inf, [])] * (each - len(expected))
        for i, (score, tokens) in enumerate(expected):
            row = b * each + i
            n = int(output.lengths[row])
            assert output.sequences[row, :n].tolist() == tokens
            assert (output.sequences[row, n:] == PAD).all()
            assert float(output.sequences_scores[row]) == pytest.approx(score, abs=1e-4)
            if attention:
                expected_weights = torch.zeros(output.sequences.size(1), POSITIONS).double()
                if tokens:
                    expected_weights[:n] = torch.tensor(slow.alignments(tokens)).double()
                torch.testing.assert_close(output.alignments[row], expected_weights)
    return output


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"early_stopping": True},
        {"early_stopping": "never"},
        {"length_penalty": 0.0},
        {"length_penalty": 2.5, "early_stopping": "never"},
        {"length_penalty": -1.0, "early_stopping": "never"},
        {"length_penalty": 0.7, "length_penalty_kind": "wu"},
        {"coverage_penalty": 0.4},
        {"coverage_penalty": 0.4, "early_stopping": "never", "length_penalty_kind": "wu"},
        {"num_beam_groups": 2, "diversity_penalty": 0.5},
        {"num_beam_groups": 4, "diversity_penalty": 2.0},
        {"min_new_tokens": 3},
        {"no_repeat_ngram_size": 1},
        {"no_repeat_ngram_size": 2},
        {"repetition_penalty": 1.8},
        {"prefix_allowed_tokens_fn": no_four_after_five},
    ],
    ids=str,
)
def test_every_option_against_a_slow_search(options):
    model = TableModel(attention=True)
    options = {"num_beams": 4, "num_return_sequences": 3, "max_new_tokens": 6} | options
    compare(model, SOURCES, **options)
    compare(model, SOURCES, [[], [4], [5, 6], [1], [6, 6, 6]], **options)


@pytest.mark.parametrize("kind", ["power", "wu"])
def test_never_goes_on_where_a_guess_would_stop_too_early(kind):
    model = TableModel(seed=3)
    options = {"num_beams": 2, "max_new_tokens": 12, "length_penalty": 3.0}
    options |= {"length_penalty_kind": kind}
    soon = compare(model, SOURCES, early_stopping=False, **options)
    rows = sum(model.sizes)
    late = compare(model, SOURCES, early_stopping="never", **options)
    better = late.sequences_scores > soon.sequences_scores
    assert better.any()
    assert (late.sequences_scores >= soon.sequences_scores).all()
    assert sum(model.sizes) - rows > rows


@st.composite
def combinations(draw):
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    beams = groups * draw(st.integers(1, 3))
    longest = draw(st.integers(1, 5))
    options = {
        "max_new_tokens": longest,
        "min_new_tokens": draw(st.integers(0, longest)),
        "num_beams": beams,
        "num_return_sequences": draw(st.integers(1, beams)),
        "early_stopping": draw(st.sampled_from([False, True, "never"])),
        "length_penalty": draw(st.sampled_from([-0.5, 0.0, 0.6, 1.0, 2.0])),
        "length_penalty_kind": draw(st.sampled_from(["power", "wu"])),
        "coverage_penalty": draw(st.sampled_from([0.0, 0.3])),
        "num_beam_groups": groups,
        "diversity_penalty": draw(st.sampled_from([0.0, 0.7])) if groups > 1 else 0.0,
        "no_repeat_ngram_size": draw(st.integers(0, 3)),
        "repetition_penalty": draw(st.sampled_from([1.0, 1.5, 0.8])),
        "prefix_allowed_tokens_fn": draw(st.sampled_from([None, no_four_after_five])),
    }
    prefix = st.lists(st.sampled_from([1, 4, 5, 6]), max_size=3)
    return options, draw(st.lists(prefix, min_size=2, max_size=SOURCES))


@settings(max_examples=60)
@given(combinations(), st.integers(0, 5))
def test_options_together_against_a_slow_search(combination, seed):
    options, prefixes = combination
    compare(TableModel(seed=seed, attention=True), len(prefixes), prefixes, **options)


@pytest.mark.parametrize("kind", ["power", "wu"])
@pytest.mark.parametrize("length_penalty", [-0.5, 0.0, 1.0, 3.0])
def test_a_beam_wide_enough_finds_the_best_of_all_sequences(kind, length_penalty):
    model = TableModel(vocab_size=6)
    options = {"max_new_tokens": 4, "length_penalty": length_penalty, "length_penalty_kind": kind}
    source, lengths = table_sources(2)
    output = model.generate(
        source,
        num_beams=81,
        num_return_sequences=5,
        early_stopping="never",
        **EVERYTHING,
        **options,
    )
    for b in range(2):
        slow = Slow(model, b, int(lengths[b]), **options)
        every = [(slow.final(total, tokens), tokens) for total, tokens in slow.every_sequence()]
        assert len(every) == 121  # 1 + 3 + 9 + 27 with </s>, 81 cut
        every.sort(reverse=True)
        for row, (score, tokens) in zip(range(5 * b, 5 * b + 5), every, strict=False):
            assert output.sequences[row, : output.lengths[row]].tolist() == tokens
            assert float(output.sequences_scores[row]) == pytest.approx(score, abs=1e-4)


@pytest.mark.parametrize("settings", [{"length_penalty": 0.0}, {"early_stopping": True}])
@pytest.mark.parametrize("options", [{}, {"repetition_penalty": 2.0, "no_repeat_ngram_size": 2}])
def test_one_beam_is_greedy(settings, options):
    options = {"max_new_tokens": 8, "output_scores": True} | SPECIAL | options
    model = TableModel()
    source, _ = table_sources()
    greedy = greedy_search(model.step, model.start(source), SOURCES, **options)
    beam = beam_search(model.step, model.start(source), SOURCES, **options, **settings)
    assert torch.equal(beam.sequences, greedy.sequences)
    assert torch.equal(beam.lengths, greedy.lengths)
    divisor = greedy.lengths if settings.get("length_penalty", 1.0) else 1
    torch.testing.assert_close(beam.sequences_scores, greedy.sequences_scores / divisor)


def test_groups_without_a_penalty_are_one_smaller_search_again_and_again():
    model = TableModel()
    source, _ = table_sources()
    options = {"max_new_tokens": 6} | EVERYTHING
    once = model.generate(source, num_beams=2, num_return_sequences=2, **options)
    thrice = model.generate(
        source, num_beams=6, num_beam_groups=3, num_return_sequences=6, **options
    )
    expected = once.sequences.view(SOURCES, 2, -1).repeat_interleave(3, 1)
    assert torch.equal(thrice.sequences.view(SOURCES, 6, -1), expected)


def test_a_large_penalty_makes_groups_differ_in_every_step():
    model = TableModel()
    source, _ = table_sources()
    options = {"num_beams": 3, "num_beam_groups": 3, "num_return_sequences": 3}
    output = model.generate(
        source, diversity_penalty=50.0, max_new_tokens=3, min_new_tokens=3, **options
    )
    for column in output.view(SOURCES, 3, 3).transpose(1, 2).flatten(0, 1).tolist():
        assert len(set(column)) == 3


@pytest.mark.parametrize(
    "changes", [{}, {"cell": "lstm", "bidirectional": True, "decoder_num_layers": 2}]
)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"length_penalty": 0.6, "length_penalty_kind": "wu", "early_stopping": True},
        {"num_beam_groups": 2, "diversity_penalty": 0.5, "repetition_penalty": 1.3},
    ],
)
def test_scores_are_those_of_teacher_forcing_and_batch_one_equals_batch_n(changes, options):
    model = small_model(**changes)
    source, lengths = sources()
    options = {"num_beams": 4, "num_return_sequences": 2, "max_new_tokens": 12} | options
    together = model.generate(source, lengths, **options, **EVERYTHING)
    assert len(set(together.lengths.tolist())) > 2

    logits = model(
        source.repeat_interleave(2, 0),
        together.sequences,
        lengths.repeat_interleave(2),
        together.lengths,
    ).logits
    chosen = logits.log_softmax(-1).gather(2, together.sequences[..., None])[..., 0]
    inside = torch.arange(chosen.size(1)) < together.lengths[:, None]
    n = together.lengths.double()
    divisor = ((5 + n) / 6) ** 0.6 if "length_penalty" in options else n
    expected = (chosen * inside).sum(1) / divisor
    torch.testing.assert_close(
        together.sequences_scores.double(), expected, atol=1e-4, rtol=0, check_dtype=False
    )

    for b in range(0, len(source), 5):
        alone = model.generate(source[b : b + 1, : lengths[b]], **options, **EVERYTHING)
        rows = slice(2 * b, 2 * b + 2)
        width = alone.sequences.size(1)
        assert torch.equal(alone.lengths, together.lengths[rows])
        assert torch.equal(alone.sequences, together.sequences[rows, :width])
        torch.testing.assert_close(alone.sequences_scores, together.sequences_scores[rows])


def test_one_select_a_step_and_finished_sources_leave():
    """Source b ends with its token b + 2."""
    model = TableModel()
    source, _ = table_sources(3)
    output = model.generate(
        source,
        num_beams=2,
        max_new_tokens=9,
        prefix_allowed_tokens_fn=lambda b, tokens: [4 + b, 1] if len(tokens) < b + 1 else [EOS],
    )
    assert (output == EOS).sum() == 3
    # A row a source at first, two later; every later step came after one select.
    assert model.sizes == [3, 6, 4, 2]
    assert model.log == model.sizes[1:]


def test_fewer_sequences_than_asked_for():
    model = TableModel(attention=True)
    source, _ = table_sources(2)
    output = model.generate(
        source,
        num_beams=3,
        num_return_sequences=3,
        prefix_allowed_tokens_fn=lambda b, tokens: [EOS] if len(tokens) else [4],
        return_attention=True,
        **EVERYTHING,
    )
    assert output.sequences.tolist() == [[4, EOS], [PAD, PAD], [PAD, PAD]] * 2
    assert output.lengths.tolist() == [2, 0, 0] * 2
    assert output.sequences_scores.isinf().tolist() == [False, True, True] * 2
    assert (output.alignments[[1, 2, 4, 5]] == 0).all()


def test_an_empty_batch_and_a_leading_bos():
    model = TableModel()
    assert model.generate(torch.empty(0, 3, dtype=torch.int64), num_beams=3).shape == (0, 0)
    source, _ = table_sources(2)
    prefix = torch.tensor([[4, 5], [6, PAD]])
    with_bos = torch.cat((torch.full((2, 1), BOS), prefix), dim=1)
    for beams in (1, 3):
        plain = model.generate(source, num_beams=beams, decoder_input_ids=prefix, max_new_tokens=4)
        bos = model.generate(source, num_beams=beams, decoder_input_ids=with_bos, max_new_tokens=4)
        assert torch.equal(plain, bos)


def test_where_everything_is_ruled_out_a_row_ends():
    model = TableModel()
    source, _ = table_sources(2)
    for beams in (1, 2):
        output = model.generate(
            source, num_beams=beams, prefix_allowed_tokens_fn=lambda b, tokens: [PAD, BOS]
        )
        assert output.tolist() == [[EOS], [EOS]]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_beams": 0}, ValueError, "num_beams must be at least 1, got 0"),
        ({"num_beams": 2.0}, TypeError, "num_beams must be an int, got 2.0"),
        ({"num_beams": 4, "num_beam_groups": 3}, ValueError, "divide num_beams=4, got 3"),
        ({"num_return_sequences": 2}, ValueError, "at most num_beams=1 .*, got 2"),
        ({"early_stopping": "soon"}, ValueError, "early_stopping must be .*, got 'soon'"),
        ({"length_penalty": float("nan")}, ValueError, "length_penalty must be finite, got nan"),
        ({"length_penalty": "1"}, TypeError, "length_penalty must be a number, got '1'"),
        ({"length_penalty_kind": "log"}, ValueError, "one of \\['power', 'wu'\\], got 'log'"),
        ({"coverage_penalty": -1.0}, ValueError, "coverage_penalty must be at least 0, got -1.0"),
        ({"diversity_penalty": 1.0}, ValueError, "diversity_penalty=1.0 needs num_beam_groups"),
        ({"repetition_penalty": 0.0}, ValueError, "repetition_penalty must be above 0, got 0.0"),
        ({"no_repeat_ngram_size": -1}, ValueError, "no_repeat_ngram_size must be at least 0"),
        ({"prefix_allowed_tokens_fn": [4]}, TypeError, "prefix_allowed_tokens_fn must be callable"),
        ({"prefix_allowed_tokens_fn": lambda b, t: []}, ValueError, "at least one id, got \\[\\]"),
        ({"prefix_allowed_tokens_fn": lambda b, t: [7]}, ValueError, "in \\[0, 7\\), got \\[7\\]"),
        ({"num_beam": 4}, TypeError, "unknown options \\['num_beam'\\], known are"),
        ({"options": {"num_beams": 4}}, TypeError, "options must be GenerationOptions, got"),
        ({"output_scores": 1}, TypeError, "output_scores must be a bool, got 1"),
        ({"return_attention": True}, ValueError, "return_attention=True needs a model with atten"),
        ({"num_beams": 2, "coverage_penalty": 0.2}, ValueError, "coverage_penalty=0.2 needs a mod"),
        ({"num_beams": 2, "return_attention": True}, ValueError, "return_attention=True needs"),
    ],
    ids=str,
)
def test_wrong_options_are_named(arguments, error, message):
    source, _ = table_sources(2)
    with pytest.raises(error, match=message):
        TableModel().generate(source, **arguments)


@pytest.mark.parametrize(
    ("prefix", "error", "message"),
    [
        ([[4.0], [5.0]], TypeError, "decoder_input_ids must be int64, got torch.float32"),
        ([4, 5], ValueError, r"shape \(2, P\), got \(2,\)"),
        ([[4]], ValueError, r"shape \(2, P\), got \(1, 1\)"),
        ([[PAD, 4], [5, 5]], ValueError, "<pad> only behind a row's last token"),
        ([[4, EOS], [5, 5]], ValueError, "goes on from, got </s>"),
        ([[4, BOS], [5, 5]], ValueError, "goes on from, got <s>"),
        ([[4], [-1]], ValueError, "must hold ids, got -1"),
        ([[4], [7]], ValueError, r"ids in \[0, 7\), got 7"),
    ],
)
@pytest.mark.parametrize("beams", [1, 2])
def test_wrong_prefixes_are_named(prefix, error, message, beams):
    source, _ = table_sources(2)
    with pytest.raises(error, match=message):
        TableModel().generate(source, decoder_input_ids=torch.tensor(prefix), num_beams=beams)
