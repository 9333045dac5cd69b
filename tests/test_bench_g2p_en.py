"""The row of g2p_en in ``seq2seq-ext bench --decode``: its peer is the package's own decoder."""

from __future__ import annotations

import importlib.util
import json
from types import SimpleNamespace

import pytest
import torch

from seq2seq_ext.benchmark.decode import g2p_en, measuring
from seq2seq_ext.benchmark.decode.numpy_g2p import MAX_PHONEMES, NumpyG2p
from seq2seq_ext.benchmark.workloads import OURS, WrongResultError
from seq2seq_ext.cli import main
from seq2seq_ext.pretrained.g2p_en import installed_weights

needs_packages = pytest.mark.skipif(g2p_en.missing() is not None, reason=str(g2p_en.missing()))
WORDS = ["activationist", "ox", "straightforwardness", "naïve", "", "tion" * 12]


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@needs_packages
def test_the_peer_writes_what_the_package_itself_writes(monkeypatch):
    nltk = pytest.importorskip("nltk")
    monkeypatch.setattr(nltk.data, "find", lambda name: name)  # or importing it fetches data
    package = pytest.importorskip("g2p_en.g2p")
    monkeypatch.setattr(package, "cmudict", SimpleNamespace(dict=dict))
    theirs = package.G2p()
    decoder = NumpyG2p(installed_weights())
    for word in [*WORDS, *g2p_en.words()[::5]]:
        assert decoder(word) == theirs.predict(word), word
    for bias in (theirs.fc_b, decoder.output_bias):
        bias[3] -= 100  # no </s>
    assert decoder("ox") == theirs.predict("ox")
    assert len(decoder("ox")) == MAX_PHONEMES


@needs_packages
def test_words_are_some_hundred_of_letters_alone():
    words = g2p_en.words()
    assert 200 < len(words) == len(set(words)) < 500
    assert all(set(word) <= set("abcdefghijklmnopqrstuvwxyz") for word in words)
    assert words == g2p_en.words()


@needs_packages
@pytest.mark.parametrize("dtype", measuring.DTYPES)
def test_both_write_the_same_phonemes(dtype):
    row = g2p_en.measure(dtype, WORDS, repeats=1)
    assert (row.peer, list(row.times)) == (g2p_en.NUMPY, [OURS, g2p_en.NUMPY])
    assert row.same == 1 if dtype == "float32" else row.same >= 0.5
    assert torch.get_num_threads() == 1
    for times in row.times.values():
        assert times.sentences == len(WORDS)
        assert 0 < times.best <= times.median


@needs_packages
def test_figures_are_those_of_the_samples(monkeypatch):
    samples = {OURS: [[1.0, 3.0, 2.0], [4.0, 4.0, 7.0]], g2p_en.NUMPY: [[8.0] * 3, [9.0] * 3]}
    monkeypatch.setattr(g2p_en, "sampled", lambda *_: samples)
    row = g2p_en.measure("float32", ["cat", "ox"], repeats=3)
    assert (row.times[OURS].best, row.times[OURS].median) == (5, 6)
    assert (row.speedup, row.median_speedup) == (17 / 5, 17 / 6)
    assert row.times[OURS].sentences_per_second == pytest.approx(2 / 6)
    assert row.times[OURS].tokens == 8  # K AE1 T </s>, AA1 K S </s>
    assert g2p_en._tokens([["K"], ["K"] * MAX_PHONEMES]) == 2 + MAX_PHONEMES  # one without </s>


@needs_packages
def test_other_phonemes_end_the_run(monkeypatch):
    monkeypatch.setattr(NumpyG2p, "__call__", lambda self, word: ["K"])
    with pytest.raises(WrongResultError, match=r"0\.0% of the words"):
        g2p_en.measure("float32", ["cat", "ox"], repeats=1)
    assert g2p_en.measure("int8", ["cat", "ox"], repeats=1).same == 0


@needs_packages
def test_the_command_tells_the_rows_and_their_versions(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(g2p_en, "words", lambda: WORDS[:3])
    arguments = ["--models", "g2p_en", "--threads", "1", "--repeats", "1"]
    assert main(["bench", "--decode", *arguments, "--json", str(tmp_path / "x.json")]) == 0
    table = capsys.readouterr().out
    figures = json.loads((tmp_path / "x.json").read_text())
    assert [row["dtype"] for row in figures["rows"]] == list(measuring.DTYPES)
    assert figures["rows"][0]["same"] == 1
    assert set(figures["versions"]) == {OURS, "torch", "numpy", "g2p_en"}
    assert figures["left_out"] == {}
    assert table.count("\n| g2p_en | 256 | 1 | 1 | float32 | 1 | numpy |") == 3
    assert "left out" not in table


def test_where_it_is_not_installed_the_table_says_so(tmp_path, capsys, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "g2p_en" else found(name)
    )
    assert main(["bench", "--decode", "--models", "g2p_en", "--json", str(tmp_path / "x")]) == 0
    written = capsys.readouterr()
    why = "g2p_en is not installed (pip install 'seq2seq_ext[pretrained]')"
    assert f"- `g2p_en` is left out: {why}" in written.out
    assert why in written.err
    figures = json.loads((tmp_path / "x").read_text())
    assert (figures["rows"], figures["left_out"]) == ([], {"g2p_en": why})
    assert "g2p_en" not in figures["versions"]


@pytest.mark.parametrize(
    "arguments",
    [["--beams", "1,5"], ["--batch-sizes", "64"], ["--hidden-sizes", "128"], ["--threads", "2"]],
)
def test_sizes_that_the_row_does_not_have_are_refused(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["bench", "--decode", "--models", "g2p_en", *arguments])
    assert f"{arguments[0]}: not with --models g2p_en alone" in capsys.readouterr().err
