"""The fused operators as torch sees them: wrapper, fake kernel and autograd, side by side.

``torch.ops.seq2seq_ext.rnn`` runs a whole stack of recurrent layers over a whole sequence, and
``rnn_backward`` computes all of its gradients; their schemas stand in ``csrc/ops.cpp``.  Both are
single nodes to autograd, ``torch.compile`` and ``torch.export``.  A second derivative is taken
through :mod:`seq2seq_ext.reference`: right for every cell, at the speed of plain torch.

Sizes: T time steps, B sequences, N steps of a packed batch, I input features, H hidden units, P
output features of a cell (H, or the projection's), L layers, D directions, G gates.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from seq2seq_ext import (
    _C,  # noqa: F401 - importing it registers the operators
    reference,
)

__all__ = ["rnn"]

# Values that backward keeps per hidden unit and step, as reserve_slots() in csrc/cpu/kernels.h, and
# the number of units that a row of them is padded to.
_RESERVE_SLOTS = {"lstm": 5, "gru": 4, "gru_reset_before": 3, "rnn_tanh": 0, "rnn_relu": 0}
_UNIT_PADDING = 16


def rnn(
    x: Tensor,
    h_0: Tensor,
    c_0: Tensor | None,
    weights: Sequence[Tensor],
    *,
    cell: str,
    num_layers: int,
    bidirectional: bool,
    lengths: Tensor | None = None,
    batch_sizes: Tensor | None = None,
    resets: Tensor | None = None,
    dropout_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Run a stack of recurrent layers; :mod:`seq2seq_ext.functional` is the friendlier way in.

    Args:
        x: float32 or float64 (T, B, I) of any strides; with ``batch_sizes``, (N, I).
        h_0: (L*D, B, P), in the dtype of ``x`` as all that follows.
        c_0: (L*D, B, H) for ``"lstm"``, else None.
        weights: per layer and direction ``w_ih`` (G*H, I or D*P), ``w_hh`` (G*H, P), then ``b_ih``
            and ``b_hh`` (G*H,) or neither, then ``w_hr`` (P, H) for an LSTM with projection.
        cell: ``"lstm"``, ``"gru"``, ``"gru_reset_before"``, ``"rnn_tanh"`` or ``"rnn_relu"``.
        num_layers: L.
        bidirectional: whether D is 2.
        lengths: int64 (B,) on the CPU, 0 to T each, in any order.
        batch_sizes: int64 (T,) on the CPU, as :class:`~torch.nn.utils.rnn.PackedSequence` has it.
        resets: bool (T, B) or (N,); where true, the state entering that step is zero.
        dropout_mask: (L-1, T, B, D*P) or (L-1, N, D*P), what the outputs of all layers but the last
            are multiplied by.

    Returns:
        ``y`` (T, B, D*P) or (N, D*P), ``h_n`` (L*D, B, P), ``c_n`` (L*D, B, H) or None.

    Raises:
        RuntimeError: naming the argument whose rank, size, dtype, device or value is wrong.

    >>> weights = [torch.zeros(8, 3), torch.zeros(8, 2)]
    >>> x, state = torch.ones(5, 4, 3), torch.zeros(1, 4, 2)
    >>> y, h_n, c_n = rnn(x, state, state, weights, cell="lstm", num_layers=1, bidirectional=False)
    >>> y.shape
    torch.Size([5, 4, 2])
    """
    y, h_n, c_n, _ = torch.ops.seq2seq_ext.rnn.default(
        x,
        h_0,
        c_0,
        weights,
        lengths,
        batch_sizes,
        resets,
        dropout_mask,
        cell,
        num_layers,
        bidirectional,
        _needs_grad((x, h_0, c_0, *weights)),
    )
    return y, h_n, c_n if cell == "lstm" else None


def _sizes(
    x: Tensor,
    weights: Sequence[Tensor],
    cell: str,
    num_layers: int,
    bidirectional: bool,
) -> tuple[int, int]:
    """H, and the elements of the reserve."""
    steps = x.size(0) if x.dim() == 2 else x.size(0) * x.size(1)
    gates = {"lstm": 4, "gru": 3, "gru_reset_before": 3}.get(cell, 1)
    D = 2 if bidirectional else 1
    H, P = weights[0].size(0) // gates, weights[1].size(1)
    padded = (H + _UNIT_PADDING - 1) // _UNIT_PADDING * _UNIT_PADDING
    reserve = num_layers * D * steps * _RESERVE_SLOTS[cell] * padded
    return H, reserve + (num_layers - 1) * steps * D * P


def _check_devices(x: Tensor, h_0: Tensor, c_0: Tensor | None, weights: Sequence[Tensor]) -> None:
    """A single meta tensor brings a call here, and must not take real ones with it."""
    for name, tensor in (
        ("h_0", h_0),
        ("c_0", c_0),
        *((f"weights[{i}]", w) for i, w in enumerate(weights)),
    ):
        if tensor is not None and tensor.device != x.device:
            raise RuntimeError(f"{name}: expected device {x.device} as x has, got {tensor.device}")


