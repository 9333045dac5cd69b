"""CUDA graphs: what a call launches, recorded once and launched again as a whole.

Python takes some microseconds for each kernel that it launches, often longer than the kernel runs.
A graph has all of them in one launch; its kernels read and write the very tensors of the recorded
call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

__all__ = ["capture"]

Result = TypeVar("Result")


def capture(call: Callable[[], Result], *, warm_calls: int = 3) -> Callable[[], Result]:
    """A call that replays another as a CUDA graph; what it returns are always the same tensors.

    Args:
        call: launches kernels on torch's current stream and waits for none of them.
        warm_calls: so many times it is called first, for libraries to set themselves up.

    Raises:
        RuntimeError: if the call cannot be captured.
    """
    new_stream: Any = torch.cuda.Stream
    stream = new_stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(warm_calls):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # Other threads may use the device meanwhile.
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        result = call()

    def replay() -> Result:
        graph.replay()
        return result

    return replay
