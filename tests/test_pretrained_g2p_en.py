"""`load_g2p_en` against g2p_en's decoder, written out in NumPy over the package's own arrays."""

from __future__ import annotations

import importlib.util
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from seq2seq_ext.data.extras import MissingExtraError
from seq2seq_ext.pretrained import PretrainedModel, load_g2p_en
from seq2seq_ext.pretrained.g2p_en import LETTERS, PHONEMES, installed_weights

needs_package = pytest.mark.skipif(
    importlib.util.find_spec("g2p_en") is None, reason="the package g2p_en is not installed"
)
LIMIT = 20


@pytest.fixture(scope="module")
def loaded() -> PretrainedModel:
    return load_g2p_en()


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    with np.load(installed_weights()) as file:
        return {name: file[name] for name in file.files}


def gru(x: Any, h: Any, w_ih: Any, w_hh: Any, b_ih: Any, b_hh: Any) -> Any:
    """One step for one row, gates r, z and n."""
    (x_r, x_z, x_n), (h_r, h_z, h_n) = np.split(w_ih @ x + b_ih, 3), np.split(w_hh @ h + b_hh, 3)
    r, z = 1 / (1 + np.exp(-x_r - h_r)), 1 / (1 + np.exp(-x_z - h_z))
    return (1 - z) * np.tanh(x_n + r * h_n) + z * h


def pronounce(arrays: dict[str, np.ndarray], word: str) -> tuple[list[str], list[Any]]:
    """The package's greedy decoding of one word: phonemes, and logits of each step."""
    gates = ("w_ih", "w_hh", "b_ih", "b_hh")
    encoder = [arrays[f"enc_{name}"] for name in gates]
    decoder = [arrays[f"dec_{name}"] for name in gates]
    graphemes, phonemes = ["<pad>", "<unk>", "</s>", *LETTERS], ["", "<unk>", "", "", *PHONEMES]
    h = np.zeros(256, np.float32)
    for letter in [*word, "</s>"]:
        index = graphemes.index(letter) if letter in graphemes else 1
        h = gru(arrays["enc_emb"][index], h, *encoder)
    found, logits, token = [], [], 2
    for _ in range(LIMIT):
        h = gru(arrays["dec_emb"][token], h, *decoder)
        logits.append(arrays["fc_w"] @ h + arrays["fc_b"])
        token = int(logits[-1].argmax())
        if token == 3:
            break
        found.append(phonemes[token])
    return found, logits


def words(count: int) -> list[str]:
    """Words that look English, one of no letter, some with characters unknown, some long."""
    generator = random.Random(0)
    parts = ["str", "ch", "an", "ing", "tion", "e", "ough", "qu", "i", "o", "ness", "un", "ph"]
    made = ["".join(generator.choices(parts, k=generator.randint(1, 9))) for _ in range(count)]
    return ["", "activationist", "don't", "naïve", "x-ray", "tion" * 12, *made]


@needs_package
def test_phonemes_are_those_of_the_package(
    loaded: PretrainedModel, arrays: dict[str, np.ndarray]
) -> None:
    sources = words(400)
    expected = [pronounce(arrays, word)[0] for word in sources]
    assert loaded.generate(sources) == expected
    assert loaded.generate(sources[1:2]) == expected[1:2]
    assert " ".join(expected[1]) == "AE2 K T IH0 V EY1 SH AH0 N IH0 S T"


@needs_package
def test_logits_are_those_of_the_package(
    loaded: PretrainedModel, arrays: dict[str, np.ndarray]
) -> None:
    for word in words(20):
        phonemes, logits = pronounce(arrays, word)
        source, lengths = loaded.encode([word])
        tokens = [2, *loaded.target_vocabulary.convert_tokens_to_ids(phonemes)][: len(logits)]
        state = loaded.model.start(source, lengths)
        found, _ = loaded.model.decoder(torch.tensor([tokens]), state)
        expected = torch.from_numpy(np.stack(logits))
        torch.testing.assert_close(found[0].detach(), expected, rtol=1e-4, atol=1e-4)


@needs_package
def test_beams_score_as_well_as_the_greedy_search(loaded: PretrainedModel) -> None:
    source, lengths = loaded.encode(words(10))
    settings = {"max_new_tokens": LIMIT, "output_scores": True, "return_dict_in_generate": True}
    greedy = loaded.model.generate(source, lengths, **settings)
    beams = loaded.model.generate(source, lengths, **settings, num_beams=5, length_penalty=0.0)
    assert (beams.sequences_scores >= greedy.sequences_scores - 1e-4).all()
    assert loaded.generate(["cat"], num_beams=3, num_return_sequences=3)[0] == ["K", "AE1", "T"]


def save(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    np.savez(path, **arrays)
    return path


@needs_package
def test_words_without_an_end_are_cut_off_where_the_package_cuts_them_off(
    arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    bias = arrays["fc_b"].copy()
    bias[3] -= 100  # no </s>
    endless = arrays | {"fc_b": bias}
    expected, _ = pronounce(endless, "cat")
    assert len(expected) == LIMIT
    assert load_g2p_en(save(tmp_path / "endless.npz", endless)).generate(["cat"]) == [expected]


@needs_package
def test_files_of_other_arrays_are_refused(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    path = save(tmp_path / "weights.npz", arrays)
    assert load_g2p_en(path).generate(["cat"]) == [["K", "AE1", "T"]]
    changes: dict[str, tuple[str, Any]] = {
        "must hold 'fc_b'": ("fc_b", None),
        "'fc_w' in .* must have shape (74, 256), got (3, 256)": ("fc_w", arrays["fc_w"][:3]),
        "weights of parts unknown: ['attention']": ("attention", np.ones(3)),
        "'enc_emb' and 'dec_emb' in .* must be matrices": ("enc_emb", np.ones(3)),
    }
    for message, (name, value) in changes.items():
        other = {key: array for key, array in arrays.items() if key != name}
        if value is not None:
            other[name] = value
        with pytest.raises(ValueError, match=re.escape(message).replace(r"\.\*", ".*")):
            load_g2p_en(save(path, other))


def test_what_is_no_file_of_arrays_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="path must be a file"):
        load_g2p_en(tmp_path / "missing.npz")
    for content in (b"", b"neither", b"PK\x03\x04 broken"):
        path = tmp_path / "broken.npz"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"broken\.npz is no file of arrays"):
            load_g2p_en(path)


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"'g2p_en'.*seq2seq_ext\[pretrained\]"):
        load_g2p_en()
