"""What training is made of: schedules, parts of batches, checkpoints, the log, expected risk."""

from __future__ import annotations

import importlib.util
import math
import random

import pytest
import torch

from seq2seq_ext.data import LengthBuckets, PairDataset, Vocabulary
from seq2seq_ext.models import Seq2Seq, Seq2SeqConfig
from seq2seq_ext.training import TrainingOptions
from seq2seq_ext.training.risk import COSTS, expected_risk, sentence_bleu_cost
from seq2seq_ext.training.schedules import (
    FORCING_SCHEDULES,
    SCHEDULES,
    learning_rate,
    teacher_forcing,
)
from seq2seq_ext.training.stream import START, Position, Stream

MISSING = [n for n in ("lightning", "rich", "tensorboard") if importlib.util.find_spec(n) is None]
needs_lightning = pytest.mark.skipif(bool(MISSING), reason=f"needs the extra [train]: {MISSING}")

VOCABULARY = Vocabulary("abcd")
PAIRS = [("abcd"[: 1 + i % 4], "dcba"[: 1 + i % 3] * (1 + i % 2)) for i in range(23)]


def dataset():
    return PairDataset(PAIRS, VOCABULARY, VOCABULARY)


def small_model(**changes):
    torch.manual_seed(0)
    config = Seq2SeqConfig(
        source_vocab_size=8,
        target_vocab_size=8,
        encoder_hidden_size=12,
        decoder_hidden_size=12,
        **changes,
    )
    return Seq2Seq(config)


# Schedules


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("warmup", [0.0, 0.25])
def test_learning_rates_rise_to_their_peak_and_do_not_rise_again(schedule, warmup):
    rates = [learning_rate(schedule, i / 100, peak=0.5, warmup=warmup) for i in range(101)]
    top = round(100 * warmup)
    assert rates[top] == pytest.approx(0.5)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert min(rates) >= 0


def test_inverse_sqrt_is_a_quarter_at_sixteen_times_the_warmup():
    assert learning_rate("inverse_sqrt", 0.8, peak=1.0, warmup=0.05) == pytest.approx(0.25)


@pytest.mark.parametrize("schedule", FORCING_SCHEDULES)
def test_teacher_forcing_falls_to_its_final_ratio(schedule):
    ratios = [teacher_forcing(schedule, i / 100, final=0.25) for i in range(101)]
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[-1] == pytest.approx(0.25, abs=0.01)
    assert ratios[0] == (0.25 if schedule == "constant" else pytest.approx(1.0, abs=0.1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "steps"}, "schedule must be one of one_cycle, .*, got 'steps'"),
        ({"optimizer": "lion"}, "optimizer must be one of adamw, adam, sgd, got 'lion'"),
        ({"patience": 0}, "patience must be an int of at least 1, got 0"),
        ({"epochs": None}, "epochs must be an int of at least 1, got None"),
        ({"risk_weight": 2.0}, r"risk_weight must be in \[0, 1\], got 2.0"),
        (
            {"teacher_forcing_schedule": "exponential", "teacher_forcing_ratio": 0.0},
            "teacher_forcing_ratio must be above 0",
        ),
    ],
)
def test_options_out_of_range_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        TrainingOptions(**changes)


# Parts of batches


def stream(start=START, **changes):
    pairs = dataset()
    return Stream(pairs, LengthBuckets(pairs, 5, seed=1), epochs=3, start=start, **changes)


def rows(parts):
    return sorted(
        (source.tolist(), target.tolist())
        for part in parts
        if part.weight
        for source, target in zip(
            torch.nn.functional.pad(part.batch.source, (0, 9 - part.batch.source.size(1))),
            torch.nn.functional.pad(part.batch.target, (0, 9 - part.batch.target.size(1))),
            strict=True,
        )
    )


@pytest.mark.parametrize(("world_size", "accumulate"), [(1, 2), (2, 1), (3, 4)])
@torch.no_grad()
def test_parts_of_a_step_are_its_batch_and_their_mean_is_its_loss(world_size, accumulate):
    whole = list(stream())
    shares = [
        list(stream(rank=rank, world_size=world_size, accumulate=accumulate))
        for rank in range(world_size)
    ]
    model = small_model().eval()
    for step, part in enumerate(whole):
        own = [
            share
            for parts in shares
            for share in parts[step * accumulate : (step + 1) * accumulate]
        ]
        assert rows(own) == rows([part])
        assert {p[2:7] for p in own} == {part[2:7]}
        assert [p.last for p in own] == [*[False] * (accumulate - 1), True] * world_size
        mean = sum(p.weight * float(model(*p.batch).loss) for p in own) / len(own)
        assert mean == pytest.approx(float(model(*part.batch).loss), rel=1e-5)


