"""All that measuring needs a GPU for, in one place, so that the rest runs without one."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import torch
from torch import nn

import seq2seq_ext
from seq2seq_ext.benchmark.cuda.cudnn import Traits
from seq2seq_ext.benchmark.timing import Call, Sample
from seq2seq_ext.benchmark.workloads import ours_of
from seq2seq_ext.cuda_graphs import capture


@dataclass(frozen=True, kw_only=True)
class Device:
    """What times calls, and where.

    Args:
        place: as torch names it.
        description: names and versions, as text.
        traits: what torch's choice of an algorithm depends on.
        sample: how the seconds of calls are found.
        capture: makes of a call one that replays it as a CUDA graph and returns the same tensors;
            raises RuntimeError for a call that cannot be captured.
    """

    place: str
    description: dict[str, str]
    traits: Traits
    sample: Sample
    capture: Callable[[Call], Call]


def cuda_device() -> Device:
    """The current GPU.

    Raises:
        ValueError: if there is none, or if our layers do not run on it.
    """
    if not torch.cuda.is_available():
        build = "" if torch.version.cuda else " (it is a CPU build)"
        raise ValueError(f"--device cuda needs an NVIDIA GPU; torch sees none{build}")
    try:
        with torch.inference_mode():
            ours_of(nn.LSTM(8, 8).to("cuda"))(torch.zeros(1, 1, 8).to("cuda"))
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"--device cuda: seq2seq_ext does not run on it: {error}") from error
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    version: Any = torch.backends.cudnn.version
    cudnn = version() or 0 if torch.backends.cudnn.enabled else 0
    capability = (properties.major, properties.minor)
    return Device(
        place="cuda",
        description={
            "device": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": str(properties.multi_processor_count),
            "memory": f"{properties.total_memory / 2**30:.1f} GiB",
            "driver": driver_version(),
            "CUDA": torch.version.cuda or "none",
            "torch": torch.__version__,
            "cuDNN": str(cudnn) if cudnn else "none",
            "seq2seq_ext": seq2seq_ext.__version__,
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        },
        traits=Traits(capability, properties.multi_processor_count, cudnn),
        sample=sample_by_events,
        capture=capture,
    )


def driver_version(command: str = "nvidia-smi") -> str:
    """The driver's version as its own tool has it; ``"unknown"`` where that is missing."""
    query = [command, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        result = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return (result.stdout.splitlines() or ["unknown"])[0].strip()


def _event() -> Any:
    new_event: Any = torch.cuda.Event
    return new_event(enable_timing=True)


def sample_by_events(call: Call, loops: int, event: Callable[[], Any] = _event) -> float:
    """Seconds between two events on the current stream, around so many calls.

    The device is idle at the start, for every sample ends by waiting; so where launching takes
    longer than computing, it is launching that is measured, as a caller would see it.
    """
    start, end = event(), event()
    start.record()
    for _ in range(loops):
        call()
    end.record()
    end.synchronize()
    milliseconds: float = start.elapsed_time(end)
    return milliseconds / 1e3
