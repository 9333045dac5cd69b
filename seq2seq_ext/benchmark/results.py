"""What a run found: rows of times, limits, machine; and its form in JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from seq2seq_ext.benchmark import peers
from seq2seq_ext.benchmark.limits import Limits
from seq2seq_ext.benchmark.shapes import Case, Shape
from seq2seq_ext.benchmark.timing import Timing
from seq2seq_ext.benchmark.workloads import OURS, PREPACKED

_FORMAT = 1
# What contestants were called in earlier files.
_RENAMED = {f"{OURS} float32": PREPACKED}


@dataclass(frozen=True, kw_only=True)
class Row:
    """The times of one case.

    Args:
        case: the work.
        times: by contestant, ours first.
        cores_used_by_others: of `machine.OtherPrograms`, while it was timed.
    """

    case: Case
    times: dict[str, Timing]
    cores_used_by_others: float = 0.0

    @property
    def ours(self) -> Timing:
        """Of `seq2seq_ext`."""
        return self.times[OURS]

    @property
    def others(self) -> list[str]:
        """Names of all contestants but ours: the peers, and ours in other ways."""
        return [name for name in self.times if name != OURS]

    def counterpart(self, name: str) -> str:
        """The one of ours whose speed-up over another counts.

        Runtimes order the weights when they load a model, as `prepack` does, the others in each
        call.
        """
        return PREPACKED if name in peers.RUNTIMES and PREPACKED in self.times else OURS

    def speedup(self, name: str) -> float:
        """The best time of another over that of its counterpart."""
        return self.times[name].best / self.times[self.counterpart(name)].best

    def median_speedup(self, name: str) -> float:
        """The same of the medians."""
        return self.times[name].median / self.times[self.counterpart(name)].median

    @property
    def rate(self) -> float:
        """Operations a second, of our best."""
        return self.case.flop / self.ours.best

    @property
    def disturbed(self) -> bool:
        """Whether other programs took a tenth of a core or more."""
        return self.cores_used_by_others >= 0.1


@dataclass(frozen=True, kw_only=True)
class BusyRow:
    """The times of one case, alone and with one core kept busy by another process.

    Args:
        case: the work.
        alone: by contestant, ours first.
        busy: by contestant, ours first.
    """

    case: Case
    alone: dict[str, Timing]
    busy: dict[str, Timing]

    def slowdown(self, name: str) -> float:
        """The median with one core busy over the median alone."""
        return self.busy[name].median / self.alone[name].median


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Rows that differ in one size alone.

    Args:
        size: which: ``"T"``, ``"H"``, ``"B"`` or ``"I"``.
        rows: by that size, growing.
    """

    size: str
    rows: Sequence[Row]


# How many times as many numbers of a type as of float32 an instruction multiplies and adds: a
# register holds four times as many bytes.
_PRODUCTS = {torch.int8: 4}


