"""``prepack``: keep the weights of a model's recurrent layers in the order the kernels read them.

The kernels read weights in panels (``csrc/cpu/engine.h``), and a call brings them into that order
before it begins.  With few steps, few sequences or large layers that is a large part of the call; a
prepacked layer has it done.  The panels may also be kept in bfloat16 or 8-bit integers, a half or a
quarter of what each step has to move from memory, which is the limit of small batches.  Sums are
formed in float32 all the same, or in integers that lose nothing.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

from seq2seq_ext import ops
from seq2seq_ext.kernels import DTYPES
from seq2seq_ext.nn.cells import GRUCell, LSTMCell, RNNCell, _current_weights
from seq2seq_ext.nn.layers import GRU, LSTM, RNN
from seq2seq_ext.nn.variant_layers import stack_of
from seq2seq_ext.variants.stack import PackedStack

__all__ = ["prepack", "unpack"]

Model = TypeVar("Model", bound=nn.Module)

_FUSED = (LSTM, GRU, RNN, LSTMCell, GRUCell, RNNCell)
_DTYPES = (None, torch.bfloat16, torch.int8)


def prepack(model: Model, dtype: torch.dtype | None = None) -> Model:
    """Let this package's layers and cells in ``model`` keep packed weights for inference.

    Calls that need no gradient (``torch.inference_mode``, ``torch.no_grad``, nothing that requires
    one) then use them; calls that do go on with the parameters themselves, and so do compiled and
    exported models.  The parameters, ``state_dict``, copies, pickles and files of the model stay
    what they were; a copy packs its own weights when it is first called.

    **Changed weights are noticed**, and packed anew. The next call knows of everything that torch
    counts as a change (optimisers, ``load_state_dict``, any in-place operation), of a Parameter put
    in the place of another, of ``.to()`` and :func:`~seq2seq_ext.set_cpu_isa`. It also knows of
    what torch does not count (changes through ``.data``, NumPy or shared memory) if a whole weight
    is changed, no 64 numbers in a row left as they were, as by an optimiser. Any other change, down
    to a single bit, is noticed before the layer has computed 1024 further time steps. For that, one
    in 1024 of the weights is looked at for each time step, which takes some per cent of a call.

    Layers whose weights are computed in each call (parametrizations, pruning, ``weight_drop`` while
    training, ``torch.func.functional_call`` with plain tensors) run as if not prepacked as long as
    they are.

    **Of layers with variants** (``layer_norm``, ``zoneout`` and so on, ``hidden_size`` as a list)
    the matrices are packed; biases, gains and peepholes are read as they are in each call. With
    ``dtype`` None the input's matrix is left to torch, which multiplies it as without this.

    **A decoder** of :class:`~seq2seq_ext.Seq2Seq` keeps the matrices of its attention and output
    layer as well, for the steps and searches of ``generate``; a search counts as 16 steps.

    Under ``torch.autocast`` a prepacked layer uses the weights that it keeps, and its outputs are
    rounded to autocast's dtype.

    Args:
        model: any module; may be such a layer itself.
        dtype: what the packed weights are kept in. None: their own dtype, float16 in float32, and
            results are the same to the last bit but for bfloat16. ``torch.bfloat16``: rounded to 8
            significant bits. ``torch.int8``: rounded to multiples of a 127th of the largest weight
            in each row of each weight matrix.
            Beside either, where the CPU multiplies such weights as they are (AVX-512 BF16 of AMD;
            AVX2, AVX-512 VNNI), inputs and states keep 16 bits on the way into the products. Biases
            stay in float32. The errors are measured in docs/prepack.md. Layers that become float64
            later on are kept in float64.

    Returns:
        ``model``. Calling this again changes the dtype, :func:`unpack` undoes it.

    Raises:
        TypeError: if ``model`` is not a module.
        ValueError: if ``dtype`` is another one, ``model`` holds none of this package's layers and
            cells (see :func:`~seq2seq_ext.replace_modules`), or ``dtype`` is a narrow one and a
            layer has float64 weights. Nothing is changed then.

    >>> from seq2seq_ext import LSTM
    >>> model = prepack(LSTM(4, 8), torch.int8).eval()
    >>> with torch.inference_mode():
    ...     y, _ = model(torch.randn(5, 2, 4))
    """
    if dtype not in _DTYPES:
        raise ValueError(f"dtype must be None, torch.bfloat16 or torch.int8, got {dtype!r}")
    layers = _layers(model, "prepack")
    if not layers:
        raise ValueError(
            f"model must hold layers or cells of seq2seq_ext, got none in {type(model).__name__}; "
            "replace_modules(model) makes those of torch.nn such"
        )
    weights = {name: _weights(layer) for name, layer in layers.items()}
    for name, layer in layers.items():
        if dtype is not None and weights[name][0].dtype == torch.float64:
            raise ValueError(
                f"dtype must be None for weights of torch.float64, got {dtype}; they are those of "
                f"{name or 'the model'} ({type(layer).__name__})"
            )
    for name, layer in layers.items():
        kind = ops.PackedLayers if getattr(layer, "_variant", None) is None else PackedStack
        packed = kind(dtype)
        layer._packed = packed  # type: ignore[assignment]
        if _packs_now(weights[name]):
            packed.make(weights[name], _packing(layer))
    return model


def unpack(model: Model) -> Model:
    """Undo :func:`prepack`: no layer or cell in ``model`` keeps packed weights any more.

    Args:
        model: any module; may be such a layer itself.

    Returns:
        ``model``.

    Raises:
        TypeError: if ``model`` is not a module.

    >>> from seq2seq_ext import GRU
    >>> unpack(prepack(torch.nn.Sequential(GRU(4, 8))))
    Sequential(
      (0): GRU(4, 8)
    )
    """
    for layer in _layers(model, "unpack").values():
        layer.__dict__.pop("_packed", None)
    return model


def _layers(model: nn.Module, function: str) -> dict[str, nn.Module]:
    """This package's layers and cells in ``model`` by their qualified names."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{function} expects a torch.nn.Module, got {type(model).__name__}")
    return {name: module for name, module in model.named_modules() if isinstance(module, _FUSED)}


