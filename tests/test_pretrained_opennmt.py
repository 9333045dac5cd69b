"""`load_opennmt` against OpenNMT's mathematics in plain torch, and against OpenNMT-py itself."""

from __future__ import annotations

import re
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from pretrained_cases import PlainOpenNMT

from seq2seq_ext.pretrained import PretrainedModel, load_opennmt

SOURCE_TOKENS = ["<unk>", "<blank>", "<s>", "</s>", "the", "ox", "ran"]
TARGET_TOKENS = ["<unk>", "<blank>", "<s>", "</s>", "der", "Ochse", "￭,", "lief", "."]
CASES: dict[str, dict[str, Any]] = {
    "input_feed": {},
    "one_way_dot": {"attention": "dot", "layers": 1},
    "brnn": {"bidirectional": True},
    "standard": {"input_feed": False, "bidirectional": True, "layers": 3},
    "without_attention": {"input_feed": False, "attention": "none"},
    "gru_bridge": {"rnn_type": "GRU", "bridge": True},
    "lstm_bridge": {"bridge": True, "bidirectional": True, "layers": 3},
    "mlp": {"attention": "mlp", "bidirectional": True},
    "mlp_standard": {"attention": "mlp", "input_feed": False, "rnn_type": "GRU"},
    "standard_gru": {"rnn_type": "GRU", "input_feed": False},
}
each_case = pytest.mark.parametrize("case", CASES)


def plain(case: str) -> PlainOpenNMT:
    torch.manual_seed(1)
    sizes = {"source_size": len(SOURCE_TOKENS), "target_size": len(TARGET_TOKENS)}
    return PlainOpenNMT(**sizes, **CASES[case]).eval()


def options(case: str, **changes: Any) -> Namespace:
    """What of a checkpoint's options OpenNMT builds a model from."""
    settings = CASES[case]
    values: dict[str, Any] = {
        "rnn_type": settings.get("rnn_type", "LSTM"),
        "brnn": settings.get("bidirectional", False),
        "enc_layers": settings.get("layers", 2),
        "dec_layers": settings.get("layers", 2),
        "enc_hid_size": 6,
        "dec_hid_size": 6,
        "bridge": settings.get("bridge", False),
        "global_attention": settings.get("attention", "general"),
        "global_attention_function": "softmax",
        "coverage_attn": False,
        "context_gate": None,
        "copy_attn": False,
        "copy_attn_type": "general",
        "reuse_copy_attn": False,
        "dropout": [0.3],
        "share_embeddings": False,
        "share_decoder_embeddings": False,
    }
    return Namespace(**(values | changes))


def save(folder: Path, tensors: dict[str, torch.Tensor], opt: Namespace, **vocabulary: Any) -> Path:
    """A checkpoint as ``onmt.models.model_saver`` writes it."""
    path = folder / "model_step_10.pt"
    prefix = "generator."
    model = {name: x for name, x in tensors.items() if not name.startswith(prefix)}
    generator = {name.removeprefix(prefix): x for name, x in tensors.items() if name not in model}
    vocabularies = {
        "src": SOURCE_TOKENS,
        "tgt": TARGET_TOKENS,
        "data_task": "seq2seq",
        "decoder_start_token": "<s>",
    }
    entries = {"model": model, "generator": generator, "opt": opt, "optim": {"training_step": 10}}
    torch.save(entries | {"vocab": vocabularies | vocabulary}, path)
    return path


def logits_of(loaded: PretrainedModel, source: list[str], written: list[str]) -> torch.Tensor:
    """(len(written) + 1, V) in the order of their ids."""
    ids, lengths = loaded.encode([source])
    inputs = [2, *loaded.target_vocabulary.convert_tokens_to_ids(written)]
    logits, _ = loaded.model.decoder(torch.tensor([inputs]), loaded.model.start(ids, lengths))
    names = ["<unk>", "<pad>", *TARGET_TOKENS[2:]]
    return logits[0][:, [loaded.target_vocabulary.to_list().index(name) for name in names]]


SOURCE, WRITTEN = ["the", "cow", "ran"], ["der", "lief", "￭,"]
THEIR_SOURCE, THEIR_INPUTS = [4, 0, 6], [2, 4, 7, 6]


@each_case
def test_logits_are_those_of_opennmts_mathematics(case: str, tmp_path: Path) -> None:
    theirs = plain(case)
    loaded = load_opennmt(save(tmp_path, theirs.state_dict(), options(case)))
    found = logits_of(loaded, SOURCE, WRITTEN)
    torch.testing.assert_close(found, theirs(THEIR_SOURCE, THEIR_INPUTS), rtol=1e-5, atol=1e-5)
    assert loaded.model.config.dropout == 0.3


