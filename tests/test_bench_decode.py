"""``seq2seq-ext bench --decode``: the peer is a right search, and the figures add up."""

from __future__ import annotations

import json

import pytest
import torch

from seq2seq_ext.benchmark.decode import measuring
from seq2seq_ext.benchmark.decode.measuring import DecodeCase, agreement, measure, ours
from seq2seq_ext.benchmark.decode.models import LENGTHS, MODELS, make, sentences
from seq2seq_ext.benchmark.decode.peer import TorchDecoder, Written
from seq2seq_ext.benchmark.workloads import OURS, TORCH, WrongResultError
from seq2seq_ext.cli import main
from seq2seq_ext.models import Seq2Seq, Seq2SeqConfig

SETTINGS = {name: settings for name, (_, settings) in MODELS.items()} | {
    "lstm": {"cell": "lstm", "encoder_num_layers": 2, "bidirectional": True},
    "dot": {"attention": "dot"},
    "attending, not fed": {"attention": "additive", "bidirectional": True, "attention_size": 7},
    "context": {"context_size": 9, "bridge": "context"},
}


def random_model(**settings):
    torch.manual_seed(3)
    sizes = {"encoder_hidden_size": 16, "decoder_hidden_size": 16}
    model = Seq2Seq(
        Seq2SeqConfig(source_vocab_size=64, target_vocab_size=20, **(sizes | settings))
    ).eval()
    for parameter in model.parameters():
        parameter.data.mul_(3)
    model.decoder.output.bias.data[3] += 1.7  # so that some end early
    return model


@pytest.mark.parametrize("num_beams", [1, 2, 5])
@pytest.mark.parametrize("name", SETTINGS)
def test_the_peer_writes_what_generate_writes(name, num_beams):
    model = random_model(**SETTINGS[name])
    source, lengths = sentences(24, seed=5)
    found = model.generate(
        source, lengths, num_beams=num_beams, max_new_tokens=20, output_scores=True,
        return_dict_in_generate=True,
    )  # fmt: skip
    mine = Written(found.sequences, found.sequences_scores)
    with torch.inference_mode():
        other = TorchDecoder(model).search(source, lengths, num_beams, 20)
    assert agreement([mine], [other], case=DecodeCase("any", 16, 24, num_beams, "float32", 1)) == 1
    assert found.lengths.unique().numel() > 1  # they end at several steps


def test_models_end_about_where_their_sentences_do():
    for name in MODELS:
        model = make(name, 32)
        source, lengths = sentences(40, seed=9)
        assert LENGTHS[0] <= int(lengths.min()) <= int(lengths.max()) <= LENGTHS[1]
        written = ours(model, source, lengths, 1).sequences
        mean = float((written != 0).sum(1).double().mean())
        assert 0.3 * LENGTHS[0] < mean < 2 * LENGTHS[1], name


def test_a_wrong_result_ends_the_run(monkeypatch):
    case = DecodeCase("context", 16, 4, 2, "float32", torch.get_num_threads())

    def wrong(self, source, lengths, beams, limit):
        return Written(source, torch.zeros(len(source)))

    monkeypatch.setattr(TorchDecoder, "search", wrong)
    with pytest.raises(WrongResultError, match="sentence 0 scores"):
        measure(case, repeats=1)


def test_figures_are_those_of_the_samples(monkeypatch):
    samples = {OURS: [[1.0, 3.0, 2.0], [4.0, 4.0, 7.0]], TORCH: [[8.0] * 3, [8.0, 9.0, 10.0]]}
    monkeypatch.setattr(measuring, "sampled", lambda *_: samples)
    case = DecodeCase("context", 16, 8, 1, "float32", torch.get_num_threads())
    row = measure(case, repeats=3)
    times = row.times[OURS]
    assert (times.average, times.best, times.median, times.sentences) == (3.5, 5, 6, 16)
    assert times.percentiles == {50: 3, 90: 7, 95: 7, 99: 7}
    assert times.sentences_per_second == pytest.approx(16 / 6)
    assert times.tokens_per_second == pytest.approx(times.tokens / 6)
    assert (row.speedup, row.median_speedup, row.same) == (16 / 5, 17 / 6, 1)


def test_the_command_writes_tables_and_json(tmp_path, capsys):
    arguments = ["--decode", "--hidden-sizes", "16", "--batch-sizes", "1,4", "--beams", "1,3"]
    arguments += ["--models", "general", "--dtypes", "float32,int8", "--threads", "1"]
    files = ["--json", str(tmp_path / "x.json"), "--markdown", str(tmp_path / "x.md")]
    assert main(["bench", *arguments, *files, "--repeats", "1"]) == 0
    table = capsys.readouterr().out
    assert (tmp_path / "x.md").read_text() == table
    rows = json.loads((tmp_path / "x.json").read_text())["rows"]
    assert [(row["batch_size"], row["num_beams"], row["dtype"]) for row in rows] == [
        (b, k, dtype) for b in (1, 4) for k in (1, 3) for dtype in ("float32", "int8")
    ]
    for row in rows:
        assert row["same"] == 1 if row["dtype"] == "float32" else 0 <= row["same"] <= 1
        for times in row["times"].values():
            assert 0 < times["percentiles"]["p50"] <= times["percentiles"]["p99"]
            assert times["best"] <= times["median"]
    assert table.count("\n| general | 16 |") == 2 * len(rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--beams", "5"], "--beams: only with --decode"),
        (["--decode", "--scaling"], "--scaling: not with --decode"),
        (["--decode", "--models", "other"], "other"),
        (["--decode", "--device", "cuda"], "only cpu with --decode"),
    ],
)
def test_wrong_use_is_named(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["bench", *arguments])
    assert message in capsys.readouterr().err


def test_other_models_are_refused():
    with pytest.raises(ValueError, match="in plain torch has no output=maxout"):
        TorchDecoder(random_model(output="maxout"))
