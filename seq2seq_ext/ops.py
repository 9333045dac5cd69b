"""The fused operators as torch sees them: how they are called, and what shapes they return.

``torch.ops.seq2seq_ext.rnn`` runs a whole stack of recurrent layers over a whole sequence, and
``rnn_backward`` computes all of its gradients; their schemas stand in ``csrc/ops.cpp``, their
derivatives in :mod:`seq2seq_ext.autograd`.  Both are single nodes to autograd, ``torch.compile``
and ``torch.export``.

Sizes: T time steps, B sequences, N steps of a packed batch, I input features, H hidden units, P
output features of a cell (H, or the projection's), L layers, D directions, G gates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.overrides import has_torch_function

from seq2seq_ext import composed, transforms
from seq2seq_ext.autograd import apply_rnn, require_grad
from seq2seq_ext.kernels import (
    CELLS,
    GATES,
    LSTM,
    RESERVE_SLOTS,
    UNIT_PADDING,
    autocast_is_on,
    below_autograd,
    kept_dtype,
    prepack_op,
    rnn_op,
)
from seq2seq_ext.packed import Packed

__all__ = ["CELLS", "PackedLayers", "attempt", "rnn", "step"]

_NUMBER = {name: number for number, name in enumerate(CELLS)}


def rnn(
    x: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    weights: Sequence[Tensor],
    cell: str,
    num_layers: int = 1,
    bidirectional: bool = False,
    lengths: Tensor | None = None,
    batch_sizes: Tensor | None = None,
    resets: Tensor | None = None,
    dropout_mask: Tensor | None = None,
    packed: PackedLayers | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Run a stack of recurrent layers; :mod:`seq2seq_ext.functional` is the friendlier way in.

    Args:
        x: float32, float64, float16 or bfloat16, (T, B, I) of any strides; with ``batch_sizes``,
            (N, I).  States and sums of the last two are float32; outputs are rounded once.
        h_0: (L*D, B, P), in the dtype of ``x`` as all that follows. None stands for zeros, except
            beside ``batch_sizes``.
        c_0: (L*D, B, H) for ``"lstm"``, None where ``h_0`` is; None for every other cell.
        weights: per layer and direction ``w_ih`` (G*H, I or D*P), ``w_hh`` (G*H, P), then ``b_ih``
            and ``b_hh`` (G*H,) or neither, then ``w_hr`` (P, H) for an LSTM with projection.
        cell: ``"lstm"``, ``"gru"``, ``"gru_reset_before"``, ``"rnn_tanh"`` or ``"rnn_relu"``.
        num_layers: L.
        bidirectional: whether D is 2.
        lengths: int64 (B,), 0 to T each, in any order; on the CPU, or where ``x`` is.  The latter
            are not checked, which would wait for the device, but kept within 0 to T.
        batch_sizes: int64 (T,) on the CPU, as :class:`~torch.nn.utils.rnn.PackedSequence` has it.
        resets: bool (T, B) or (N,); where true, the state entering that step is zero.
        dropout_mask: (L-1, T, B, D*P) or (L-1, N, D*P), what the outputs of all layers but the last
            are multiplied by.
        packed: the weights once more, for calls that need no gradient.

    Returns:
        ``y`` (T, B, D*P) or (N, D*P), ``h_n`` (L*D, B, P), ``c_n`` (L*D, B, H) or None.

    Raises:
        RuntimeError: naming the argument whose rank, size, dtype, device or value is wrong.

    >>> weights = [torch.zeros(8, 3), torch.zeros(8, 2)]
    >>> y, h_n, c_n = rnn(torch.ones(5, 4, 3), None, None, weights, "lstm")
    >>> y.shape, h_n.shape, c_n.shape
    (torch.Size([5, 4, 2]), torch.Size([1, 4, 2]), torch.Size([1, 4, 2]))
    """
    sequence: tuple[Any, ...] = ()
    if not (lengths is batch_sizes is resets is dropout_mask is None):
        sequence = (lengths, batch_sizes, resets, dropout_mask)
    options = (_NUMBER[cell], num_layers, bidirectional)
    y, h_n, c_n, *_ = _call(x, h_0, c_0, weights, options, sequence, packed, transforms.watched())
    return y, h_n, c_n if cell == "lstm" else None


