"""Options, schedule, training, evaluation and the run folder."""

import hashlib
import importlib.util
import io
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import seq2seq_ext.training as training
from seq2seq_ext.data import PairDataset, Vocabulary
from seq2seq_ext.data.extras import MissingExtraError
from seq2seq_ext.metrics import count_correct_tokens, exact_match
from seq2seq_ext.models import Seq2Seq, Seq2SeqConfig
from seq2seq_ext.training import (
    Run,
    TrainingOptions,
    evaluate,
    fastest_num_threads,
    load_run,
    save_run,
)
from seq2seq_ext.training.schedules import Pace, one_cycle


def needs(*packages):
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs the extra [train]: {missing}")


needs_lightning = needs("lightning", "rich")
needs_safetensors = needs("safetensors")

PAIRS = [(a + b + c, c + b + a + a) for a in "abcd" for b in "abcd" for c in "ab"]
VOCABULARY = Vocabulary("abcd")


def dataset(pairs=PAIRS):
    return PairDataset(pairs, VOCABULARY, VOCABULARY)


def small_model(hidden_size=24, **changes):
    torch.manual_seed(0)
    return Seq2Seq(
        Seq2SeqConfig(
            source_vocab_size=len(VOCABULARY),
            target_vocab_size=len(VOCABULARY),
            source_embedding_size=8,
            target_embedding_size=8,
            encoder_hidden_size=hidden_size,
            decoder_hidden_size=hidden_size,
            **changes,
        )
    )


def options(**changes):
    return TrainingOptions(**({"epochs": 3, "batch_size": 8, "learning_rate": 0.01} | changes))


# Options and schedule


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs must be an int of at least 1, got 0"),
        ({"batch_size": 2.5}, "batch_size must be an int of at least 1, got 2.5"),
        ({"label_smoothing": 1.1}, r"label_smoothing must be in \[0, 1\], got 1.1"),
        ({"learning_rate": math.nan}, r"learning_rate must be in \[0, inf\], got nan"),
        ({"max_seconds": 0}, "max_seconds must be positive or None, got 0"),
        ({"precision": "bf16"}, "precision must be one of 32-true, .*, got 'bf16'"),
        ({"precision": "16-mixed"}, "precision must be .* on the CPU, got '16-mixed'"),
    ],
)
def test_options_out_of_range_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        TrainingOptions(**changes)


@pytest.mark.parametrize("warmup", [0.0, 0.3, 1.0])
def test_the_learning_rate_rises_to_its_peak_and_falls(warmup):
    rates = [one_cycle(i / 1000, peak=0.5, warmup=warmup) for i in range(1001)]
    top = rates.index(max(rates))
    assert top == round(1000 * warmup) or (warmup == 1.0 and top == 999)
    assert rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert max(rates) <= 0.5
    assert rates[-1] == pytest.approx(0.0005)


def test_pace_without_a_limit_counts_work_alone():
    assert Pace().progress(0.4, seconds=1e9) == 0.4


def test_pace_with_a_limit_takes_what_is_further():
    pace = Pace(max_seconds=20.0)
    assert pace.progress(0.1, seconds=1.9) == 0.1  # the first tenth of the time does not count
    assert pace.progress(0.1, seconds=5.0) == 0.25
    assert pace.progress(0.6, seconds=5.0) == 0.6
    assert pace.progress(0.6, seconds=20.0) == 1.0


# Training


@needs_lightning
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
def test_training_learns_by_heart(cell, precision):
    model = small_model(cell=cell)
    before = evaluate(model, dataset())
    report = training.train(
        model,
        dataset(),
        options(epochs=60, learning_rate=0.02, label_smoothing=0.0, precision=precision),
    )
    after = evaluate(model, dataset())
    assert report.steps == 60 * 4
    assert report.epochs == 60
    assert report.loss < 0.2 * before.loss
    assert after.free_running.exact_match > 0.9
    assert not model.training


@needs_lightning
def test_equal_seeds_give_equal_weights():
    def train(seed):
        model = small_model(dropout=0.2)
        training.train(model, dataset(), options(seed=seed, teacher_forcing_ratio=0.5))
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    assert torch.equal(train(1), train(1))
    assert not torch.equal(train(1), train(2))


@needs_lightning
def test_the_time_limit_ends_a_run():
    report = training.train(small_model(), dataset(), options(epochs=1_000_000, max_seconds=0.5))
    assert 0 < report.steps < 1_000_000
    # Generous: one step on a busy machine, and Lightning's own start and end.
    assert report.seconds < 5


@needs_lightning
def test_progress_names_what_is_promised():
    from rich.console import Console

    for terminal in (False, True):
        text = io.StringIO()
        console = Console(file=text, force_terminal=terminal, width=160)
        training.train(small_model(), dataset(), options(), console=console)
        for word in ("3/3", "loss", "ppl", "token accuracy", "lr", "tokens/s", "left"):
            assert word in text.getvalue()


