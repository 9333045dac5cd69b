"""Which algorithm `torch.nn` runs a recurrent layer with on a GPU, as torch's source decides it.

torch never tells. What it decides stands in ``aten/src/ATen/native/cudnn/RNN.cpp`` (``get_algo``,
``use_rnn_persist_small_h``, ``use_persist_common_heuristics``, ``use_persist_device_heuristics``),
and whether it asks cuDNN at all in ``aten/src/ATen/native/RNN.cpp`` (``use_cudnn``) and
``aten/src/ATen/cuda/detail/CUDAHooks.cpp`` (``supportsBFloat16RNNWithCuDNN``). The persistent
algorithms keep the recurrent weights on the chip; the standard one reads them at every step.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

PERSISTENT = "persist_static"
PERSISTENT_SMALL = "persist_static_small_h"
STANDARD = "standard"
NATIVE = "no cuDNN"

# The first cuDNN whose layers take bfloat16, as torch counts: 9.13.0.
_BFLOAT16_VERSION = 91300
# The largest H that the small algorithm is chosen for, by whether this is forward.
_SMALL_H = {"LSTM": {True: 192, False: 128}, "GRU": {True: 192, False: 128}}
_SMALL_H_RNN = {True: 384, False: 256}


class Traits(NamedTuple):
    """What the choice depends on beside the layer.

    Args:
        capability: major and minor.
        processors: streaming multiprocessors.
        cudnn: the version as `torch.backends.cudnn.version` has it; 0 for none.
    """

    capability: tuple[int, int]
    processors: int
    cudnn: int


def cudnn_algorithm(
    cell: str,
    dtype: torch.dtype,
    *,
    time_steps: int,
    batch_size: int,
    input_size: int,
    hidden_size: int,
    num_layers: int = 1,
    num_directions: int = 1,
    proj_size: int = 0,
    packed: bool = False,
    backward: bool = False,
    traits: Traits,
) -> str:
    """The algorithm that torch chooses; sources as above, as of torch 2.10.

    Whether TF32 is allowed plays no part: it changes the arithmetic, not the algorithm.

    Args:
        cell: ``"LSTM"``, ``"GRU"`` or ``"RNN"``.
        dtype: of input and weights.
        time_steps: T.
        batch_size: B; of packed input, of its first step.
        input_size: I.
        hidden_size: H.
        num_layers: L.
        num_directions: 1 or 2.
        proj_size: of an LSTM's projection; 0 for none.
        packed: whether the input is a PackedSequence.
        backward: for the backward pass, whose choice is its own.
        traits: of the device.

    Returns:
        ``"persist_static"``, ``"persist_static_small_h"``, ``"standard"``, or ``"no cuDNN"`` where
        torch runs kernels of its own step by step.

    >>> h100 = Traits(capability=(9, 0), processors=132, cudnn=91501)
    >>> sizes = dict(time_steps=1024, batch_size=16, input_size=768, hidden_size=768, traits=h100)
    >>> cudnn_algorithm("LSTM", torch.float16, **sizes)
    'persist_static'
    >>> cudnn_algorithm("LSTM", torch.bfloat16, **sizes)
    'standard'
    """
    if not _uses_cudnn(dtype, traits):
        return NATIVE
    if proj_size or packed:
        return STANDARD
    small = _SMALL_H.get(cell, _SMALL_H_RNN)[not backward]
    if dtype != torch.float64 and traits.capability[0] >= 6 and hidden_size <= small:
        return PERSISTENT_SMALL
    fits = (
        num_layers == num_directions == 1
        and hidden_size <= 1024
        and hidden_size % 128 == 0
        and input_size % 128 == 0
    )
    if (
        dtype == torch.float16
        and fits
        and _worthwhile(cell, time_steps, batch_size, hidden_size, traits)
    ):
        return PERSISTENT
    return STANDARD


def _uses_cudnn(dtype: torch.dtype, traits: Traits) -> bool:
    """``use_cudnn``."""
    if not traits.cudnn:
        return False
    if dtype == torch.bfloat16:
        return traits.cudnn >= _BFLOAT16_VERSION and traits.capability[0] >= 8
    return dtype in (torch.float16, torch.float32, torch.float64)


def _worthwhile(cell: str, T: int, B: int, H: int, traits: Traits) -> bool:
    """``use_persist_device_heuristics``."""
    major, minor = traits.capability
    if major == 7:
        few_enough = (T >= 40 and B <= 128) or (T >= 20 and B <= 96) or (T >= 10 and B <= 32)
        return minor != 5 and few_enough and (B == 8 or (B % 16 == 0 and B not in (80, 112)))
    if major < 8 or traits.processors < 98 or minor == 6 or cell == "GRU":
        return False
    return B % 8 == 0 and B <= 128 and (cell == "LSTM" or B < 96 or H < 896)
