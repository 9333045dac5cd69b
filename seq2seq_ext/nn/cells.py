"""``LSTMCell``, ``GRUCell`` and ``RNNCell``: one step of the layers, for loops that are one's own.

``torch.compile`` takes the cells of ``torch.nn`` as they come, so these derive from them and
change the computation alone: a step is the fused operator over a sequence of length one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from seq2seq_ext import functional, ops
from seq2seq_ext.kernels import DTYPES
from seq2seq_ext.nn import variant_layers
from seq2seq_ext.nn.variant_layers import CellVariants, LSTMCellVariants
from seq2seq_ext.variants import Variant

__all__ = ["GRUCell", "LSTMCell", "RNNCell"]

_NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class LSTMCell(nn.LSTMCell):
    r"""One step of the long short-term memory; takes the place of :class:`torch.nn.LSTMCell`.

    The equations are those of :class:`seq2seq_ext.LSTM` and
    :func:`seq2seq_ext.reference.lstm_cell`.

    Args:
        input_size: features I of the input.
        hidden_size: hidden units H.
        bias: whether ``bias_ih`` and ``bias_hh`` exist.
        device: where the parameters live.
        dtype: of the parameters: float32, float64, float16 or bfloat16.
        proj_size: keyword only; size P < H that h is projected to; 0 for none, then P = H.

    Attributes:
        weight_ih, weight_hh: (4H, I) and (4H, P); rows of i, f, g, o.
        bias_ih, bias_hh: (4H,), or None.
        weight_hr: (P, H), with ``proj_size``.

    >>> cell = LSTMCell(10, 20)
    >>> h, c = cell(torch.randn(3, 10))
    >>> h, c = cell(torch.randn(3, 10), (h, c))
    >>> h.shape, c.shape
    (torch.Size([3, 20]), torch.Size([3, 20]))
    """

    _packed: ops.PackedLayers | None = None  # see seq2seq_ext.prepack
    _variant: Variant | None = None  # None in a plain cell
    proj_size: int = 0
    __prepare_scriptable__ = functional.refuse_script

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        proj_size: int = 0,
        **variants: Unpack[LSTMCellVariants],
    ) -> None:
        super().__init__(input_size, hidden_size, bias, device=device, dtype=dtype)
        variant_layers.set_up_cell(self, "LSTM", proj_size, variants, device, dtype)

    def extra_repr(self) -> str:
        return _described(self, super().extra_repr())

    @property
    def _cell(self) -> str:
        return "coupled_lstm" if self._variant is not None and self._variant.coupled else "lstm"

    def forward(self, input: Tensor, hx: Sequence[Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Take one step.

        Args:
            input: (B, I), or (I,) for one sequence; dtype and device of the parameters.
            hx: ``(h, c)`` before the step, (B, P) and (B, H), or (P,) and (H,); zeros if None.

        Returns:
            ``(h, c)`` after the step, sized like ``hx``.

        Raises:
            TypeError: if ``input`` is not a Tensor or ``hx`` not a pair of them.
            ValueError: if one has a wrong number of dimensions.
            RuntimeError: if sizes, dtypes or devices do not fit.
        """
        h = c = None
        if hx is not None:
            if not isinstance(hx, (tuple, list)):
                raise TypeError(
                    "LSTMCell: Expected hx to be a tuple of two Tensors (h, c) or None, "
                    f"got {type(hx).__name__}"
                )
            if len(hx) != 2:
                raise RuntimeError("lstm_cell expects two hidden states")
            h, c = hx
            if h is None or c is None:
                raise TypeError("LSTMCell: Expected hx to hold two Tensors, got None in it")
        h, c = _step(self, self._cell, input, h, c, self._packed)
        assert c is not None
        return h, c


