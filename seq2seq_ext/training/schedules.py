"""What changes over a run, as functions of the share of it that is over: rates and forcing."""

from __future__ import annotations

import math
from dataclasses import dataclass

SCHEDULES = ("one_cycle", "constant", "cosine", "inverse_sqrt", "plateau")
FORCING_SCHEDULES = ("constant", "linear", "exponential", "inverse_sigmoid")
_SIGMOID = 12.0


def one_cycle(progress: float, *, peak: float, warmup: float) -> float:
    """Learning rate after a share of the run: up in a line, down along half a cosine.

    It rises from a tenth of `peak` and ends at a thousandth of it (after Smith & Topin 2017,
    arXiv 1708.07120).

    Args:
        progress: share of the run that is over, in [0, 1].
        peak: the largest learning rate.
        warmup: share of the run in which it rises.

    Example:
        >>> [round(one_cycle(p, peak=1.0, warmup=0.2), 3) for p in (0.0, 0.1, 0.2, 0.6, 1.0)]
        [0.1, 0.55, 1.0, 0.501, 0.001]
    """
    if progress < warmup:
        return peak * (0.1 + 0.9 * progress / warmup)
    fall = (progress - warmup) / (1.0 - warmup) if warmup < 1.0 else 1.0
    return peak * (0.001 + 0.999 * _half_cosine(fall))


def learning_rate(schedule: str, progress: float, *, peak: float, warmup: float) -> float:
    """Learning rate of any schedule after a share of the run.

    All but ``"one_cycle"`` rise in a line from 0 at the start to `peak` after `warmup`. Then
    ``"constant"`` and ``"plateau"`` stay there (validation lowers the latter), ``"cosine"`` falls
    to 0 along half a cosine (Loshchilov & Hutter 2017, arXiv 1608.03983, without restarts), and
    ``"inverse_sqrt"`` falls as ``sqrt(warmup / progress)`` (Vaswani et al. 2017, arXiv 1706.03762,
    section 5.3); without a warmup it counts from a hundredth of the run.

    Args:
        schedule: one of `SCHEDULES`.
        progress: share of the run that is over, in [0, 1].
        peak: the largest learning rate.
        warmup: share of the run in which it rises.

    Example:
        >>> [learning_rate("inverse_sqrt", p, peak=1.0, warmup=0.25) for p in (0.125, 0.25, 1.0)]
        [0.5, 1.0, 0.5]
    """
    if schedule == "one_cycle":
        return one_cycle(progress, peak=peak, warmup=warmup)
    if progress < warmup:
        return peak * progress / warmup
    if schedule == "cosine":
        return peak * _half_cosine((progress - warmup) / (1.0 - warmup) if warmup < 1.0 else 1.0)
    if schedule == "inverse_sqrt":
        since = warmup or 0.01
        return peak * math.sqrt(since / max(progress, since))
    return peak


def teacher_forcing(schedule: str, progress: float, *, final: float) -> float:
    """Probability that the decoder reads the target's token, after a share of the run.

    The decays of Bengio et al. 2015 (arXiv 1506.03099, section 2.4), stretched over the run so that
    they fall from 1 (``"inverse_sigmoid"``: nearly 1) to `final`; ``"constant"`` is `final`
    throughout. The inverse sigmoid is ``k / (k + exp(i / k))`` for k = 12 and i in per cent of the
    run: one half after 30 %.

    Args:
        schedule: one of `FORCING_SCHEDULES`.
        progress: share of the run that is over, in [0, 1].
        final: the probability at the end, in [0, 1]; above 0 for ``"exponential"``.

    Example:
        >>> [round(teacher_forcing("exponential", p, final=0.25), 2) for p in (0.0, 0.5, 1.0)]
        [1.0, 0.5, 0.25]
    """
    if schedule == "linear":
        return 1.0 - (1.0 - final) * progress
    if schedule == "exponential":
        return float(final**progress)
    if schedule == "inverse_sigmoid":
        decay = _SIGMOID / (_SIGMOID + math.exp(100.0 * progress / _SIGMOID))
        return final + (1.0 - final) * decay
    return final


@dataclass
class Pace:
    """How much of a run is over, by work done or by time spent, whichever is further.

    Without a time limit, and with one that the machine can keep, this is the share of the work, so
    equal seeds give equal runs. Time does not count before a tenth of the limit is over: a slow
    first step must not change a run that has time enough.

    Args:
        max_seconds: the time limit, or None.
    """

    max_seconds: float | None = None

    def progress(self, done: float, seconds: float) -> float:
        """Share of the run that is over; 1 and more mean that it has ended.

        Args:
            done: share of its work, in [0, 1].
            seconds: time since its start.
        """
        if self.max_seconds is None or seconds < 0.1 * self.max_seconds:
            return done
        return max(done, seconds / self.max_seconds)


def _half_cosine(fall: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * min(fall, 1.0)))
