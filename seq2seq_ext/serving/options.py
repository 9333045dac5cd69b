"""Every limit of the service, its default and its check, in one place."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields


@dataclass(frozen=True, kw_only=True)
class ServingOptions:
    """How much the service takes, and how long it waits.

    Args:
        max_batch: texts that are decoded together.
        max_delay: seconds that a text waits for others to be decoded with.
        max_queue: texts that wait; beyond it, requests are refused with 503.
        max_texts: texts of one request.
        max_length: tokens of one text, as the model counts them.
        max_beams: beams of a search.
        max_body: bytes of a request's body.
        max_attention: weights in the attention of one answer, counted before it is decoded.
        timeout: seconds after which a request is given up with 504, or with 408 while its body is
            still on the way.

    Raises:
        TypeError: if an option is no number, or no whole one where only whole ones count.
        ValueError: if an option is not above 0; ``max_delay`` may be 0.

    Example:
        >>> ServingOptions(max_batch=0)
        Traceback (most recent call last):
        ValueError: max_batch must be at least 1, got 0
    """

    max_batch: int = 64
    max_delay: float = 0.004
    max_queue: int = 1024
    max_texts: int = 64
    max_length: int = 256
    max_beams: int = 16
    max_body: int = 1 << 20
    max_attention: int = 1_000_000
    timeout: float = 30.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            whole = isinstance(field.default, int)
            if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
                wanted = "an int" if whole else "a number"
                raise TypeError(f"{field.name} must be {wanted}, got {value!r}")
            if whole and value < 1:
                raise ValueError(f"{field.name} must be at least 1, got {value}")
            if not whole and not math.isfinite(value):
                raise ValueError(f"{field.name} must be finite, got {value}")
        if self.max_delay < 0:
            raise ValueError(f"max_delay must be at least 0, got {self.max_delay}")
        if self.timeout <= 0:
            raise ValueError(f"timeout must be above 0, got {self.timeout}")
