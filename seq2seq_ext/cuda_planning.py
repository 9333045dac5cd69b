"""How the CUDA engine lays a layer on a GPU: what its model chooses, and how to overrule it.

A layer takes one of two ways.  Persistent: one launch runs all steps, with the recurrent weights in
registers and shared memory throughout; its blocks, one on a multiprocessor, hand each other every
step's results.  General: a library's product and a kernel for every step.  A model of occupancy and
capacity (``csrc/cuda/plan.cpp``) knows from the device's properties whether the weights can stay,
and expects a time of either way.  It is plain C++, so plans for any device can be had anywhere.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from seq2seq_ext import _C, ops
from seq2seq_ext.nn.layers import GRU, LSTM, RNN
from seq2seq_ext.nn.prepack import operator_options

__all__ = ["CudaDevice", "CudaPlan", "explain_cuda_plan", "set_cuda_plan"]

VARIABLE = "SEQ2SEQ_EXT_CUDA_PLAN"
# In the order of Number in csrc/cuda/plan.h.
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# What force_cuda_plan takes: way, tiles, slices, groups, rows; 0 leaves it to the model.
Forced = tuple[int, int, int, int, int]

_WAYS = ("", "general", "persistent")
_NUMBERS = ("tiles", "slices", "groups", "rows")
_MOST = 2**31 - 1
_forced: Forced = (0, 0, 0, 0, 0)


@dataclass(frozen=True)
class CudaDevice:
    """What the model knows of a GPU.

    :func:`dataclasses.replace` makes one with other limits, to see what they would change.

    Args:
        capability: the compute capability, 90 for 9.0.
        multiprocessors: how many there are.
        registers_per_multiprocessor: of 32 bits.
        shared_per_multiprocessor: bytes of shared memory.
        shared_per_block: bytes that a block may have of it when it asks for more than usual.
        threads_per_multiprocessor: how many can reside there.
        cooperative: whether blocks can be launched that all run at the same time.
    """

    capability: int
    multiprocessors: int
    registers_per_multiprocessor: int
    shared_per_multiprocessor: int
    shared_per_block: int
    threads_per_multiprocessor: int
    cooperative: bool

    @classmethod
    def of(cls, device: str | int | torch.device | None = None) -> CudaDevice:
        """Properties of a GPU that is here, or of one that need not be.

        Args:
            device: ``"a100"``, ``"h100"`` or ``"rtx4090"``, whose published limits are known; or a
                CUDA device of torch; None for the current one.

        Raises:
            ValueError: if there is no such device.

        >>> CudaDevice.of("h100").multiprocessors
        132
        """
        known = cuda_devices()
        if isinstance(device, str) and device in known:
            return known[device]
        if not torch.cuda.is_available():
            asked = "" if device is None else f", got {str(device)!r}"
            raise ValueError(
                f"device must be one of {', '.join(known)} where torch sees no GPU{asked}"
            )
        try:
            found: Any = torch.cuda.get_device_properties(device)
        except (AssertionError, RuntimeError, ValueError) as error:
            raise ValueError(
                f"device must be one of {', '.join(known)} or a CUDA device of torch, "
                f"got {str(device)!r}"
            ) from error
        return cls(
            capability=10 * found.major + found.minor,
            multiprocessors=found.multi_processor_count,
            registers_per_multiprocessor=found.regs_per_multiprocessor,
            shared_per_multiprocessor=found.shared_memory_per_multiprocessor,
            shared_per_block=found.shared_memory_per_block_optin,
            threads_per_multiprocessor=found.max_threads_per_multi_processor,
            cooperative=True,  # every GPU that torch supports
        )


def cuda_devices() -> dict[str, CudaDevice]:
    """The GPUs whose published limits are known, by their names.

    >>> list(cuda_devices())
    ['a100', 'h100', 'rtx4090']
    """
    return {name: CudaDevice(**properties) for name, properties in _C.cuda_devices().items()}


@dataclass(frozen=True)
class CudaPlan:
    """How one pass over a layer is launched.  All numbers are 0 where it is not persistent.

    Args:
        persistent: whether one launch runs all steps with the weights on the multiprocessors.
        why: why not; empty where it is.
        tensor: whether tensor cores multiply.
        tiles: a block owns 8 * tiles hidden units.
        slices: warps that share a tile's product, each with its slice of the features.
        parts: blocks that together hold the weights of one direction.
        groups: sequences are dealt to groups, each of which has blocks of its own.
        group_rows: sequences of a group, at most.
        launches: one after another, each for its own sequences.
        blocks: of a launch, each alone on a multiprocessor.
        threads: of a block.
        shared_bytes: shared memory of a block.
        weights_in_registers: bytes of recurrent weights that a block holds there.
        weights_in_shared: bytes of recurrent weights that a block holds in its shared memory.
    """

    persistent: bool
    why: str
    tensor: bool
    tiles: int
    slices: int
    parts: int
    groups: int
    group_rows: int
    launches: int
    blocks: int
    threads: int
    shared_bytes: int
    weights_in_registers: int
    weights_in_shared: int


def explain_cuda_plan(
    layer: LSTM | GRU | RNN,
    time_steps: int,
    batch_size: int,
    *,
    backward: bool = False,
    device: CudaDevice | str | int | torch.device | None = None,
    allow_tf32: bool | None = None,
    plan: str | None = None,
) -> CudaPlan:
    """The plan of the CUDA engine for a call of ``layer``, the same for each of its layers.

    Args:
        layer: a layer of this package, on any device; its dtype counts.
        time_steps: T of the input.
        batch_size: B of the input.
        backward: whether the backward pass is meant.
        device: the GPU, or what :meth:`CudaDevice.of` takes; None for torch's current one.
        allow_tf32: whether float32 may be rounded to TF32; None: as torch is set.
        plan: what to force, in the words of :func:`set_cuda_plan`; None: what that forces now.

    Raises:
        TypeError: if ``layer`` is not one of this package's layers.
        ValueError: if a number is out of range, or there is no such device, dtype or plan.

    >>> layer = LSTM(768, 768, dtype=torch.float16, device="meta")
    >>> plan = explain_cuda_plan(layer, time_steps=100, batch_size=16, device="h100")
    >>> plan.persistent, plan.blocks, plan.threads
    (True, 96, 256)
    """
    if not isinstance(layer, (LSTM, GRU, RNN)):
        raise TypeError(
            f"layer must be an LSTM, GRU or RNN of seq2seq_ext, got {type(layer).__name__}"
        )
    cell, _, bidirectional = operator_options(layer)
    return plan_of_shape(
        ops.CELLS[cell],
        next(layer.parameters()).dtype,
        layer.hidden_size,
        time_steps=time_steps,
        batch_size=batch_size,
        output_size=layer.proj_size or layer.hidden_size,
        num_directions=2 if bidirectional else 1,
        backward=backward,
        device=device,
        allow_tf32=allow_tf32,
        plan=plan,
    )


def plan_of_shape(
    cell: str,
    dtype: torch.dtype,
    hidden_size: int,
    *,
    time_steps: int = 100,
    batch_size: int = 1,
    output_size: int | None = None,
    num_directions: int = 1,
    backward: bool = False,
    device: CudaDevice | str | int | torch.device | None = None,
    allow_tf32: bool | None = None,
    plan: str | None = None,
) -> CudaPlan:
    """:func:`explain_cuda_plan` without a layer.

    Args:
        cell: one of ``seq2seq_ext.kernels.CELLS``.
        dtype: float16, bfloat16, float32 or float64.
        hidden_size: H.
        time_steps: T.
        batch_size: B.
        output_size: P, of a projected LSTM; None: H.
        num_directions: D, 1 or 2.
        backward: as all that follows, of :func:`explain_cuda_plan`.
        device: see there.
        allow_tf32: see there.
        plan: see there.

    Raises:
        ValueError: see there.
    """
    if cell not in ops.CELLS:
        raise ValueError(f"cell must be one of {', '.join(ops.CELLS)}, got {cell!r}")
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(map(str, DTYPES))}, got {dtype}")
    output_size = hidden_size if output_size is None else output_size
    for name, value, most in (
        ("hidden_size", hidden_size, _MOST),
        ("time_steps", time_steps, _MOST),
        ("batch_size", batch_size, _MOST),
        ("output_size", output_size, hidden_size),
        ("num_directions", num_directions, 2),
    ):
        if not 1 <= value <= most:
            raise ValueError(f"{name} must be 1 to {most}, got {value}")
    if not isinstance(device, CudaDevice):
        device = CudaDevice.of(device)
    found = _C.cuda_plan(
        asdict(device),
        ops.CELLS.index(cell),
        DTYPES.index(dtype),
        ops.tf32_allowed() if allow_tf32 is None else allow_tf32,
        backward,
        time_steps,
        batch_size,
        hidden_size,
        output_size,
        num_directions,
        _forced if plan is None else parse(plan),
    )
    return CudaPlan(**found)


def set_cuda_plan(text: str) -> None:
    """Overrule the model of the CUDA engine from the next call on; ``""`` leaves it alone again.

    A call that cannot be laid out so is laid out as nearly so as can be: what does not fit takes
    the general way, and more groups or rows than there is room for become as many as there is.
    Results depend on the plan no more than rounding does.  The environment variable
    ``SEQ2SEQ_EXT_CUDA_PLAN`` does the same from the start.

    Args:
        text: ``"general"``, or some of ``persistent`` and the numbers of a :class:`CudaPlan`, with
            commas: ``"tiles=2,slices=4,groups=2,rows=16"``.

    Raises:
        ValueError: if it is not, or no block can be so.
        RuntimeError: if this package's CUDA kernels are not loaded.
    """
    global _forced
    forced = parse(text)
    if not hasattr(torch.ops.seq2seq_ext, "force_cuda_plan"):
        raise RuntimeError(
            "no plan can be forced: the CUDA kernels of seq2seq_ext are not loaded "
            "(`seq2seq-ext info` tells what was built)"
        )
    torch.ops.seq2seq_ext.force_cuda_plan(*forced)
    _forced = forced


def apply_environment() -> None:
    """Force what the environment variable says, where it says anything.

    Raises:
        ValueError: if it is no plan.
        RuntimeError: if this package's CUDA kernels are not loaded.
    """
    text = os.environ.get(VARIABLE, "")
    if not text:
        return
    try:
        set_cuda_plan(text)
    except ValueError as error:
        raise ValueError(f"{VARIABLE}: {error}") from None


def parse(text: str) -> Forced:
    """A plan in words as the numbers of force_cuda_plan.

    Raises:
        ValueError: if it is no plan.

    >>> parse("persistent,tiles=2,rows=16")
    (2, 2, 0, 0, 16)
    """
    if not isinstance(text, str):
        raise ValueError(f"plan must be a string, got {type(text).__name__}")
    way = 0
    numbers: dict[str, int] = {}
    for item in text.split(",") if text.strip() else ():
        name, equals, value = item.strip().partition("=")
        if name in _WAYS[1:] and not equals and way == 0:
            way = _WAYS.index(name)
        elif name in _NUMBERS and name not in numbers and _is_number(value):
            numbers[name] = int(value)
        else:
            raise ValueError(
                f"expected general, or some of persistent, {_listed(_NUMBERS)}, once each and "
                f"with commas; got {item.strip()!r} in {text!r}"
            )
    tiles, slices, groups, rows = (numbers.get(name, 0) for name in _NUMBERS)
    forced = (way, tiles, slices, groups, rows)
    _C.check_cuda_plan(forced)
    return forced


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 11 and 1 <= int(text) <= _MOST


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"{name}=N" for name in names)
