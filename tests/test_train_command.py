"""``seq2seq-ext train``: killed and resumed, on two processes, and given what it cannot take."""

from __future__ import annotations

import csv
import importlib.util
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from seq2seq_ext import cli
from seq2seq_ext.cli import main
from seq2seq_ext.training import load_run

MISSING = [
    name
    for name in ("jsonargparse", "lightning", "rich", "safetensors", "tensorboard")
    if importlib.util.find_spec(name) is None
]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"needs the extra [train]: {MISSING}")

PAIRS = [(a + b + c, c + b + a + a) for a in "abcd" for b in "abcd" for c in "abcd"]
TINY = [
    "--threads",
    "1",
    "--data.dev",
    "0.2",
    "--model.encoder_hidden_size",
    "16",
    "--model.decoder_hidden_size",
    "16",
    "--training.batch_size",
    "8",
    "--training.epochs",
    "5",
    "--training.log_every",
    "1",
]
# Figures that the clock has a part in.
BY_TIME = ("seconds", "source_tokens_per_second", "target_tokens_per_second")
PROGRAM = "import sys; from seq2seq_ext.cli import main; sys.exit(main())"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.tsv"
    path.write_text("".join(f"{source}\t{target}\n" for source, target in PAIRS))
    return path


def start(arguments: Sequence[object], launcher: Sequence[str] = ()) -> subprocess.Popen[str]:
    """The command in a process, or several processes, of its own, on the package under test."""
    package = str(Path(cli.__file__).parents[2])
    command = [*launcher, "-m", "seq2seq_ext.cli"] if launcher else ["-c", PROGRAM]
    return subprocess.Popen(
        [sys.executable, *command, "train", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONPATH": package, "OMP_NUM_THREADS": "1"},
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def log(folder: Path) -> list[dict[str, str]]:
    """The run's log without what depends on time."""
    with open(folder / "metrics.csv", newline="") as lines:
        rows = list(csv.DictReader(lines))
    return [{k: v for k, v in row.items() if k not in BY_TIME} for row in rows]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_run(folder).model.state_dict()


def assert_equal_runs(left: Path, right: Path) -> None:
    assert log(left) == log(right)
    for name, value in weights(left).items():
        assert torch.equal(value, weights(right)[name]), name


def test_a_run_that_is_killed_again_and_again_ends_like_one_that_is_not(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    arguments = ["--data", data, *TINY, "--model.dropout", "0.2", "--training.epochs", "40"]
    arguments += ["--training.teacher_forcing_ratio", "0.7", "--training.checkpoint_steps", "1"]
    arguments += ["--training.samples", "0"]
    assert main(["train", *map(str, arguments), "--out", str(whole)]) == 0
    kills, chance = 0, random.Random(0)
    while not (broken / "metrics.json").exists():
        resume = ["--resume"] if kills else []
        process = start([*arguments, "--out", broken, *resume])
        if kills < 3:
            checkpoint = broken / "checkpoints" / "last.ckpt"
            before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
            while process.poll() is None and (
                not checkpoint.exists() or checkpoint.stat().st_mtime_ns == before
            ):
                time.sleep(0.001)
            time.sleep(chance.uniform(0.0, 0.2))
            process.kill()
            process.communicate()
            kills += 1
        else:
            finish(process)
    assert kills == 3
    assert_equal_runs(whole, broken)
    leftovers = {path.name for path in (broken / "checkpoints").iterdir()}
    assert "last.ckpt" in leftovers
    assert len(leftovers) == 2, leftovers  # and the best

    before_end = (broken / "config.yaml").read_text()
    assert main(["train", str(broken / "config.yaml"), "--resume"]) == 0
    assert "has ended" in capfd.readouterr().out
    assert (broken / "config.yaml").read_text() == before_end
    assert main(["train", str(broken / "config.yaml")]) == 1
    assert "holds a run; give --resume" in capfd.readouterr().err


@pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="this torch has no gloo"
)
def test_two_processes_and_accumulation_learn_what_one_process_learns(
    data: Path, tmp_path: Path
) -> None:
    arguments = ["--data", data, *TINY]
    one, two, parts, shards = (tmp_path / name for name in ("one", "two", "parts", "shards"))
    main(["train", *map(str, arguments), "--out", str(one)])
    accumulate = ["--training.accumulate", "3"]
    main(["train", *map(str, arguments), *accumulate, "--out", str(parts)])
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    finish(start([*arguments, "--out", two], launcher))
    finish(start([*arguments, "--out", shards, "--training.strategy", "fsdp"], launcher))
    alone = [float(row["loss"]) for row in log(one) if row["loss"]]
    assert alone[-1] < alone[0]
    for other in (two, parts, shards):
        assert [float(row["loss"]) for row in log(other) if row["loss"]] == pytest.approx(
            alone, rel=0.01
        )
        for name, value in weights(one).items():
            torch.testing.assert_close(weights(other)[name], value, rtol=0, atol=1e-3)


def test_a_checkpoint_of_two_processes_goes_on_in_one(data: Path, tmp_path: Path) -> None:
    arguments = ["--data", data, *TINY, "--training.checkpoint_steps", "1", "--training.epochs"]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    main(["train", *map(str, arguments), "6", "--out", str(whole)])
    limit = ["--training.max_steps", "7", "--training.schedule", "constant"]
    finish(start([*arguments, "6", "--out", moved, *limit], launcher))
    (moved / "metrics.json").unlink()  # as if it had not ended
    first = log(moved)
    assert main(["train", *map(str, arguments), "6", "--out", str(moved), "--resume"]) == 0
    rows = log(moved)
    assert rows[: len(first)] == first
    steps = [row["step"] for row in rows if row["loss"]]
    assert steps == [row["step"] for row in log(whole) if row["loss"]]


@pytest.mark.parametrize("preset", ["luong2015", "gnmt"])
def test_the_printed_config_prints_itself(
    preset: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data", str(data), "--preset", preset, "--model.dropout", "0.3"]
    assert main(["train", *arguments, "--print-config"]) == 0
    printed = capsys.readouterr().out
    assert "dropout: 0.3" in printed
    assert "encoder_num_layers: 4" in printed
    (tmp_path / "config.yaml").write_text(printed)
    assert main(["train", str(tmp_path / "config.yaml"), "--print-config"]) == 0
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--model.hiden_size", "3"], 2, "unrecognized arguments: --model.hiden_size"),
        (["--training.epochs", "many"], 2, '"training.epochs": Expected a'),
        (
            ["--data", "{data}", "--out", "{data}-run", "--training.accelerator", "abacus"],
            1,
            "abacus",
        ),
        (["no/such.yaml"], 2, "no/such.yaml"),
        (["--data", "p.tsv", "--training.epochs", "0"], 1, "epochs must be an int of at least 1"),
        ([], 1, "data.task or data.pairs must be given"),
        (["--data", "no/such.tsv"], 1, "No such file or directory: 'no/such.tsv'"),
        (["--data", "p.tsv", "--training.strategy", "tp"], 1, "strategy must be one of auto, ddp"),
        (
            ["--data", "{data}", "--out", "{data}-run", "--model.tie_embeddings", "all"],
            1,
            "model.tie_embeddings=all needs data.share_vocabulary=true, got false",
        ),
        (
            ["--data", "{data}", "--out", "{data}-run", "--training.coverage_loss", "1"],
            1,
            "coverage_loss must be 0 without attention, got 1",
        ),
    ],
)
def test_what_it_cannot_take_is_named_in_one_line(
    arguments: list[str],
    status: int,
    message: str,
    data: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    try:
        found = main(["train", *(part.format(data=data) for part in arguments)])
    except SystemExit as leaving:
        found = int(leaving.code or 0)
    assert found == status
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_another_model_does_not_go_on(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", "--data", str(data), *TINY, "--out", str(tmp_path / "run")]
    assert main(arguments) == 0
    (tmp_path / "run" / "metrics.json").unlink()  # as if it had not ended
    capsys.readouterr()
    assert main([*arguments, "--resume", "--model.decoder_hidden_size", "8"]) == 1
    assert "decoder_hidden_size must stay 16 in a run that is resumed" in capsys.readouterr().err


@pytest.mark.skipif(
    importlib.util.find_spec("tokenizers") is None, reason="needs the extra [train]: tokenizers"
)
def test_subwords_batches_of_tokens_and_a_cache_go_on_in_every_bit(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dev = tmp_path / "dev.tsv"
    dev.write_text("abc\tcbaa\nbad\tdabb\n")
    options = ["train", f"--data={data}", "--data.dev", str(dev), "--data.test", "0", *TINY[4:]]
    options += ["--threads", "1", "--data.cache", str(tmp_path / "cache")]
    options += ["--data.source_unit", "unigram", "--data.target_unit", "bpe"]
    options += ["--data.source_vocab_size", "12", "--data.target_vocab_size", "14"]
    options += ["--training.batch_tokens", "40", "--training.metric", "loss"]
    options += ["--training.schedule", "constant", "--training.warmup", "0"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert main([*options, "--out", str(whole)]) == 0
    assert main([*options, "--out", str(broken), "--training.max_steps", "7"]) == 0
    (broken / "metrics.json").unlink()  # as if it had not ended
    assert main([*options, "--out", str(broken), "--resume"]) == 0
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(broken)[name]), name
    losses = [
        {row["step"]: row["loss"] for row in log(run) if row["loss"]} for run in (whole, broken)
    ]
    assert losses[0] == losses[1]
    (broken / "metrics.json").unlink()
    capsys.readouterr()
    assert main([*options, "--out", str(broken), "--resume", "--training.batch_tokens", "50"]) == 1
    assert "batch_tokens must stay 40 in a run that is resumed" in capsys.readouterr().err


def test_a_run_goes_by_its_own_vocabularies_and_its_own_data(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    arguments = ["train", "--data", str(data), *TINY, "--out", str(folder)]
    assert main(arguments) == 0
    kept = (folder / "source_vocabulary.json").read_text()
    (folder / "metrics.json").unlink()  # as if it had not ended
    with open(data, "a") as file:
        file.writelines(f"{'x' * i}\t{'y' * i}\n" for i in range(1, 21))
    capsys.readouterr()
    assert main([*arguments, "--resume"]) == 1
    assert "dataset must be the one that the run was begun with" in capsys.readouterr().err
    assert (folder / "source_vocabulary.json").read_text() == kept


def test_one_embedding_serves_both_sides(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = ["train", "--data", str(data), *TINY, "--out", str(folder)]
    arguments += ["--data.share_vocabulary", "true", "--model.tie_embeddings", "all"]
    arguments += ["--model.source_embedding_size", "16", "--model.target_embedding_size", "16"]
    assert main(arguments) == 0
    run = load_run(folder)
    assert run.source_vocabulary == run.target_vocabulary
    assert run.model.encoder.embedding.weight is run.model.decoder.output.weight


def test_another_dev_set_does_not_go_on(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dev = tmp_path / "dev.tsv"
    dev.write_text("abc\tcbaa\nbad\tdabb\n")
    arguments = ["train", "--data", str(data), "--data.dev", str(dev), "--data.test", "0"]
    arguments += [*TINY[4:], "--threads", "1", "--out", str(tmp_path / "run")]
    assert main(arguments) == 0
    (tmp_path / "run" / "metrics.json").unlink()  # as if it had not ended
    dev.write_text("abc\tcbaa\ndab\tbadd\n")
    capsys.readouterr()
    assert main([*arguments, "--resume"]) == 1
    assert "dev must be the set that the run was begun with" in capsys.readouterr().err


def test_embeddings_begin_with_the_vectors_of_a_file(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vectors = tmp_path / "vectors.txt"
    vectors.write_text("a 0.5 -0.5\nb 1 2\nx 3 4\n")
    arguments = ["train", "--data", str(data), *TINY, "--source-vectors", str(vectors)]
    arguments += ["--target-vectors", str(vectors), "--freeze-vectors", "true"]
    arguments += ["--model.target_embedding_size", "2", "--out", str(tmp_path / "run")]
    assert main(arguments) == 1
    assert "must be a token and 64 numbers, got 2" in capsys.readouterr().err
    assert main([*arguments, "--model.source_embedding_size", "2"]) == 0
    assert "has vectors of 2 of the 8 source tokens" in capsys.readouterr().out
    run = load_run(tmp_path / "run")
    for side, part in (("source", run.model.encoder), ("target", run.model.decoder)):
        ids = getattr(run, f"{side}_vocabulary").convert_tokens_to_ids("ab")
        assert part.embedding.weight[ids].tolist() == [[0.5, -0.5], [1.0, 2.0]]


def test_a_line_without_two_columns_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.tsv").write_text("a\tb\nc\n")
    assert main(["train", "--data", str(tmp_path / "bad.tsv"), "--out", str(tmp_path / "r")]) == 1
    assert "line 2 must have two columns" in capsys.readouterr().err
