"""The operator ``recurrence`` as torch sees it: how it is called, its shapes, its derivatives.

One direction of one layer with every variant that :mod:`seq2seq_ext.variants.reference` describes.
The kernels run what goes from step to step; weight gradients are products over all steps of what
they left, formed here.

Derivatives of derivatives.  ``recurrence_backward`` is linear in the gradients that it is given,
and ``recurrence_tangent`` is its transpose: the recurrence's derivative in a direction, which
forward mode wants, and the gradient of ``recurrence_backward`` by them, which a second derivative
wants.  docs/autograd.md has the formulas.  The kernels know tangents of cells without variants;
the others' are the reference's, differentiated by torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from seq2seq_ext import transforms
from seq2seq_ext.kernels import (
    below_autograd,
    kept_dtype,
    prepack_matrix_op,
    without_autocast,
)
from seq2seq_ext.variants import reference

__all__ = ["CELLS", "KEPT_SLOTS", "pack", "recurrence", "recurrence_gradients"]

# In the order of their numbers, which is that of Cell in csrc/cells.h.
CELLS = ("lstm", "gru", "gru_reset_before", "rnn_tanh", "rnn_relu", "coupled_lstm")
_NUMBER = {name: number for number, name in enumerate(CELLS)}
_LSTMS = (CELLS.index("lstm"), CELLS.index("coupled_lstm"))
_GRU, _RESET_BEFORE = CELLS.index("gru"), CELLS.index("gru_reset_before")
_WITH_TANGENT = tuple(map(CELLS.index, ("lstm", "gru", "rnn_tanh", "rnn_relu")))
_GATES = [reference.GATES[cell] for cell in CELLS]
# As kept_slots() and kMoments in csrc/recurrence.h.
KEPT_SLOTS = (6, 5, 4, 1, 1, 5)
_MOMENTS = 4

_forward = torch.ops.seq2seq_ext.recurrence.default
_backward = torch.ops.seq2seq_ext.recurrence_backward.default
_tangent = torch.ops.seq2seq_ext.recurrence_tangent.default


class Tensors(NamedTuple):
    """The tensors of a call, in the order of the operator."""

    x: Tensor
    w_hh: Tensor
    b_hn: Tensor | None = None
    w_hr: Tensor | None = None
    h_0: Tensor | None = None
    c_0: Tensor | None = None
    h_mask: Tensor | None = None
    peephole: Tensor | None = None
    norm_hh: Tensor | None = None
    norm_c: Tensor | None = None
    bias_c: Tensor | None = None
    seed: Tensor | None = None
    lengths: Tensor | None = None
    batch_sizes: Tensor | None = None
    resets: Tensor | None = None


class Options(NamedTuple):
    """The rest of a call, in the order of the operator."""

    cell: int
    reverse: bool = False
    hard_sigmoid: bool = False
    zoneout_h: float = 0.0
    zoneout_c: float = 0.0
    candidate_dropout: float = 0.0
    cell_clip: float = 0.0
    proj_clip: float = 0.0
    stream: int = 0


def recurrence(
    x: Tensor,
    w_hh: Tensor,
    *,
    cell: str,
    return_cells: bool = False,
    packed: Sequence[Tensor] = (),
    turn: int = 0,
    **rest: Any,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    """Run one direction of one layer; arguments and result as those of the reference.

    Args:
        x, w_hh, cell: as for :func:`seq2seq_ext.variants.reference.recurrence`, as are the others,
            by keyword.  float32, float64, float16 or bfloat16.
        return_cells: whether c of every step is wanted; the second result is None otherwise.
        packed: what :func:`pack` made of ``w_hh`` and ``w_hr``, for a call on the CPU that needs no
            gradient and is neither traced nor transformed.
        turn: how many steps calls with ``packed`` have run before.

    Raises:
        RuntimeError: naming an argument of a wrong size, dtype or device, or a value that is out
            of range; beginning with "packed: " where that was not made of these weights as they
            are now, or for another instruction set.

    >>> y, cells, h_n, c_n = recurrence(torch.zeros(5, 2, 12), torch.zeros(12, 3), cell="lstm",
    ...                                 return_cells=True)
    >>> y.shape, cells.shape
    (torch.Size([5, 2, 3]), torch.Size([5, 2, 3]))
    """
    options = Options(
        _NUMBER[cell], **{name: rest.pop(name) for name in Options._fields if name in rest}
    )
    tensors = Tensors(x, w_hh, **rest)
    if transforms.active():
        return _transformed(tensors, options, return_cells)
    if packed:
        with below_autograd():
            y, cells, h_n, c_n = _forward(
                *tensors, *options, False, return_cells, list(packed), turn
            )[:4]
        return y, cells if return_cells else None, h_n, c_n if options.cell in _LSTMS else None
    # Whether any gradient can be asked for; inside torch.compile the backward pass is traced.
    save = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    y, cells, h_n, c_n = _forward(*tensors, *options, save, return_cells)[:4]
    return y, cells if return_cells else None, h_n, c_n if _has_cell(tensors, options) else None


def pack(w_hh: Tensor, w_hr: Tensor | None, cell: str, dtype: torch.dtype | None) -> list[Tensor]:
    """The recurrent weights of a direction as the operator takes them packed.

    Args:
        w_hh, w_hr, cell: as for :func:`recurrence`.
        dtype: in which they are kept: None for their own, bfloat16 or int8.

    Raises:
        RuntimeError: if ``dtype`` is another one, or a narrow one beside weights of float64.

    >>> w_hh, x = torch.randn(12, 3), torch.randn(5, 2, 12)
    >>> blocks = pack(w_hh, None, "lstm", None)
    >>> y = recurrence(x, w_hh, cell="lstm", packed=blocks)[0]
    >>> torch.equal(y, recurrence(x, w_hh, cell="lstm")[0])
    True
    """
    rows = w_hh.size(0)
    first = 2 * rows // 3 if cell == "gru_reset_before" else rows  # r and z come before n
    matrices = [part for part in (w_hh[:first], w_hh[first:]) if part.size(0)]
    if w_hr is not None:
        matrices.append(w_hr)
    return [prepack_matrix_op(matrix, dtype) for matrix in matrices]


def _transformed(
    tensors: Tensors, options: Options, return_cells: bool
) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    """The call under a function transform, or with dual tensors."""
    levels, forward_mode = transforms.derivatives()
    given = [t for t in tensors if t is not None]
    if levels and (
        levels > 1
        or not _has_tangent(tensors, options)
        or (forward_mode and any(map(transforms.requires_grad, given)))
    ):
        y, cells, h_n, c_n, _ = _reference(tensors, options)
        return y, cells if return_cells else None, h_n, c_n
    y, cells, h_n, c_n, *_ = _apply(tensors, options, return_cells)
    return y, cells if return_cells else None, h_n, c_n if _has_cell(tensors, options) else None


def _has_cell(tensors: Tensors, options: Options) -> bool:
    """Whether c goes from step to step beside h: has_cell() in csrc/recurrence.h."""
    return options.cell in _LSTMS or (options.cell == _GRU and tensors.w_hr is not None)


def _has_tangent(tensors: Tensors, options: Options) -> bool:
    """Whether the kernels know the call's derivative in a direction."""
    if kept_dtype(tensors.x) != tensors.x.dtype:  # they are not written for 16 bits on the CPU
        return False
    plain = options._replace(reverse=False, stream=0, proj_clip=0.0) == Options(options.cell)
    variants = (tensors.w_hr, tensors.h_mask, tensors.peephole, tensors.norm_hh, tensors.norm_c)
    return plain and options.cell in _WITH_TANGENT and all(t is None for t in variants)


