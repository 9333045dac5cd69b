"""Models of other packages as run folders: saved, loaded, translating, served."""

from __future__ import annotations

from pathlib import Path

import pytest
import test_pretrained_fairseq as fairseq
import test_pretrained_opennmt as opennmt
import torch
from pretrained_cases import PlainOpenNMT
from test_pretrained_g2p_en import needs_package

from seq2seq_ext.cli import main
from seq2seq_ext.data import Vocabulary, WordVocabulary
from seq2seq_ext.pretrained import PretrainedModel, load_fairseq, load_g2p_en, load_opennmt
from seq2seq_ext.training import Run, load_run, save_run

pytest.importorskip("safetensors", reason="needs the extra [train]")
WORDS = ["activationist", "cat", "", "naïve", "x", "straightforwardness"]


def saved(loaded: PretrainedModel, folder: Path, dtype: torch.dtype | None = None) -> Run:
    """What comes back of a run folder."""
    run = Run(loaded.model, loaded.source_vocabulary, loaded.target_vocabulary)
    save_run(folder, run, dtype=dtype)
    again = load_run(folder)
    assert again.model.config == loaded.model.config
    assert again.source_vocabulary == loaded.source_vocabulary
    assert again.target_vocabulary == loaded.target_vocabulary
    return again


@needs_package
def test_g2p_en_translates_from_its_folder(tmp_path: Path) -> None:
    g2p = load_g2p_en()
    assert type(g2p.source_vocabulary) is Vocabulary
    assert type(g2p.target_vocabulary) is WordVocabulary
    expected = [" ".join(phonemes) for phonemes in g2p.generate(WORDS)]
    assert expected[1] == "K AE1 T"
    run = saved(g2p, tmp_path / "g2p")
    assert run.model.config.source_eos
    assert run.translate(WORDS, max_new_tokens=20) == expected
    narrow = saved(g2p, tmp_path / "narrow", torch.int8)
    assert narrow.translate(["cat"], max_new_tokens=20) == ["K AE1 T"]


@needs_package
def test_the_command_translates_with_g2p_en(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(load_g2p_en(), tmp_path)
    assert main(["translate", str(tmp_path), "cat", "ox"]) == 0
    written = capsys.readouterr().out
    assert "K AE1 T" in written
    assert "AA1 K S" in written


@needs_package
def test_g2p_en_is_served(tmp_path: Path) -> None:
    serving = pytest.importorskip("seq2seq_ext.serving", reason="needs the extra [serve]")
    pytest.importorskip("httpx", reason="needs the extra [test]")
    client_of = pytest.importorskip("fastapi.testclient").TestClient
    run = saved(load_g2p_en(), tmp_path)
    app = serving.create_app({"g2p": run}, serving.ServingOptions())
    with client_of(app) as client:
        body = {"text": ["cat", "ox"], "num_beams": 2, "n_best": 2}
        answer = client.post("/translate", json=body).json()
    found = [[each["text"] for each in result["n_best"]] for result in answer["results"]]
    own = run.n_best(["cat", "ox"], 2, num_beams=2)
    assert found == [[each.text for each in each_text] for each_text in own]
    assert [texts[0] for texts in found] == ["K AE1 T", "AA1 K S"]


@fairseq.each_case
def test_models_of_fairseq_translate_from_their_folders(case: str, tmp_path: Path) -> None:
    loaded = load_fairseq(*fairseq.save(tmp_path, fairseq.plain(case).state_dict()))
    run = saved(loaded, tmp_path / "run")
    search = {"num_beams": 3, "max_new_tokens": 7}
    expected = loaded.generate([fairseq.SOURCE, ["ox"]], **search)
    # An unknown word is a replacement character in a text.
    texts = [" ".join(each).replace("<unk>", "\N{REPLACEMENT CHARACTER}") for each in expected]
    assert run.translate([" ".join(fairseq.SOURCE), "ox"], **search) == texts


def test_tied_models_of_opennmt_translate_from_their_folders(tmp_path: Path) -> None:
    theirs = PlainOpenNMT(source_size=9, target_size=9, embed=6)
    table = theirs.decoder.embeddings.make_embedding.emb_luts[0]
    theirs.generator.weight = table.weight
    theirs.encoder.embeddings.make_embedding.emb_luts[0].weight = table.weight
    opt = opennmt.options("input_feed", share_embeddings=True, share_decoder_embeddings=True)
    path = opennmt.save(tmp_path, theirs.state_dict(), opt, src=opennmt.TARGET_TOKENS)
    loaded = load_opennmt(path)
    run = saved(loaded, tmp_path / "run")
    assert run.model.encoder.embedding.weight is run.model.decoder.output.weight
    source = ["der", "Ochse", "lief"]
    expected = " ".join(loaded.generate([source], max_new_tokens=7)[0])
    options = {"num_beams": 5, "length_penalty": 0.0, "max_new_tokens": 7}
    (text,) = run.translate([" ".join(source)], **options)
    assert text == expected.replace("<unk>", "\N{REPLACEMENT CHARACTER}")


def test_a_word_with_a_white_space_is_read_as_a_token(tmp_path: Path) -> None:
    tokens = [*opennmt.SOURCE_TOKENS[:-1], "a\u00a0b"]
    path = opennmt.save(
        tmp_path, opennmt.plain("brnn").state_dict(), opennmt.options("brnn"), src=tokens
    )
    loaded = load_opennmt(path)
    assert loaded.encode([["a\u00a0b", "the", "</s>"]])[0].tolist() == [[6, 4, 1]]
    assert saved(loaded, tmp_path / "run").source_vocabulary.to_list()[-1] == "a\u00a0b"


def test_a_token_with_a_blank_is_refused_by_the_name_of_its_file(tmp_path: Path) -> None:
    path, dictionary, _ = fairseq.save(tmp_path, fairseq.plain("plain").state_dict())
    other = tmp_path / "other.txt"
    other.write_text("a b 3\n")
    with pytest.raises(ValueError, match=r"tokens in .*other\.txt .*without blanks, got 'a b'"):
        load_fairseq(path, dictionary, other)
