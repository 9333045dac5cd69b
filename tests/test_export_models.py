"""``seq2seq-ext export``: other runtimes write what the model writes."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from serving_cases import WORDS, new_run

from seq2seq_ext.cli import main
from seq2seq_ext.data import extras
from seq2seq_ext.export import export_run, state_names, traced
from seq2seq_ext.export.checking import compare
from seq2seq_ext.export.modules import EncoderModule, StepModule
from seq2seq_ext.nn import prepack
from seq2seq_ext.training import load_run, save_run
from seq2seq_ext.training.int8 import narrowed, widened

pytest.importorskip("safetensors", reason="needs the extra [train]")

# Of two ways to add up scores that reach 100 here, in float32.
ROUNDING = 1e-3

EXAMPLE = Path(__file__).parents[1] / "examples" / "onnx_translate.py"
# Every cell, attention, output, bridge and tensor of a state comes at least once.
MODELS = {
    "rnn, reversed, context": {"cell": "rnn", "reverse_source": True, "context_every_step": True},
    "lstm, deep, two directions": {
        "cell": "lstm",
        "encoder_num_layers": 2,
        "decoder_num_layers": 2,
        "bidirectional": True,
    },
    "dot": {"attention": "dot"},
    "multi-head": {"attention": "multi_head", "attention_heads": 2, "bidirectional": True},
    "luong2015": {"cell": "lstm", "attention": "general", "input_feeding": True},
    "coverage": {
        "attention": "normalized_additive",
        "input_feeding": True,
        "coverage": True,
        "reset_after": False,
    },
    "cho2014": {
        "reset_after": False,
        "context_size": 8,
        "context_every_step": True,
        "bridge": "context",
        "output": "maxout",
        "output_rank": 4,
    },
    "bahdanau2015": {
        "reset_after": False,
        "bidirectional": True,
        "bridge": "dense",
        "attention": "additive",
        "attention_query": "previous",
        "output": "maxout",
    },
    "variants": {
        "cell": "lstm",
        "layer_norm": True,
        "peephole": True,
        "cell_clip": 2.0,
        "learn_initial_state": True,
        "attention": "additive",
        "input_feeding": True,
    },
}

needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="needs the extras [onnx] and [bench]",
)


def in_order(module):
    return lambda inputs: module(*inputs)


@pytest.mark.parametrize("name", MODELS)
def test_traced_graphs_are_the_model(name):
    """For batches and lengths other than those of the examples they were traced with."""
    model = new_run(**MODELS[name]).model
    programs = traced(model)
    encoder, step = programs.encoder.module(), programs.step.module()
    check = compare(
        model, in_order(encoder), lambda inputs: step(inputs[0], list(inputs[1:])), steps=12
    )
    assert check.same_tokens
    assert check.error < ROUNDING
    assert programs.encoder_outputs == state_names(model.config) == programs.step_inputs[1:]


@pytest.mark.parametrize("name", MODELS)
def test_the_two_modules_write_what_generate_writes(name):
    model = new_run(**MODELS[name]).model
    source = torch.tensor([[4, 5, 6, 7, 8], [9, 1, 0, 0, 0], [5, 5, 5, 0, 0]])
    lengths = torch.tensor([5, 2, 3])
    expected = model.generate(source, lengths, max_new_tokens=15)
    with torch.no_grad():
        state = dict(
            zip(state_names(model.config), EncoderModule(model)(source, lengths), strict=True)
        )
        tokens, rows = torch.full((3,), 2), []
        for _ in range(expected.size(1)):
            scores, *rest = StepModule(model)(tokens, list(state.values()))
            scores[:, [0, 2]] = -torch.inf
            tokens = scores.argmax(-1)
            rows.append(tokens)
            changing = state_names(model.config, changing=True)
            state |= dict(zip(changing, rest[-len(changing) :], strict=True))
    written = torch.stack(rows, 1)
    ended = (written == 3).cumsum(1) - (written == 3).long() > 0
    assert written.masked_fill(ended, 0).tolist() == expected.tolist()


@needs_onnx
@pytest.mark.parametrize(
    "name", ["rnn, reversed, context", "multi-head", "coverage", "cho2014", "bahdanau2015"]
)
def test_onnxruntime_writes_what_the_model_writes(name, tmp_path):
    check = export_run(new_run(**MODELS[name]), tmp_path / "out", "onnx")
    assert check.same_tokens
    assert check.error < ROUNDING


@needs_onnx
def test_the_command_and_the_example(tmp_path, capsys):
    run = new_run(cell="lstm", attention="general", input_feeding=True)
    save_run(tmp_path / "run", run)
    assert main(["export", str(tmp_path / "run"), "--format", "onnx"]) == 0
    told = capsys.readouterr().out
    assert "9 texts of 20 steps, the same tokens" in told
    folder = tmp_path / "run-onnx"
    about = json.loads((folder / "export.json").read_text())
    assert about["step"]["inputs"] == ["tokens", "h", "c", "keys", "values", "lengths", "feed"]
    assert about["batch_axis"]["h"] == 1
    assert about["batch_axis"]["keys"] == 0
    if EXAMPLE.exists():
        spec = importlib.util.spec_from_file_location("onnx_translate", EXAMPLE)
        example = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(example)
        texts = [*WORDS, "é!"]
        own = run.translate(texts, max_new_tokens=20)
        assert example.Translator(folder).translate(texts, 20) == own
    # Once more replaces it; what is no export is left alone.
    assert main(["export", str(tmp_path / "run"), "--format", "onnx"]) == 0
    kept = (tmp_path / "run" / "model.safetensors").read_bytes()
    for format in ("onnx", "prepacked"):
        out = ["--format", format, "--out", str(tmp_path / "run")]
        assert main(["export", str(tmp_path / "run"), *out]) == 1
        assert "no earlier export" in capsys.readouterr().err
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == kept
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "run-onnx"]


@pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor needs a C++ compiler")
def test_packages_of_aotinductor_write_what_the_model_writes(tmp_path):
    run = new_run(attention="additive", attention_query="previous")
    check = export_run(run, tmp_path / "out", "aoti")
    assert check.same_tokens
    assert check.error < ROUNDING


# In 8 bits.


@pytest.mark.parametrize("name", MODELS)
def test_a_prepacked_folder_is_the_prepacked_model(name, tmp_path):
    """Bit for bit, wherever the model's layers run prepacked."""
    run = new_run(**MODELS[name])
    save_run(tmp_path / "run", run)
    assert main(["export", str(tmp_path / "run"), "--format", "prepacked"]) == 0
    loaded = load_run(tmp_path / "run-prepacked")
    source = torch.tensor([[4, 5, 6, 7, 8], [9, 1, 0, 0, 0]])
    lengths = torch.tensor([5, 2])
    with torch.no_grad():
        own = prepack(run.model, torch.int8).encoder(source, lengths)
        assert torch.equal(loaded.model.encoder(source, lengths).outputs, own.outputs)
        if not run.model.config.feeds_back:
            for a, b in zip(
                loaded.model.decoder(source, loaded.model.start(source, lengths)),
                run.model.decoder(source, run.model.start(source, lengths)),
                strict=True,
            ):
                if isinstance(a, torch.Tensor):
                    assert torch.equal(a, b)
    assert len(loaded.translate(WORDS)) == len(WORDS)


