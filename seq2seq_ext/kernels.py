"""The compiled operators, and what ``csrc/cpu/kernels.h`` says of the cells that they compute."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import cast

import torch
from torch import Tensor

# Importing these registers the operators, and their CUDA kernels where there are any.
from seq2seq_ext import _C, loading  # noqa: F401

# In the order of the operators' numbers for them, which is that of Cell in csrc/cpu/kernels.h.
CELLS = ("lstm", "gru", "gru_reset_before", "rnn_tanh", "rnn_relu")
LSTM = CELLS.index("lstm")
GATES = (4, 3, 3, 1, 1)
# Values that backward keeps per hidden unit and step, as reserve_slots() in csrc/cpu/kernels.h, and
# the number of units that a row of them is padded to.
RESERVE_SLOTS = (5, 4, 3, 0, 0)
UNIT_PADDING = 16

# What there are kernels for; the CPU's widen the last two.
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

rnn_op = torch.ops.seq2seq_ext.rnn.default
rnn_backward_op = torch.ops.seq2seq_ext.rnn_backward.default
prepack_op = torch.ops.seq2seq_ext.prepack.default
prepack_tokens_op = torch.ops.seq2seq_ext.prepack_tokens.default
prepack_matrix_op = torch.ops.seq2seq_ext.prepack_matrix.default
prepack_decoder_op = torch.ops.seq2seq_ext.prepack_decoder.default
encoder_read_op = torch.ops.seq2seq_ext.encoder_read.default
decoder_step_op = torch.ops.seq2seq_ext.decoder_step.default
decoder_search_op = torch.ops.seq2seq_ext.decoder_search.default
translate_op = torch.ops.seq2seq_ext.translate.default
linear_op = torch.ops.seq2seq_ext.linear.default
below_autograd = torch._C._AutoDispatchBelowAutograd
autocast_is_on = torch._C._is_any_autocast_enabled  # on some device
_AUTOCAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU) | torch._C.DispatchKeySet(
    torch._C.DispatchKey.AutocastCUDA
)


def without_autocast() -> AbstractContextManager[None]:
    """Products as they stand, also where a compiler runs backward under forward's autocast."""
    return cast("AbstractContextManager[None]", torch._C._ExcludeDispatchKeyGuard(_AUTOCAST))


def kept_dtype(x: Tensor) -> torch.dtype:
    """In which the kernels calculate for ``x``, and keep what backward needs."""
    if x.dtype in (torch.float16, torch.bfloat16) and not x.is_cuda:
        return torch.float32
    return x.dtype