def _reference(
    tensors: Tensors, options: Options
) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None, Tensor]:
    """``y, cells, h_n, c_n, h_in`` in plain torch."""
    arguments = options._asdict()
    cell = CELLS[arguments.pop("cell")]
    return reference.steps(**tensors._asdict(), cell=cell, **arguments)


# ---- shapes --------------------------------------------------------------------------------------


def _sizes(tensors: Tensors, options: Options) -> tuple[int, int, int, tuple[int, ...]]:
    """H, P, the batch, and the sizes of x but for its features."""
    H = tensors.x.size(-1) // _GATES[options.cell]
    P = H if tensors.w_hr is None else tensors.w_hr.size(0)
    if tensors.batch_sizes is None:
        return H, P, tensors.x.size(1), tuple(tensors.x.shape[:-1])
    if tensors.h_0 is None:
        raise RuntimeError("h_0: expected a tensor beside batch_sizes, got None")
    return H, P, tensors.h_0.size(0), tuple(tensors.x.shape[:-1])


def _split(arguments: tuple[Any, ...]) -> tuple[Tensors, Options, tuple[Any, ...]]:
    n, m = len(Tensors._fields), len(Options._fields)
    return Tensors(*arguments[:n]), Options(*arguments[n : n + m]), arguments[n + m :]


