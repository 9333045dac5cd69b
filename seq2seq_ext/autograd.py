"""The operators' derivatives: kernels for torch's Autograd key.

``rnn_backward`` computes all gradients of ``rnn``.  A second derivative is taken through
:mod:`seq2seq_ext.reference`: right for every cell, at the speed of plain torch.

The kernels are written here rather than made by ``torch.library.register_autograd``, whose handling
of lists of tensors takes 0.2 ms a call: more than the whole forward pass of a small layer.  Sizes
are those of :mod:`seq2seq_ext.ops`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from seq2seq_ext import reference
from seq2seq_ext.kernels import CELLS, GATES, LSTM, below_autograd, rnn_backward_op, rnn_op


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
        if torch.is_grad_enabled():  # a second derivative is to be taken
            d_x, d_h_0, d_c_0, d_weights = rnn_backward_op(*arguments)
        else:
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


class _RnnBackward(torch.autograd.Function):
    """``rnn_backward`` with its gradient: the reference, differentiated twice by torch."""

    @staticmethod
    def forward(
        ctx: Any,
        d_y: Tensor | None,
        d_h_n: Tensor | None,
        d_c_n: Tensor | None,
        x: Tensor,
        h_0: Tensor | None,
        c_0: Tensor | None,
        saved: tuple[Any, ...],
        sequence: tuple[Any, ...],
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        with below_autograd():
            d_x, d_h_0, d_c_0, d_weights = rnn_backward_op(
                d_y, d_h_n, d_c_n, x, h_0, c_0, weights, *saved, *sequence
            )
        # y and the reserve are functions of the other inputs, through which the reference
        # computes them anew: no gradient flows into them.
        tensors = sequence[:4]
        ctx.options, ctx.parts = saved[2:5], len(tensors)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(d_y, d_h_n, d_c_n, x, h_0, c_0, *tensors, *weights)
        return d_x, d_h_0, d_c_0, *d_weights

    @staticmethod
    def backward(ctx: Any, *seeds: Tensor | None) -> tuple[Any, ...]:
        d_y, d_h_n, d_c_n, x, h_0, c_0, *rest = ctx.saved_tensors
        sequence, weights = rest[: ctx.parts], rest[ctx.parts :]

        def leaf(tensor: Tensor) -> Tensor:
            # A view keeps what leads up to the tensor, for still higher derivatives.
            if tensor.requires_grad:
                return tensor.view_as(tensor)
            return tensor.detach().requires_grad_()

        higher = torch.is_grad_enabled()
        with torch.enable_grad():
            states = [leaf(t) for t in (x, h_0, c_0) if t is not None]
            inputs = states + [leaf(weight) for weight in weights]
            outputs = _reference(states, inputs[len(states) :], *ctx.options, *sequence)
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
            # What rnn_backward answers and a seed each: those of the states only where there are
            # states, the weights' only where they were asked for.
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
        of_states = [*second[: len(states)], *([None] * (3 - len(states)))]
        return (*of_cotangents, *of_states, None, None, *second[len(states) : len(inputs)])


def _reference(
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    cell: int,
    num_layers: int,
    bidirectional: bool,
    lengths: Tensor | None = None,
    batch_sizes: Tensor | None = None,
    resets: Tensor | None = None,
    dropout_mask: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """``(y, h_n, c_n)`` of the operator in plain torch; ``states`` are x, h_0 and c_0 if given."""
    one_step = states[0].dim() == 2 and batch_sizes is None
    if one_step:
        states = [t.unsqueeze(0) for t in states]
    x, *given = states
    if not given:
        rows = (num_layers * (2 if bidirectional else 1), x.size(1))
        given = [x.new_zeros(*rows, weights[1].size(1))]
        if cell == LSTM:
            given.append(x.new_zeros(*rows, weights[0].size(0) // GATES[cell]))
    y, h_n, c_n = reference.rnn(
        x,
        given[0],
        given[1] if cell == LSTM else None,
        weights,
        cell=CELLS[cell],
        num_layers=num_layers,
        bidirectional=bidirectional,
        lengths=lengths,
        batch_sizes=batch_sizes,
        resets=resets,
        dropout_mask=dropout_mask,
    )
    if one_step:
        return y.squeeze(0), None, None if c_n is None else c_n.squeeze(0)
    return y, h_n, c_n


def _rnn_backward_autograd(
    d_y: Tensor | None,
    d_h_n: Tensor | None,
    d_c_n: Tensor | None,
    x: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    weights: Sequence[Tensor],
    *rest: Any,
) -> tuple[Any, ...]:
    tensors = (d_y, d_h_n, d_c_n, x, h_0, c_0, *weights)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        # Eight arguments up to weight_grad, then what there is of the sequence.
        d_x, d_h_0, d_c_0, *d_weights = _RnnBackward.apply(  # type: ignore[no-untyped-call]
            d_y, d_h_n, d_c_n, x, h_0, c_0, rest[:8], rest[8:], *weights
        )
        return d_x, d_h_0, d_c_0, d_weights
    with below_autograd():
        return cast(
            "tuple[Any, ...]", rnn_backward_op(d_y, d_h_n, d_c_n, x, h_0, c_0, weights, *rest)
        )


# Kept alive: torch unregisters what a library holds when the library goes.
_library = torch.library.Library("seq2seq_ext", "IMPL")  # type: ignore[no-untyped-call]
_library.impl("rnn", _rnn_autograd, "Autograd")  # type: ignore[no-untyped-call]
_library.impl("prepack", torch.library.fallthrough_kernel, "Autograd")  # type: ignore[no-untyped-call]
_library.impl("rnn_backward", _rnn_backward_autograd, "Autograd")  # type: ignore[no-untyped-call]