def _weights(layer: nn.Module) -> list[Tensor]:
    """What is packed, as it is now: all weights of a plain layer, the matrices of others."""
    if getattr(layer, "_variant", None) is not None:
        return stack_of(layer).matrices
    if isinstance(layer, (LSTM, GRU, RNN)):
        return layer._current_weights()
    assert isinstance(layer, nn.RNNCellBase)
    return _current_weights(layer)


def _packing(layer: nn.Module) -> tuple[int, ...]:
    """What else is told to pack them."""
    if getattr(layer, "_variant", None) is not None:
        return stack_of(layer).packing
    return operator_options(layer)


def _packs_now(weights: list[Tensor]) -> bool:
    """Whether a call would use packed weights; a layer on the meta device may yet come to do so."""
    return weights[0].dtype in DTYPES and all(
        isinstance(weight, nn.Parameter) and weight.is_cpu for weight in weights
    )


def operator_options(layer: nn.Module) -> tuple[int, ...]:
    """cell, num_layers and bidirectional as the operators take them."""
    if isinstance(layer, (LSTM, GRU, RNN)):
        cell = layer._cell
    elif isinstance(layer, LSTMCell):
        cell = "lstm"
    elif isinstance(layer, GRUCell):
        cell = "gru" if layer.reset_after else "gru_reset_before"
    else:
        cell = f"rnn_{layer.nonlinearity}"
    number = ops.CELLS.index(cell)
    if isinstance(layer, nn.RNNBase):
        return number, layer.num_layers, bool(layer.bidirectional)
    return number, 1, False
