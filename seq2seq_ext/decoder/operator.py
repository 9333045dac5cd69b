"""The operator ``attention_decoder`` as torch sees it: how it is called, its shapes, its gradient.

The kernels run what goes from step to step; gradients of weights, keys and values are products over
all steps of what they left, formed here.  A second derivative is the reference's, differentiated by
torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from seq2seq_ext import transforms
from seq2seq_ext.decoder import reference
from seq2seq_ext.kernels import (
    CELLS,
    GATES,
    autocast_is_on,
    below_autograd,
    kept_dtype,
    without_autocast,
)
from seq2seq_ext.variants.operator import KEPT_SLOTS

__all__ = ["DecoderResult", "attention_decoder"]

_LSTM, _GRU = CELLS.index("lstm"), CELLS.index("gru")
_RESET_BEFORE = CELLS.index("gru_reset_before")

_forward = torch.ops.seq2seq_ext.attention_decoder.default
_backward = torch.ops.seq2seq_ext.attention_decoder_backward.default


class Tensors(NamedTuple):
    """The tensors of a call but for its weights, in the order of the operator."""

    x: Tensor
    bias: Tensor | None
    b_hn: Tensor | None
    h_0: Tensor | None
    c_0: Tensor | None
    feed_0: Tensor | None
    coverage_0: Tensor | None
    keys: Tensor
    values: Tensor
    w_query: Tensor | None
    v: Tensor | None
    w_coverage: Tensor | None
    w_out: Tensor | None
    b_out: Tensor | None
    dropout_mask: Tensor | None
    lengths: Tensor | None
    source_lengths: Tensor | None
    memory: Tensor | None


class Options(NamedTuple):
    """The rest of a call, in the order of the operator."""

    cell: int
    num_layers: int
    heads: int
    residual: int
    query_first: bool
    scale: float


class DecoderResult(NamedTuple):
    """What a decoder leaves; see :func:`attention_decoder` for the sizes.

    Args:
        z: (T, B, H), the last layer's output.
        context: (T, B, C).
        alignments: (T, B, heads, S), zero behind a source's end.
        attentional: (T, B, O), or None without ``w_out``.
        h_n: (L, B, H), the state behind the last step.
        c_n: (L, B, H), or None but for an LSTM.
        feed_n: (B, F), what the next step would be fed.
        coverage_n: (B, S), or None without ``w_coverage``.
    """

    z: Tensor
    context: Tensor
    alignments: Tensor
    attentional: Tensor | None
    h_n: Tensor
    c_n: Tensor | None
    feed_n: Tensor
    coverage_n: Tensor | None


def attention_decoder(
    x: Tensor,
    weights: Sequence[Tensor],
    keys: Tensor,
    values: Tensor,
    *,
    cell: str,
    bias: Tensor | None = None,
    b_hn: Tensor | None = None,
    h_0: Tensor | None = None,
    c_0: Tensor | None = None,
    feed_0: Tensor | None = None,
    coverage_0: Tensor | None = None,
    w_query: Tensor | None = None,
    v: Tensor | None = None,
    w_coverage: Tensor | None = None,
    w_out: Tensor | None = None,
    b_out: Tensor | None = None,
    dropout_mask: Tensor | None = None,
    lengths: Tensor | None = None,
    source_lengths: Tensor | None = None,
    memory: Tensor | None = None,
    heads: int = 1,
    residual: int = 0,
    query_first: bool = False,
    scale: float = 1.0,
) -> DecoderResult:
    """Run all steps of a decoder that attends; the equations stand in the reference.

    Sizes: T steps, B sequences, S source positions, L layers, G gates of H units, A and C features
    of keys and values, O of the attentional vector, F of the feed (O, or C without ``w_out``), M
    sequences of the memory (B, unless ``memory`` is given).

    Args:
        x: (T, B, G*H), what the first layer's gates get from the tokens.
        weights: per layer ``w_in`` (G*H, F), from the second on (G*H, H), and ``w_hh`` (G*H, H).
        keys: (M, S, A).
        values: (M, S, C).
        cell: ``"lstm"``, ``"gru"``, ``"gru_reset_before"``, ``"rnn_tanh"`` or ``"rnn_relu"``.
        bias: (L, G*H), added to the gates.
        b_hn: (L, H), for ``"gru"`` only: added to ``W_hn h`` before the reset gate.
        h_0, c_0: (L, B, H), the state before the first step; None: zeros.
        feed_0: (B, F), what the first step is fed; None: zeros.  Not with ``query_first``.
        coverage_0: (B, S), the coverage before the first step; None: zeros.
        w_query: (A, H); None: the query is z itself, and A is H.
        v: (A,), makes the energies additive.
        w_coverage: (A,), the coverage's weights in additive energies; None: no coverage.
        w_out, b_out: (O, C+H) and (O,), of the attentional vector; None: there is none.
        dropout_mask: (L-1, T, B, H), what the outputs of all layers but the last are multiplied by.
        lengths: int64 (B,), 0 to T; outputs behind them are zero.  On the CPU, or on the device of
            ``x``, where they are not looked at and kept within their bounds, as the next two.
        source_lengths: int64 (M,), 0 to S.
        memory: int64 (B,), which of the M sequences a row attends to, so that rows may
            share one; for calls that need no gradient.
        heads: of products of queries and keys, as of multi-head attention without its last map.
        residual: the first layer, of 1 to L-1, whose input is added to its output; 0: none.
        query_first: whether attention comes before the cells, by the z of the step before.
        scale: of the products of queries and keys.

    Raises:
        RuntimeError: naming an argument of a wrong size, dtype or device, or a value out of range.

    >>> result = attention_decoder(
    ...     torch.zeros(5, 2, 12), [torch.zeros(12, 4), torch.zeros(12, 3)],
    ...     torch.zeros(2, 7, 3), torch.zeros(2, 7, 6), cell="lstm", w_out=torch.zeros(4, 9))
    >>> result.attentional.shape, result.alignments[0, 0, 0, :2]
    (torch.Size([5, 2, 4]), tensor([0.1429, 0.1429]))
    """
    tensors = Tensors(
        x,
        bias,
        b_hn,
        h_0,
        c_0,
        feed_0,
        coverage_0,
        keys,
        values,
        w_query,
        v,
        w_coverage,
        w_out,
        b_out,
        dropout_mask,
        lengths,
        source_lengths,
        memory,
    )
    if autocast_is_on():  # the gates came of a product in its dtype: so is all
        tensors = Tensors(*(_rounded(t, x.dtype) for t in tensors))  # type: ignore[arg-type]
        weights = [w.to(x.dtype) for w in weights]
    options = Options(
        CELLS.index(cell), len(weights) // 2, heads, residual, bool(query_first), float(scale)
    )
    if transforms.active() or x.device.type not in ("cpu", "cuda"):
        return DecoderResult(*_reference(tensors, weights, options))  # type: ignore[arg-type]
    save = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (*tensors, *weights)
    )
    results = _forward(x, weights, *tensors[1:], *options, save)[:8]
    found: Any = [None if _missing(tensors, options, i) else results[i] for i in range(8)]
    return DecoderResult(*found)


def _rounded(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    floats = tensor is not None and tensor.is_floating_point()
    return tensor.to(dtype) if tensor is not None and floats else tensor


def _missing(tensors: Tensors, options: Options, result: int) -> bool:
    """Whether a result is not there."""
    return (
        (result == 3 and tensors.w_out is None)
        or (result == 5 and options.cell != _LSTM)
        or (result == 7 and tensors.w_coverage is None)
    )


def _reference(
    tensors: Tensors, weights: Sequence[Tensor], options: Options
) -> tuple[Tensor | None, ...]:
    arguments = options._asdict()
    del arguments["num_layers"]
    arguments["cell"] = CELLS[options.cell]
    return reference.attention_decoder(weights=list(weights), **tensors._asdict(), **arguments)


# ---- shapes --------------------------------------------------------------------------------------


def _split(arguments: tuple[Any, ...]) -> tuple[Tensors, list[Tensor], Options, tuple[Any, ...]]:
    x, weights, *rest = arguments
    n = len(Tensors._fields) - 1
    m = n + len(Options._fields)
    return Tensors(x, *rest[:n]), weights, Options(*rest[n:m]), tuple(rest[m:])


class _Sizes:
    def __init__(self, tensors: Tensors, options: Options) -> None:
        self.T, self.B, width = tensors.x.shape
        self.L, self.heads, self.width = options.num_layers, options.heads, width
        self.H = width // GATES[options.cell]
        self.S, self.A = tensors.keys.shape[1:]
        self.C = tensors.values.size(2)
        self.O = 0 if tensors.w_out is None else tensors.w_out.size(0)
        self.F = self.C if tensors.w_out is None else self.O


@torch.library.register_fake("seq2seq_ext::attention_decoder")  # type: ignore[untyped-decorator]
def _forward_fake(*arguments: Any) -> tuple[Tensor, ...]:
    tensors, _, options, (save,) = _split(arguments)
    s, lstm = _Sizes(tensors, options), options.cell == _LSTM
    covers = tensors.w_coverage is not None
    N = s.T * s.B

    def make(wanted: bool, *size: int) -> Tensor:
        return tensors.x.new_empty(size if wanted else (0,))

    def keep(wanted: bool, *size: int) -> Tensor:
        size = size if save and wanted else (0,)
        return tensors.x.new_empty(size, dtype=kept_dtype(tensors.x))

    return (
        make(True, s.T, s.B, s.H),
        make(True, s.T, s.B, s.C),
        make(True, s.T, s.B, s.heads, s.S),
        make(tensors.w_out is not None, s.T, s.B, s.O),
        make(True, s.L, s.B, s.H),
        make(lstm, s.L, s.B, s.H),
        make(True, s.B, s.F),
        make(covers, s.B, s.S),
        keep(True, s.L, N, KEPT_SLOTS[options.cell], s.H),
        keep(True, s.L, N, s.H),
        keep(options.cell == _RESET_BEFORE, s.L, N, s.H),
        keep(True, s.L - 1, N, s.H),
        keep(True, N, s.A),
        keep(covers, N, s.S),
    )


@torch.library.register_fake("seq2seq_ext::attention_decoder_backward")  # type: ignore[untyped-decorator]
def _backward_fake(*arguments: Any) -> tuple[Tensor, ...]:
    tensors, _, options, _ = _split(arguments)
    s, additive = _Sizes(tensors, options), tensors.v is not None
    covers = tensors.w_coverage is not None
    N = s.T * s.B

    def make(wanted: bool, *size: int) -> Tensor:
        return tensors.x.new_empty(size if wanted else (0,), dtype=kept_dtype(tensors.x))

    return (
        make(True, s.L, s.T, s.B, s.width),
        make(options.cell == _GRU, s.L, s.T, s.B, s.width),
        make(True, N, s.A),
        make(not additive, s.T, s.B, s.heads, s.S),
        make(True, s.T, s.B, s.C),
        make(tensors.w_out is not None, N, s.O),
        make(additive, s.B, s.S, s.A),
        make(additive, s.B, s.A),
        make(covers, s.B, s.A),
        make(True, s.L, s.B, s.H),
        make(options.cell == _LSTM, s.L, s.B, s.H),
        make(True, s.B, s.F),
        make(covers, s.B, s.S),
    )


# ---- gradient ------------------------------------------------------------------------------------


class _Decoder(torch.autograd.Function):
    """``attention_decoder``; weights come last, as autograd wants tensors one by one."""

    @staticmethod
    def forward(ctx: Any, options: Options, *given: Tensor | None) -> tuple[Tensor, ...]:
        n = len(Tensors._fields)
        tensors, weights = Tensors(*cast("Any", given[:n])), given[n:]
        with below_autograd():
            results = _forward(tensors.x, weights, *tensors[1:], *options, True)
        ctx.options = options
        ctx.set_materialize_grads(False)
        empty = [results[i] for i in range(8) if _missing(tensors, options, i)]
        ctx.mark_non_differentiable(*empty, *results[8:])
        ctx.save_for_backward(*given, *results[:4], *results[8:])
        return cast("tuple[Tensor, ...]", results)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
        options, d_outputs, wanted = ctx.options, cotangents[:8], ctx.needs_input_grad[1:]
        if all(d is None for d in d_outputs):
            return (None,) * len(ctx.needs_input_grad)
        n = len(Tensors._fields)
        given, left = ctx.saved_tensors[:-10], ctx.saved_tensors[-10:]
        tensors, weights = Tensors(*given[:n]), given[n:]
        if torch.is_grad_enabled():
            return (None, *_reference_gradients(tensors, weights, options, d_outputs, wanted))
        with below_autograd():
            found = _backward(tensors.x, weights, *tensors[1:], *options, *d_outputs, *left[1:])
        with without_autocast():
            return (None, *_gradients(tensors, weights, options, left, found, wanted))


def _over_steps(weights: Tensor, rows: Tensor) -> Tensor:
    """Of weights (T, B, n, S) and rows (T, B, C) in n parts, their products' sums: (B, S, C)."""
    T, B, heads, _ = weights.shape
    parts = rows.reshape(T, B, heads, rows.size(2) // heads).permute(1, 2, 0, 3)  # (B, n, T, C/n)
    return (weights.permute(1, 2, 3, 0) @ parts).transpose(1, 2).flatten(2)


def _gradients(
    tensors: Tensors,
    weights: Sequence[Tensor],
    options: Options,
    left: Sequence[Tensor],
    found: Sequence[Tensor],
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients of all tensors and weights from what the kernels left of every step."""
    z, context, alignments, attentional, _, h_in, inner, below, query, _ = left
    gates, sums, d_query, d_energy, whole_context, d_out, d_keys, d_v, d_w_coverage = found[:9]
    d_h_0, d_c_0, d_feed_0, d_coverage_0 = found[9:]
    want: Any = Tensors(*cast("Any", wanted[: len(tensors)]))
    T, B, _ = tensors.x.shape
    L, dtype = options.num_layers, d_query.dtype
    H = h_in.size(2)
    z, context, alignments = (t.to(dtype) for t in (z, context, alignments))

    def by_before(d: Tensor, first: Tensor | None, steps: Tensor) -> Tensor:
        """Gradient of a weight that multiplied what each step has from the one before it.

        Args:
            d: (T, B, n), of the products.
            first: (B, features), what the first step has; None: zeros.
            steps: (T, B, features), what the steps leave for the next.
        """
        product = d[1:].flatten(0, 1).t() @ steps[:-1].flatten(0, 1)
        return product if first is None else product.addmm_(d[0].t(), first.to(dtype))

    result: dict[str, Tensor | None] = {
        "x": gates[0],
        "h_0": d_h_0,
        "c_0": d_c_0,
        "feed_0": d_feed_0,
        "coverage_0": d_coverage_0,
        "keys": d_keys,
    }
    if want.bias:
        result["bias"] = gates.sum((1, 2))
    if want.b_hn:
        result["b_hn"] = sums[..., 2 * H :].sum((1, 2))
    if want.values:
        result["values"] = _over_steps(alignments, whole_context)
    if want.keys and tensors.v is None:
        result["keys"] = _over_steps(d_energy, query.view(T, B, query.size(1)))
    if want.w_query and options.query_first:
        first = None if tensors.h_0 is None else tensors.h_0[-1]
        result["w_query"] = by_before(d_query.view(T, B, d_query.size(1)), first, z)
    elif want.w_query:
        result["w_query"] = d_query.t() @ z.flatten(0, 1)
    if want.v:
        result["v"] = d_v.sum(0)
    if want.w_coverage:
        result["w_coverage"] = d_w_coverage.sum(0)
    if want.w_out:
        result["w_out"] = torch.cat([d_out.t() @ of.flatten(0, 1) for of in (context, z)], 1)
    if want.b_out:
        result["b_out"] = d_out.sum(0)

    of_weights: list[Tensor | None] = []
    for index, wish in enumerate(wanted[len(tensors) :]):
        layer = index // 2
        by = gates[layer].flatten(0, 1)
        if not wish:
            of_weights.append(None)
        elif index == 0 and options.query_first:
            of_weights.append(by.t() @ context.flatten(0, 1))
        elif index == 0:
            fed = context if tensors.w_out is None else attentional.to(dtype)
            of_weights.append(by_before(gates[0], tensors.feed_0, fed))
        elif index % 2 == 0:
            of_weights.append(by.t() @ below[layer - 1])
        elif options.cell == _RESET_BEFORE:
            early, late = torch.split(by, [2 * H, H], dim=1)
            of_weights.append(torch.cat([early.t() @ h_in[layer], late.t() @ inner[layer]]))
        else:
            by = sums[layer].flatten(0, 1) if options.cell == _GRU else by
            of_weights.append(by.t() @ h_in[layer])
    assert len(of_weights) == 2 * L
    of_tensors = [result.get(name) if wish else None for name, wish in want._asdict().items()]
    return [*of_tensors, *of_weights]


def _reference_gradients(
    tensors: Tensors,
    weights: Sequence[Tensor],
    options: Options,
    cotangents: Sequence[Tensor | None],
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """Those of :func:`_gradients` in plain torch, to be differentiated further."""
    every = (*tensors, *weights)
    inputs = [t for t, wish in zip(every, wanted, strict=True) if wish]

    def outputs(*inputs: Tensor) -> list[Tensor]:
        given = iter(inputs)
        mixed: Any = [next(given) if wish else t for t, wish in zip(every, wanted, strict=True)]
        n = len(tensors)
        found = _reference(Tensors(*mixed[:n]), mixed[n:], options)
        return [
            t for t, d in zip(found, cotangents, strict=True) if t is not None and d is not None
        ]

    pull = torch.func.vjp(outputs, *inputs)[1]
    gradients = iter(pull([d for d in cotangents if d is not None]))
    return [next(gradients) if wish else None for wish in wanted]


def _autograd(*arguments: Any) -> tuple[Tensor, ...]:
    tensors, weights, options, _ = _split(arguments)
    given = (*tensors, *weights)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given):
        results: tuple[Tensor, ...] = _Decoder.apply(  # type: ignore[no-untyped-call]
            options, *given
        )
        return results
    with below_autograd():
        return cast("tuple[Tensor, ...]", _forward(*arguments))


# Kept alive: torch unregisters what a library holds when the library goes.
_library = torch.library.Library("seq2seq_ext", "IMPL")  # type: ignore[no-untyped-call]
_library.impl("attention_decoder", _autograd, "Autograd")  # type: ignore[no-untyped-call]
_library.impl(  # type: ignore[no-untyped-call]
    "attention_decoder_backward", torch.library.fallthrough_kernel, "Autograd"
)
