"""A decoder that copies: it writes tokens of the source that no vocabulary holds."""

from __future__ import annotations

import functools
import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from seq2seq_ext.generation import Ensemble
from seq2seq_ext.models import Seq2Seq, Seq2SeqConfig
from seq2seq_ext.models.copying import extend_source, extend_target, extended_tokens

PAD, UNK, BOS, EOS = range(4)
WORDS = ["<pad>", "<unk>", "<s>", "</s>", "a", "b", "c", "d"]
V = len(WORDS)


def task(batch: int, seed: int) -> tuple[Tensor, Tensor]:
    """Sources of known and unknown tokens, and their targets: the same tokens back to front."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 6, (batch,), generator=generator)
    source = torch.zeros(batch, 5, dtype=torch.int64)
    target = torch.zeros(batch, 6, dtype=torch.int64)
    for row, length in enumerate(lengths.tolist()):
        unknown = 0
        for t in range(length):
            if torch.rand((), generator=generator) < 0.5:
                source[row, t] = torch.randint(4, V, (), generator=generator)
            else:
                source[row, t] = V + unknown
                unknown += 1
        target[row, :length] = source[row, :length].flip(0)
        target[row, length] = EOS
    return source, target


@functools.cache
def trained(seed: int = 0) -> Seq2Seq:
    """A small model that has learned the task."""
    torch.manual_seed(seed)
    config = Seq2SeqConfig(
        source_vocab_size=V,
        target_vocab_size=V,
        cell="lstm",
        encoder_hidden_size=24,
        decoder_hidden_size=24,
        source_embedding_size=12,
        target_embedding_size=12,
        bidirectional=True,
        attention="additive",
        input_feeding=True,
        copy=True,
    )
    model = Seq2Seq(config)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(200):
        optimizer.zero_grad()
        model(*task(32, step)).loss.backward()
        optimizer.step()
    return model.eval()


def test_unknown_tokens_of_unseen_sources_are_written() -> None:
    source, target = task(100, seed=10_000)
    written = trained().generate(source, max_new_tokens=6)
    written = pad(written, (0, 6 - written.size(1)))
    right = (written == target).all(1)
    assert (target >= V).any(1).float().mean() > 0.8
    assert right.float().mean() > 0.9, right.float().mean()
    assert ((written == target) & (target >= V)).sum() > 0.9 * (target >= V).sum()


SEARCHES: dict[str, dict[str, Any]] = {
    "beams": {"num_beams": 3},
    "diverse": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
    "no_repeat": {"num_beams": 2, "no_repeat_ngram_size": 1, "repetition_penalty": 1.2},
    "samples": {"do_sample": True, "seed": 3, "temperature": 0.1, "num_return_sequences": 2},
}


@pytest.mark.parametrize("search", SEARCHES)
def test_every_search_writes_unknown_tokens(search: str) -> None:
    source, target = task(20, seed=20_000)
    options = {"max_new_tokens": 6, "return_dict_in_generate": True, "output_scores": True}
    found = trained().generate(source, **options, **SEARCHES[search])
    times = SEARCHES[search].get("num_return_sequences", 1)
    expected = target.repeat_interleave(times, 0)
    written = pad(found.sequences, (0, 6 - found.sequences.size(1)))
    assert (written == expected).all(1).float().mean() > 0.7  # no_repeat forbids some
    # The scores are those of the model, teacher-forced.
    rows = source.repeat_interleave(times, 0)
    logits = trained()(rows, found.sequences, None, found.lengths).logits
    chosen = logits.log_softmax(-1).gather(2, found.sequences[..., None])[..., 0]
    inside = torch.arange(found.sequences.size(1)) < found.lengths[:, None]
    sums = (chosen * inside).sum(1)
    if SEARCHES[search].get("num_beams"):
        sums = sums / found.lengths
    torch.testing.assert_close(found.sequences_scores, sums, rtol=1e-3, atol=1e-3)


def test_an_ensemble_and_a_stream_write_unknown_tokens() -> None:
    source, target = task(8, seed=30_000)
    for model in (Ensemble([trained(), trained()]).eval(), trained()):
        columns = list(model.stream(source, max_new_tokens=6))
        written = torch.stack(columns, 1)
        assert (pad(written, (0, 6 - len(columns))) == target).all(1).float().mean() > 0.7


def test_an_unknown_token_is_read_as_unk_and_scored_as_itself() -> None:
    model = trained()
    source = torch.tensor([[4, V, 5, V + 1]])
    first, second = torch.tensor([[V, V + 1, EOS]]), torch.tensor([[V + 1, V + 1, EOS]])
    a, b = model(source, first), model(source, second)
    # Both are fed <s> <unk> <unk>: the same logits, of which another one is the label.
    torch.testing.assert_close(a.logits, b.logits)
    assert a.logits.shape == (1, 3, V + 2)
    torch.testing.assert_close(a.logits.exp().sum(-1), torch.ones(1, 3))
    assert a.loss != b.loss


def test_the_smallest_probability_is_finite_with_its_gradient() -> None:
    model = Seq2Seq(trained().config)
    source, target = torch.tensor([[4, V], [4, 5]]), torch.tensor([[V, EOS], [V, EOS]])
    loss = model(source, target, label_smoothing=0.1).loss  # row 1 cannot write its label
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_a_source_of_no_tokens_has_nothing_to_copy() -> None:
    written = trained().generate(torch.zeros(2, 0, dtype=torch.int64), max_new_tokens=2)
    assert written.shape[0] == 2
    assert (written < V).all()


def test_ids_beyond_the_sources_unknown_tokens_are_refused() -> None:
    source, target = torch.tensor([[4, V]]), torch.tensor([[V, EOS]])
    model = trained()
    for bad in (torch.tensor([[4, V + 2]]), torch.tensor([[4, -1]])):
        with pytest.raises(ValueError, match=re.escape(f"source must hold ids in [0, {V + 2})")):
            model(bad, target)
        with pytest.raises(ValueError, match=re.escape(f"target must hold ids in [0, {V + 2})")):
            model(source, bad)
    with pytest.raises(ValueError, match=re.escape(f"tokens must hold ids in [0, {V + 1})")):
        model.decoder(torch.tensor([[BOS, V + 1]]), model.start(source))
    state = model.start(source)
    without = state._replace(memory=state.memory._replace(tokens=None))
    with pytest.raises(ValueError, match="memory must hold tokens"):
        model.step(torch.tensor([BOS]), without)


def test_tokens_survive_the_way_to_ids_and_back() -> None:
    def encode(tokens: list[str]) -> list[int]:
        return [WORDS.index(token) if token in WORDS else UNK for token in tokens]

    source = ["a", "emu", "d", "gnu", "emu"]
    ids, unknown = extend_source(source, encode(source), V)
    assert ids == [4, V, 7, V + 1, V]
    assert unknown == ["emu", "gnu"]
    assert extended_tokens(ids, WORDS, unknown) == source
    target = ["gnu", "yak", "b"]
    assert extend_target(target, [*encode(target), EOS], unknown, V) == [V + 1, UNK, 5, EOS]
    with pytest.raises(ValueError, match="ids must be as many as tokens, 5, got 4"):
        extend_source(source, ids[:4], V)
    with pytest.raises(IndexError):
        extended_tokens([V + 2], WORDS, unknown)