class GRUCell(nn.GRUCell):
    r"""One step of the gated recurrent unit; takes the place of :class:`torch.nn.GRUCell`.

    The equations are those of :class:`seq2seq_ext.GRU` and :func:`seq2seq_ext.reference.gru_cell`.

    Args:
        input_size, hidden_size, bias, device, dtype: as for :class:`LSTMCell`.
        reset_after: keyword only; whether the reset gate follows the recurrent product, as in
            ``torch.nn``, or precedes it, as in the paper.
        proj_size: keyword only; size P < H that the state is projected to for the gates and the
            output, as in :class:`seq2seq_ext.GRU`; 0 for none, then P = H.

    Attributes:
        weight_ih, weight_hh: (3H, I) and (3H, P); rows of r, z, n.
        bias_ih, bias_hh: (3H,), or None.
        weight_hr: (P, H), with ``proj_size``.

    >>> cell = GRUCell(10, 20)
    >>> cell(torch.randn(3, 10), torch.zeros(3, 20)).shape
    torch.Size([3, 20])
    >>> output, h = GRUCell(10, 20, proj_size=8)(torch.randn(3, 10), torch.zeros(3, 20))
    >>> output.shape, h.shape
    (torch.Size([3, 8]), torch.Size([3, 20]))
    """

    _packed: ops.PackedLayers | None = None  # see seq2seq_ext.prepack
    _variant: Variant | None = None  # None in a plain cell
    proj_size: int = 0
    __prepare_scriptable__ = functional.refuse_script
    reset_after: bool = True  # on the class too, for cells that began as an nn.GRUCell

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        reset_after: bool = True,
        proj_size: int = 0,
        **variants: Unpack[CellVariants],
    ) -> None:
        super().__init__(input_size, hidden_size, bias, device=device, dtype=dtype)
        self.reset_after = bool(reset_after)
        variant_layers.set_up_cell(self, "GRU", proj_size, variants, device, dtype)

    def extra_repr(self) -> str:
        described = _described(self, super().extra_repr())
        return described + ("" if self.reset_after else ", reset_after=False")

    @property
    def _cell(self) -> str:
        return "gru" if self.reset_after else "gru_reset_before"

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Any:
        """Take one step: as :meth:`LSTMCell.forward`, with ``hx`` (B, H) or (H,) and no c.

        Returns:
            The state after the step; with ``proj_size`` ``output, h``, the projected state, (B, P),
            and the state.
        """
        output, h = _step(self, self._cell, input, hx, None, self._packed)
        return output if h is None else (output, h)


class RNNCell(nn.RNNCell):
    r"""One step of the simple recurrent network; takes the place of :class:`torch.nn.RNNCell`.

    Args:
        input_size, hidden_size, bias, device, dtype: as for :class:`LSTMCell`.
        nonlinearity: ``"tanh"`` or ``"relu"``.
        proj_size: keyword only; as for :class:`LSTMCell`.

    Attributes:
        weight_ih, weight_hh: (H, I) and (H, P).
        bias_ih, bias_hh: (H,), or None.
        weight_hr: (P, H), with ``proj_size``.

    >>> cell = RNNCell(10, 20, nonlinearity="relu")
    >>> cell(torch.randn(10)).shape
    torch.Size([20])
    """

    _packed: ops.PackedLayers | None = None  # see seq2seq_ext.prepack
    _variant: Variant | None = None  # None in a plain cell
    proj_size: int = 0
    __prepare_scriptable__ = functional.refuse_script

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        proj_size: int = 0,
        **variants: Unpack[CellVariants],
    ) -> None:
        super().__init__(input_size, hidden_size, bias, nonlinearity, device=device, dtype=dtype)
        variant_layers.set_up_cell(self, "RNN", proj_size, variants, device, dtype)

    def extra_repr(self) -> str:
        return _described(self, super().extra_repr())

    @property
    def _cell(self) -> str:
        return f"rnn_{self.nonlinearity}"

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Take one step: as :meth:`LSTMCell.forward`, with ``hx`` (B, P) or (P,) and no c."""
        if self.nonlinearity not in ("tanh", "relu"):
            raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}")
        return _step(self, self._cell, input, hx, None, self._packed)[0]


def _described(module: Any, plain: str) -> str:
    """A cell's repr with its projection and the settings of its variant."""
    projection = [f"proj_size={module.proj_size}"] if module.proj_size else []
    variant = [] if module._variant is None else module._variant.described()
    return ", ".join([plain, *projection, *variant])


def _step(
    module: Any,
    cell: str,
    x: Tensor,
    h: Tensor | None,
    c: Tensor | None,
    packed: ops.PackedLayers | None,
) -> tuple[Tensor, Tensor | None]:
    """``module``'s step from ``(h, c)``."""
    weights = _current_weights(module)
    if type(x) is Tensor and x.dim() == 2 and x.is_cpu and module._variant is None:
        outputs = ops.attempt(x, h, c, weights, cell, packed=packed)
        if outputs is not None:
            return outputs[0], outputs[2]
    return _checked(module, cell, x, h, c, weights, packed)