def test_8_bits_take_a_quarter(tmp_path):
    run = new_run(encoder_hidden_size=256, decoder_hidden_size=256)
    export_run(run, tmp_path / "narrow", "prepacked")
    save_run(tmp_path / "wide", run)
    narrow, wide = (
        (tmp_path / name / "model.safetensors").stat().st_size for name in ("narrow", "wide")
    )
    assert narrow < 0.3 * wide


def test_rounding_again_loses_nothing():
    torch.manual_seed(0)
    model = new_run(cell="lstm").model
    model.encoder.stack.rnn.weight_hh_l0.data[3] = 0  # a row without a largest weight
    model.encoder.stack.rnn.weight_hh_l0.data[4] *= 1e-30
    once = narrowed(model, model.state_dict())
    weights, is_narrow = widened(once)
    assert is_narrow
    again = narrowed(model, weights)
    assert once.keys() == again.keys()
    assert all(torch.equal(once[name], again[name]) for name in once)
    for name, weight in model.state_dict().items():
        bound = weight.abs().amax(-1, keepdim=True) / 127 / 2 * (1 + 1e-6)
        assert ((weights[name] - weight).abs() <= bound).all()


def test_wrong_arguments_are_named(tmp_path, monkeypatch):
    run = new_run()
    with pytest.raises(ValueError, match=r"format must be one of .* got 'tflite'"):
        export_run(run, tmp_path / "out", "tflite")
    with pytest.raises(ValueError, match=r"copy=False to be traced.* got copy=True"):
        traced(new_run(attention="general", copy=True).model)
    with pytest.raises(ValueError, match=r"dtype must be None or torch\.int8, got torch\.int16"):
        save_run(tmp_path / "out", run, dtype=torch.int16)
    with pytest.raises(ValueError, match="recurrent layers of float32"):
        narrowed(run.model.double(), run.model.state_dict())
    with pytest.raises(ValueError, match=r"'w\.largest' beside 'w\.int8'"):
        widened({"w.int8": torch.zeros(2, 2, dtype=torch.int8)})
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name.startswith("onnx") else find(name)
    )
    with pytest.raises(extras.MissingExtraError, match=r"seq2seq_ext\[onnx\]"):
        export_run(new_run(), tmp_path / "out", "onnx")
    assert not any(tmp_path.iterdir())
