"""What has become slower since an earlier run, beyond what two runs differ by anyway.

On the same machine times are compared. On another, our times over the peers' are: those of the
peers that both runs measured, their geometric mean. Either way something counts as slower only
where the best and the median both are, by more than the noise: the larger of both runs' spread
between the quartiles, as a share of the median, and at least a twentieth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import geometric_mean

from seq2seq_ext.benchmark.results import Results, Row
from seq2seq_ext.benchmark.shapes import Case
from seq2seq_ext.benchmark.workloads import OURS

LEAST_NOISE = 0.05


@dataclass(frozen=True, kw_only=True)
class Change:
    """One of our times then and now.

    Args:
        case: the work.
        name: of ours, or of ours in another way.
        best: now over then.
        median: now over then.
        noise: by how much these may differ from 1 and mean nothing.
    """

    case: Case
    name: str
    best: float
    median: float
    noise: float

    @property
    def slower(self) -> bool:
        """Whether it is a regression."""
        return min(self.best, self.median) > 1.0 + self.noise

    @property
    def faster(self) -> bool:
        """Whether it is the opposite."""
        return max(self.best, self.median) < 1.0 / (1.0 + self.noise)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two runs, row by row.

    Args:
        same_machine: whether times were compared, else ratios to the peers.
        changes: of all rows that both runs have and that can be compared.
        left_out: how many rows of this run could not be.
    """

    same_machine: bool
    changes: Sequence[Change]
    left_out: int

    @property
    def slower(self) -> list[Change]:
        """The regressions, the worst first."""
        return sorted((c for c in self.changes if c.slower), key=lambda c: -c.best)

    @property
    def faster(self) -> list[Change]:
        """What has gained, the most first."""
        return sorted((c for c in self.changes if c.faster), key=lambda c: c.best)


def compare(old: Results, new: Results) -> Comparison:
    """Compare the rows that two runs have in common."""
    same_machine = old.machine_name == new.machine_name
    before = {row.case: row for row in old.rows}
    changes: list[Change] = []
    left_out = 0
    for row in new.rows:
        earlier = before.get(row.case)
        found = [] if earlier is None else _changes(earlier, row, same_machine=same_machine)
        changes += found
        left_out += not found
    return Comparison(same_machine=same_machine, changes=changes, left_out=left_out)


def _changes(old: Row, new: Row, *, same_machine: bool) -> list[Change]:
    common = [name for name in new.times if name in old.times]
    peers = [] if same_machine else [name for name in common if not name.startswith(OURS)]
    if not same_machine and not peers:
        return []
    changes = []
    for name in common:
        if not name.startswith(OURS):
            continue
        best = new.times[name].best / old.times[name].best
        median = new.times[name].median / old.times[name].median
        if peers:
            best /= geometric_mean(new.times[p].best / old.times[p].best for p in peers)
            median /= geometric_mean(new.times[p].median / old.times[p].median for p in peers)
        timings = [row.times[each] for row in (old, new) for each in (name, *peers)]
        noise = max(LEAST_NOISE, *(timing.spread / timing.median for timing in timings))
        changes.append(Change(case=new.case, name=name, best=best, median=median, noise=noise))
    return changes
