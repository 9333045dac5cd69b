"""The operators' derivatives: kernels for torch's Autograd key.

``rnn_backward`` computes all gradients of ``rnn``.  Where a second derivative may be taken of them,
they come from :mod:`seq2seq_ext.composed` instead, whose operators have one.

The kernels are written here rather than made by ``torch.library.register_autograd``, whose handling
of lists of tensors takes 0.2 ms a call: more than the whole forward pass of a small layer.  Sizes
are those of :mod:`seq2seq_ext.ops`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from seq2seq_ext import composed
from seq2seq_ext.kernels import below_autograd, rnn_backward_op, rnn_op


def require_grad(x: Tensor, h_0: Tensor | None, c_0: Tensor | None, weights: Any) -> bool:
    if x.requires_grad or (h_0 is not None and h_0.requires_grad):
        return True
    for weight in weights:  # a plain loop: any() of a generator takes longer
        if weight.requires_grad:
            return True
    return c_0 is not None and c_0.requires_grad


class _Rnn(torch.autograd.Function):
    """``rnn`` with its gradient; weights come last, as autograd wants tensors one by one."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        h_0: Tensor | None,
        c_0: Tensor | None,
        options: tuple[Any, ...],
        save: bool,
        sequence: tuple[Any, ...],
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        rest = (None, 0, *sequence) if sequence else ()
        with below_autograd():
            y, h_n, c_n, reserve = rnn_op(x, h_0, c_0, weights, *options, save, *rest)
        tensors, ctx.flags = sequence[:4], sequence[4:]
        ctx.options, ctx.save, ctx.parts = options, save, len(tensors)
        ctx.set_materialize_grads(False)
        empty = [t for t in (h_n, c_n) if t.dim() == 1]
        ctx.mark_non_differentiable(*empty, reserve)
        ctx.save_for_backward(x, h_0, c_0, y, reserve, *tensors, *weights)
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
        x, h_0, c_0, y, reserve, *rest = ctx.saved_tensors
        sequence, weights = rest[: ctx.parts], rest[ctx.parts :]
        if torch.is_grad_enabled():  # a second derivative may be taken
            cotangents = (d_y, d_h_n, d_c_n)
            d_x, d_h_0, d_c_0, *d_weights = _again(
                (x, h_0, c_0, *weights),
                (*wanted[:3], *wanted[6:]),
                cotangents,
                ctx.options,
                sequence,
            )
            return (d_x, d_h_0, d_c_0, None, None, None, *d_weights)
        arguments = (
            d_y,
            d_h_n,
            d_c_n,
            x,
            h_0,
            c_0,
            weights,
            y,
            reserve,
            *ctx.options,
            wanted[0],
            wanted[1] or wanted[2],
            any(wanted[6:]),
            *sequence,
            *ctx.flags,
        )
        with below_autograd():
            d_x, d_h_0, d_c_0, d_weights = rnn_backward_op(*arguments)
        return (
            d_x if wanted[0] else None,
            d_h_0 if wanted[1] else None,
            d_c_0 if wanted[2] else None,
            None,
            None,
            None,
            *(d_weights or [None] * len(weights)),
        )


# What _Rnn.apply comes to where no function transform is active.
apply_rnn: Callable[..., tuple[Tensor, ...]] = super(torch.autograd.Function, _Rnn).apply


def _rnn_autograd(
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
    *sequence: Any,
) -> tuple[Tensor, ...]:
    options = (cell, num_layers, bidirectional)
    if torch.is_grad_enabled() and require_grad(x, h_0, c_0, weights):
        output: tuple[Tensor, ...] = _Rnn.apply(  # type: ignore[no-untyped-call]
            x, h_0, c_0, options, save, sequence, *weights
        )
        return output
    with below_autograd():
        return cast(
            "tuple[Tensor, ...]",
            rnn_op(x, h_0, c_0, weights, *options, save, packed, turn, *sequence),
        )


def _again(
    tensors: tuple[Tensor | None, ...],
    wanted: tuple[bool, ...],
    cotangents: tuple[Tensor | None, ...],
    options: tuple[Any, ...],
    sequence: Sequence[Any],
) -> list[Tensor | None]:
    """Gradients to be differentiated, of a second forward pass.

    ``tensors`` are x, h_0, c_0 and the weights; of those that are not ``wanted``, None.
    """

    def view(tensor: Tensor | None) -> Tensor | None:
        # Gradients are taken by views: what leads up to the tensor is no part of this pass.
        return tensor.view_as(tensor) if tensor is not None and tensor.requires_grad else tensor

    inputs: list[Any] = [view(t) for t in tensors]
    outputs = composed.rnn(inputs[0], inputs[1], inputs[2], inputs[3:], *options, *sequence)
    pairs = [(y, d) for y, d in zip(outputs, cotangents, strict=True) if d is not None]
    found = iter(
        torch.autograd.grad(
            [y for y, _ in pairs],
            [t for t, wish in zip(inputs, wanted, strict=True) if wish],
            [d for _, d in pairs],
            create_graph=True,
            allow_unused=True,
        )
    )
    return [next(found) if wish else None for wish in wanted]


# Kept alive: torch unregisters what a library holds when the library goes.
_library = torch.library.Library("seq2seq_ext", "IMPL")  # type: ignore[no-untyped-call]
_library.impl("rnn", _rnn_autograd, "Autograd")  # type: ignore[no-untyped-call]
for _name in ("prepack", "prepack_matrix", "linear", "rnn_backward"):
    _library.impl(_name, torch.library.fallthrough_kernel, "Autograd")  # type: ignore[no-untyped-call]