@torch.library.register_fake("seq2seq_ext::recurrence")  # type: ignore[untyped-decorator]
def _recurrence_fake(*arguments: Any) -> tuple[Tensor, ...]:
    tensors, options, (save, return_cells, *rest) = _split(arguments)
    for tensor in (rest[0] or ()) if rest else ():
        if tensor.device != tensors.x.device:
            raise RuntimeError(
                f"packed: expected device {tensors.x.device} as x has, got {tensor.device}"
            )
    H, P, B, steps = _sizes(tensors, options)
    rows = tensors.x.numel() // tensors.x.size(-1)
    projected = tensors.w_hr is not None
    normalized = tensors.norm_hh is not None

    def make(wanted: bool, *size: int) -> Tensor:
        return tensors.x.new_empty(size if wanted else (0,))

    def keep(wanted: bool, *size: int) -> Tensor:
        size = size if save and wanted else (0,)
        return tensors.x.new_empty(size, dtype=kept_dtype(tensors.x))

    return (
        make(True, *steps, P),
        make(return_cells, *steps, H),
        make(True, B, P),
        make(_has_cell(tensors, options), B, H),
        keep(True, rows, KEPT_SLOTS[options.cell], H),
        keep(True, rows, P),
        keep(projected or options.cell == _RESET_BEFORE, rows, H),
        keep(projected, rows, P),
        keep(normalized, rows, _GATES[options.cell] * H),
        keep(normalized or tensors.norm_c is not None, rows, _MOMENTS),
    )


@torch.library.register_fake("seq2seq_ext::recurrence_backward")  # type: ignore[untyped-decorator]
def _recurrence_backward_fake(*arguments: Any) -> tuple[Tensor, ...]:
    tensors, options, (*_, save) = _split(arguments)
    H, P, B, _ = _sizes(tensors, options)
    rows = tensors.x.numel() // tensors.x.size(-1)
    # Autograd rounds gradients to the dtypes of what they are gradients of.
    dtype = kept_dtype(tensors.x)

    def make(wanted: bool, *size: int) -> Tensor:
        return tensors.x.new_empty(size if wanted else (0,), dtype=dtype)

    return (
        make(True, *tensors.x.shape),
        make(_sums_apart(tensors, options), rows, tensors.x.size(-1)),
        make(tensors.norm_c is not None, rows, H),
        make(tensors.w_hr is not None, rows, P),
        make(True, B, P),
        make(_has_cell(tensors, options), B, H),
        make(save, rows, H),
        make(save and _has_cell(tensors, options), rows, H),
    )


@torch.library.register_fake("seq2seq_ext::recurrence_tangent")  # type: ignore[untyped-decorator]
def _recurrence_tangent_fake(*arguments: Any) -> tuple[Tensor, ...]:
    tensors, options, (_, step, whole_h, _, return_cells) = _split(arguments)
    H, P, B, steps = _sizes(tensors, options)

    def make(wanted: bool, *size: int) -> Tensor:
        return tensors.x.new_empty(size if wanted else (0,))

    return (
        make(True, *steps, P),
        make(return_cells, *steps, H),
        make(True, B, P),
        make(_has_cell(tensors, options), B, H),
        make(True, step.size(0), P),
        make(whole_h is not None, *step.shape),
    )


def _sums_apart(tensors: Tensors, options: Options) -> bool:
    """Whether W_hh h has other gradients than x."""
    return options.cell == _GRU or tensors.norm_hh is not None


# ---- derivatives ---------------------------------------------------------------------------------

_N = len(Tensors._fields)
_WEIGHTS = ("w_hh", "b_hn", "w_hr", "peephole", "norm_hh", "norm_c", "bias_c")


class _Call:
    """A call but for its tensors, of which some are there.

    Function transforms go through all arguments of a function one by one, in Python: to them this
    is one, and what is None is none.
    """

    def __init__(self, options: Options, given: Sequence[Any], return_cells: bool = False) -> None:
        self.options, self.return_cells, self.count = options, return_cells, len(given)
        self.places = [place for place, tensor in enumerate(given) if tensor is not None]

    def spread(self, present: Sequence[Any], missing: Any = None) -> list[Any]:
        """A value for every argument, from those of the tensors that are there."""
        every = [missing] * self.count
        for place, value in zip(self.places, present, strict=True):
            every[place] = value
        return every

    def chosen(self, every: Sequence[Any]) -> list[Any]:
        """Those of the tensors that are there."""
        return [every[place] for place in self.places]


