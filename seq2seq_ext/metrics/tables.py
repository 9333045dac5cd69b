"""Figures as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from seq2seq_ext.metrics.lengths import LengthBucket
from seq2seq_ext.metrics.scores import Scores


def as_markdown(scores: Scores, further: Mapping[str, str] | None = None) -> str:
    """A table of all figures, and one of exact match by length.

    Args:
        scores: what was found.
        further: names and values of rows above.
    """
    rows = dict(further or {})
    rows["texts"] = f"{scores.texts:,}"
    rows["exact match"] = f"{scores.exact_match:.2%}"
    rows["token accuracy"] = f"{scores.token_accuracy:.2%}"
    rows["edit distance, mean"] = f"{scores.edit_distance:.3f}"
    rows |= {name: f"{rate:.2%}" for name, rate in scores.error_rates.items()}
    if scores.oracle is not None:
        name = f"oracle of {scores.oracle.candidates}"
        rows[f"{name}: exact match"] = f"{scores.oracle.exact_match:.2%}"
        rows[f"{name}: token error rate"] = f"{scores.oracle.token_error_rate:.2%}"
    for name, found in (("BLEU", scores.bleu), ("chrF", scores.chrf)):
        if found is not None:
            rows[name] = f"{found.score:.2f} (`{found.signature}`)"
    lines = ["| figure | value |", "| --- | --- |"]
    # A bar would end the cell.
    lines += [f"| {name} | {value.replace('|', chr(92) + '|')} |" for name, value in rows.items()]
    return "\n".join([*lines, "", *_lengths(scores.by_length)]) + "\n"


def _lengths(buckets: Sequence[LengthBucket]) -> list[str]:
    lines = ["| source tokens | texts | exact match |", "| --- | ---: | ---: |"]
    for (low, high), texts, share in buckets:
        lengths = str(low) if low == high else f"{low}-{high}"
        lines.append(f"| {lengths} | {texts:,} | {share:.1%} |")
    return lines
