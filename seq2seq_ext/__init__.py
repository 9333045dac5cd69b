"""The fastest recurrent layers that PyTorch can run, and the encoder-decoder toolkit on them.

>>> import seq2seq_ext as s2s
>>> lstm = s2s.LSTM(64, 128, num_layers=2)  # everything that torch.nn.LSTM is, faster
>>> y, (h_n, c_n) = lstm(torch.randn(50, 8, 64), lengths=torch.randint(1, 51, (8,)))

:func:`replace_modules` does the same to the layers of a model that exists.
"""

from __future__ import annotations

from typing import Any

import torch  # loads the libraries that the extension is linked with

from seq2seq_ext import _C, cuda_planning, functional, onnx, reference
from seq2seq_ext._C import available_cpu_isas, cpu_isa, set_cpu_isa
from seq2seq_ext.cuda_planning import CudaDevice, CudaPlan, explain_cuda_plan, set_cuda_plan
from seq2seq_ext.models import Decoder, Encoder, Seq2Seq, Seq2SeqConfig
from seq2seq_ext.nn import (
    GRU,
    LSTM,
    RNN,
    GRUCell,
    LSTMCell,
    RNNCell,
    prepack,
    replace_modules,
    restore_modules,
    unpack,
)
from seq2seq_ext.planning import Plan, explain_plan, set_plan

__version__: str = _C.__version__

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "CudaDevice",
    "CudaPlan",
    "Decoder",
    "Encoder",
    "GRUCell",
    "LSTMCell",
    "Plan",
    "RNNCell",
    "Seq2Seq",
    "Seq2SeqConfig",
    "available_cpu_isas",
    "build_info",
    "cpu_isa",
    "explain_cuda_plan",
    "explain_plan",
    "functional",
    "onnx",
    "prepack",
    "reference",
    "replace_modules",
    "restore_modules",
    "set_cpu_isa",
    "set_cuda_plan",
    "set_plan",
    "unpack",
]

if hasattr(torch.ops.seq2seq_ext, "force_cuda_plan"):  # the CUDA kernels are loaded
    cuda_planning.apply_environment()


def build_info() -> dict[str, Any]:
    """How the compiled part was built: version, compiler, flags, torch, CUDA architectures.

    >>> build_info()["torch_target_version"]
    '2.10'
    """
    return dict(_C.build_info())
