"""``seq2seq-ext evaluate``: the figures are those of the texts that ``translate`` writes."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from seq2seq_ext.cli import main
from seq2seq_ext.data import DataConfig, PairDataset, Vocabulary, WordVocabulary, load_data
from seq2seq_ext.metrics import error_rate, exact_match
from seq2seq_ext.models import Seq2Seq, Seq2SeqConfig
from seq2seq_ext.training import Run, evaluate, load_run, save_run

MISSING = [n for n in ("safetensors", "sacrebleu") if importlib.util.find_spec(n) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"needs the extra [train]: {MISSING}")

PAIRS = [(a + b + c, f"{c} {b}") for a in "abcd" for b in "abcd" for c in "abcd"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run that writes something or other, and the pairs that it was made for."""
    (tmp_path / "pairs.tsv").write_text("".join(f"{s}\t{t}\n" for s, t in PAIRS))
    config = DataConfig(pairs=str(tmp_path / "pairs.tsv"), target_unit="word", dev=0.2, test=0.3)
    train = load_data(config).train
    torch.manual_seed(1)
    model = Seq2Seq(
        Seq2SeqConfig(
            source_vocab_size=len(train.source_vocabulary),
            target_vocab_size=len(train.target_vocabulary),
            encoder_hidden_size=12,
            decoder_hidden_size=12,
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    run = Run(model, train.source_vocabulary, train.target_vocabulary, {"data": config.to_dict()})
    save_run(tmp_path / "run", run)
    return tmp_path / "run"


def figures(folder: Path, *arguments: object) -> dict[str, object]:
    path = folder.parent / "figures.json"
    assert main(["evaluate", str(folder), *map(str, arguments), "--json", str(path)]) == 0
    found: dict[str, object] = json.loads(path.read_text())
    return found


def test_figures_are_those_of_the_written_texts(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts, table = folder.parent / "texts.tsv", folder.parent / "table.md"
    options = ("--predictions", texts, "--markdown", table, "--beam", 3, "--n-best", 2)
    found = figures(folder, *options)
    assert capsys.readouterr().out == table.read_text()
    run = load_run(folder)
    test = load_data(DataConfig(**run.settings["data"])).test
    rows = [line.split("\t") for line in texts.read_text().splitlines()]
    assert [(source, right) for source, _, right in rows] == test.pairs
    written = [text for _, text, _ in rows]
    assert written == run.translate([source for source, _ in test.pairs], num_beams=3)
    assert found["texts"] == len(test)
    assert found["exact_match"] == pytest.approx(exact_match(written, [t for _, t in test.pairs]))
    rates = found["error_rates"]
    assert isinstance(rates, dict)
    assert rates["WER"] == pytest.approx(
        error_rate([t.split() for t in written], [[t.split()] for _, t in test.pairs])
    )
    oracle = found["oracle"]
    assert isinstance(oracle, dict)
    assert oracle["candidates"] == 2
    assert oracle["token_error_rate"] <= rates["WER"]


def test_greedy_figures_are_those_of_training(folder: Path) -> None:
    run = load_run(folder)
    pairs = load_data(DataConfig(**run.settings["data"])).dev
    expected = evaluate(run.model, pairs)
    found = figures(folder, "--set", "dev", "--batch-size", 5)
    assert found["loss"] == pytest.approx(expected.loss)
    assert found["teacher_forced"] == pytest.approx(expected.figures()["teacher_forced"])
    assert found["exact_match"] == pytest.approx(expected.free_running.exact_match)
    assert found["token_accuracy"] == pytest.approx(expected.free_running.token_accuracy)


def test_other_pairs_come_from_files(folder: Path) -> None:
    (folder.parent / "a.en").write_text("abc\nabc\nbcd\n")
    (folder.parent / "a.de").write_text("c b\nb c\nd  c\n")
    files = [folder.parent / "a.en", folder.parent / "a.de"]
    assert figures(folder, "--data", *files)["texts"] == 3
    assert figures(folder, "--data", *files, "--max-pairs", 2)["texts"] == 2
    found = figures(folder, "--data", *files, "--several-references")
    assert found["texts"] == 2
    dataset = PairDataset(
        [("bcd", "d  c")], Vocabulary("abcd"), WordVocabulary(["a", "b", "c", "d"])
    )
    assert dataset.references == [("d c",)], "blanks do not make a text wrong"


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--n-best", "2"], 2, "--n-best must be at most --num-beams, 1, got 2"),
        (["--length-penalty", "2"], 2, "--length-penalty needs --num-beams above 1"),
        (["--data", "a", "b", "c"], 2, "--data takes one or two files"),
        (["--data", "a", "--set", "dev"], 2, "--data takes one or two files, and no --set"),
        (["--several-references"], 2, "--several-references needs --data"),
        (["--data", "no/such/file"], 1, "No such file or directory: 'no/such/file'"),
        (["--data", "{empty}"], 1, "has no pairs"),
    ],
)
def test_what_it_cannot_take_is_named(
    folder: Path,
    arguments: list[str],
    status: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    empty = folder.parent / "empty"
    empty.write_text("")
    try:
        found = main(["evaluate", str(folder), *(part.format(empty=empty) for part in arguments)])
    except SystemExit as leaving:
        found = int(leaving.code or 0)
    assert found == status
    assert message in capsys.readouterr().err


def test_a_run_that_says_nothing_of_its_data_asks_for_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = load_run(folder)
    run.settings = {"task": "something"}
    save_run(folder, run)
    assert main(["evaluate", str(folder)]) == 1
    assert "does not say what it was trained on; give --data" in capsys.readouterr().err
    assert figures(folder, "--data", folder.parent / "pairs.tsv")["texts"] == len(PAIRS)
