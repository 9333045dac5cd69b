"""A run's rows as Markdown and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from seq2seq_ext.benchmark.decode import g2p_en
from seq2seq_ext.benchmark.decode.measuring import PERCENTS, DecodeRow
from seq2seq_ext.benchmark.decode.models import MODELS

_FORMAT = 1
_LEGEND = (
    "Milliseconds of a batch; rates by the median. A speed-up is the peer's time over ours, of the "
    "best times and of the medians. `same`: the share of sentences that both wrote alike."
)


@dataclass(frozen=True)
class DecodeResults:
    """What a run found.

    Args:
        machine: of `machine.description`.
        versions: by name.
        repeats: of each batch.
        rows: the grid.
        left_out: models that were not measured, and why.
    """

    machine: Mapping[str, str]
    versions: Mapping[str, str]
    repeats: int
    rows: Sequence[DecodeRow]
    left_out: Mapping[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """All figures."""
        return {
            "format": _FORMAT,
            "kind": "decode",
            "machine": dict(self.machine),
            "versions": dict(self.versions),
            "repeats": self.repeats,
            "left_out": dict(self.left_out),
            "rows": [
                {
                    **asdict(row.case),
                    "same": row.same,
                    "speedup": row.speedup,
                    "median_speedup": row.median_speedup,
                    "times": {
                        name: {
                            **asdict(times),
                            "percentiles": {f"p{p}": v for p, v in times.percentiles.items()},
                            "sentences_per_second": times.sentences_per_second,
                            "tokens_per_second": times.tokens_per_second,
                        }
                        for name, times in row.times.items()
                    },
                }
                for row in self.rows
            ],
        }


def as_markdown(results: DecodeResults) -> str:
    """A table of all rows, a line for each contestant."""
    m = results.machine
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    machine = f"{m['processor']}, {m['cores']} cores, {m['instruction set']}, {m['system']}"
    lines = [
        f"{machine}; {versions}. {results.repeats} turns each.",
        "",
        _LEGEND,
        "",
        *(f"- `{name}`: {what}" for name, (what, _) in MODELS.items()),
        f"- `{g2p_en.NAME}`: {g2p_en.WHAT}",
        *(f"- `{name}` is left out: {why}" for name, why in results.left_out.items()),
        "",
    ]
    head = ["model", "H", "B", "beams", "dtype", "threads", "who", "average"]
    head += [f"p{percent}" for percent in PERCENTS]
    head += ["tokens/s", "sentences/s", "speed-up", "same"]
    lines += [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for row in results.rows:
        case = row.case
        for i, (name, times) in enumerate(row.times.items()):
            cells = [case.model, case.hidden_size, case.batch_size, case.num_beams]
            cells += [case.dtype if i == 0 else "float32", case.threads, name]
            cells += [f"{1000 * times.average:.2f}"]
            cells += [f"{1000 * times.percentiles[percent]:.2f}" for percent in PERCENTS]
            cells += [f"{times.tokens_per_second:,.0f}", f"{times.sentences_per_second:,.1f}"]
            shown = f"{row.speedup:.2f}x, {row.median_speedup:.2f}x" if i == 0 else ""
            lines.append(
                f"| {' | '.join(map(str, [*cells, shown, f'{row.same:.1%}' if i == 0 else '']))} |"
            )
    return "\n".join(lines) + "\n"