def _current_weights(module: nn.RNNCellBase) -> list[Tensor]:
    """The weights as attributes have them now, in the order of the operator."""
    parameters = module._parameters  # the short way to the usual ones
    try:
        weights: list[Any] = [parameters[name] for name in _NAMES]
    except KeyError:  # pruned, parametrized, or plain tensors
        weights = [getattr(module, name) for name in _NAMES]
    return weights[:2] if weights[2] is None or weights[3] is None else weights


def _checked(
    module: Any,
    cell: str,
    x: Tensor,
    h: Tensor | None,
    c: Tensor | None,
    weights: list[Tensor],
    packed: ops.PackedLayers | None,
) -> tuple[Tensor, Tensor | None]:
    """The step after the checks of ``torch.nn`` in its words."""
    name = type(module).__name__
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: Expected input to be a Tensor, got {type(x).__name__}")
    if x.dim() not in (1, 2):
        raise ValueError(f"{name}: Expected input to be 1D or 2D, got {x.dim()}D instead")
    single = x.dim() == 1
    if single:
        x = x.unsqueeze(0)
    w_ih = weights[0]
    B, H = x.size(0), module.hidden_size
    P = module.proj_size or H
    if x.size(1) != w_ih.size(1):
        raise RuntimeError(
            f"input has inconsistent input_size: got {x.size(1)} expected {w_ih.size(1)}"
        )
    _check_like_weight(name, "input", x, w_ih)
    x = x if x.dtype == w_ih.dtype else x.to(w_ih.dtype)

    if h is not None:
        lstm = isinstance(module, nn.LSTMCell)
        features = H if isinstance(module, nn.GRUCell) else P
        h = _state(name, 0 if lstm else None, h, single, B, features, w_ih)
        if lstm:
            c = _state(name, 1, c, single, B, H, w_ih)

    for weight in weights:
        if weight.device != w_ih.device:
            raise RuntimeError(
                f"{name}: weights must all be on {w_ih.device}, got one on {weight.device}"
            )
    if module._variant is None:
        h_n, c_n = ops.step(x, h, c, weights, cell, packed)
    else:
        h_n, c_n = variant_layers.step(module, x, h, c)
    if single:
        h_n, c_n = h_n.squeeze(0), None if c_n is None else c_n.squeeze(0)
    return h_n, c_n


def _state(
    name: str,
    index: int | None,
    h: Tensor | None,
    single: bool,
    B: int,
    features: int,
    weight: Tensor,
) -> Tensor:
    """``h`` (``hx[index]`` of a pair) as a checked (B, features)."""
    hidden = "hidden" if index is None else f"hx[{index}]"
    if not isinstance(h, Tensor):
        raise TypeError(f"{name}: Expected {hidden} to be a Tensor, got {type(h).__name__}")
    if h.dim() not in (1, 2):
        raise ValueError(f"{name}: Expected {hidden} to be 1D or 2D, got {h.dim()}D instead")
    if h.dim() != (1 if single else 2):
        raise RuntimeError(
            f"{name}: Expected {hidden} to be {1 if single else 2}D like the input, got {h.dim()}D"
        )
    if single:
        h = h.unsqueeze(0)
    place = index or 0
    if h.size(0) != B:
        raise RuntimeError(
            f"Input batch size {B} doesn't match hidden{place} batch size {h.size(0)}"
        )
    if h.size(1) != features:
        raise RuntimeError(
            f"hidden{place} has inconsistent hidden_size: got {h.size(1)}, expected {features}"
        )
    _check_like_weight(name, hidden, h, weight)
    return h if h.dtype == weight.dtype else h.to(weight.dtype)


def _check_like_weight(name: str, argument: str, tensor: Tensor, weight: Tensor) -> None:
    dtype, device = weight.dtype, weight.device
    if tensor.dtype != dtype and not (
        tensor.is_floating_point() and torch.is_autocast_enabled(tensor.device.type)
    ):
        raise RuntimeError(
            f"{name}: {argument} dtype ({tensor.dtype}) does not match weight dtype ({dtype})"
        )
    if dtype not in DTYPES:
        raise RuntimeError(
            f"{name}: Expected weights of float32, float64, float16 or bfloat16, got {dtype}"
        )
    if tensor.layout is not torch.strided:
        raise RuntimeError(f"{name}: Expected {argument} to be dense, got {tensor.layout}")
    if tensor.device != device:
        raise RuntimeError(
            f"{name}: {argument} and parameter tensors are not at the same device, found "
            f"{tensor.device} and {device}"
        )