def test_a_stream_goes_on_from_any_step():
    whole = list(stream())
    assert whole[-1].end == Position(3)
    assert whole[-1].epochs == 3
    for i, part in enumerate(whole):
        rest = list(stream(start=part.begin))
        assert len(rest) == len(whole) - i
        for ours, theirs in zip(rest, whole[i:], strict=True):
            assert torch.equal(ours.batch.source, theirs.batch.source)
            assert ours[1:] == theirs[1:]


# Checkpoints and the log


@needs_lightning
def test_a_checkpoint_is_whole_or_as_it_was(tmp_path, monkeypatch):
    from seq2seq_ext.training.checkpoints import AtomicCheckpointIO

    path, io = tmp_path / "last.ckpt", AtomicCheckpointIO()
    io.save_checkpoint({"weights": torch.arange(3)}, path)

    def killed(*arguments):
        raise OSError("killed")

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", killed)
        with pytest.raises(OSError, match="killed"):
            io.save_checkpoint({"weights": torch.arange(4)}, path)
    assert io.load_checkpoint(path)["weights"].tolist() == [0, 1, 2]
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"last\.ckpt is no checkpoint, or damaged"):
        io.load_checkpoint(path)


@needs_lightning
def test_lines_beyond_the_checkpoint_and_torn_lines_are_cut_off(tmp_path):
    from seq2seq_ext.training.logs import Log

    log = Log(tmp_path, steps=0)
    for step in (1, 2, 3):
        log.write(step, {"loss": 1 / step})
    log.close()
    path = tmp_path / "metrics.csv"
    lines = path.read_text().splitlines()
    with open(path, "a") as file:
        file.write("2,0.5")
    Log(tmp_path, steps=2).close()
    assert path.read_text().splitlines() == lines[:3]
    Log(tmp_path, steps=0).close()
    assert path.read_text().splitlines() == lines[:1]


@needs_lightning
def test_random_numbers_go_on_where_they_stood():
    import numpy

    from seq2seq_ext.training.random_state import random_state, restore_random_state, seed_all

    def draw():
        return random.random(), float(numpy.random.normal()), float(torch.rand(()))

    before = numpy.random.get_state()
    seed_all(7, 1)
    first = draw()
    state = random_state()
    second = draw()
    restore_random_state(state)
    assert draw() == second
    seed_all(7, 1)
    assert draw() == first
    seed_all(7, 2)
    assert draw() != first
    numpy.random.set_state(before)


@needs_lightning
@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_every_optimizer_learns(name):
    from seq2seq_ext.training import train

    model = small_model()
    rate = 0.5 if name == "sgd" else 0.02
    options = TrainingOptions(
        epochs=30, batch_size=8, optimizer=name, learning_rate=rate, label_smoothing=0.0
    )
    assert train(model, dataset(), options).loss < 1.0


@needs_lightning
def test_validation_ends_a_run_that_gets_no_better_and_lowers_a_plateau(tmp_path):
    from seq2seq_ext.training import train
    from seq2seq_ext.training.checkpoints import AtomicCheckpointIO

    options = TrainingOptions(
        epochs=50,
        batch_size=8,
        learning_rate=0.0,
        metric="loss",
        schedule="plateau",
        plateau_patience=1,
        patience=4,
    )
    report = train(small_model(), dataset(), options, dev=dataset(), folder=tmp_path)
    assert report.epochs == 5  # the first is the best, then four that are no better
    last = AtomicCheckpointIO().load_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    assert last["seq2seq_ext"]["reductions"] == 4


@needs_lightning
def test_a_resumed_run_keeps_its_clock_and_its_options(tmp_path):
    from seq2seq_ext.training import train

    options = {"epochs": 10**6, "batch_size": 8, "max_seconds": 0.5}
    same = TrainingOptions(**options)
    first = train(small_model(), dataset(), same, folder=tmp_path)
    again = train(small_model(), dataset(), same, folder=tmp_path, resume=True)
    assert (again.steps, again.loss) == (first.steps, first.loss)
    with pytest.raises(FileExistsError, match="holds a run; resume it"):
        train(small_model(), dataset(), same, folder=tmp_path)
    other = TrainingOptions(**(options | {"seed": 5}))
    with pytest.raises(ValueError, match="seed must stay 0 in a run that is resumed, got 5"):
        train(small_model(), dataset(), other, folder=tmp_path, resume=True)