def step(
    x: Tensor,
    h: Tensor | None,
    c: Tensor | None,
    weights: Sequence[Tensor],
    cell: str,
    packed: PackedLayers | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Take one step of one layer: what a cell does.

    Args:
        x: as for :func:`rnn`, (B, I) of any strides.
        h: (B, P), in the dtype of ``x`` as all that follows; None stands for zeros.
        c: (B, H) for ``"lstm"``, None where ``h`` is; None for every other cell.
        weights: as for :func:`rnn`, of one layer and direction.
        cell, packed: as for :func:`rnn`.

    Returns:
        ``h`` (B, P) after the step, and ``c`` (B, H) or None.

    Raises:
        RuntimeError: as :func:`rnn`.

    >>> h, c = step(torch.ones(4, 3), None, None, [torch.zeros(8, 3), torch.zeros(8, 2)], "lstm")
    >>> h.shape, c.shape
    (torch.Size([4, 2]), torch.Size([4, 2]))
    """
    h, _, c, *_ = _call(
        x, h, c, weights, (_NUMBER[cell], 1, False), (), packed, transforms.watched()
    )
    return h, c if cell == "lstm" else None


def attempt(
    x: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    weights: Sequence[Tensor],
    cell: str,
    num_layers: int = 1,
    bidirectional: bool = False,
    packed: PackedLayers | None = None,
) -> tuple[Tensor, Tensor, Tensor | None] | None:
    """What :func:`rnn` returns, or None: the call is not a usual one, or the operator refuses it.

    The operator checks whatever it reads, at a tenth of the price that checks in Python have, but
    in its own words, and knows nothing of autocast.  So layers and cells attempt a call without
    checks of their own, and one that was refused goes through them to learn why.

    ``x`` may be (B, I) as for :func:`step`, whose h is then the first result.
    """
    if transforms.watched() or autocast_is_on():
        return None
    try:
        y, h_n, c_n, _ = _call(
            x, h_0, c_0, weights, (_NUMBER[cell], num_layers, bidirectional), (), packed, False
        )
    except (RuntimeError, TypeError, AttributeError):  # the last if something is no tensor
        return None
    return y, h_n, c_n if cell == "lstm" else None


def _call(
    x: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    weights: Sequence[Tensor],
    options: tuple[int, ...],
    sequence: tuple[Any, ...],
    packed: PackedLayers | None,
    special: bool,
) -> tuple[Tensor, ...]:
    """All outputs of the operator, by one of three ways.

    Through the dispatcher from the top, where it is one node to every mode of torch: the way of
    special calls and tensor subclasses, and of inference mode, where autograd is out of the way
    already.  The other two begin below autograd, whose kernel in Python has the dispatcher turn
    each argument and result from C++ to Python and back; for a small layer that takes as long as
    the layer.  Under function transforms and in forward mode it is composed instead.
    """
    if special and transforms.active():
        cell, num_layers, bidirectional = options
        return composed.rnn(
            x, h_0, c_0, weights, cell, num_layers, bool(bidirectional), *sequence[:4]
        )
    save = torch.is_grad_enabled() and require_grad(x, h_0, c_0, weights)
    if special and not torch.compiler.is_compiling() and torch._C._is_tracing():
        # A trace is called with and without gradients.
        save = require_grad(x, h_0, c_0, weights)
    if not x.is_cpu and x.dtype == torch.float32 and tf32_allowed():
        sequence = (*(sequence or (None,) * 4), True)
    rest = (None, 0, *sequence) if sequence else ()
    if packed is not None and (special or save or not x.is_cpu):
        packed = None
    if special or torch.is_inference_mode_enabled() or has_torch_function((x, h_0, c_0, *weights)):
        if packed is not None:
            return packed.rnn(x, h_0, c_0, weights, options, sequence)
        return cast("tuple[Tensor, ...]", rnn_op(x, h_0, c_0, weights, *options, save, *rest))
    if save:
        return apply_rnn(x, h_0, c_0, options, True, sequence, *weights)
    with below_autograd():
        if packed is not None:
            return packed.rnn(x, h_0, c_0, weights, options, sequence)
        return cast("tuple[Tensor, ...]", rnn_op(x, h_0, c_0, weights, *options, False, *rest))


def tf32_allowed() -> bool:
    """Whether torch lets the recurrent layers of cuDNN round float32 to TF32, and so ours."""
    rnn: Any = torch.backends.cudnn.rnn  # to mypy the module, at run time its settings
    return bool(rnn.fp32_precision == "tf32")


class PackedLayers(Packed[Tensor]):
    """The weights of plain layers as one block for ``rnn``."""

    def _pack(
        self, weights: list[Tensor], options: tuple[int, ...], dtype: torch.dtype | None
    ) -> Tensor:
        return cast("Tensor", prepack_op(weights, *options, dtype))

    def rnn(
        self,
        x: Tensor,
        h_0: Tensor | None,
        c_0: Tensor | None,
        weights: Sequence[Tensor],
        options: tuple[int, ...],
        sequence: tuple[Tensor | None, ...],
    ) -> tuple[Tensor, ...]:
        """What the operator answers; ``options`` are cell, num_layers and bidirectional."""
        if sequence and sequence[1] is not None:
            steps = sequence[1].numel()
        else:
            steps = x.size(0) if x.dim() == 3 else 1
        return self.run(
            weights,
            options,
            steps,
            lambda block, turn: cast(
                "tuple[Tensor, ...]",
                rnn_op(x, h_0, c_0, weights, *options, False, block, turn, *sequence),
            ),
        )


def _sizes(
    x: Tensor, weights: Sequence[Tensor], cell: int, num_layers: int, bidirectional: bool
) -> tuple[int, int, int]:
    """H, P and the elements of the reserve."""
    steps = x.size(0) if x.dim() == 2 else x.size(0) * x.size(1)
    D = 2 if bidirectional else 1
    H, P = weights[0].size(0) // GATES[cell], weights[1].size(1)
    padded = (H + UNIT_PADDING - 1) // UNIT_PADDING * UNIT_PADDING
    reserve = num_layers * D * steps * RESERVE_SLOTS[cell] * padded
    return H, P, reserve + (num_layers - 1) * steps * D * P


def _check_devices(
    x: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    weights: Sequence[Tensor],
    packed: Tensor | None = None,
) -> None:
    """A single meta tensor brings a call here, and must not take real ones with it."""
    for name, tensor in (
        ("h_0", h_0),
        ("c_0", c_0),
        *((f"weights[{i}]", w) for i, w in enumerate(weights)),
        ("packed", packed),
    ):
        if tensor is not None and tensor.device != x.device:
            raise RuntimeError(f"{name}: expected device {x.device} as x has, got {tensor.device}")


@torch.library.register_fake("seq2seq_ext::rnn")  # type: ignore[untyped-decorator]
def _rnn_fake(
    x: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    weights: Sequence[Tensor],
    cell: int,
    num_layers: int = 1,
    bidirectional: bool = False,
    save: bool = False,
    packed: Tensor | None = None,
    turn: int = 0,
    lengths: Tensor | None = None,
    batch_sizes: Tensor | None = None,
    resets: Tensor | None = None,
    dropout_mask: Tensor | None = None,
    allow_tf32: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _check_devices(x, h_0, c_0, weights, packed)
    H, P, reserve = _sizes(x, weights, cell, num_layers, bidirectional)
    D = 2 if bidirectional else 1
    one_step = x.dim() == 2 and batch_sizes is None
    B = x.size(-2) if h_0 is None else h_0.size(-2)
    rows = (B,) if one_step else (num_layers * D, B)
    return (
        x.new_empty((*x.shape[:-1], D * P)),
        x.new_empty((0,) if one_step else (*rows, P)),
        x.new_empty((*rows, H) if cell == LSTM else (0,)),
        x.new_empty((reserve if save else 0,), dtype=kept_dtype(x)),
    )


@torch.library.register_fake("seq2seq_ext::prepack")  # type: ignore[untyped-decorator]
def _prepack_fake(
    weights: Sequence[Tensor],
    cell: int,
    num_layers: int = 1,
    bidirectional: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    # The size is the instruction set's.
    return weights[0].new_empty((torch.library.get_ctx().new_dynamic_size(),), dtype=torch.uint8)


@torch.library.register_fake("seq2seq_ext::prepack_matrix")  # type: ignore[untyped-decorator]
def _prepack_matrix_fake(w: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return w.new_empty((torch.library.get_ctx().new_dynamic_size(),), dtype=torch.uint8)


@torch.library.register_fake("seq2seq_ext::linear")  # type: ignore[untyped-decorator]
def _linear_fake(
    x: Tensor, w: Tensor, bias: Tensor | None, packed: Tensor, turn: int = 0
) -> Tensor:
    for name, tensor in (("w", w), ("bias", bias), ("packed", packed)):
        if tensor is not None and tensor.device != x.device:
            raise RuntimeError(f"{name}: expected device {x.device} as x has, got {tensor.device}")
    return x.new_empty((*x.shape[:-1], w.size(0)))


@torch.library.register_fake("seq2seq_ext::rnn_backward")  # type: ignore[untyped-decorator]
def _rnn_backward_fake(
    d_y: Tensor | None,
    d_h_n: Tensor | None,
    d_c_n: Tensor | None,
    x: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    weights: Sequence[Tensor],
    y: Tensor,
    reserve: Tensor,
    cell: int,
    num_layers: int,
    bidirectional: bool,
    input_grad: bool,
    state_grad: bool,
    weight_grad: bool,
    lengths: Tensor | None = None,
    batch_sizes: Tensor | None = None,
    resets: Tensor | None = None,
    dropout_mask: Tensor | None = None,
    allow_tf32: bool = False,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    _check_devices(x, h_0, c_0, weights)
    return (
        x.new_empty(x.shape if input_grad else (0,)),
        x.new_empty((0,) if h_0 is None or not state_grad else h_0.shape),
        x.new_empty((0,) if c_0 is None or not state_grad else c_0.shape),
        [x.new_empty(weight.shape) for weight in weights] if weight_grad else [],
    )
