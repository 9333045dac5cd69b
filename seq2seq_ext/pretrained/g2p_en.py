"""g2p_en's model of English pronunciation, from the weights in its PyPI package.

A GRU of 256 units reads a word's letters and ``</s>``, its last state is the state from which a
GRU of 256 units writes ARPAbet phonemes with stress, without attention. Gates and biases are
`torch.nn.GRU`'s: r, z, n, and a bias on both sides. g2p_en numbers letters from 3, behind
``<pad>``, ``<unk>`` and ``</s>``; phonemes from 4, as this package does. It writes the most
probable phoneme 20 times at most, ``</s>`` counted.

The package itself is not imported: that would fetch data for its tagger and dictionary.
"""

from __future__ import annotations

import importlib.util
import os
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from seq2seq_ext.data.extras import MissingExtraError, require
from seq2seq_ext.data.vocabulary import Vocabulary
from seq2seq_ext.data.words import WordVocabulary
from seq2seq_ext.generation import GenerationOptions
from seq2seq_ext.models import Seq2SeqConfig
from seq2seq_ext.pretrained.loaded import PretrainedModel
from seq2seq_ext.pretrained.weights import Weights, filled, rows

FILE = "checkpoint20.npz"
LETTERS = "abcdefghijklmnopqrstuvwxyz"
_ARPABET = (
    "AA0 AA1 AA2 AE0 AE1 AE2 AH0 AH1 AH2 AO0 AO1 AO2 AW0 AW1 AW2 AY0 AY1 AY2 B CH D DH "
    "EH0 EH1 EH2 ER0 ER1 ER2 EY0 EY1 EY2 F G HH IH0 IH1 IH2 IY0 IY1 IY2 JH K L M N NG "
    "OW0 OW1 OW2 OY0 OY1 OY2 P R S SH T TH UH0 UH1 UH2 UW UW0 UW1 UW2 V W Y Z ZH"
)
PHONEMES = tuple(_ARPABET.split())
# Their rows of <pad>, <unk>, <s>, which no source has, </s>, and the letters.
_SOURCE_ROWS = [0, 1, -1, *range(2, 3 + len(LETTERS))]


def load_g2p_en(path: str | os.PathLike[str] | None = None) -> PretrainedModel:
    """Read the weights of g2p_en (https://github.com/Kyubyong/g2p, version 2.1.0, Apache 2.0).

    Args:
        path: the file ``checkpoint20.npz``; None takes that of the installed package g2p_en.

    Returns:
        The model, whose sources are words in small letters and whose targets are phonemes. Greedy
        search gives what g2p_en's own decoder gives.

    Raises:
        MissingExtraError: if `path` is None and g2p_en is not installed, or NumPy is not.
        FileNotFoundError: if there is no such file.
        ValueError: if the file holds other arrays.

    Example:
        >>> g2p = load_g2p_en()  # doctest: +SKIP
        >>> g2p.generate(["activationist"])  # doctest: +SKIP
        [['AE2', 'K', 'T', 'IH0', 'V', 'EY1', 'SH', 'AH0', 'N', 'IH0', 'S', 'T']]
    """
    path = installed_weights() if path is None else Path(path)
    weights = Weights(_read(path), str(path))
    if len(weights.shape("enc_emb")) != 2 or len(weights.shape("dec_emb")) != 2:
        raise ValueError(f"'enc_emb' and 'dec_emb' in {path} must be matrices")
    source_size, target_size = weights.shape("enc_emb")[1], weights.shape("dec_emb")[1]
    hidden = weights.shape("enc_w_hh")[-1]
    source_vocabulary, target_vocabulary = Vocabulary(LETTERS), WordVocabulary(PHONEMES)
    config = Seq2SeqConfig(
        source_vocab_size=len(source_vocabulary),
        target_vocab_size=len(target_vocabulary),
        source_eos=True,
        cell="gru",
        source_embedding_size=source_size,
        target_embedding_size=target_size,
        encoder_hidden_size=hidden,
        decoder_hidden_size=hidden,
    )
    symbols = len(target_vocabulary)
    tensors: dict[str, Tensor] = {
        "encoder.embedding.weight": rows(
            weights.take("enc_emb", 3 + len(LETTERS), source_size), _SOURCE_ROWS
        ),
        "decoder.embedding.weight": weights.take("dec_emb", symbols, target_size),
        "decoder.output.weight": weights.take("fc_w", symbols, hidden),
        "decoder.output.bias": weights.take("fc_b", symbols),
    }
    for part, prefix, size in (("encoder", "enc", source_size), ("decoder", "dec", target_size)):
        shapes = {"w_ih": (size,), "w_hh": (hidden,), "b_ih": (), "b_hh": ()}
        for name, columns in shapes.items():
            full = name.replace("w_", "weight_").replace("b_", "bias_")
            tensors[f"{part}.stack.rnn.{full}_l0"] = weights.take(
                f"{prefix}_{name}", 3 * hidden, *columns
            )
    weights.finish()
    return PretrainedModel(
        model=filled(config, tensors),
        source_vocabulary=source_vocabulary,
        target_vocabulary=target_vocabulary,
        options=GenerationOptions(max_new_tokens=20),
    )


def installed_weights() -> Path:
    """The weights in the installed package.

    Raises:
        MissingExtraError: if it is not installed.
    """
    spec = importlib.util.find_spec("g2p_en")
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError(
            "load_g2p_en() needs the package 'g2p_en', which is not installed; install it with: "
            "pip install 'seq2seq_ext[pretrained]', or give the path of its file " + FILE,
            name="g2p_en",
        )
    return Path(next(iter(spec.submodule_search_locations))) / FILE


def _read(path: Path) -> dict[str, Tensor]:
    numpy = require("numpy", extra="pretrained", purpose="reading the weights of g2p_en")
    if not path.is_file():
        raise FileNotFoundError(f"path must be a file, got {path}")
    try:
        with numpy.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except (AttributeError, EOFError, OSError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is no file of arrays (.npz): {error}") from error