@dataclass(frozen=True, kw_only=True)
class Results:
    """All that one run found.

    Args:
        machine: of `machine.description`.
        versions: of ours and the peers.
        limits: by number of threads.
        repeats: turns of each contestant at least.
        rows: in the order they were measured.
        sweeps: of the scaling.
        busy: with one core kept busy.
    """

    machine: dict[str, str]
    versions: dict[str, str]
    limits: dict[int, Limits]
    repeats: int
    rows: Sequence[Row] = ()
    sweeps: Sequence[Sweep] = ()
    busy: Sequence[BusyRow] = ()

    @property
    def machine_name(self) -> tuple[str, str, str]:
        """Processor, cores and instruction set: what has to be equal for times to be comparable."""
        m = self.machine
        return m["processor"], m["cores"], m["instruction set"]

    @property
    def disturbed(self) -> int:
        """How many rows other programs disturbed."""
        swept = [row for sweep in self.sweeps for row in sweep.rows]
        return sum(row.disturbed for row in (*self.rows, *swept))

    def limit_seconds(self, case: Case, dtype: torch.dtype = torch.float32) -> float:
        """How long the machine takes at least with weights of this type, see `limits`."""
        limits = self.limits[case.threads]
        weight_bytes = case.recurrent_weights * dtype.itemsize
        rate = _PRODUCTS.get(dtype, 1)
        return sum(
            limits.seconds(flop=each.flop / rate, sweeps=each.sweeps, weight_bytes=weight_bytes)
            for each in case.passes
        )

    def share_of_limit(self, row: Row) -> float:
        """The least time over our best: 1 where nothing is left to gain."""
        return self.limit_seconds(row.case) / row.ours.best

    def speedup_at_limit(self, row: Row, name: str, dtype: torch.dtype = torch.float32) -> float:
        """What the speed-up over another would be if ours took the least time."""
        return row.times[name].best / self.limit_seconds(row.case, dtype)

    def share_of_peak(self, row: Row) -> float:
        """Our rate over the peak of the multiply-adds."""
        return row.rate / self.limits[row.case.threads].peak

    def as_json(self) -> dict[str, Any]:
        """Values that JSON can hold, what follows from others included; times in seconds."""
        return {
            "format": _FORMAT,
            "machine": self.machine,
            "versions": self.versions,
            "limits": [asdict(limits) for limits in self.limits.values()],
            "repeats": self.repeats,
            "disturbed_rows": self.disturbed,
            "rows": [self._row_json(row) for row in self.rows],
            "sweeps": [
                {"size": sweep.size, "rows": [self._row_json(row) for row in sweep.rows]}
                for sweep in self.sweeps
            ],
            "busy": [
                {
                    "case": asdict(row.case),
                    "alone": times_json(row.alone),
                    "busy": times_json(row.busy),
                    "slowdown": {name: row.slowdown(name) for name in row.alone},
                }
                for row in self.busy
            ],
        }

    def _row_json(self, row: Row) -> dict[str, Any]:
        return {
            "case": asdict(row.case),
            "times": times_json(row.times),
            "cores_used_by_others": row.cores_used_by_others,
            "flop": row.case.flop,
            "speedup": {name: row.speedup(name) for name in row.others},
            "limit_seconds": self.limit_seconds(row.case),
            "share_of_limit": self.share_of_limit(row),
            "share_of_peak": self.share_of_peak(row),
        }

    @classmethod
    def from_json(cls, value: Any) -> Results:
        """What `as_json` made.

        Raises:
            ValueError: if it is something else.
        """
        if not isinstance(value, dict) or value.get("format") != _FORMAT:
            raise ValueError(f"expected figures of 'seq2seq-ext bench --json', format {_FORMAT}")
        try:
            return cls(
                machine=value["machine"],
                versions=value["versions"],
                limits={each["threads"]: Limits(**each) for each in value["limits"]},
                repeats=value["repeats"],
                rows=[_row(each) for each in value["rows"]],
                sweeps=[
                    Sweep(size=each["size"], rows=[_row(row) for row in each["rows"]])
                    for each in value["sweeps"]
                ],
                busy=[
                    BusyRow(
                        case=_case(each["case"]),
                        alone=_times(each["alone"]),
                        busy=_times(each["busy"]),
                    )
                    for each in value["busy"]
                ],
            )
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"damaged figures of 'seq2seq-ext bench': {error!r}") from error


def _row(value: dict[str, Any]) -> Row:
    return Row(
        case=_case(value["case"]),
        times=_times(value["times"]),
        cores_used_by_others=value["cores_used_by_others"],
    )


def _case(value: dict[str, Any]) -> Case:
    return Case(**{**value, "shape": Shape(**value["shape"])})


def _times(value: dict[str, Any]) -> dict[str, Timing]:
    return {_RENAMED.get(name, name): Timing(**timing) for name, timing in value.items()}


def times_json(times: Mapping[str, Timing]) -> dict[str, dict[str, float]]:
    """Timings by contestant as JSON can hold them."""
    return {name: timing._asdict() for name, timing in times.items()}