@needs_lightning
def test_a_run_is_not_resumed_on_other_data(tmp_path):
    from seq2seq_ext.training import train

    options = TrainingOptions(epochs=1, batch_size=8)
    train(small_model(), dataset(), options, folder=tmp_path)
    other = PairDataset([("a", "b"), *PAIRS[1:]], VOCABULARY, VOCABULARY)
    with pytest.raises(ValueError, match="dataset must be the one that the run was begun with"):
        train(small_model(), other, options, folder=tmp_path, resume=True)


# Expected risk


def test_the_cost_by_edits_is_over_the_references_length():
    found = COSTS["edit_distance"]([[5, 6], [], [5]], [[5, 7, 8], [5], []])
    assert found.tolist() == pytest.approx([2 / 3, 1.0, 1.0])


def test_the_cost_by_bleu_is_least_for_the_reference():
    reference = [4, 5, 6, 7, 4]
    costs = [sentence_bleu_cost(o, reference) for o in (reference, reference[:-1], [4, 5], [3])]
    assert costs == sorted(costs)
    assert costs[0] == pytest.approx(0.0)
    assert costs[-1] == 1.0


@pytest.mark.parametrize("cost", COSTS)
def test_risk_is_the_sum_over_the_subset(cost, monkeypatch):
    model = small_model().double().eval()
    batch = dataset()[[0, 5, 9]]
    drawn = [[4, 3, 0, 0], [5, 4, 3, 0], [5, 4, 3, 0], [6, 6, 6, 6], [3, 0, 0, 0], [4, 5, 6, 3]]
    monkeypatch.setattr(model, "generate", lambda *a, **k: torch.tensor(drawn), raising=False)
    found = expected_risk(model, batch, cost=cost, samples=2, sharpness=0.3)
    risks = []
    for i in range(3):
        reference = batch.target[i, : batch.target_lengths[i]].tolist()
        outputs = {tuple(reference)}
        for ids in drawn[2 * i : 2 * i + 2]:
            outputs.add(tuple(ids[: ids.index(3) + 1] if 3 in ids else ids))
        source = batch.source[i : i + 1, : batch.source_lengths[i]]
        scores, costs = [], []
        for ids in outputs:
            loss = float(model(source, torch.tensor([ids])).loss.detach())
            scores.append(math.exp(-0.3 * loss * len(ids)))
            strip = [t for t in ids if t != 3]
            costs.append(float(COSTS[cost]([strip], [reference[:-1]])))
        risks.append(sum(s * c for s, c in zip(scores, costs, strict=True)) / sum(scores))
    assert found.item() == pytest.approx(sum(risks) / 3)


def test_steps_against_the_risk_bring_what_is_drawn_nearer_to_the_reference():
    model = small_model()
    batch = dataset()[range(12)]

    def mean_cost():
        drawn = model.eval().generate(
            batch.source, batch.source_lengths, do_sample=True, seed=0, max_new_tokens=12
        )
        texts = [VOCABULARY.decode(ids) for ids in drawn.tolist()]
        wanted = [VOCABULARY.decode(ids) for ids in batch.target.tolist()]
        return float(COSTS["edit_distance"](texts, wanted).mean())

    before = mean_cost()
    optimizer = torch.optim.Adam(model.train().parameters(), lr=0.02)
    for _ in range(40):
        optimizer.zero_grad()
        expected_risk(model, batch, samples=5, sharpness=1.0).backward()
        optimizer.step()
    assert mean_cost() < 0.7 * before


def test_an_unknown_cost_is_named():
    with pytest.raises(ValueError, match="cost must be one of edit_distance, sentence_bleu"):
        expected_risk(small_model(), dataset()[[0]], cost="wer")


@needs_lightning
def test_risk_mixes_with_the_likelihood_in_training():
    from seq2seq_ext.training import train

    options = TrainingOptions(epochs=3, batch_size=8, risk_weight=0.5, risk_samples=3)
    assert math.isfinite(train(small_model(), dataset(), options).loss)