@pytest.mark.parametrize("slow", [1, 2])
def test_the_number_of_threads_is_the_faster_one(slow, monkeypatch):
    model = small_model(dropout=0.5)
    weights = [p.clone() for p in model.parameters()]
    random_state = torch.get_rng_state()
    present = [2]
    monkeypatch.setattr(torch, "get_num_threads", lambda: present[0])
    monkeypatch.setattr(torch, "set_num_threads", lambda n: present.__setitem__(0, n))
    forward = Seq2Seq.forward

    def delayed(self, *batch):
        time.sleep(0.03 if present[0] == slow else 0.0)
        return forward(self, *batch)

    monkeypatch.setattr(Seq2Seq, "forward", delayed)
    assert fastest_num_threads(model, dataset()[range(4)], rounds=3) == 3 - slow
    assert present == [2]
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(map(torch.equal, weights, model.parameters()))
    assert all(p.grad is None for p in model.parameters())


@needs_lightning
def test_no_pairs_no_training():
    with pytest.raises(ValueError, match="at least one pair"):
        training.train(small_model(), dataset([]))


def test_training_without_lightning_names_the_extra(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "lightning" else find(name)
    )
    with pytest.raises(MissingExtraError, match=r"'lightning'.*pip install 'seq2seq_ext\[train\]'"):
        training.train  # noqa: B018


def test_extras_are_imported_only_when_needed(tmp_path):
    program = (
        "import sys, seq2seq_ext.training, seq2seq_ext.cli\n"
        "extras = {'lightning', 'rich', 'safetensors', 'lemminflect'}\n"
        "sys.exit(str(extras & set(sys.modules)) if extras & set(sys.modules) else 0)\n"
    )
    package = str(Path(training.__file__).parents[2])
    subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        timeout=120,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": package},
    )


# Evaluation


def test_exact_match_counts_whole_texts():
    assert exact_match(["a", "b", "c", ""], ["a", "B", "c", "d"]) == 0.5
    with pytest.raises(ValueError, match="equally many, got 1 and 2"):
        exact_match(["a"], ["a", "b"])
    with pytest.raises(ValueError, match="must not be empty"):
        exact_match([], [])


def test_correct_tokens_are_compared_inside_the_target():
    target = torch.tensor([[4, 5, 3], [4, 3, 0]])
    lengths = torch.tensor([3, 2])
    assert count_correct_tokens(torch.tensor([[4], [4]]), target, lengths) == 2
    longer = torch.tensor([[4, 5, 6, 7, 3], [4, 3, 0, 0, 0]])
    assert count_correct_tokens(longer, target, lengths) == 4


def test_evaluation_equals_counting_row_by_row():
    model = small_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    pairs = [*PAIRS, ("a", ""), ("bb", "d")]
    result = evaluate(model.train(), dataset(pairs), batch_size=5)
    assert model.training
    model.eval()
    nats, tokens, forced_tokens, forced_rows, free_tokens = 0.0, 0, 0, 0, 0
    for (source, target), prediction in zip(pairs, result.predictions, strict=True):
        x = torch.tensor([VOCABULARY.encode(source)])
        y = torch.tensor([VOCABULARY.encode(target, add_eos=True)])
        output = model(x, y)
        n = y.size(1)
        nats += float(output.loss.detach()) * n
        tokens += n
        same = output.logits.argmax(-1) == y
        forced_tokens += int(same.sum())
        forced_rows += bool(same.all())
        free = model.generate(x, max_new_tokens=20)
        assert VOCABULARY.decode(free[0].tolist())[: len(prediction)] == prediction
        free_tokens += sum(a == b for a, b in zip(free[0].tolist(), y[0].tolist(), strict=False))
    assert result.loss == pytest.approx(nats / tokens, rel=1e-5)
    assert result.teacher_forced.token_accuracy == pytest.approx(forced_tokens / tokens)
    assert result.teacher_forced.exact_match == pytest.approx(forced_rows / len(pairs))
    assert result.free_running.token_accuracy == pytest.approx(free_tokens / tokens)
    assert result.free_running.exact_match == exact_match(
        result.predictions, [target for _, target in pairs]
    )
    assert "predictions" not in result.figures()


def test_figures_do_not_depend_on_the_batches():
    model = small_model()  # writes what it likes, as long as it may
    pairs = [("a" * (i % 9), "b" * (i % 5)) for i in range(40)]
    found = [evaluate(model, dataset(pairs), batch_size=n) for n in (1, 7, 256)]
    assert max(map(len, found[0].predictions)) > 5
    for other in found[1:]:
        assert other.predictions == found[0].predictions
        assert other.token_error_rate == found[0].token_error_rate > 0


# The run folder


def a_run(**changes):
    return Run(
        small_model(**changes),
        VOCABULARY,
        VOCABULARY,
        settings={"task": "test"},
        metrics={"test": {"exact_match": 0.5}},
    )


