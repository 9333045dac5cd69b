"""The fused operators as torch sees them: wrapper, fake kernel and autograd, side by side.

``torch.ops.seq2seq_ext.rnn`` runs a whole stack of recurrent layers over a whole sequence, and
``rnn_backward`` computes all of its gradients; their schemas stand in ``csrc/ops.cpp``.  Both are
single nodes to autograd, ``torch.compile`` and ``torch.export``.  A second derivative is taken
through :mod:`seq2seq_ext.reference`: right for every cell, at the speed of plain torch.

Sizes: T time steps, B sequences, N steps of a packed batch, I input features, H hidden units, P
output features of a cell (H, or the projection's), L layers, D directions, G gates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.overrides import has_torch_function

from seq2seq_ext import (
    _C,  # noqa: F401 - importing it registers the operators
    reference,
)

__all__ = ["Packed", "rnn", "step"]

# In the order of the operators' numbers for them, which is that of Cell in csrc/cpu/kernels.h.
CELLS = ("lstm", "gru", "gru_reset_before", "rnn_tanh", "rnn_relu")
_NUMBER = {name: number for number, name in enumerate(CELLS)}
_LSTM = _NUMBER["lstm"]
_GATES = (4, 3, 3, 1, 1)
# Values that backward keeps per hidden unit and step, as reserve_slots() in csrc/cpu/kernels.h, and
# the number of units that a row of them is padded to.
_RESERVE_SLOTS = (5, 4, 3, 0, 0)
_UNIT_PADDING = 16

_rnn = torch.ops.seq2seq_ext.rnn.default
_rnn_backward = torch.ops.seq2seq_ext.rnn_backward.default
_prepack = torch.ops.seq2seq_ext.prepack.default
_below_autograd = torch._C._AutoDispatchBelowAutograd


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
    packed: Packed | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Run a stack of recurrent layers; :mod:`seq2seq_ext.functional` is the friendlier way in.

    Args:
        x: float32 or float64 (T, B, I) of any strides; with ``batch_sizes``, (N, I).
        h_0: (L*D, B, P), in the dtype of ``x`` as all that follows. None stands for zeros, except
            beside ``batch_sizes``.
        c_0: (L*D, B, H) for ``"lstm"``, None where ``h_0`` is; None for every other cell.
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
    sequence: tuple[Tensor | None, ...] = ()
    if not (lengths is batch_sizes is resets is dropout_mask is None):
        sequence = (lengths, batch_sizes, resets, dropout_mask)
    options = (_NUMBER[cell], num_layers, bidirectional)
    y, h_n, c_n, _ = _call(x, h_0, c_0, weights, options, sequence, packed, _special())
    return y, h_n, c_n if cell == "lstm" else None


def step(
    x: Tensor,
    h: Tensor | None,
    c: Tensor | None,
    weights: Sequence[Tensor],
    cell: str,
    packed: Packed | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Take one step of one layer: what a cell does.

    Args:
        x: float32 or float64 (B, I) of any strides.
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
    h, _, c, _ = _call(x, h, c, weights, (_NUMBER[cell], 1, False), (), packed, _special())
    return h, c if cell == "lstm" else None


def attempt(
    x: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    weights: Sequence[Tensor],
    cell: str,
    num_layers: int = 1,
    bidirectional: bool = False,
    packed: Packed | None = None,
) -> tuple[Tensor, Tensor, Tensor | None] | None:
    """What :func:`rnn` returns, or None: the call is not a usual one, or the operator refuses it.

    The operator checks whatever it reads, at a tenth of the price that checks in Python have, but
    in its own words and without regard to autocast.  So layers and cells attempt a call without
    checks of their own, and one that was refused goes through them to learn why.

    ``x`` may be (B, I) as for :func:`step`, whose h is then the first result.
    """
    if _special():
        return None
    try:
        y, h_n, c_n, _ = _call(
            x, h_0, c_0, weights, (_NUMBER[cell], num_layers, bidirectional), (), packed, False
        )
    except (RuntimeError, TypeError, AttributeError):  # the last if something is no tensor
        return None
    return y, h_n, c_n if cell == "lstm" else None


def _special() -> bool:
    """Whether a compiler, a tracer or a function transform is at work."""
    return (
        torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or torch._C._are_functorch_transforms_active()
    )


def _call(
    x: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    weights: Sequence[Tensor],
    options: tuple[int, ...],
    sequence: tuple[Tensor | None, ...],
    packed: Packed | None,
    special: bool,
) -> tuple[Tensor, ...]:
    """All outputs of the operator, by one of three ways.

    Through the dispatcher from the top, where it is one node to every mode of torch: the way of
    special calls and tensor subclasses, and of inference mode, where autograd is out of the way
    already.  The other two begin below autograd, whose kernel in Python has the dispatcher turn
    each argument and result from C++ to Python and back; for a small layer that takes as long as
    the layer.
    """
    save = torch.is_grad_enabled() and _require_grad(x, h_0, c_0, weights)
    rest = (None, 0, *sequence) if sequence else ()
    if packed is not None and (special or save or not x.is_cpu):
        packed = None
    if special or torch.is_inference_mode_enabled() or has_torch_function((x, h_0, c_0, *weights)):
        if packed is not None:
            return packed.run(x, h_0, c_0, weights, options, sequence)
        return cast("tuple[Tensor, ...]", _rnn(x, h_0, c_0, weights, *options, save, *rest))
    if save:
        return _apply(x, h_0, c_0, options, True, sequence, *weights)
    with _below_autograd():
        if packed is not None:
            return packed.run(x, h_0, c_0, weights, options, sequence)
        return cast("tuple[Tensor, ...]", _rnn(x, h_0, c_0, weights, *options, False, *rest))


def _require_grad(x: Tensor, h_0: Tensor | None, c_0: Tensor | None, weights: Any) -> bool:
    if x.requires_grad or (h_0 is not None and h_0.requires_grad):
        return True
    for weight in weights:  # a plain loop: any() of a generator takes longer
        if weight.requires_grad:
            return True
    return c_0 is not None and c_0.requires_grad


class _Made(NamedTuple):
    """A packed block, and of which weights in which state it was made.

    ``weights`` are aliases of them, so that their memory stays theirs: the operator knows them by
    their address.
    """

    block: Tensor
    weights: list[Tensor]
    versions: list[int] | None


class Packed:
    """The weights of a layer in the order in which the kernels read them, made anew on a change.

    What is noticed when is told by :func:`seq2seq_ext.prepack`, how by ``csrc/cpu/fingerprint.h``.
    Threads may share one.  Copies and pickles of it start empty.

    Args:
        dtype: in which the weights are kept: None for their own, bfloat16 or int8.  Weights in
            float64 are kept as they are.
    """

    def __init__(self, dtype: torch.dtype | None) -> None:
        self.dtype = dtype
        self._made: _Made | None = None
        self._turn = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return Packed, (self.dtype,)

    def make(self, weights: Sequence[Tensor], options: tuple[int, ...]) -> _Made:
        """Pack ``weights``; ``options`` are cell, num_layers and bidirectional."""
        # The order matters: what another thread changes meanwhile is a change since then.
        versions = _versions(weights)
        dtype = None if weights[0].dtype == torch.float64 else self.dtype
        aliases = [weight.detach() for weight in weights]
        made = _Made(_prepack(aliases, *options, dtype), aliases, versions)
        self._made = made
        return made

    def run(
        self,
        x: Tensor,
        h_0: Tensor | None,
        c_0: Tensor | None,
        weights: Sequence[Tensor],
        options: tuple[int, ...],
        sequence: tuple[Tensor | None, ...],
    ) -> tuple[Tensor, ...]:
        """What ``rnn`` answers with these weights packed, which require no gradient."""
        turn = self._turn
        if sequence and sequence[1] is not None:
            self._turn = turn + sequence[1].numel()
        else:
            self._turn = turn + (x.size(0) if x.dim() == 3 else 1)
        made = self._made
        for _ in range(2):
            if made is not None and made.versions == _versions(weights):
                try:
                    return cast(
                        "tuple[Tensor, ...]",
                        _rnn(x, h_0, c_0, weights, *options, False, made.block, turn, *sequence),
                    )
                except RuntimeError as error:
                    if not str(error).startswith("packed: "):
                        raise
            # Weights that are computed are other tensors in each call: packing would not pay.
            if not all(isinstance(weight, torch.nn.Parameter) for weight in weights):
                break
            made = self.make(weights, options)
        # Computed; or someone changes them all the time.
        rest = (None, 0, *sequence) if sequence else ()
        return cast("tuple[Tensor, ...]", _rnn(x, h_0, c_0, weights, *options, False, *rest))


_version = attrgetter("_version")


def _versions(weights: Sequence[Tensor]) -> list[int] | None:
    try:
        return list(map(_version, weights))
    except RuntimeError:  # tensors made in inference mode have none
        return None


def _sizes(
    x: Tensor, weights: Sequence[Tensor], cell: int, num_layers: int, bidirectional: bool
) -> tuple[int, int, int]:
    """H, P and the elements of the reserve."""
    steps = x.size(0) if x.dim() == 2 else x.size(0) * x.size(1)
    D = 2 if bidirectional else 1
    H, P = weights[0].size(0) // _GATES[cell], weights[1].size(1)
    padded = (H + _UNIT_PADDING - 1) // _UNIT_PADDING * _UNIT_PADDING
    reserve = num_layers * D * steps * _RESERVE_SLOTS[cell] * padded
    return H, P, reserve + (num_layers - 1) * steps * D * P


def _check_devices(
    x: Tensor, h_0: Tensor | None, c_0: Tensor | None, weights: Sequence[Tensor]
) -> None:
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _check_devices(x, h_0, c_0, weights)
    H, P, reserve = _sizes(x, weights, cell, num_layers, bidirectional)
    D = 2 if bidirectional else 1
    one_step = x.dim() == 2 and batch_sizes is None
    B = x.size(-2) if h_0 is None else h_0.size(-2)
    rows = (B,) if one_step else (num_layers * D, B)
    return (
        x.new_empty((*x.shape[:-1], D * P)),
        x.new_empty((0,) if one_step else (*rows, P)),
        x.new_empty((*rows, H) if cell == _LSTM else (0,)),
        x.new_empty((reserve if save else 0,)),
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
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    _check_devices(x, h_0, c_0, weights)
    return (
        x.new_empty(x.shape if input_grad else (0,)),
        x.new_empty((0,) if h_0 is None or not state_grad else h_0.shape),
        x.new_empty((0,) if c_0 is None or not state_grad else c_0.shape),
        [x.new_empty(weight.shape) for weight in weights] if weight_grad else [],
    )


# Autograd. The kernels for the Autograd key are written here rather than made by
# torch.library.register_autograd, whose handling of lists of tensors takes 0.2 ms a call: more than
# the whole forward pass of a small layer.


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
        sequence: tuple[Tensor | None, ...],
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        rest = (None, 0, *sequence) if sequence else ()
        with _below_autograd():
            y, h_n, c_n, reserve = _rnn(x, h_0, c_0, weights, *options, save, *rest)
        ctx.options, ctx.save, ctx.parts = options, save, len(sequence)
        ctx.set_materialize_grads(False)
        empty = [t for t in (h_n, c_n) if t.dim() == 1]
        ctx.mark_non_differentiable(*empty, reserve)
        ctx.save_for_backward(x, h_0, c_0, y, reserve, *sequence, *weights)
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
        )
        if torch.is_grad_enabled():  # a second derivative is to be taken
            d_x, d_h_0, d_c_0, d_weights = _rnn_backward(*arguments)
        else:
            with _below_autograd():
                d_x, d_h_0, d_c_0, d_weights = _rnn_backward(*arguments)
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
_apply: Callable[..., tuple[Tensor, ...]] = super(torch.autograd.Function, _Rnn).apply


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
    *sequence: Tensor | None,
) -> tuple[Tensor, ...]:
    options = (cell, num_layers, bidirectional)
    if torch.is_grad_enabled() and _require_grad(x, h_0, c_0, weights):
        output: tuple[Tensor, ...] = _Rnn.apply(  # type: ignore[no-untyped-call]
            x, h_0, c_0, options, save, sequence, *weights
        )
        return output
    with _below_autograd():
        return cast(
            "tuple[Tensor, ...]",
            _rnn(x, h_0, c_0, weights, *options, save, packed, turn, *sequence),
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
        sequence: tuple[Tensor | None, ...],
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        with _below_autograd():
            d_x, d_h_0, d_c_0, d_weights = _rnn_backward(
                d_y, d_h_n, d_c_n, x, h_0, c_0, weights, *saved, *sequence
            )
        # y and the reserve are functions of the other inputs, through which the reference
        # computes them anew: no gradient flows into them.
        ctx.options, ctx.parts = saved[2:5], len(sequence)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(d_y, d_h_n, d_c_n, x, h_0, c_0, *sequence, *weights)
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
        if cell == _LSTM:
            given.append(x.new_zeros(*rows, weights[0].size(0) // _GATES[cell]))
    y, h_n, c_n = reference.rnn(
        x,
        given[0],
        given[1] if cell == _LSTM else None,
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
    with _below_autograd():
        return cast(
            "tuple[Any, ...]", _rnn_backward(d_y, d_h_n, d_c_n, x, h_0, c_0, weights, *rest)
        )


# Kept alive: torch unregisters what a library holds when the library goes.
_library = torch.library.Library("seq2seq_ext", "IMPL")  # type: ignore[no-untyped-call]
_library.impl("rnn", _rnn_autograd, "Autograd")  # type: ignore[no-untyped-call]
_library.impl("prepack", torch.library.fallthrough_kernel, "Autograd")  # type: ignore[no-untyped-call]
_library.impl("rnn_backward", _rnn_backward_autograd, "Autograd")  # type: ignore[no-untyped-call]