class _Recurrence(torch.autograd.Function):
    """``recurrence``; of its results, those that backward reads are differentiable as well."""

    generate_vmap_rule = True

    @staticmethod
    def forward(call: _Call, *present: Tensor) -> tuple[Tensor, ...]:
        given = call.spread(present)
        with below_autograd():
            return cast(
                "tuple[Tensor, ...]", _forward(*given, *call.options, True, call.return_cells)
            )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.call, *present = inputs
        _, cells, _, c_n, step, h_in, *others = output
        ctx.has_tangent = _has_tangent(Tensors(*ctx.call.spread(present)), ctx.call.options)
        if not ctx.has_tangent:
            others += step, h_in
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*[t for t in (cells, c_n) if t.dim() == 1], *others)
        ctx.save_for_backward(*present, *output[4:])
        ctx.save_for_forward(*present, *output[4:])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
        d_outputs, d_kept = cotangents[:4], cotangents[4:6]
        if all(d is None for d in cotangents):
            return (None,) * len(ctx.needs_input_grad)
        call: _Call = ctx.call
        wanted = call.spread(ctx.needs_input_grad[1:], False)
        saved = ctx.saved_tensors  # read once: torch.utils.checkpoint wants it so
        tensors, kept = Tensors(*call.spread(saved[: len(call.places)])), saved[-6:]
        if not (torch.is_grad_enabled() or transforms.active()):
            with below_autograd():
                results = _backward(*tensors, *call.options, *d_outputs, *d_kept, *kept, False)
            with without_autocast():
                gradients = _gradients(tensors, call.options, kept, results, wanted)
            return (None, *call.chosen(gradients))
        if ctx.has_tangent:  # a second derivative may be taken
            given = (*tensors, *d_outputs, *d_kept, *kept[:2])
            again = _Call(call.options, given)
            results = _Backward.apply(again, *again.chosen(given))  # type: ignore[no-untyped-call]
            gradients = _gradients(tensors, call.options, kept, results, wanted)
        else:
            gradients = _reference_gradients(tensors, call.options, d_outputs, wanted)
        return (None, *call.chosen(gradients))

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor | None, ...]:
        call, saved = ctx.call, ctx.saved_tensors
        tensors = Tensors(*call.spread(saved[: len(call.places)]))
        t = Tensors(*call.spread(tangents[1:]))
        step, h_in = saved[-6:-4]
        t_sum = None if t.w_hh is None else h_in @ t.w_hh.t()
        if t.b_hn is not None:
            bias = torch.nn.functional.pad(t.b_hn, (h_in.size(1) * 2, 0))
            t_sum = bias.expand(h_in.size(0), -1) if t_sum is None else t_sum + bias
        direction = tensors._replace(
            x=torch.zeros_like(tensors.x) if t.x is None else t.x, h_0=t.h_0, c_0=t.c_0, b_hn=None
        )
        if tensors.batch_sizes is not None and t.h_0 is None:
            assert tensors.h_0 is not None
            direction = direction._replace(h_0=torch.zeros_like(tensors.h_0))
        *outputs, t_h_in, _ = _tangent(
            *direction, *call.options, t_sum, step, None, None, call.return_cells
        )
        found = [None if t.dim() == 1 else t for t in outputs]
        # The step's is read by no one: a second level is the reference's.
        return (*found, torch.zeros_like(step), t_h_in, *[None] * 4)


