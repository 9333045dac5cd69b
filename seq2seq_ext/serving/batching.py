"""Dynamic batching: texts that arrive at about the same time are decoded together.

The event loop puts texts into a queue and goes on; one thread takes them out, in batches of equal
options and about equal length, and computes. The oldest text of the queue is in every batch, so
that none waits for ever.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Group = TypeVar("Group", bound=Hashable)
Result = TypeVar("Result")

_log = logging.getLogger(__name__)


class QueueFullError(Exception):
    """As many texts wait as may wait."""


@dataclass(eq=False)
class _Waiting(Generic[Group, Result]):
    """A text in the queue."""

    group: Group
    text: str
    length: int
    arrived: float
    result: asyncio.Future[Result]


class Batcher(Generic[Group, Result]):
    """A queue of texts and the thread that computes their results.

    `start`, `submit` and `close` are for the event loop's thread.

    Args:
        compute: from a group and some texts of it to their results, in the same order. A batch that
            raises is computed once more text by text, so that it fails for the guilty alone.
        max_batch: texts of a batch.
        max_delay: seconds that the oldest text waits for others of its group.
        max_queue: texts that may wait.
    """

    def __init__(
        self,
        compute: Callable[[Group, Sequence[str]], Sequence[Result]],
        *,
        max_batch: int,
        max_delay: float,
        max_queue: int,
    ) -> None:
        self._compute = compute
        self._max_batch, self._max_delay, self._max_queue = max_batch, max_delay, max_queue
        self._changed = threading.Condition()
        # What waits, the oldest first; a dict, because what is given up is taken out of the middle.
        self._queue: dict[_Waiting[Group, Result], None] = {}
        self._closed = False
        self._thread: threading.Thread | None = None

    def __len__(self) -> int:
        """How many texts wait."""
        return len(self._queue)

    @property
    def is_running(self) -> bool:
        """Whether the thread is there."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Start the thread; results go to the event loop that is running now."""
        loop = asyncio.get_running_loop()
        self._closed = False
        self._thread = threading.Thread(target=self._work, args=(loop,), name="decode", daemon=True)
        self._thread.start()

    async def close(self) -> None:
        """Finish what waits, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)

    def submit(
        self, group: Group, texts: Sequence[tuple[str, int]]
    ) -> list[asyncio.Future[Result]]:
        """Queue texts with their lengths; a future that is cancelled leaves the queue.

        Raises:
            QueueFullError: if there is no room for all of them; none is queued then.
        """
        loop, now = asyncio.get_running_loop(), time.monotonic()
        with self._changed:
            if self._closed or len(self._queue) + len(texts) > self._max_queue:
                raise QueueFullError
            items = [
                _Waiting(group, text, length, now, loop.create_future()) for text, length in texts
            ]
            self._queue.update(dict.fromkeys(items))
            self._changed.notify()
        for item in items:
            item.result.add_done_callback(lambda _, item=item: self._drop(item))  # type: ignore[misc]
        return [item.result for item in items]

    def _drop(self, item: _Waiting[Group, Result]) -> None:
        with self._changed:
            self._queue.pop(item, None)

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        while batch := self._next_batch():
            results = self._results(batch)
            loop.call_soon_threadsafe(_deliver, batch, results)

    def _next_batch(self) -> list[_Waiting[Group, Result]]:
        """The oldest text and those of its group nearest in length; none once it is closed."""
        with self._changed:
            while True:
                while not self._queue and not self._closed:
                    self._changed.wait()
                if not self._queue:
                    return []
                oldest = next(iter(self._queue))
                group = [item for item in self._queue if item.group == oldest.group]
                left = oldest.arrived + self._max_delay - time.monotonic()
                if len(group) >= self._max_batch or left <= 0 or self._closed:
                    break
                self._changed.wait(left)
            group.sort(key=lambda item: abs(item.length - oldest.length))
            batch = group[: self._max_batch]
            for item in batch:
                del self._queue[item]
            return batch

    def _results(self, batch: list[_Waiting[Group, Result]]) -> list[Result | Exception]:
        try:
            return list(self._compute(batch[0].group, [item.text for item in batch]))
        except Exception as error:
            _log.exception("a batch of %d texts failed", len(batch))
            if len(batch) == 1:
                return [error]
            return [self._results([item])[0] for item in batch]


def _deliver(batch: Sequence[_Waiting[Any, Result]], results: Sequence[Result | Exception]) -> None:
    for item, result in zip(batch, results, strict=True):
        if item.result.done():  # given up meanwhile
            continue
        if isinstance(result, Exception):
            item.result.set_exception(result)
        else:
            item.result.set_result(result)