@each_case
def test_logits_are_those_of_opennmt(case: str, tmp_path: Path) -> None:
    pytest.importorskip("onmt", reason="OpenNMT-py is not installed")
    from onmt.decoders.decoder import InputFeedRNNDecoder, StdRNNDecoder
    from onmt.encoders.rnn_encoder import RNNEncoder
    from onmt.models.model import NMTModel
    from onmt.modules import Embeddings

    opt = options(case)
    sizes = (len(SOURCE_TOKENS), len(TARGET_TOKENS))
    embeddings = [Embeddings(5, size, SOURCE_TOKENS.index("<blank>")) for size in sizes]
    feeds = CASES[case].get("input_feed", True)
    decoder = (InputFeedRNNDecoder if feeds else StdRNNDecoder).from_opt(opt, embeddings[1])
    theirs = NMTModel(RNNEncoder.from_opt(opt, embeddings[0]), decoder).eval()
    weights = plain(case).state_dict()
    torch.nn.Module.load_state_dict(
        theirs, {k: x for k, x in weights.items() if not k.startswith("generator")}, strict=True
    )
    source = torch.tensor(THEIR_SOURCE)[None, :, None]
    inputs = torch.tensor([*THEIR_INPUTS, 3])[None, :, None]  # theirs leaves the last one out
    outputs, _ = theirs(source, inputs, torch.tensor([len(THEIR_SOURCE)]))
    expected = outputs[0] @ weights["generator.weight"].T + weights["generator.bias"]
    loaded = load_opennmt(save(tmp_path, weights, opt))
    found = logits_of(loaded, SOURCE, WRITTEN)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_embeddings_shared_there_are_tied_here(tmp_path: Path) -> None:
    theirs = PlainOpenNMT(source_size=9, target_size=9, embed=6)
    table = theirs.decoder.embeddings.make_embedding.emb_luts[0]
    theirs.generator.weight = table.weight
    theirs.encoder.embeddings.make_embedding.emb_luts[0].weight = table.weight
    opt = options("input_feed", share_embeddings=True, share_decoder_embeddings=True)
    loaded = load_opennmt(save(tmp_path, theirs.state_dict(), opt, src=TARGET_TOKENS))
    assert loaded.model.config.tie_embeddings == "all"
    assert loaded.model.encoder.embedding.weight is loaded.model.decoder.output.weight
    found = logits_of(loaded, ["der", "lief"], WRITTEN)
    torch.testing.assert_close(found, theirs([4, 7], THEIR_INPUTS), rtol=1e-5, atol=1e-5)

    # A decoder that begins with </s> reads another row than it scores: that cannot be one matrix.
    path = save(tmp_path, theirs.state_dict(), opt, src=TARGET_TOKENS, decoder_start_token="</s>")
    loaded = load_opennmt(path)
    assert loaded.model.config.tie_embeddings == "none"
    found = logits_of(loaded, ["der", "lief"], WRITTEN)
    torch.testing.assert_close(found, theirs([4, 7], [3, 4, 7, 6]), rtol=1e-5, atol=1e-5)


def test_weights_in_safetensors_lie_beside_the_checkpoint(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    theirs = plain("brnn")
    path = save(tmp_path, theirs.state_dict(), options("brnn"))
    checkpoint = torch.load(path, weights_only=False)
    del checkpoint["model"], checkpoint["generator"]
    torch.save(checkpoint, path)
    with pytest.raises(FileNotFoundError, match=r"there is no .*model_step_10\.safetensors"):
        load_opennmt(path)
    safetensors.save_file(dict(theirs.state_dict()), path.with_suffix(".safetensors"))
    found = logits_of(load_opennmt(path), SOURCE, WRITTEN)
    torch.testing.assert_close(found, theirs(THEIR_SOURCE, THEIR_INPUTS), rtol=1e-5, atol=1e-5)


def test_coverage_that_opennmt_never_reads_changes_nothing(tmp_path: Path) -> None:
    theirs = plain("input_feed")
    tensors = theirs.state_dict() | {"decoder.attn.linear_cover.weight": torch.ones(6, 1)}
    loaded = load_opennmt(save(tmp_path, tensors, options("input_feed", coverage_attn=True)))
    found = logits_of(loaded, SOURCE, WRITTEN)
    torch.testing.assert_close(found, theirs(THEIR_SOURCE, THEIR_INPUTS), rtol=1e-5, atol=1e-5)


def test_beams_come_back_as_tokens(tmp_path: Path) -> None:
    loaded = load_opennmt(save(tmp_path, plain("brnn").state_dict(), options("brnn")))
    found = loaded.generate([SOURCE, ["ox"]], max_new_tokens=4, num_return_sequences=2)
    assert len(found) == 4
    assert all(set(tokens) <= set(TARGET_TOKENS) for tokens in found)


def refused(message: str, path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        load_opennmt(path)


def test_parts_without_a_counterpart_are_refused(tmp_path: Path) -> None:
    tensors = plain("input_feed").state_dict()

    def path(more: dict[str, Any] | None = None, **changes: Any) -> Path:
        return save(tmp_path, tensors | (more or {}), options("input_feed", **changes))

    mlp_too = {"decoder.attn.linear_query.bias": torch.ones(6)}
    refused("rnn_type in", path(rnn_type="SRU"))
    refused("must be one of ['GRU', 'LSTM'], got 'RNN'", path(rnn_type="RNN"))
    refused("must be 'softmax', got 'sparsemax'", path(global_attention_function="sparsemax"))
    refused("parts unknown: ['decoder.attn.linear_query.bias", path(mlp_too))
    gate = {"decoder.context_gate.context_gate.gate.weight": torch.ones(6, 6)}
    refused("parts unknown: ['decoder.context_gate", path(gate))
    copying = {"decoder.copy_attn.linear_in.weight": torch.ones(6, 6)}
    refused("parts unknown: ['decoder.copy_attn", path(copying))
    fed = save(
        tmp_path,
        {name: x for name, x in tensors.items() if ".attn." not in name},
        options("input_feed"),
    )
    refused("feeds a decoder without attention", fed)
    start = save(tmp_path, tensors, options("input_feed"), decoder_start_token="")
    refused("decoder_start_token in", start)
    torch.save({"model": {}}, start)
    refused("must be a checkpoint of OpenNMT-py 3", start)
