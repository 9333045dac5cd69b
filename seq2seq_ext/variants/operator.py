"""The operator ``recurrence`` as torch sees it: how it is called, its shapes, its derivatives.

One direction of one layer with every variant that :mod:`seq2seq_ext.variants.reference` describes.
The kernels run what goes from step to step; weight gradients are products over all steps of what
they left, formed here.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from seq2seq_ext.kernels import below_autograd, kept_dtype, without_autocast
from seq2seq_ext.variants import reference

__all__ = ["CELLS", "recurrence"]

# In the order of their numbers, which is that of Cell in csrc/cells.h.
CELLS = ("lstm", "gru", "gru_reset_before", "rnn_tanh", "rnn_relu", "coupled_lstm")
_NUMBER = {name: number for number, name in enumerate(CELLS)}
_LSTMS = (CELLS.index("lstm"), CELLS.index("coupled_lstm"))
_GRU, _RESET_BEFORE = CELLS.index("gru"), CELLS.index("gru_reset_before")
_GATES = [reference.GATES[cell] for cell in CELLS]
# As kept_slots() and kMoments in csrc/recurrence.h.
_SLOTS = (6, 5, 4, 1, 1, 5)
_MOMENTS = 4

_forward = torch.ops.seq2seq_ext.recurrence.default
_backward = torch.ops.seq2seq_ext.recurrence_backward.default


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
    x: Tensor, w_hh: Tensor, *, cell: str, return_cells: bool = False, **rest: Any
) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    """Run one direction of one layer; arguments and result as those of the reference.

    Args:
        x, w_hh, cell: as for :func:`seq2seq_ext.variants.reference.recurrence`, as are the others,
            by keyword.  float32, float64, float16 or bfloat16.
        return_cells: whether c of every step is wanted; the second result is None otherwise.

    Raises:
        RuntimeError: naming an argument of a wrong size, dtype or device, or a value that is out
            of range.

    >>> y, cells, h_n, c_n = recurrence(torch.zeros(5, 2, 12), torch.zeros(12, 3), cell="lstm",
    ...                                 return_cells=True)
    >>> y.shape, cells.shape
    (torch.Size([5, 2, 3]), torch.Size([5, 2, 3]))
    """
    options = Options(
        _NUMBER[cell], **{name: rest.pop(name) for name in Options._fields if name in rest}
    )
    tensors = Tensors(x, w_hh, **rest)
    # Whether any gradient can be asked for; inside torch.compile the backward pass is traced.
    save = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    y, cells, h_n, c_n = _forward(*tensors, *options, save, return_cells)[:4]
    lstm = options.cell in _LSTMS
    return y, cells if return_cells else None, h_n, c_n if lstm else None


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
    tensors, options, (save, return_cells) = _split(arguments)
    H, P, B, steps = _sizes(tensors, options)
    rows = tensors.x.numel() // tensors.x.size(-1)
    lstm = options.cell in _LSTMS
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
        make(lstm, B, H),
        keep(True, rows, _SLOTS[options.cell], H),
        keep(True, rows, P),
        keep(projected or options.cell == _RESET_BEFORE, rows, H),
        keep(projected, rows, P),
        keep(normalized, rows, _GATES[options.cell] * H),
        keep(normalized or tensors.norm_c is not None, rows, _MOMENTS),
    )


@torch.library.register_fake("seq2seq_ext::recurrence_backward")  # type: ignore[untyped-decorator]
def _recurrence_backward_fake(*arguments: Any) -> tuple[Tensor, ...]:
    tensors, options, _ = _split(arguments)
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
        make(options.cell in _LSTMS, B, H),
    )


def _sums_apart(tensors: Tensors, options: Options) -> bool:
    """Whether W_hh h has other gradients than x."""
    return options.cell == _GRU or tensors.norm_hh is not None


# ---- derivatives ---------------------------------------------------------------------------------

_DIFFERENTIABLE = Tensors._fields.index("seed")  # what comes before it, but for h_mask


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, options: Options, return_cells: bool, *given: Any) -> tuple[Tensor, ...]:
        with below_autograd():
            outputs = cast("tuple[Tensor, ...]", _forward(*given, *options, True, return_cells))
        _, cells, _, c_n, *kept = outputs
        ctx.options = options
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*[t for t in (cells, c_n) if t.dim() == 1], *kept)
        ctx.save_for_backward(*given, *kept)
        return outputs

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
        d_y, d_cells, d_h_n, d_c_n = cotangents[:4]
        wanted = ctx.needs_input_grad[2:]
        if d_y is None and d_cells is None and d_h_n is None and d_c_n is None:
            return (None,) * (2 + len(wanted))
        n = len(Tensors._fields)
        tensors, kept = Tensors(*ctx.saved_tensors[:n]), ctx.saved_tensors[n:]
        if torch.is_grad_enabled():  # a second derivative is to be taken
            gradients = _reference_gradients(tensors, ctx.options, cotangents[:4], wanted)
        else:
            with below_autograd():
                results = _backward(*tensors, *ctx.options, d_y, d_cells, d_h_n, d_c_n, *kept)
            with without_autocast():
                gradients = _gradients(tensors, ctx.options, kept, results, wanted)
        return (None, None, *gradients)


def _gradients(
    tensors: Tensors,
    options: Options,
    kept: tuple[Tensor, ...],
    results: tuple[Tensor, ...],
    wanted: tuple[bool, ...],
) -> list[Tensor | None]:
    """Gradients of all tensors from what the kernels left of every step."""
    step, h_in, inner, _, sums, moments = kept
    d_x, d_sum, d_cell, d_out, d_h_0, d_c_0 = results
    want = Tensors(*wanted)
    rows, width = h_in.size(0), d_x.size(-1)
    H = width // _GATES[options.cell]
    d_gates = d_x.reshape(rows, width)
    d_product = d_sum if _sums_apart(tensors, options) else d_gates
    normalized = d_gates  # gradient of the recurrent sums behind their normalization
    if options.cell == _GRU and (want.b_hn or want.norm_hh):
        d_n = d_gates[:, 2 * H :] * step[:, 0]
        normalized = torch.cat([d_gates[:, : 2 * H], d_n], dim=1)
    found: dict[str, Tensor | None] = {"x": d_x, "h_0": d_h_0, "c_0": d_c_0}
    if want.w_hh:
        if options.cell == _RESET_BEFORE:
            early, late = d_product.split([2 * H, H], dim=1)
            found["w_hh"] = torch.cat([early.t() @ h_in, late.t() @ inner])
        else:
            found["w_hh"] = d_product.t() @ h_in
    if want.b_hn:
        found["b_hn"] = normalized[:, 2 * H :].sum(0)
    if want.w_hr:
        found["w_hr"] = d_out.t() @ inner
    if want.peephole:
        seen = step[:, -1], step[:, -2]  # c before the step, and after its gates
        g = _GATES[options.cell]
        gates = d_gates.unflatten(1, (g, H))
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
    wanted: tuple[bool, ...],
) -> list[Tensor | None]:
    """The same in plain torch, to be differentiated once more."""
    arguments = options._asdict()
    cell = CELLS[arguments.pop("cell")]
    outputs = reference.recurrence(**tensors._asdict(), cell=cell, **arguments)
    pairs = [
        (output, d)
        for output, d in zip(outputs, cotangents, strict=True)
        if output is not None and d is not None
    ]
    inputs = [t for t, wish in zip(tensors, wanted, strict=True) if wish]
    found = iter(
        torch.autograd.grad(
            [output for output, _ in pairs],
            inputs,
            [d for _, d in pairs],
            create_graph=True,
            allow_unused=True,
        )
    )
    return [next(found) if wish else None for wish in wanted]


def _recurrence_autograd(*arguments: Any) -> tuple[Tensor, ...]:
    tensors, options, (_, return_cells) = _split(arguments)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        output: tuple[Tensor, ...] = _Recurrence.apply(  # type: ignore[no-untyped-call]
            options, return_cells, *tensors
        )
        return output
    with below_autograd():
        return cast("tuple[Tensor, ...]", _forward(*arguments))


# Kept alive: torch unregisters what a library holds when the library goes.
_library = torch.library.Library("seq2seq_ext", "IMPL")  # type: ignore[no-untyped-call]
_library.impl("recurrence", _recurrence_autograd, "Autograd")  # type: ignore[no-untyped-call]
_library.impl(  # type: ignore[no-untyped-call]
    "recurrence_backward", torch.library.fallthrough_kernel, "Autograd"
)
