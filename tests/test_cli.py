"""The console script, as a user runs it."""

import importlib.util
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from seq2seq_ext import cli
from seq2seq_ext.cli import main
from seq2seq_ext.cli.layer_table import layer_timings
from seq2seq_ext.data import Vocabulary
from seq2seq_ext.models import Seq2Seq, Seq2SeqConfig
from seq2seq_ext.training import Run, load_run, save_run


def needs(extra, *packages):
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs the extra [{extra}]: {missing}")


needs_demo = needs("demo", "lightning", "rich", "safetensors", "lemminflect")
needs_safetensors = needs("train", "safetensors")


def seq2seq_ext(*arguments, **streams):
    """Start the command in a process of its own, on the very package under test."""
    package = str(Path(cli.__file__).parents[2])
    return subprocess.Popen(
        [sys.executable, "-c", "import sys; from seq2seq_ext.cli import main; sys.exit(main())"]
        + [str(argument) for argument in arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": package, "COLUMNS": "120"},
        **streams,
    )


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run with random weights."""
    folder = tmp_path_factory.mktemp("runs") / "random"
    vocabulary = Vocabulary("abcdefghijklmnopqrstuvwxyz")
    torch.manual_seed(0)
    config = Seq2SeqConfig(
        source_vocab_size=30, target_vocab_size=30, encoder_hidden_size=8, decoder_hidden_size=8
    )
    save_run(folder, Run(Seq2Seq(config), vocabulary, vocabulary))
    return folder


# help and info


@pytest.mark.parametrize("command", [[], ["demo"], ["train"], ["translate"], ["plan"], ["info"]])
def test_help_tells_what_a_command_does(command, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main([*command, "--help"])
    assert exit_info.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: seq2seq-ext")
    if command == ["demo"]:
        for option in ("--out", "--epochs", "--max-seconds", "--seed", "plural", "past"):
            assert option in text


def test_info_prints_what_a_report_needs(capsys):
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    for name in ("seq2seq_ext", "torch", "python", "processor", "instruction set", "threads"):
        assert re.search(rf"^{name}: +\S", text, re.MULTILINE), name
    assert "build compiler" in text
    assert "CUDA device" in text
    assert "To report a problem" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["demo", "future"], "invalid choice: 'future'"),
        (["demo", "--epochs", "0"], "expected a whole number of at least 1, got '0'"),
        (["demo", "--max-seconds", "soon"], "expected a number above 0, got 'soon'"),
        (["demo", "--seed", "-1"], "expected a whole number of at least 0, got '-1'"),
        (["translate"], "required: RUN"),
        (["translate", "run", "word", "--file", "words"], "give words or --file, not both"),
        (
            ["translate", "run", "--num-beams", "0"],
            "expected a whole number of at least 1, got '0'",
        ),
        (
            ["translate", "run", "--num-beams", "2", "--n-best", "3"],
            "--n-best must be at most --num-beams, 2, got 3",
        ),
        (["translate", "run", "--n-best", "2"], "--n-best must be at most --num-beams, 1, got 2"),
        (["translate", "run", "--length-penalty", "nan"], "expected a number, got 'nan'"),
        (
            ["translate", "run", "--length-penalty", "0.6"],
            "--length-penalty needs --num-beams above 1, got 1",
        ),
    ],
)
def test_wrong_usage_exits_with_2_and_says_why(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err


# translate


@needs_safetensors
def test_the_examples_of_the_help_run(run_folder, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        main(["translate", "--help"])
    examples = re.findall(r"seq2seq-ext (translate runs/plural .*)", capsys.readouterr().out)
    assert len(examples) > 2
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "plural").symlink_to(run_folder)
    (tmp_path / "words.txt").write_text("fox\n")
    monkeypatch.chdir(tmp_path)
    for example in examples:
        assert main(example.split(" >")[0].split()) == 0
        assert capsys.readouterr().out


@needs_safetensors
def test_words_files_and_stdin_give_the_same(run_folder, tmp_path, capsys):
    words = ["fox", "a", "goose"]
    assert main(["translate", str(run_folder), *words]) == 0
    expected = capsys.readouterr().out
    assert len(expected.splitlines()) == 3

    (tmp_path / "words").write_text("fox\na\n\ngoose\n")
    assert main(["translate", str(run_folder), "--file", str(tmp_path / "words")]) == 0
    lines = expected.splitlines()
    assert capsys.readouterr().out.splitlines() == [lines[0], lines[1], "", lines[2]]

    with seq2seq_ext("translate", run_folder, stdin=subprocess.PIPE, cwd=tmp_path) as process:
        output, errors = process.communicate("fox\r\na\r\ngoose", timeout=120)
    assert (process.returncode, errors) == (0, "")
    assert output == expected


@needs_safetensors
def test_n_best_are_the_beams_with_their_scores(run_folder, tmp_path, capsys):
    words = ["fox", "a", "goose"]
    beams = ["--num-beams", "3", "--length-penalty", "0.5"]
    assert main(["translate", str(run_folder), *words, *beams]) == 0
    best = capsys.readouterr().out.splitlines()
    (tmp_path / "words").write_text("fox\na\n\ngoose\n")
    file = ["--file", str(tmp_path / "words")]
    assert main(["translate", str(run_folder), *file, *beams, "--n-best", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8
    assert lines[4:6] == ["", ""]
    shown = [line.split("\t") for line in lines[:4] + lines[6:]]
    assert [text for text, _ in shown[::2]] == best
    model = load_run(run_folder).model
    encode = Vocabulary("abcdefghijklmnopqrstuvwxyz").encode
    for word, first, second in zip(words, shown[::2], shown[1::2], strict=True):
        source = torch.tensor([encode(word)])
        expected = model.generate(
            source,
            num_beams=3,
            num_return_sequences=2,
            length_penalty=0.5,
            max_new_tokens=32,
            output_scores=True,
            return_dict_in_generate=True,
        )
        assert [float(first[1]), float(second[1])] == pytest.approx(
            expected.sequences_scores.tolist(), abs=1e-3
        )


@needs_safetensors
def test_unknown_characters_are_told_once(run_folder, capsys):
    assert main(["translate", str(run_folder), "çaç", "ç", "È", "--batch-size", "1"]) == 0
    output = capsys.readouterr()
    assert len(output.out.splitlines()) == 3
    assert output.err.splitlines() == [
        "seq2seq-ext: read as <unk>, not seen in training: 'ç'",
        "seq2seq-ext: read as <unk>, not seen in training: 'È'",
    ]


@needs_safetensors
def test_a_terminal_is_answered_line_by_line(run_folder):
    parent, child = pty.openpty()
    with seq2seq_ext("translate", run_folder, stdin=child, cwd=run_folder) as process:
        os.write(parent, b"fox\n")
        assert process.stdout.readline().strip()
        os.write(parent, b"\x04")
        assert process.wait(timeout=60) == 0
        assert "Ctrl-D ends" in process.stderr.read()
    os.close(parent)
    os.close(child)


@needs_safetensors
def test_a_reader_that_stops_early_is_no_error(run_folder, tmp_path):
    (tmp_path / "words").write_text("fox\n" * 20_000)
    arguments = ["translate", run_folder, "--file", tmp_path / "words"]
    with seq2seq_ext(*arguments, cwd=tmp_path) as process:
        assert process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=60) == 0
        assert process.stderr.read() == ""


@needs_safetensors
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["runs/nothing", "fox"], "runs/nothing is no run folder: it does not exist"),
        (["{run}", "--file", "no/such/words"], "No such file or directory: 'no/such/words'"),
        (["{run}", "--file", "{run}/model.safetensors"], "is not UTF-8 text"),
    ],
)
def test_what_is_missing_is_named_in_one_line(arguments, message, run_folder, capsys):
    assert main(["translate", *(part.format(run=run_folder) for part in arguments)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("seq2seq-ext: ")
    assert message in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("command", "package", "extra"),
    [
        (["demo"], "lemminflect", "demo"),
        (["demo"], "lightning", "demo"),
        (["translate", "runs/plural", "fox"], "safetensors", "train"),
    ],
)
def test_a_missing_extra_is_named_in_one_line(command, package, extra, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name.split(".")[0] == package else find(name, *rest),
    )
    assert main(command) == 1
    error = capsys.readouterr().err
    assert f"pip install 'seq2seq_ext[{extra}]'" in error
    assert len(error.splitlines()) == 1


# demo


@needs_demo
@pytest.mark.parametrize("task", ["plural", "past"])
def test_a_tiny_demo_ends_cleanly(task, tmp_path, capsys):
    tiny = ["--max-pairs", "64", "--epochs", "2", "--hidden-size", "16"]
    with seq2seq_ext("demo", task, *tiny, "--layer-seconds", "0.01", cwd=tmp_path) as process:
        text, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "64 pairs to learn, 64 dev, 64 test" in text
    for part in ("epoch 2/2", "tokens/s", "teacher-forced", "free-running", "exact match"):
        assert part in text
    # An untrained model gets next to nothing right: a mark stands before nearly every sample.
    assert text.count("wrong  ") >= 15
    for row in ("GRU inference", "GRU training", "LSTM inference", "LSTM training"):
        assert row in text

    folder = tmp_path / "runs" / task
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["pairs"] == {"train": 64, "dev": 64, "test": 64}
    assert 0 <= metrics["test"]["free_running"]["exact_match"] <= 1
    config = json.loads((folder / "config.json").read_text())
    assert config["settings"]["task"] == task
    assert main(["translate", str(folder), "fox", "ox"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


@needs_demo
@needs("plot", "matplotlib")
def test_a_tiny_bottleneck_draws_both_models(tmp_path):
    tiny = ["--max-pairs", "64", "--epochs", "1", "--hidden-size", "8", "--threads", "1"]
    with seq2seq_ext("demo", "bottleneck", *tiny, cwd=tmp_path) as process:
        text, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    folder = tmp_path / "runs" / "bottleneck"
    for picture in ("bottleneck.png", "attention.png"):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")
        assert picture in text
    assert re.search(r"64 unseen words: context vector \d+\.\d%, attention \d+\.\d%\n$", text)
    for name, kind in (("context_vector", "none"), ("attention", "general")):
        run = load_run(folder / name)
        assert run.model.config.attention == kind
        metrics = json.loads((folder / name / "metrics.json").read_text())
        assert sum(bucket["texts"] for bucket in metrics["by_length"]) == 64


@needs_demo
def test_a_demo_that_cannot_write_says_so_before_training(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["demo", "--out", str(tmp_path / "file")]) == 1
    output = capsys.readouterr()
    assert "File exists" in output.err
    assert output.out == ""


def test_the_table_of_layers_times_both_at_both_kinds_of_work():
    timings = layer_timings(batch_size=2, time_steps=3, hidden_size=4, seconds=0.01, min_repeats=2)
    assert [(t.layer, t.work) for t in timings] == [
        ("GRU", "inference"),
        ("GRU", "training"),
        ("LSTM", "inference"),
        ("LSTM", "training"),
    ]
    for timing in timings:
        assert 0 < timing.torch_best <= timing.torch_median
        assert 0 < timing.ours_best <= timing.ours_median
        assert timing.speedup == timing.torch_median / timing.ours_median
