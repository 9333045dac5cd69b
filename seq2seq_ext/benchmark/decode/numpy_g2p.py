"""g2p_en's greedy decoder in NumPy, over the package's own arrays: what its `G2p.predict` does.

A word at a time, batch 1: a GRU step is two products of a row with a matrix, one sigmoid of r and z
together and one tanh; each step's most probable phoneme is the next one's input. It is written anew
because importing the package fetches data for its tagger and dictionary.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from seq2seq_ext.data.extras import require
from seq2seq_ext.data.vocabulary import SPECIAL_TOKENS
from seq2seq_ext.pretrained.g2p_en import LETTERS, PHONEMES

MAX_PHONEMES = 20  # </s> counted
_BOS, _EOS = 2, 3
_READ = ("<pad>", "<unk>", "</s>", *LETTERS)
_GATES = ("w_ih", "w_hh", "b_ih", "b_hh")


class NumpyG2p:
    """English words to phonemes.

    Args:
        path: g2p_en's file of arrays, ``checkpoint20.npz``.

    Raises:
        MissingExtraError: if NumPy is not installed.
    """

    def __init__(self, path: Path) -> None:
        self.numpy: Any = require("numpy", extra="bench", purpose="g2p_en's decoder")
        with self.numpy.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        # Matrices as they are multiplied from the right; a view, as the package makes in each step.
        arrays |= {name: array.T for name, array in arrays.items() if "_w" in name}
        self.letters, self.phonemes = arrays["enc_emb"], arrays["dec_emb"]
        self.encoder = [arrays[f"enc_{name}"] for name in _GATES]
        self.decoder = [arrays[f"dec_{name}"] for name in _GATES]
        self.output, self.output_bias = arrays["fc_w"], arrays["fc_b"]
        self.hidden_size = arrays["enc_w_hh"].shape[0]
        self.letter_ids = {letter: i for i, letter in enumerate(_READ)}
        self.names = (*SPECIAL_TOKENS, *PHONEMES)

    def __call__(self, word: str) -> list[str]:
        """The phonemes of a word in small letters."""
        numpy = self.numpy
        ids = [self.letter_ids.get(letter, self.letter_ids["<unk>"]) for letter in word]
        read = self.letters[[*ids, self.letter_ids["</s>"]]]
        h = numpy.zeros((1, self.hidden_size), numpy.float32)
        for t in range(len(read)):
            h = self._step(read[t : t + 1], h, *self.encoder)
        written: list[str] = []
        token = _BOS
        for _ in range(MAX_PHONEMES):
            h = self._step(self.phonemes[token : token + 1], h, *self.decoder)
            token = int((numpy.matmul(h, self.output) + self.output_bias).argmax())
            if token == _EOS:
                break
            written.append(self.names[token])
        return written

    def _step(self, x: Any, h: Any, w_ih: Any, w_hh: Any, b_ih: Any, b_hh: Any) -> Any:
        """A GRU step of one row: x (1, I), h (1, H), matrices (I, 3 H) and (H, 3 H), of r, z, n."""
        numpy, size = self.numpy, self.hidden_size
        from_x, from_h = numpy.matmul(x, w_ih) + b_ih, numpy.matmul(h, w_hh) + b_hh
        both = 1 / (1 + numpy.exp(-(from_x[:, : 2 * size] + from_h[:, : 2 * size])))
        r, z = both[:, :size], both[:, size:]
        n = numpy.tanh(from_x[:, 2 * size :] + r * from_h[:, 2 * size :])
        return (1 - z) * n + z * h
