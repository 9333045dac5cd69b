"""The operators' derivatives: kernels for torch's Autograd key.

``rnn_backward`` computes all gradients of ``rnn``.  Where a second derivative may be taken of them,
they come from :mod:`seq2seq_ext.composed` instead, whose operators have one.  What they read of
forward is its reserve, which for that has a gradient of its own.

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
from seq2seq_ext.kernels import (
    CELLS,
    below_autograd,
    kept_dtype,
    rnn_backward_op,
    rnn_op,
    without_autocast,
)


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
        ctx.mark_non_differentiable(*empty)
        ctx.save_for_backward(x, h_0, c_0, y, reserve, *tensors, *weights)
        return y, h_n, c_n, reserve

    @staticmethod
    def backward(
        ctx: Any,
        d_y: Tensor | None,
        d_h_n: Tensor | None,
        d_c_n: Tensor | None,
        d_reserve: Tensor | None,
    ) -> tuple[Any, ...]:
        wanted = ctx.needs_input_grad
        if d_y is d_h_n is d_c_n is d_reserve is None:
            return (None,) * len(wanted)
        if not ctx.save:
            raise RuntimeError(
                "save: expected True for a call of seq2seq_ext::rnn that is to be differentiated, "
                "got False"
            )
        x, h_0, c_0, y, reserve, *rest = ctx.saved_tensors
        sequence, weights = rest[: ctx.parts], rest[ctx.parts :]
        if torch.is_grad_enabled() or d_reserve is not None:  # before a second derivative, or after
            tensors, wishes = (x, h_0, c_0, *weights), (*wanted[:3], *wanted[6:])
            if _knows(x, weights, ctx.options, sequence):
                found = _Gradients.apply(  # type: ignore[no-untyped-call]
                    *(ctx.options, sequence, wishes),
                    *(y, reserve, d_y, d_h_n, d_c_n, d_reserve),
                    *tensors,
                )
            else:
                found = _again(tensors, wishes, (d_y, d_h_n, d_c_n), ctx.options, sequence)
            return (*found[:3], None, None, None, *found[3:])
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


class _Gradients(torch.autograd.Function):
    """Gradients of ``rnn`` which can be differentiated, from what it left.

    They are composed on leaves, so that the graph between is this function's own: for a third
    derivative another is made, of what the call began with.
    """

    @staticmethod
    def forward(
        ctx: Any,
        options: tuple[Any, ...],
        sequence: Sequence[Any],
        wanted: tuple[bool, ...],
        *tensors: Tensor | None,  # y, reserve, cotangents of all four results; x, h_0, c_0, weights
    ) -> tuple[Tensor | None, ...]:
        ctx.options, ctx.sequence, ctx.wanted = options, sequence, wanted
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        ctx.leaves = [None if t is None else t.detach() for t in tensors]
        for leaf, t in zip(ctx.leaves, tensors, strict=True):
            if t is not None:
                leaf.requires_grad_(t.requires_grad)
        y, reserve, *cotangents = ctx.leaves[:6]
        x, h_0, c_0, *weights = ctx.leaves[6:]
        with torch.enable_grad(), without_autocast():
            *found, d_weights = composed.gradients(
                x,
                h_0,
                c_0,
                weights,
                y,
                reserve,
                cotangents,
                *options,
                *(wanted[0], any(wanted[3:]), *sequence[2:4]),
            )
        found += d_weights or [None] * len(weights)
        ctx.found = [d if wish else None for d, wish in zip(found, wanted, strict=True)]
        return tuple(None if d is None else d.detach() for d in ctx.found)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
        saved, inputs, found = ctx.saved_tensors, ctx.leaves, ctx.found
        if torch.is_grad_enabled():  # a third derivative may be taken
            inputs = [_view(t) for t in saved]
            found = _again(inputs[6:], ctx.wanted, inputs[2:5], ctx.options, ctx.sequence)
        elif not torch._C._autograd._get_current_graph_task_keep_graph():
            ctx.leaves = ctx.found = None
        with without_autocast():
            gradients = _pull(found, cotangents, inputs, torch.is_grad_enabled())
        return (None, None, None, *gradients)


def _pull(
    outputs: Sequence[Tensor | None],
    cotangents: Sequence[Tensor | None],
    inputs: Sequence[Tensor | None],
    create_graph: bool,
) -> list[Tensor | None]:
    """Gradients of all inputs that require one; None for the others."""
    pairs = zip(outputs, cotangents, strict=True)
    given = [(y, d) for y, d in pairs if y is not None and d is not None]
    found = iter(
        torch.autograd.grad(
            [y for y, _ in given],
            [t for t in inputs if t is not None and t.requires_grad],
            [d for _, d in given],
            retain_graph=True,
            create_graph=create_graph,
            allow_unused=True,
        )
    )
    return [next(found) if t is not None and t.requires_grad else None for t in inputs]


def _knows(
    x: Tensor, weights: Sequence[Tensor], options: tuple[Any, ...], sequence: Sequence[Any]
) -> bool:
    """Whether :func:`composed.gradients` is for the call."""
    cell, num_layers, bidirectional = options
    directions = num_layers * (2 if bidirectional else 1)
    return (
        x.dim() == 3
        and CELLS[cell] != "gru_reset_before"
        and len(weights) // directions % 2 == 0  # no projection
        and all(t is None for t in sequence[:2])  # lengths, batch_sizes
        and kept_dtype(x) == x.dtype
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
        y, h_n, c_n, reserve = _Rnn.apply(  # type: ignore[no-untyped-call]
            x, h_0, c_0, options, save, sequence, *weights
        )
        return y, h_n, c_n, reserve.detach()  # its gradient is between derivatives of the call
    with below_autograd():
        return cast(
            "tuple[Tensor, ...]",
            rnn_op(x, h_0, c_0, weights, *options, save, packed, turn, *sequence),
        )


def _again(
    tensors: Sequence[Tensor | None],
    wanted: Sequence[bool],
    cotangents: Sequence[Tensor | None],
    options: tuple[Any, ...],
    sequence: Sequence[Any],
) -> list[Tensor | None]:
    """Gradients to be differentiated, of a second forward pass.

    ``tensors`` are x, h_0, c_0 and the weights; of those that are not ``wanted``, None.
    """
    inputs: list[Any] = [_view(t) for t in tensors]
    outputs = composed.rnn(inputs[0], inputs[1], inputs[2], inputs[3:], *options, *sequence)
    asked = [t if wish else None for t, wish in zip(inputs, wanted, strict=True)]
    return _pull(outputs, cotangents, asked, create_graph=True)


def _view(tensor: Tensor | None) -> Tensor | None:
    """For taking a gradient by: what leads up to the tensor itself is no part of the pass."""
    return tensor.view_as(tensor) if tensor is not None and tensor.requires_grad else tensor


# Kept alive: torch unregisters what a library holds when the library goes.
_library = torch.library.Library("seq2seq_ext", "IMPL")  # type: ignore[no-untyped-call]
_library.impl("rnn", _rnn_autograd, "Autograd")  # type: ignore[no-untyped-call]
for _name in (
    "prepack",
    "prepack_matrix",
    "linear",
    "rnn_backward",
    "prepack_decoder",
    "decoder_step",
    "decoder_search",
    "encoder_read",
    "prepack_tokens",
    "translate",
):
    _library.impl(_name, torch.library.fallthrough_kernel, "Autograd")  # type: ignore[no-untyped-call]