@torch.library.register_fake("seq2seq_ext::rnn")  # type: ignore[untyped-decorator]
def _rnn_fake(
    x: Tensor,
    h_0: Tensor,
    c_0: Tensor | None,
    weights: Sequence[Tensor],
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    resets: Tensor | None,
    dropout_mask: Tensor | None,
    cell: str,
    num_layers: int,
    bidirectional: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _check_devices(x, h_0, c_0, weights)
    H, reserve = _sizes(x, weights, cell, num_layers, bidirectional)
    D = 2 if bidirectional else 1
    B, P = h_0.size(1), h_0.size(2)
    return (
        x.new_empty((*x.shape[:-1], D * P)),
        x.new_empty((num_layers * D, B, P)),
        x.new_empty((num_layers * D, B, H) if cell == "lstm" else (0,)),
        x.new_empty((reserve if save else 0,)),
    )


@torch.library.register_fake("seq2seq_ext::rnn_backward")  # type: ignore[untyped-decorator]
def _rnn_backward_fake(
    d_y: Tensor | None,
    d_h_n: Tensor | None,
    d_c_n: Tensor | None,
    x: Tensor,
    h_0: Tensor,
    c_0: Tensor | None,
    weights: Sequence[Tensor],
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    resets: Tensor | None,
    dropout_mask: Tensor | None,
    y: Tensor,
    reserve: Tensor,
    cell: str,
    num_layers: int,
    bidirectional: bool,
    input_grad: bool,
    weight_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    _check_devices(x, h_0, c_0, weights)
    return (
        x.new_empty(x.shape if input_grad else (0,)),
        x.new_empty(h_0.shape),
        x.new_empty((0,) if c_0 is None else c_0.shape),
        [x.new_empty(weight.shape) for weight in weights] if weight_grad else [],
    )


# Autograd. The kernels for the Autograd key are written here rather than made by
# torch.library.register_autograd, whose handling of lists of tensors takes 0.2 ms a call: more than
# the whole forward pass of a small layer.


def _needs_grad(tensors: Iterable[Tensor | None]) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


class _Rnn(torch.autograd.Function):
    """``rnn`` with its gradient; weights come last, as autograd wants tensors one by one."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        h_0: Tensor,
        c_0: Tensor | None,
        sequence: tuple[Tensor | None, ...],
        options: tuple[Any, ...],
        save: bool,
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        with torch._C._AutoDispatchBelowAutograd():
            y, h_n, c_n, reserve = torch.ops.seq2seq_ext.rnn.default(
                x, h_0, c_0, weights, *sequence, *options, save
            )
        ctx.options, ctx.save = options, save
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*([reserve] if c_0 is not None else [c_n, reserve]))
        ctx.save_for_backward(x, h_0, c_0, *sequence, y, reserve, *weights)
        return y, h_n, c_n, reserve

    @staticmethod
    def backward(
        ctx: Any, d_y: Tensor | None, d_h_n: Tensor | None, d_c_n: Tensor | None, _: None
    ) -> tuple[Any, ...]:
        wanted = ctx.needs_input_grad
        if d_y is None and d_h_n is None and d_c_n is None:
            return (None,) * len(wanted)
        if not ctx.save:
            raise RuntimeError(
                "save: expected True for a call of seq2seq_ext::rnn that is to be differentiated, "
                "got False"
            )
        x, h_0, c_0, *rest = ctx.saved_tensors
        sequence, (y, reserve), weights = rest[:4], rest[4:6], rest[6:]
        d_x, d_h_0, d_c_0, d_weights = torch.ops.seq2seq_ext.rnn_backward.default(
            d_y,
            d_h_n,
            d_c_n,
            x,
            h_0,
            c_0,
            weights,
            *sequence,
            y,
            reserve,
            *ctx.options,
            wanted[0],
            any(wanted[6:]),
        )
        return (
            d_x if wanted[0] else None,
            d_h_0 if wanted[1] else None,
            d_c_0 if wanted[2] else None,
            None,
            None,
            None,
            *(d_weights or [None] * len(weights)),
        )


def _rnn_autograd(
    x: Tensor,
    h_0: Tensor,
    c_0: Tensor | None,
    weights: Sequence[Tensor],
    *rest: Any,
) -> tuple[Tensor, ...]:
    if _needs_grad((x, h_0, c_0, *weights)):
        output: tuple[Tensor, ...] = _Rnn.apply(  # type: ignore[no-untyped-call]
            x, h_0, c_0, rest[:4], rest[4:7], rest[7], *weights
        )
        return output
    with torch._C._AutoDispatchBelowAutograd():
        return cast(
            "tuple[Tensor, ...]",
            torch.ops.seq2seq_ext.rnn.default(x, h_0, c_0, weights, *rest),
        )


class _RnnBackward(torch.autograd.Function):
    """``rnn_backward`` with its gradient: the reference, differentiated twice by torch."""

    @staticmethod
    def forward(
        ctx: Any,
        d_y: Tensor | None,
        d_h_n: Tensor | None,
        d_c_n: Tensor | None,
        x: Tensor,
        h_0: Tensor,
        c_0: Tensor | None,
        sequence: tuple[Tensor | None, ...],
        saved: tuple[Any, ...],
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        with torch._C._AutoDispatchBelowAutograd():
            d_x, d_h_0, d_c_0, d_weights = torch.ops.seq2seq_ext.rnn_backward.default(
                d_y, d_h_n, d_c_n, x, h_0, c_0, weights, *sequence, *saved
            )
        # y and the reserve are functions of the other inputs, through which the reference
        # computes them anew: no gradient flows into them.
        ctx.cell, ctx.num_layers, ctx.bidirectional = saved[2:5]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(d_y, d_h_n, d_c_n, x, h_0, c_0, *sequence, *weights)
        return d_x, d_h_0, d_c_0, *d_weights

    @staticmethod
    def backward(ctx: Any, *seeds: Tensor | None) -> tuple[Any, ...]:
        d_y, d_h_n, d_c_n, x, h_0, c_0, *rest = ctx.saved_tensors
        lengths, batch_sizes, resets, dropout_mask, *weights = rest

        def leaf(tensor: Tensor) -> Tensor:
            # A view keeps what leads up to the tensor, for still higher derivatives.
            if tensor.requires_grad:
                return tensor.view_as(tensor)
            return tensor.detach().requires_grad_()

        higher = torch.is_grad_enabled()
        with torch.enable_grad():
            states = [leaf(t) for t in (x, h_0, c_0) if t is not None]
            inputs = states + [leaf(weight) for weight in weights]
            outputs = reference.rnn(
                inputs[0],
                inputs[1],
                None if c_0 is None else inputs[2],
                inputs[len(states) :],
                cell=ctx.cell,
                num_layers=ctx.num_layers,
                bidirectional=ctx.bidirectional,
                lengths=lengths,
                batch_sizes=batch_sizes,
                resets=resets,
                dropout_mask=dropout_mask,
            )
            cotangents = [None if d is None else leaf(d) for d in (d_y, d_h_n, d_c_n)]
            pairs = [
                (out, d)
                for out, d in zip(outputs, cotangents, strict=True)
                if out is not None and d is not None
            ]
            first = torch.autograd.grad(
                [out for out, _ in pairs],
                inputs,
                [d for _, d in pairs],
                create_graph=True,
                allow_unused=True,
            )
            # What rnn_backward answers and a seed each: d_c_0 only where there is a c_0, the
            # weights' only where they were asked for.
            given = list(seeds[: len(states)])
            given += list(seeds[3:]) or [None] * len(weights)
            chosen = [
                (grad, seed)
                for grad, seed in zip(first, given, strict=True)
                if grad is not None and seed is not None and grad.requires_grad
            ]
            targets = inputs + [d for d in cotangents if d is not None]
            second: Sequence[Tensor | None] = [None] * len(targets)
            if chosen:
                second = torch.autograd.grad(
                    [grad for grad, _ in chosen],
                    targets,
                    [seed for _, seed in chosen],
                    create_graph=higher,
                    allow_unused=True,
                )
        found = iter(second[len(inputs) :])
        of_cotangents = [None if d is None else next(found) for d in cotangents]
        of_states = [*second[: len(states)], *([None] if c_0 is None else [])]
        return (*of_cotangents, *of_states, None, None, *second[len(states) : len(inputs)])


def _rnn_backward_autograd(
    d_y: Tensor | None,
    d_h_n: Tensor | None,
    d_c_n: Tensor | None,
    x: Tensor,
    h_0: Tensor,
    c_0: Tensor | None,
    weights: Sequence[Tensor],
    *rest: Any,
) -> tuple[Any, ...]:
    if _needs_grad((d_y, d_h_n, d_c_n, x, h_0, c_0, *weights)):
        d_x, d_h_0, d_c_0, *d_weights = _RnnBackward.apply(  # type: ignore[no-untyped-call]
            d_y, d_h_n, d_c_n, x, h_0, c_0, rest[:4], rest[4:], *weights
        )
        return d_x, d_h_0, d_c_0, d_weights
    with torch._C._AutoDispatchBelowAutograd():
        return cast(
            "tuple[Any, ...]",
            torch.ops.seq2seq_ext.rnn_backward.default(
                d_y, d_h_n, d_c_n, x, h_0, c_0, weights, *rest
            ),
        )


# Kept alive: torch unregisters what a library holds when the library goes.
_library = torch.library.Library("seq2seq_ext", "IMPL")  # type: ignore[no-untyped-call]
_library.impl("rnn", _rnn_autograd, "Autograd")  # type: ignore[no-untyped-call]
_library.impl("rnn_backward", _rnn_backward_autograd, "Autograd")  # type: ignore[no-untyped-call]
