"""What a run found: rows of times, limits, machine; and its form in JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from seq2seq_ext.benchmark.limits import Limits
from seq2seq_ext.benchmark.shapes import Case, Shape
from seq2seq_ext.benchmark.timing import Timing
from seq2seq_ext.benchmark.workloads import OURS

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Row:
    """The times of one case.

    Args:
        case: the work.
        times: by contestant.
    """

    case: Case
    times: dict[str, Timing]

    @property
    def ours(self) -> Timing:
        """Of `seq2seq_ext`."""
        return self.times[OURS]

    def speedup(self, peer: str) -> float:
        """The peer's best time over ours."""
        return self.times[peer].best / self.ours.best

    def speedup_of_medians(self, peer: str) -> float:
        """The peer's median over ours."""
        return self.times[peer].median / self.ours.median

    @property
    def rate(self) -> float:
        """Operations a second, of our best."""
        return self.case.flop / self.ours.best


@dataclass(frozen=True, kw_only=True)
class Results:
    """All that one run found.

    Args:
        machine: of `machine.description`.
        versions: of ours and the peers.
        limits: by number of threads.
        repeats: turns of each contestant at least.
        cores_used_by_others: of `machine.OtherPrograms`, over the whole run.
        rows: in the order they were measured.
    """

    machine: dict[str, str]
    versions: dict[str, str]
    limits: dict[int, Limits]
    repeats: int
    cores_used_by_others: float
    rows: Sequence[Row]

    @property
    def disturbed(self) -> bool:
        """Whether other programs used more than a twentieth of the cores."""
        return self.cores_used_by_others > 0.05 * int(self.machine["cores"])

    def limit_seconds(self, case: Case) -> float:
        """How long the machine takes at least, see `limits`."""
        return self.limits[case.threads].seconds(
            flop=case.forward_flop,
            weight_bytes=case.recurrent_bytes,
            sweeps=case.sweeps,
            training=case.training,
        )

    def share_of_limit(self, row: Row) -> float:
        """The least time over our best: 1 where nothing is left to gain."""
        return self.limit_seconds(row.case) / row.ours.best

    def share_of_peak(self, row: Row) -> float:
        """Our rate over the peak of the multiply-adds."""
        return row.rate / self.limits[row.case.threads].peak

    def as_json(self) -> dict[str, Any]:
        """Values that JSON can hold, what follows from others included; times in seconds."""
        return {
            "format": FORMAT,
            "machine": self.machine,
            "versions": self.versions,
            "limits": [asdict(limits) for limits in self.limits.values()],
            "repeats": self.repeats,
            "cores_used_by_others": self.cores_used_by_others,
            "disturbed": self.disturbed,
            "rows": [
                {
                    "case": asdict(row.case),
                    "seconds": {name: timing._asdict() for name, timing in row.times.items()},
                    "flop": row.case.flop,
                    "speedup": {name: row.speedup(name) for name in row.times if name != OURS},
                    "limit_seconds": self.limit_seconds(row.case),
                    "share_of_limit": self.share_of_limit(row),
                    "share_of_peak": self.share_of_peak(row),
                }
                for row in self.rows
            ],
        }

    @classmethod
    def from_json(cls, value: Any) -> Results:
        """What `as_json` made.

        Raises:
            ValueError: if it is something else.
        """
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            raise ValueError(f"expected figures of seq2seq-ext bench in format {FORMAT}")
        try:
            return cls(
                machine=value["machine"],
                versions=value["versions"],
                limits={each["threads"]: Limits(**each) for each in value["limits"]},
                repeats=value["repeats"],
                cores_used_by_others=value["cores_used_by_others"],
                rows=[_row(each) for each in value["rows"]],
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"damaged figures of seq2seq-ext bench: {error!r}") from error


def _row(value: dict[str, Any]) -> Row:
    fields = dict(value["case"])
    return Row(
        case=Case(**{**fields, "shape": Shape(**fields["shape"])}),
        times={name: Timing(**timing) for name, timing in value["seconds"].items()},
    )
