"""What Prometheus is told of a service."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counters of one service, in a registry of their own.

    Args:
        queue_length: how many texts wait, whenever it is asked.
    """

    def __init__(self, queue_length: Callable[[], float]) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "seq2seq_requests", "Requests to /translate.", ["status"], registry=registry
        )
        self.errors = Counter(
            "seq2seq_errors", "Requests to /translate without a result.", ["kind"],
            registry=registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "seq2seq_request_seconds", "Time from a request's headers to its answer.",
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.batch_texts = Histogram(
            "seq2seq_batch_texts", "Texts decoded together.", buckets=_TEXTS, registry=registry
        )
        self.batch_seconds = Histogram(
            "seq2seq_batch_seconds", "Time of a batch's decoding.", buckets=_SECONDS,
            registry=registry,
        )  # fmt: skip
        self.texts = Counter("seq2seq_texts", "Texts converted.", ["model"], registry=registry)
        self.in_flight = Gauge(
            "seq2seq_requests_in_flight", "Requests to /translate being worked on.",
            registry=registry,
        )  # fmt: skip
        queue = Gauge("seq2seq_queue_texts", "Texts that wait.", registry=registry)
        queue.set_function(queue_length)

    def exposition(self) -> bytes:
        """All of it, in Prometheus's text format."""
        return generate_latest(self.registry)