class _Backward(torch.autograd.Function):
    """``recurrence_backward``, where a second derivative may follow."""

    generate_vmap_rule = True

    @staticmethod
    def forward(call: _Call, *present: Tensor) -> tuple[Tensor, ...]:
        given = call.spread(present)
        none = given[0].new_empty(0)  # of what variants keep
        with below_autograd():
            return cast(
                "tuple[Tensor, ...]",
                _backward(*given[:_N], *call.options, *given[_N:], *[none] * 4, True),
            )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.call, *present = inputs
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*[t for t in output if t.dim() == 1], *output[6:])
        d_x, d_sum, *_, whole_h, whole_c = output
        ctx.save_for_backward(*present, d_x if d_sum.dim() == 1 else d_sum, whole_h, whole_c)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
        *present, d_sum, whole_h, whole_c = ctx.saved_tensors
        call: _Call = ctx.call
        given = call.spread(present)
        tensors, d_outputs, step = Tensors(*given[:_N]), given[_N : _N + 4], given[_N + 6]
        v_x, v_sum, _, _, v_h_0, v_c_0 = cotangents[:6]
        if torch.is_grad_enabled():
            d_all = (*d_outputs, given[_N + 5])
            return (None, *call.chosen(_reference_second(tensors, call.options, d_all, cotangents)))
        if v_h_0 is None and tensors.batch_sizes is not None:
            assert tensors.h_0 is not None
            v_h_0 = torch.zeros_like(tensors.h_0)
        direction = tensors._replace(
            x=torch.zeros_like(tensors.x) if v_x is None else v_x, h_0=v_h_0, c_0=v_c_0, b_hn=None
        )
        lstm = call.options.cell in _LSTMS
        with below_autograd():
            of_y, of_cells, of_h_n, of_c_n, t_h_in, second = _tangent(
                *direction,
                *call.options,
                v_sum,
                step,
                whole_h,
                whole_c if lstm else None,
                d_outputs[1] is not None,
            )
        of_w_hh = d_sum.reshape(t_h_in.size(0), -1).t() @ t_h_in
        found = Tensors(cast("Tensor", None), of_w_hh)
        of_outputs = [
            None if d is None else t
            for d, t in zip(d_outputs, (of_y, of_cells, of_h_n, of_c_n), strict=True)
        ]
        of_h_in = None if given[_N + 5] is None else t_h_in
        return (None, *call.chosen((*found, *of_outputs, None, of_h_in, second, None)))


