"""All figures of decoded texts at once: what `seq2seq-ext evaluate` tells."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from seq2seq_ext.metrics.accuracy import exact_match, hits
from seq2seq_ext.metrics.corpus import CorpusScore, bleu, chrf
from seq2seq_ext.metrics.edit_distance import error_rate, nearest
from seq2seq_ext.metrics.lengths import LengthBucket, by_length


@dataclass(frozen=True)
class Oracle:
    """What would be reached if of each text's candidates the best were chosen.

    Args:
        candidates: how many there are of each text, at most.
        exact_match: share of the texts with a right one among them, in [0, 1].
        token_error_rate: over the nearest candidate of each text.
    """

    candidates: int
    exact_match: float
    token_error_rate: float


@dataclass(frozen=True)
class Scores:
    """Figures of a model's texts.

    Args:
        texts: how many sources.
        exact_match: share of the texts that are one of their references, in [0, 1].
        token_accuracy: share of the first reference's tokens that stand at their place, the end
            counted as one.
        edit_distance: mean number of edits of tokens to the nearest reference.
        error_rates: by the names that the field has for them, see `score`.
        oracle: None without further candidates.
        bleu: None where no reference has two words, or none is a text of words.
        chrf: None where the texts are no texts, but phonemes.
        by_length: exact match by the number of the source's tokens.
    """

    texts: int
    exact_match: float
    token_accuracy: float
    edit_distance: float
    error_rates: dict[str, float]
    oracle: Oracle | None
    bleu: CorpusScore | None
    chrf: CorpusScore | None
    by_length: list[LengthBucket]

    def to_dict(self) -> dict[str, Any]:
        """All figures as a dict that JSON can hold."""
        figures = asdict(self)
        for name in ("bleu", "chrf"):
            found: CorpusScore | None = getattr(self, name)
            figures[name] = None if found is None else found._asdict()
        figures["by_length"] = [bucket._asdict() for bucket in self.by_length]
        return figures


def score(
    sources: Sequence[Sequence[str]],
    candidates: Sequence[Sequence[str]],
    references: Sequence[Sequence[str]],
    *,
    tokenize: Callable[[str], Sequence[str]] = str.split,
    error_names: tuple[str, str] | None = None,
) -> Scores:
    """Hold decoded texts against their references.

    Args:
        sources: N sources' tokens; their number is the length by which texts are grouped.
        candidates: of each source at least one text, the best first.
        references: of each source at least one text; any is right.
        tokenize: of a text the tokens that accuracies, edits and the oracle count.
        error_names: what the share of wrong texts and the rate of wrong tokens are called. None is
            for texts: the rates are then that of wrong texts, CER and WER, the latter of what
            stands between blanks; and there are BLEU and chrF.

    Raises:
        ValueError: if the three differ in number or are empty, or a source has no text.
        ModuleNotFoundError: if sacrebleu is needed, and not installed.

    Example:
        >>> found = score([["a"], ["b"]], [["A X", "A Y"], ["B"]], [["A Y"], ["B"]],
        ...               error_names=("WER", "PER"))
        >>> found.error_rates
        {'WER': 0.5, 'PER': 0.333...}
        >>> found.oracle
        Oracle(candidates=2, exact_match=1.0, token_error_rate=0.0)
    """
    if not len(sources) == len(candidates) == len(references):
        raise ValueError(
            "sources, candidates and references must be equally many, got "
            f"{len(sources)}, {len(candidates)} and {len(references)}"
        )
    if not all(candidates):
        raise ValueError("candidates must be at least one text of each source, got none of one")
    first = [texts[0] for texts in candidates]
    written = [tokenize(text) for text in first]
    wanted = [[tokenize(text) for text in texts] for texts in references]
    matched = exact_match(first, references)
    edits, tokens = nearest(written, wanted)
    token_error_rate = int(edits.sum()) / max(1, int(tokens.sum()))
    has_words = error_names is None and any(len(t.split()) > 1 for r in references for t in r)
    if error_names is not None:
        error_rates = {error_names[0]: 1 - matched, error_names[1]: token_error_rate}
    else:
        error_rates = {
            "sequence error rate": 1 - matched,
            "CER": error_rate(first, references),
            "WER": error_rate(
                [text.split() for text in first],
                [[text.split() for text in texts] for texts in references],
            ),
        }
    return Scores(
        texts=len(sources),
        exact_match=matched,
        token_accuracy=_token_accuracy(written, [each[0] for each in wanted]),
        edit_distance=int(edits.sum()) / len(sources),
        error_rates=error_rates,
        oracle=_oracle(candidates, references, wanted, tokenize),
        bleu=bleu(first, references) if has_words else None,
        chrf=chrf(first, references) if error_names is None else None,
        by_length=by_length(sources, first, references),
    )


def _token_accuracy(written: Sequence[Sequence[str]], wanted: Sequence[Sequence[str]]) -> float:
    right = total = 0
    for output, reference in zip(written, wanted, strict=True):
        right += sum(a == b for a, b in zip(output, reference, strict=False))
        right += len(output) == len(reference)  # the end stands at its place
        total += len(reference) + 1
    return right / total


def _oracle(
    candidates: Sequence[Sequence[str]],
    references: Sequence[Sequence[str]],
    wanted: Sequence[Sequence[Sequence[str]]],
    tokenize: Callable[[str], Sequence[str]],
) -> Oracle | None:
    most = max(map(len, candidates))
    if most == 1:
        return None
    owner = [i for i, texts in enumerate(candidates) for _ in texts]
    flat = [text for texts in candidates for text in texts]
    is_right = hits(flat, [references[i] for i in owner])
    right = {i for i, hit in zip(owner, is_right, strict=True) if hit}
    edits, tokens = nearest([tokenize(text) for text in flat], [wanted[i] for i in owner])
    best: dict[int, tuple[int, int]] = {}
    for i, n, length in zip(owner, edits.tolist(), tokens.tolist(), strict=True):
        best[i] = min(best.get(i, (n, -length)), (n, -length))
    total = sum(-length for _, length in best.values())
    return Oracle(
        most, len(right) / len(candidates), sum(n for n, _ in best.values()) / max(1, total)
    )