@needs_safetensors
@pytest.mark.parametrize("changes", [{}, {"cell": "lstm", "bidirectional": True, "dropout": 0.1}])
def test_run_folder_round_trip(tmp_path, changes):
    run = a_run(**changes)
    save_run(tmp_path / "runs" / "test", run)
    loaded = load_run(tmp_path / "runs" / "test")
    assert loaded.model.config == run.model.config
    assert loaded.source_vocabulary == loaded.target_vocabulary == VOCABULARY
    assert loaded.settings == run.settings
    assert loaded.metrics == run.metrics
    assert not loaded.model.training
    for name, tensor in run.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor)
    assert loaded.translate(["abc", "dd"]) == run.translate(["abc", "dd"])
    assert {path.name for path in (tmp_path / "runs" / "test").iterdir()} == {
        "config.json",
        "source_vocabulary.json",
        "target_vocabulary.json",
        "model.safetensors",
        "metrics.json",
    }


@needs_safetensors
def test_saving_over_an_older_run_replaces_it(tmp_path):
    save_run(tmp_path, a_run(hidden_size=8))
    save_run(tmp_path, a_run(hidden_size=16))
    assert load_run(tmp_path).model.config.encoder_hidden_size == 16
    elsewhere = load_run(tmp_path, device="meta").model
    assert {parameter.device.type for parameter in elsewhere.parameters()} == {"meta"}


@needs_safetensors
def test_a_save_that_breaks_off_is_noticed_or_harmless(tmp_path, monkeypatch):
    replace, calls = os.replace, []

    def break_off(*arguments):
        calls.append(arguments)
        if len(calls) > allowed:
            raise OSError("killed")
        replace(*arguments)

    for allowed in range(6):
        folder = tmp_path / str(allowed)
        save_run(folder, a_run(hidden_size=8))
        calls.clear()
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", break_off)
            if allowed < 5:
                with pytest.raises(OSError, match="killed"):
                    save_run(folder, a_run(hidden_size=16))
            else:
                save_run(folder, a_run(hidden_size=16))
        if 0 < allowed < 4:
            with pytest.raises(ValueError, match="mixes files of two runs"):
                load_run(folder)
        else:
            assert load_run(folder).model.config.encoder_hidden_size == (8 if not allowed else 16)


@needs_safetensors
def test_a_run_of_a_version_with_fewer_settings_loads(tmp_path):
    from safetensors.torch import load_file, save_file

    run = a_run()
    save_run(tmp_path, run)
    description = json.loads((tmp_path / "config.json").read_text())
    for name in ("source_eos", "bridge_nonlinearity"):  # which came later
        del description["model"][name]
    (tmp_path / "config.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match="mixes files of two runs"):
        load_run(tmp_path)

    parts = [description["model"]]
    parts += [
        json.loads((tmp_path / f"{x}_vocabulary.json").read_text()) for x in ("source", "target")
    ]
    fingerprint = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    weights = load_file(tmp_path / "model.safetensors")
    save_file(weights, tmp_path / "model.safetensors", {"fingerprint": fingerprint})
    loaded = load_run(tmp_path)
    assert loaded.model.config == run.model.config
    assert loaded.translate(["abc", "dd"]) == run.translate(["abc", "dd"])


@needs_safetensors
def test_loading_names_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing is no run folder: it does not exist"):
        load_run(tmp_path / "nothing")
    save_run(tmp_path, a_run())
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"it lacks model\.safetensors"):
        load_run(tmp_path)


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def _change_cell(path):
    description = json.loads(path.read_text())
    description["model"]["cell"] = "convolution"
    path.write_text(json.dumps(description))


@needs_safetensors
@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("model.safetensors", _truncate, "model.safetensors is damaged"),
        ("config.json", _truncate, "config.json is not valid JSON"),
        ("config.json", lambda path: path.write_text("[]"), "must be a run's config of format 1"),
        ("config.json", _change_cell, "holds no valid model config: cell must be one of"),
        ("source_vocabulary.json", lambda path: path.write_text("[]"), "is not a vocabulary"),
        ("metrics.json", _truncate, "metrics.json is not valid JSON"),
    ],
)
def test_loading_names_what_is_damaged(tmp_path, name, damage, message):
    save_run(tmp_path, a_run())
    damage(tmp_path / name)
    with pytest.raises(ValueError, match=message):
        load_run(tmp_path)


def test_translating_does_not_depend_on_the_batch():
    run = a_run()
    with torch.no_grad():
        for parameter in run.model.parameters():
            parameter.mul_(3)
    texts = ["abcdabcd", "d", "", "cab", "xyz", "bad"]
    together = run.translate(texts)
    assert together == run.translate(texts, batch_size=2)
    # A text alone may be cut earlier: the limit on its length follows the longest of its batch.
    for text, result in zip(texts, together, strict=True):
        assert result.startswith(run.translate([text])[0])
    assert run.translate([]) == []