def recurrence_gradients(
    w_hh: Tensor,
    d_y: Tensor | None,
    d_h_n: Tensor | None,
    d_c_n: Tensor | None,
    d_step: Tensor | None,
    step: Tensor,
    h_in: Tensor,
    *,
    cell: str,
    reverse: bool,
    h_0: Tensor | None,
    c_0: Tensor | None,
    resets: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The backward pass of a :func:`recurrence` without variants, to be differentiated once.

    Args:
        d_y, d_h_n, d_c_n, d_step: gradients of results and of ``step``, or None.
        step, h_in: what forward keeps, (T, B, slots, H) and (T, B, H).

    Returns:
        Gradients of x and of W_hh h, (T*B, G*H), and of h_0 and c_0.
    """
    options = Options(_NUMBER[cell], reverse)
    x = h_in.new_empty(*h_in.shape[:2], w_hh.size(0))  # of which nothing but the size is read
    tensors = Tensors(x, w_hh, h_0=h_0, c_0=c_0, resets=resets)
    d_step = None if d_step is None else d_step.flatten(0, 1)
    kept = step.flatten(0, 1).contiguous(), h_in.flatten(0, 1)
    given = (*tensors, d_y, None, d_h_n, d_c_n, d_step, None, *kept)
    call = _Call(options, given)
    d_x, d_sum, _, _, d_h_0, d_c_0, *_ = _Backward.apply(  # type: ignore[no-untyped-call]
        call, *call.chosen(given)
    )
    d_x = d_x.flatten(0, 1)
    return d_x, d_sum if _sums_apart(tensors, options) else d_x, d_h_0, d_c_0


def _gradients(
    tensors: Tensors,
    options: Options,
    kept: tuple[Tensor, ...],
    results: tuple[Tensor, ...],
    wanted: list[bool],
) -> list[Tensor | None]:
    """Gradients of all tensors from what the kernels left of every step."""
    step, h_in, inner, _, sums, moments = kept
    d_x, d_sum, d_cell, d_out, d_h_0, d_c_0 = results[:6]
    want: Any = Tensors(*cast("list[Any]", wanted))
    rows, width = h_in.size(0), d_x.size(-1)
    H = width // _GATES[options.cell]
    d_gates = d_x.reshape(rows, width)
    d_product = d_sum if _sums_apart(tensors, options) else d_gates
    found: dict[str, Tensor | None] = {"x": d_x, "h_0": d_h_0, "c_0": d_c_0}
    if want.w_hh:
        if options.cell == _RESET_BEFORE:
            early, late = torch.split(d_product, [2 * H, H], dim=1)
            found["w_hh"] = torch.cat([early.t() @ h_in, late.t() @ inner])
        else:
            found["w_hh"] = d_product.t() @ h_in
    normalized = d_gates  # gradient of the recurrent sums behind their normalization
    if options.cell == _GRU and tensors.norm_hh is None:
        normalized = d_product
    elif options.cell == _GRU and (want.b_hn or want.norm_hh):
        d_n = d_gates[:, 2 * H :] * step[:, 0]
        normalized = torch.cat([d_gates[:, : 2 * H], d_n], dim=1)
    if want.b_hn:
        found["b_hn"] = normalized[:, 2 * H :].sum(0)
    if want.w_hr:
        found["w_hr"] = d_out.t() @ inner
    if want.peephole:
        seen = step[:, -1], step[:, -2]  # c before the step, and after its gates
        g = _GATES[options.cell]
        gates = d_gates.view(rows, g, H)
        parts = [(gates[:, k] * seen[0]).sum(0) for k in range(g - 2)]
        found["peephole"] = torch.stack([*parts, (gates[:, g - 1] * seen[1]).sum(0)])
    if want.norm_hh:
        found["norm_hh"] = (normalized * sums).sum(0)
    if want.norm_c:
        c = (step[:, -2] - moments[:, 2:3]) * moments[:, 3:4]
        found["norm_c"] = (d_cell * c).sum(0)
    if want.bias_c:
        found["bias_c"] = d_cell.sum(0)
    return [found.get(name) if wish else None for name, wish in want._asdict().items()]


def _reference_gradients(
    tensors: Tensors,
    options: Options,
    cotangents: tuple[Tensor | None, ...],
    wanted: list[bool],
) -> list[Tensor | None]:
    """Those of :func:`_gradients` in plain torch, to be differentiated further."""
    inputs = [t for t, wish in zip(tensors, wanted, strict=True) if wish]

    def outputs(*inputs: Tensor) -> list[Tensor]:
        given = iter(inputs)
        mixed = [next(given) if wish else t for t, wish in zip(tensors, wanted, strict=True)]
        found = _reference(Tensors(*cast("list[Any]", mixed)), options)[:4]
        return [
            t for t, d in zip(found, cotangents, strict=True) if t is not None and d is not None
        ]

    pull = torch.func.vjp(outputs, *inputs)[1]
    gradients = iter(pull([d for d in cotangents if d is not None]))
    return [next(gradients) if wish else None for wish in wanted]


def _reference_second(
    tensors: Tensors,
    options: Options,
    cotangents: tuple[Tensor | None, ...],
    seeds: tuple[Tensor | None, ...],
) -> list[Tensor | None]:
    """Gradients of what :class:`_Backward` takes, in plain torch, for a third derivative.

    What was kept has none here: all goes straight to the tensors that it was computed of.
    """
    names = [
        name for name in ("x", "w_hh", "b_hn", "h_0", "c_0") if getattr(tensors, name) is not None
    ]
    n = len(names)

    def backward(*inputs: Tensor) -> list[Tensor]:
        """What recurrence_backward returns and a seed is there for."""
        given = tensors._replace(**dict(zip(names, inputs, strict=False)))
        inner = [name for name in names if name != "w_hh"]
        if options.cell == _GRU:  # b_hn in every row is what the sum of n is in every row
            H = tensors.w_hh.size(1)
            zero = given.x[..., :H] * 0
            given = given._replace(b_hn=zero if given.b_hn is None else given.b_hn + zero)
            inner = [*dict.fromkeys([*inner, "b_hn"])]

        def forward(*direct: Tensor) -> list[Tensor]:
            mixed = given._replace(**dict(zip(inner, direct, strict=True)))
            found = _reference(mixed, options)
            return [
                t for t, d in zip(found, cotangents, strict=True) if t is not None and d is not None
            ]

        pull = torch.func.vjp(forward, *(getattr(given, name) for name in inner))[1]
        found = dict(zip(inner, pull(list(inputs[n:])), strict=True))
        if options.cell == _GRU:
            rows = found["x"].flatten(0, -2)
            found["sum"] = torch.cat([rows[:, : 2 * H], found["b_hn"].flatten(0, -2)], dim=1)
        results = [found.get(name) for name in ("x", "sum", "cell", "out", "h_0", "c_0")]
        return [t for t, v in zip(results, seeds, strict=False) if t is not None and v is not None]

    d_given = [d for d in cotangents if d is not None]
    pull = torch.func.vjp(backward, *(getattr(tensors, name) for name in names), *d_given)[1]
    gradients = pull([v for v in seeds if v is not None])
    of_tensors = dict(zip(names, gradients, strict=False))
    rest = iter(gradients[n:])
    of_cotangents = [None if d is None else next(rest) for d in cotangents]
    return [
        *(of_tensors.get(name) for name in Tensors._fields),
        *of_cotangents[:4],
        None,
        of_cotangents[4],
        None,
        None,
    ]


def _apply(tensors: Tensors, options: Options, return_cells: bool) -> tuple[Tensor, ...]:
    """All results of ``recurrence``, followed by autograd."""
    call = _Call(options, tensors, return_cells)
    outputs: tuple[Tensor, ...] = _Recurrence.apply(  # type: ignore[no-untyped-call]
        call, *call.chosen(tensors)
    )
    return outputs


def _recurrence_autograd(*arguments: Any) -> tuple[Tensor, ...]:
    tensors, options, (_, return_cells, *_) = _split(arguments)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        return _apply(tensors, options, return_cells)
    with below_autograd():
        return cast("tuple[Tensor, ...]", _forward(*arguments))


# Kept alive: torch unregisters what a library holds when the library goes.
_library = torch.library.Library("seq2seq_ext", "IMPL")  # type: ignore[no-untyped-call]
_library.impl("recurrence", _recurrence_autograd, "Autograd")  # type: ignore[no-untyped-call]
for _name in ("recurrence_backward", "recurrence_tangent"):
    _library.impl(_name, torch.library.fallthrough_kernel, "Autograd")  # type: ignore[no-untyped-call]


# ---- vmap ----------------------------------------------------------------------------------------

# Where each operator has the axis of sequences, or of rows: 1 in what is shaped like x, unless it
# is packed, 0 in everything else.
_LIKE_X = {"x", "resets"}


def _register_vmap(name: str, rest_like_x: set[int], results_like_x: set[int]) -> None:
    """Let ``vmap`` put its axis behind that of sequences, as that many sequences more.

    Where weights are batched as well, and with noise, which goes by the number of the sequence,
    the members run one by one.
    """
    op = getattr(torch.ops.seq2seq_ext, name).default
    rest_first = _N + len(Options._fields)

    def rule(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
        V, tensors = info.batch_size, Tensors(*arguments[:_N])
        dims = Tensors(*in_dims[:_N])
        if tensors.seed is not None or any(getattr(dims, name) is not None for name in _WEIGHTS):
            members = [
                op(
                    *(
                        a if d is None else a.select(d, v).contiguous()
                        for a, d in zip(arguments, in_dims, strict=True)
                    )
                )
                for v in range(V)
            ]
            return tuple(map(torch.stack, zip(*members, strict=True))), (0,) * len(members[0])

        steps = 1 if tensors.batch_sizes is None else 0

        def folded(index: int) -> Any:
            value, dim = arguments[index], in_dims[index]
            field = Tensors._fields[index] if index < _N else ""
            if not isinstance(value, Tensor) or field in _WEIGHTS:
                return value
            if field == "batch_sizes":
                return value * V
            if value.numel() == 0 and value.dim() == (1 if dim is None else 2):
                return value if dim is None else value.select(dim, 0)
            axis = steps if field in _LIKE_X or index - rest_first in rest_like_x else 0
            if dim is None:
                value = value.unsqueeze(axis + 1).expand(
                    *value.shape[: axis + 1], V, *value.shape[axis + 1 :]
                )
            else:
                value = value.movedim(dim, axis + 1)
            return value.flatten(axis, axis + 1).contiguous()

        results = op(*map(folded, range(len(arguments))))
        outputs: list[Tensor] = []
        out_dims: list[int | None] = []
        for index, result in enumerate(results):
            axis = steps if index in results_like_x else 0
            if result.dim() > 1:
                result = torch.unflatten(result, axis, (result.size(axis) // V, V))
                out_dims.append(axis + 1)
            else:  # not there
                out_dims.append(None)
            outputs.append(result)
        return tuple(outputs), tuple(out_dims)

    torch.library.register_vmap(f"seq2seq_ext::{name}", rule)


_register_vmap("recurrence", set(), {0, 1})
_register_vmap("recurrence_backward", {0, 1}, {0})
_register_vmap("recurrence_tangent", set(), {0, 1})
