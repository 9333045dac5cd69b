"""Greedy search: against a loop without tricks, and against a scripted model."""

import dataclasses
import re
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from generation_cases import BOS, EOS, PAD, SPECIAL, small_model, sources
from torch import Tensor

from seq2seq_ext.generation import GenerationOptions, greedy_search


class Script(NamedTuple):
    """A state that remembers which row it is and how far it has come."""

    row: Tensor
    t: Tensor

    def select(self, rows):
        return Script(self.row[rows], self.t[rows])


def scripted(texts, vocab_size=10):
    """A step that writes given texts, and the list of batch sizes that it saw."""
    sizes = []

    def step(tokens, state):
        sizes.append(len(tokens))
        logits = torch.zeros(len(tokens), vocab_size)
        for i, (row, t) in enumerate(zip(state.row.tolist(), state.t.tolist(), strict=True)):
            assert tokens[i] == (texts[row][t - 1] if t else BOS)
            logits[i, texts[row][t]] = 5.0
        return logits, Script(state.row, state.t + 1)

    start = Script(torch.arange(len(texts)), torch.zeros(len(texts), dtype=torch.int64))
    return step, start, sizes


def test_writes_every_text_and_pads_behind_it():
    step, state, _ = scripted([[5, 6, EOS], [EOS], [7, 8, 9, 4, EOS], [4, EOS]])
    output = greedy_search(step, state, 4, **SPECIAL, max_new_tokens=20)
    assert output.sequences.tolist() == [
        [5, 6, EOS, PAD, PAD],
        [EOS, PAD, PAD, PAD, PAD],
        [7, 8, 9, 4, EOS],
        [4, EOS, PAD, PAD, PAD],
    ]
    assert output.lengths.tolist() == [3, 1, 5, 2]
    assert output.sequences_scores is None


def test_rows_that_ended_leave_the_batch():
    step, state, sizes = scripted([[5, 6, EOS], [EOS], [7, 8, 9, 4, EOS], [4, EOS]])
    greedy_search(step, state, 4, **SPECIAL, max_new_tokens=20)
    assert sizes == [4, 3, 2, 1, 1]


def test_max_new_tokens_cuts():
    step, state, sizes = scripted([[5, 6, 7, 8, EOS], [EOS]])
    output = greedy_search(step, state, 2, **SPECIAL, max_new_tokens=3)
    assert output.sequences.tolist() == [[5, 6, 7], [EOS, PAD, PAD]]
    assert len(sizes) == 3


def test_an_empty_batch():
    step, state, sizes = scripted([])
    assert greedy_search(step, state, 0, **SPECIAL, max_new_tokens=3).sequences.shape == (0, 0)
    assert sizes == []


def test_padding_and_start_are_never_written():
    def step(tokens, state):
        logits = torch.zeros(len(tokens), 6)
        logits[:, [PAD, BOS]] = 9.0
        logits[:, 5] = 1.0
        return logits, state

    state = Script(torch.arange(2), torch.zeros(2))
    output = greedy_search(step, state, 2, **SPECIAL, max_new_tokens=3)
    assert (output.sequences == 5).all()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"cell": "lstm", "bidirectional": True, "decoder_num_layers": 2},
        {"reset_after": False, "context_every_step": True, "output": "maxout"},
    ],
)
def test_generate_batch_one_equals_batch_n(changes):
    model = small_model(**changes)
    source, lengths = sources()
    together = model.generate(
        source, lengths, max_new_tokens=12, return_dict_in_generate=True, output_scores=True
    )
    # The comparison means something only where texts differ in length and content.
    assert len(set(together.lengths.tolist())) > 2
    assert len({tuple(row) for row in together.sequences.tolist()}) > 3
    for row in range(len(source)):
        alone = model.generate(
            source[row : row + 1, : lengths[row]],
            max_new_tokens=12,
            return_dict_in_generate=True,
            output_scores=True,
        )
        n = int(together.lengths[row])
        assert alone.sequences[0].tolist() == together.sequences[row, :n].tolist()
        torch.testing.assert_close(alone.sequences_scores[0], together.sequences_scores[row])


def test_generate_takes_the_argmax_of_the_teacher_forced_scores():
    model = small_model()
    source, lengths = sources()
    output = model.generate(
        source, lengths, max_new_tokens=12, return_dict_in_generate=True, output_scores=True
    )
    logits = model(source, output.sequences, lengths, output.lengths).logits
    log_probabilities = logits.log_softmax(-1)
    banned = logits.clone()
    banned[..., [PAD, BOS]] = float("-inf")
    inside = torch.arange(logits.size(1)) < output.lengths[:, None]
    assert torch.equal(banned.argmax(-1)[inside], output.sequences[inside])
    chosen = log_probabilities.gather(2, output.sequences[..., None])[..., 0]
    expected = (chosen * inside).sum(1).float()
    torch.testing.assert_close(output.sequences_scores, expected)


def test_min_new_tokens_puts_the_end_off():
    model = small_model()
    source, lengths = sources()
    free = model.generate(source, lengths, max_new_tokens=12, return_dict_in_generate=True)
    assert free.lengths.min() < 5
    held = model.generate(
        source, lengths, max_new_tokens=12, min_new_tokens=4, return_dict_in_generate=True
    )
    assert (held.sequences[:, :4] != EOS).all()
    assert held.lengths.min() >= 5


def test_generate_returns_sequences_without_a_graph():
    model = small_model()
    source, _ = sources()
    sequences = model.generate(source, max_new_tokens=5)
    assert sequences.dtype == torch.int64
    assert sequences.size(1) <= 5
    assert not sequences.requires_grad


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"max_new_tokens": 3, "min_new_tokens": 4}, r"min_new_tokens .*max_new_tokens=3\], got 4"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    source, _ = sources()
    with pytest.raises(ValueError, match=message):
        small_model().generate(source, **arguments)


# the page

PAGE = Path(__file__).parent.parent / "docs" / "generation.md"
needs_page = pytest.mark.skipif(not PAGE.exists(), reason="the docs are not beside the tests")


@needs_page
def test_the_examples_of_the_page_run():
    examples = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len(examples) > 8
    names = {}
    for example in examples:
        exec(example, names)


@needs_page
def test_the_page_tells_every_option_and_its_default():
    page = PAGE.read_text()
    for field in dataclasses.fields(GenerationOptions):
        row = re.search(rf"`{field.name}`(?:\]\([^)]*\))?(?:, `\w+`)? \((.*?)\)", page)
        assert row, field.name
        assert row.group(1).strip('"') == str(field.default), field.name
