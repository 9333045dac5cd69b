"""BLEU and chrF of a corpus, by sacrebleu, with the signature that tells how they were counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from seq2seq_ext.data.extras import require


class CorpusScore(NamedTuple):
    """A score of sacrebleu's.

    Args:
        score: in [0, 100].
        signature: tokenisation, case, smoothing, number of references, version.
    """

    score: float
    signature: str


def bleu(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> CorpusScore:
    """BLEU of up to 4-grams (Papineni et al. 2002), as Post 2018 (arXiv 1804.08771) has it.

    Args:
        predictions: N texts, detokenised.
        references: of each at least one text; they need not be equally many.

    Raises:
        ValueError: if the two differ in number or are empty, or a text has no reference.
        ModuleNotFoundError: if sacrebleu is not installed.

    Example:
        >>> bleu(["the cat sat on the mat"], [["the cat sat on a mat", "the cat sat on the mat"]])
        CorpusScore(score=100.0..., signature='nrefs:2|case:mixed|eff:no|tok:13a|smooth:exp|...')
    """
    return _score(_sacrebleu().BLEU(), predictions, references)


def chrf(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> CorpusScore:
    """chrF2 of up to 6 characters (Popović 2015).

    Args and errors are those of `bleu`.

    Example:
        >>> chrf(["oxes"], [["oxen"]]).score > chrf(["axes"], [["oxen"]]).score
        True
    """
    return _score(_sacrebleu().CHRF(), predictions, references)


def _sacrebleu() -> Any:
    return require("sacrebleu.metrics", extra="train", purpose="BLEU and chrF")


def _score(
    metric: Any, predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> CorpusScore:
    if not predictions or len(predictions) != len(references) or not all(references):
        raise ValueError(
            "predictions must be at least one, and references as many with at least one each, got "
            f"{len(predictions)} and {[len(each) for each in references][:10]}"
        )
    # sacrebleu wants the first references, the second ones ...; None where there is none.
    most = max(map(len, references))
    streams = [[each[i] if i < len(each) else None for each in references] for i in range(most)]
    found = metric.corpus_score(list(predictions), streams)
    return CorpusScore(float(found.score), str(metric.get_signature()))
