"""The compiled control surface (csrc/module.cpp). The ops are in `torch.ops.seq2seq_ext`."""

from typing import Any, TypedDict

__version__: str

class BuildInfo(TypedDict):
    version: str
    compiler: str
    flags: str
    build_type: str
    processor: str
    torch_version: str
    torch_target_version: str
    cuda: list[str] | None
    cuda_version: str | None

def build_info() -> BuildInfo: ...
def cpu_isa() -> str: ...
def available_cpu_isas() -> list[str]: ...
def set_cpu_isa(name: str) -> None: ...
def plans(
    cell: int,
    backward: bool,
    packed: int,
    time_steps: int,
    batch_size: int,
    steps: int,
    input_size: int,
    hidden_size: int,
    output_size: int,
    num_layers: int,
    num_directions: int,
    element_size: int,
    max_threads: int,
) -> list[tuple[int, str, float, bool]]: ...
def set_plan(text: str) -> None: ...
def cuda_devices() -> dict[str, dict[str, Any]]: ...
def cuda_plan(
    properties: dict[str, Any],
    cell: int,
    number: int,
    tf32: bool,
    backward: bool,
    time_steps: int,
    batch_size: int,
    hidden_size: int,
    output_size: int,
    num_directions: int,
    forced: tuple[int, int, int, int, int],
) -> dict[str, Any]: ...
def check_cuda_plan(forced: tuple[int, int, int, int, int]) -> None: ...
def measure_fma_peak(threads: int, seconds: float) -> float: ...
def measure_read_bandwidth(bytes_per_thread: int, threads: int, seconds: float) -> float: ...
