"""What a run on a GPU found, and its form in JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from seq2seq_ext.benchmark.cuda.shapes import CudaCase
from seq2seq_ext.benchmark.results import times_json
from seq2seq_ext.benchmark.timing import Timing
from seq2seq_ext.benchmark.workloads import OURS, TORCH

GRAPH = "graph"
_FORMAT = "cuda 1"


@dataclass(frozen=True, kw_only=True)
class CudaRow:
    """The times of one case, or why it has none.

    Args:
        case: the work.
        algorithms: `torch.nn`'s, of `cudnn`: forward's, and backward's where it is another.
        times: by contestant, ours first.
        wrong: how a result differs from `torch.nn`'s.
        failed: the error of a contestant that could not run.
        notes: why a contestant is missing.
    """

    case: CudaCase
    algorithms: Sequence[str]
    times: Mapping[str, Timing] = field(default_factory=dict)
    wrong: str = ""
    failed: str = ""
    notes: Sequence[str] = ()

    @property
    def ours(self) -> Timing:
        """Of `seq2seq_ext`."""
        return self.times[OURS]

    @property
    def others(self) -> list[str]:
        """Names of all contestants but ours, the peers' and ours in other ways."""
        return [name for name in self.times if name != OURS]

    @property
    def peers(self) -> list[str]:
        """Names of those that are not ours."""
        return [name for name in self.times if not name.startswith(OURS)]

    def counterpart(self, name: str) -> str:
        """The one of ours whose speed-up over another counts: over a peer's graph, our graph's."""
        graph = f"{OURS} {GRAPH}"
        return graph if name == f"{TORCH} {GRAPH}" and graph in self.times else OURS

    def speedup(self, name: str) -> float:
        """The best time of another over that of its counterpart."""
        return self.times[name].best / self.times[self.counterpart(name)].best

    def step_seconds(self, name: str) -> float:
        """A contestant's best time, by time step."""
        return self.times[name].best / self.case.shape.time_steps

    def rate(self, name: str) -> float:
        """Operations a second, of a contestant's best."""
        return self.case.flop / self.times[name].best

    def as_json(self) -> dict[str, Any]:
        """Values that JSON can hold, what follows from others included."""
        return {
            "case": asdict(self.case),
            "torch_algorithms": list(self.algorithms),
            "times": times_json(self.times),
            "wrong": self.wrong,
            "failed": self.failed,
            "notes": list(self.notes),
            "flop": self.case.flop,
            "flop_per_second": {name: self.rate(name) for name in self.times},
            "seconds_per_step": {name: self.step_seconds(name) for name in self.times},
            "bytes_per_step": {
                "persistent": self.case.bytes_per_step(persistent=True),
                "standard": self.case.bytes_per_step(persistent=False),
            },
            "speedup": {name: self.speedup(name) for name in self.others},
        }


@dataclass(frozen=True, kw_only=True)
class CudaResults:
    """All that one run found.

    Args:
        device: of `device.Device.description`.
        repeats: turns of each contestant, fewer where a row takes long.
        seconds: that the rows took.
        rows: in the order they were measured.
        cut: the cases that the budget of time left no room for.
    """

    device: Mapping[str, str]
    repeats: int
    seconds: float
    rows: Sequence[CudaRow]
    cut: Sequence[CudaCase] = ()

    @property
    def timed(self) -> list[CudaRow]:
        """The rows that have times."""
        return [row for row in self.rows if row.times]

    @property
    def bad(self) -> list[CudaRow]:
        """The rows that are wrong or failed."""
        return [row for row in self.rows if row.wrong or row.failed]

    def as_json(self) -> dict[str, Any]:
        """Values that JSON can hold; times in seconds."""
        return {
            "format": _FORMAT,
            "device": dict(self.device),
            "repeats": self.repeats,
            "seconds": self.seconds,
            "rows": [row.as_json() for row in self.rows],
            "cut": [asdict(case) for case in self.cut],
        }
