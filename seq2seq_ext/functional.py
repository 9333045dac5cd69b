r"""Recurrent layers as functions of their weights: ``lstm``, ``gru`` and ``rnn``.

These carry what :class:`seq2seq_ext.LSTM`, :class:`seq2seq_ext.GRU` and :class:`seq2seq_ext.RNN`
do beyond owning parameters: they accept every form of input that ``torch.nn`` accepts, name what
is wrong with a bad one in the words of ``torch.nn``, draw the dropout between layers, and hand a
time-major problem to the operator.  Checks are plain comparisons of sizes, made once per call and
before any memory is touched; nothing here looks at the values of a tensor, so a compiler can trace
it with any number of time steps and sequences.

Sizes: T time steps, B sequences, I input features, H hidden units, P = ``proj_size`` or H, L
layers, D directions.  For the equations see :mod:`seq2seq_ext.reference`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils.checkpoint import checkpoint

from seq2seq_ext import ops, transforms
from seq2seq_ext.kernels import DTYPES, autocast_is_on
from seq2seq_ext.variants import Variant
from seq2seq_ext.variants.stack import Direction, Stack

__all__ = ["gru", "lstm", "rnn"]

Input = TypeVar("Input", Tensor, PackedSequence)

_GATES = {
    "lstm": 4,
    "gru": 3,
    "gru_reset_before": 3,
    "rnn_tanh": 1,
    "rnn_relu": 1,
    "coupled_lstm": 3,
}
_LAYER = {
    "lstm": "LSTM",
    "coupled_lstm": "LSTM",
    "gru": "GRU",
    "gru_reset_before": "GRU",
}  # the rest: "RNN"
SAVE = ("gates", "states")
_CPU = torch.device("cpu")


def lstm(
    input: Input,
    hx: Sequence[Tensor] | None,
    weights: Sequence[Tensor],
    *,
    num_layers: int = 1,
    batch_first: bool = False,
    dropout: float = 0.0,
    bidirectional: bool = False,
    training: bool = False,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
) -> tuple[Input, tuple[Tensor, Tensor]]:
    """Long short-term memory (Hochreiter & Schmidhuber 1997; Gers et al. 2000).

    Args:
        input: float32, float64, float16 or bfloat16, the weights' dtype (under autocast, any), of
            size (T, B, I), (B, T, I) with ``batch_first``, (T, I) for one sequence, or a
            :class:`~torch.nn.utils.rnn.PackedSequence`.
        hx: the state before the first step, ``(h_0, c_0)`` of sizes (L*D, B, P) and (L*D, B, H),
            without B for one sequence; zeros if None.
        weights: per layer, per direction ``w_ih`` (4H, I or D*P), ``w_hh`` (4H, P), then
            ``b_ih`` and ``b_hh`` (4H,) or neither, then ``w_hr`` (P, H) for a projection.
        num_layers: L.
        batch_first: whether the batch comes before the time in ``input`` and output.
        dropout: probability of zeroing an element of the output of every layer but the last.
        bidirectional: whether a second direction reads each sequence from its end.
        training: whether dropout is applied.
        lengths: integers of size (B,), each sequence's number of steps, 0 to T in any order.  Those
            on a GPU are kept within 0 to T unchecked, which would wait for the device.  Not
            with a PackedSequence, which has its own.
        resets: bool, sized like the time and batch axes of ``input`` (the rows of a
            PackedSequence).  Where true, the state is zeroed before that step; in the reverse
            direction, before that step in its own order of reading.

    Returns:
        ``output, (h_n, c_n)``: the last layer's hidden states in the form of ``input`` with D*P
        features, 0 past a sequence's length; and the state after each sequence's last step, sized
        like ``hx`` (for length 0, ``hx`` itself).

    Raises:
        TypeError: if an argument is not a tensor where one is wanted, or ``lengths`` or ``resets``
            has a wrong dtype.
        ValueError: if ``input`` has a wrong rank or a dtype other than the weights', or
            ``lengths`` or ``resets`` a wrong size.
        RuntimeError: if sizes, dtypes or devices do not fit, T is 0, or a length is negative or
            larger than T.

    >>> weights = [torch.zeros(8, 3), torch.zeros(8, 2)]
    >>> output, (h_n, c_n) = lstm(torch.ones(5, 4, 3), None, weights)
    >>> output.shape, h_n.shape
    (torch.Size([5, 4, 2]), torch.Size([1, 4, 2]))
    """
    output, h_n, c_n, _ = run(
        "lstm",
        input,
        hx,
        weights,
        num_layers,
        batch_first,
        dropout if training else 0.0,
        bidirectional,
        lengths,
        resets,
    )
    assert c_n is not None
    return output, (h_n, c_n)


def gru(
    input: Input,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    *,
    num_layers: int = 1,
    batch_first: bool = False,
    dropout: float = 0.0,
    bidirectional: bool = False,
    training: bool = False,
    reset_after: bool = True,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
) -> tuple[Input, Tensor]:
    """Gated recurrent unit (Cho et al. 2014).

    Args:
        input, num_layers, batch_first, dropout, bidirectional, training, lengths, resets: as for
            :func:`lstm`.
        hx: the state before the first step, (L*D, B, H), (L*D, H) for one sequence; zeros if None.
        weights: per layer, per direction ``w_ih`` (3H, I or D*P), ``w_hh`` (3H, P), then
            ``b_ih`` and ``b_hh`` (3H,) or neither, then ``w_hr`` (P, H) for a projection, as in
            :class:`seq2seq_ext.GRU`, not with ``reset_after=False``.
        reset_after: True applies the reset gate after the recurrent product, as ``torch.nn``
            does; False before it, as the paper does.

    Returns:
        ``output, h_n``, as for :func:`lstm`; with a projection too, ``h_n`` has H features.

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`lstm`; ValueError also for a projection with
            ``reset_after=False``.

    >>> weights = [torch.zeros(6, 3), torch.zeros(6, 2)]
    >>> output, h_n = gru(torch.ones(5, 4, 3), torch.ones(1, 4, 2), weights)
    >>> output[0, 0], output[1, 0]
    (tensor([0.5000, 0.5000]), tensor([0.2500, 0.2500]))
    """
    cell = "gru" if reset_after else "gru_reset_before"
    output, h_n, _, _ = run(
        cell,
        input,
        hx,
        weights,
        num_layers,
        batch_first,
        dropout if training else 0.0,
        bidirectional,
        lengths,
        resets,
        stack=_projected(cell, weights, num_layers, bidirectional),
    )
    return output, h_n


def rnn(
    input: Input,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    *,
    num_layers: int = 1,
    nonlinearity: str = "tanh",
    batch_first: bool = False,
    dropout: float = 0.0,
    bidirectional: bool = False,
    training: bool = False,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
) -> tuple[Input, Tensor]:
    """Simple recurrent network (Elman 1990).

    Args:
        input, num_layers, batch_first, dropout, bidirectional, training, lengths, resets: as for
            :func:`lstm`.
        hx: the state before the first step, (L*D, B, P), (L*D, P) for one sequence; zeros if None.
        weights: per layer, per direction ``w_ih`` (H, I or D*P), ``w_hh`` (H, P), then
            ``b_ih`` and ``b_hh`` (H,) or neither, then ``w_hr`` (P, H) for a projection.
        nonlinearity: ``"tanh"`` or ``"relu"``.

    Returns:
        ``output, h_n``, as for :func:`lstm`.

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`lstm`; ValueError also for an unknown
            ``nonlinearity``.

    >>> output, h_n = rnn(torch.ones(3, 1), None, [torch.ones(1, 1)] * 2, nonlinearity="relu")
    >>> output.squeeze(1)
    tensor([1., 2., 3.])
    """
    if nonlinearity not in ("tanh", "relu"):
        raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
    cell = f"rnn_{nonlinearity}"
    output, h_n, _, _ = run(
        cell,
        input,
        hx,
        weights,
        num_layers,
        batch_first,
        dropout if training else 0.0,
        bidirectional,
        lengths,
        resets,
        stack=_projected(cell, weights, num_layers, bidirectional),
    )
    return output, h_n


def _projected(
    cell: str, weights: Sequence[Tensor], num_layers: int, bidirectional: bool
) -> Stack | None:
    """A GRU or RNN with projections; None where ``weights`` have none, or are no weights."""
    D = 2 if bidirectional else 1
    rows = num_layers * D
    if rows < 1 or len(weights) not in (3 * rows, 5 * rows):
        return None
    if cell == "gru_reset_before":
        raise ValueError("weights: w_hr is for a GRU with reset_after=True, got reset_after=False")
    if not all(isinstance(weight, Tensor) for weight in weights):
        return None
    if any(weight.dim() != 2 for weight in weights[:2]):
        return None
    width, features, P = *weights[0].shape, weights[1].size(1)
    directions = []
    for k in range(rows):
        given = weights[len(weights) // rows * k : len(weights) // rows * (k + 1)]
        biases = [(width,), (width,)] if len(given) == 5 else []
        sizes = [(width, features if k < D else D * P), (width, P), *biases]
        sizes.append((P, width // _GATES[cell]))
        for j, (weight, size) in enumerate(zip(given, sizes, strict=True)):
            if weight.shape != size:
                raise RuntimeError(
                    f"weights[{k * len(given) + j}] must have size {size}, "
                    f"got {tuple(weight.shape)}"
                )
        b_ih, b_hh = given[2:4] if biases else (None, None)
        directions.append(Direction(given[0], given[1], b_ih, b_hh, given[-1]))
    return Stack(directions, cell, D, Variant(), False)


def run(
    cell: str,
    input: Tensor | PackedSequence,
    hx: Tensor | Sequence[Tensor] | None,
    weights: Sequence[Tensor],
    num_layers: int,
    batch_first: bool,
    dropout: float,
    bidirectional: bool,
    lengths: Tensor | None,
    resets: Tensor | None,
    packed: ops.PackedLayers | None = None,
    stack: Stack | None = None,
    save: str = "gates",
) -> tuple[Any, Tensor, Tensor | None, Tensor | None]:
    """What all layers share: ``output, h_n, c_n, cells`` of any cell.

    ``dropout`` is the one to apply now, 0 while not training; ``packed`` the weights once more, for
    calls that need no gradient; ``stack`` layers with variants, which then run in the place of the
    plain ones and of which ``weights`` are the first direction's.  c of every step is what only
    they return.  ``save`` is "gates", or "states": then backward runs forward once more.
    """
    h_0, c_0 = _split_state(cell, hx)
    if (
        stack is None
        and save == "gates"
        and type(input) is Tensor
        and input.dim() == 3
        and (input.is_cpu or input.is_cuda)
        and lengths is None
        and resets is None
        and (dropout == 0.0 or num_layers == 1)
    ):
        x = input.transpose(0, 1) if batch_first else input
        outputs = ops.attempt(x, h_0, c_0, weights, cell, num_layers, bidirectional, packed)
        if outputs is not None:
            y, h_n, c_n = outputs
            return y.transpose(0, 1) if batch_first else y, h_n, c_n, None

    batch_sizes = sorted_indices = unsorted_indices = None
    single = False
    if isinstance(input, PackedSequence):
        if torch.compiler.is_exporting():
            raise RuntimeError(
                f"{_name(cell)}: Expected padded input and lengths in a model that is exported, "
                "got a PackedSequence, whose batch_sizes are not known then"
            )
        x, batch_sizes, sorted_indices, unsorted_indices = input
        if lengths is not None:
            raise ValueError("lengths is for dense input; a PackedSequence has its own lengths")
        if x.dim() != 2:
            raise RuntimeError(f"input must have 2 dimensions, got {x.dim()}")
        if batch_sizes.dim() != 1 or batch_sizes.dtype != torch.int64:
            raise ValueError(
                "batch_sizes of a PackedSequence must be 1-D of torch.int64, "
                f"got {batch_sizes.dim()}-D of {batch_sizes.dtype}"
            )
        if batch_sizes.size(0) == 0:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        B = int(batch_sizes[0])
        if B < 0:
            raise ValueError(f"batch_sizes of a PackedSequence must be positive, got {B}")
    elif isinstance(input, Tensor):
        x = input
        rank = x.dim()
        if rank != 3 and rank != 2:
            raise ValueError(
                f"{_name(cell)}: Expected input to be 2D or 3D, got {rank}D "
                f"{'tensor ' if cell.startswith('rnn') else ''}instead"
            )
        single = rank == 2
        if h_0 is not None and (h_0.dim() != rank or (c_0 is not None and c_0.dim() != rank)):
            raise RuntimeError(_state_rank_error(rank, h_0, c_0))
        if single:
            x = x.unsqueeze(1)
            h_0 = None if h_0 is None else h_0.unsqueeze(1)
            c_0 = None if c_0 is None else c_0.unsqueeze(1)
        elif batch_first:
            x = x.transpose(0, 1)
        if x.size(0) == 0:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        B = x.size(1)
    else:
        raise TypeError(
            f"{_name(cell)}: Expected input to be a Tensor or PackedSequence, "
            f"got {type(input).__name__}"
        )

    if num_layers < 1:
        raise ValueError(f"num_layers must be greater than zero, got {num_layers}")
    if len(weights) < 2:
        raise RuntimeError(f"weights must hold at least w_ih and w_hh, got {len(weights)} tensors")
    w_ih, w_hh = weights[0], weights[1]
    if not isinstance(w_ih, Tensor):
        raise TypeError(f"weights must be Tensors, got {_kind(weights)}")
    dtype, device = w_ih.dtype, w_ih.device
    for weight in weights:
        if not isinstance(weight, Tensor):
            raise TypeError(f"weights must be Tensors, got {_kind(weights)}")
        # One tensor on the meta device would turn the whole call into one without numbers.
        if weight.device != device:
            raise RuntimeError(f"weights must all be on {device}, got one on {weight.device}")
    if w_ih.dim() != 2 or w_hh.dim() != 2:
        raise RuntimeError(
            f"w_ih and w_hh must have 2 dimensions, got {w_ih.dim()} and {w_hh.dim()}"
        )
    if dtype not in DTYPES:
        raise RuntimeError(
            f"{_name(cell)}: Expected weights of float32, float64, float16 or bfloat16, got {dtype}"
        )
    autocast = _autocast_dtype(w_ih)
    if x.dtype != dtype and (autocast is None or not x.is_floating_point()):
        raise ValueError(
            f"RNN input dtype ({x.dtype}) does not match weight dtype ({dtype}). "
            f"Convert input: input.to({dtype}), or convert model: model.to({x.dtype})"
        )
    if autocast is not None:
        # A prepacked layer computes from the weights that it keeps.
        if packed is None or device.type != "cpu":
            dtype = autocast
            weights = [weight.to(dtype) for weight in weights]
            w_ih = weights[0]
            stack = None if stack is None else stack.to(dtype)
        x = x.to(dtype)
    if x.size(-1) != w_ih.size(1):
        raise RuntimeError(
            f"input.size(-1) must be equal to input_size. Expected {w_ih.size(1)}, got {x.size(-1)}"
        )
    if x.device != device:
        raise RuntimeError(
            "Input and parameter tensors are not at the same device, "
            f"found input tensor at {x.device} and parameter tensor at {device}"
        )

    if x.layout is not torch.strided:
        raise RuntimeError(f"{_name(cell)}: Expected input to be dense, got {x.layout}")

    H, P = w_hh.size(0) // _GATES[cell], w_hh.size(1)
    D = 2 if bidirectional else 1
    rows = num_layers * D
    if stack is not None:
        rows, P, H = stack.state_size
    if h_0 is None and stack is not None:
        h_0, c_0 = stack.initial_state(B, batch_sizes is not None)
    if h_0 is None:
        if batch_sizes is not None:  # which do not tell B to whom may not look at their values
            h_0 = torch.zeros(rows, B, P, dtype=dtype, device=device)
            if _name(cell) == "LSTM":
                # One block of zeros serves as both, since nothing writes to it.
                c_0 = h_0 if P == H else h_0.new_zeros(rows, B, H)
    else:
        tuple_of = "hidden[0]" if c_0 is not None else "hidden"
        h_0 = _check_state(h_0, (rows, B, P), tuple_of, w_ih)
        if c_0 is not None:
            c_0 = _check_state(c_0, (rows, B, H), "hidden[1]", w_ih)
        if sorted_indices is not None:
            h_0 = h_0.index_select(1, sorted_indices)
            c_0 = None if c_0 is None else c_0.index_select(1, sorted_indices)

    if lengths is not None:
        lengths = _check_lengths(lengths, B, single, device)
    if resets is not None:
        resets = _check_resets(resets, x, single, batch_first)
    cells = None
    if stack is not None:
        y, h_n, c_n, cells = _caller(save)(
            stack.run, x, h_0, c_0, dropout, lengths, batch_sizes, resets
        )
    else:
        mask = None
        if dropout != 0.0 and num_layers > 1:
            mask = dropout_mask(dropout, num_layers, x, D * P)

        y, h_n, c_n = _caller(save)(
            ops.rnn,
            x,
            h_0,
            c_0,
            weights,
            cell,
            num_layers,
            bidirectional,
            lengths,
            batch_sizes,
            resets,
            mask,
            packed,
        )
    if autocast is not None:
        y, h_n = y.to(autocast), h_n.to(autocast)
        c_n = None if c_n is None else c_n.to(autocast)

    if isinstance(input, PackedSequence):
        if unsorted_indices is not None:
            h_n = h_n.index_select(1, unsorted_indices)
            c_n = None if c_n is None else c_n.index_select(1, unsorted_indices)

        def returned(steps: Tensor) -> Any:
            return PackedSequence(steps, batch_sizes, sorted_indices, unsorted_indices)

    elif single:
        h_n, c_n = h_n.squeeze(1), None if c_n is None else c_n.squeeze(1)

        def returned(steps: Tensor) -> Any:
            return steps.squeeze(1)

    else:

        def returned(steps: Tensor) -> Any:
            return steps.transpose(0, 1) if batch_first else steps

    return returned(y), h_n, c_n, None if cells is None else returned(cells)


def _caller(save: str) -> Callable[..., Any]:
    """What calls a function: with "states" so that autograd keeps its arguments alone."""
    if save == "gates" or not torch.is_grad_enabled() or transforms.active():
        return lambda function, *arguments: function(*arguments)
    return partial(checkpoint, use_reentrant=False)


def refuse_script(module: torch.nn.Module) -> NoReturn:
    """Tell who calls ``torch.jit.script`` what to use: a module's ``__prepare_scriptable__``."""
    raise RuntimeError(
        f"torch.jit.script cannot compile {type(module).__name__} of seq2seq_ext. Use "
        "torch.compile, torch.export (AOTInductor runs its programs from C++), "
        "seq2seq_ext.onnx.export or torch.jit.trace; seq2seq_ext.restore_modules(model) gives "
        "back the layers of torch.nn"
    )


def _name(cell: str) -> str:
    return _LAYER.get(cell, "RNN")


def _split_state(
    cell: str, hx: Tensor | Sequence[Tensor] | None
) -> tuple[Tensor | None, Tensor | None]:
    """``hx`` as (h_0, c_0); c_0 is None but for an LSTM."""
    if hx is None:
        return None, None
    if _name(cell) != "LSTM":
        if not isinstance(hx, Tensor):
            raise TypeError(
                f"{_name(cell)}: Expected hx to be a Tensor or None, got {type(hx).__name__}"
            )
        return hx, None
    if isinstance(hx, (tuple, list)):
        if len(hx) != 2:
            raise RuntimeError("lstm expects two hidden states")
        h_0, c_0 = hx
        if isinstance(h_0, Tensor) and isinstance(c_0, Tensor):
            return h_0, c_0
    raise TypeError(
        f"LSTM: Expected hx to be a tuple of two Tensors (h_0, c_0) or None, got {_kind(hx)}"
    )


def _kind(value: object) -> str:
    if isinstance(value, (tuple, list)):
        return f"{type(value).__name__} of ({', '.join(type(item).__name__ for item in value)})"
    return type(value).__name__


def _state_rank_error(rank: int, h_0: Tensor, c_0: Tensor | None) -> str:
    form = "batched 3-D" if rank == 3 else "unbatched 2-D"
    if c_0 is None:
        return f"For {form} input, hx should also be {rank}-D but got {h_0.dim()}-D tensor"
    return (
        f"For {form} input, hx and cx should also be {rank}-D "
        f"but got ({h_0.dim()}-D, {c_0.dim()}-D) tensors"
    )


def _autocast_dtype(weight: Tensor) -> torch.dtype | None:
    """What a layer of ``weight`` is to compute in; None where autocast leaves that to the weights.

    Those of float64 it leaves as they are, as torch does.
    """
    if not autocast_is_on():
        return None
    device = weight.device.type
    if device not in ("cpu", "cuda") or not torch.is_autocast_enabled(device):
        return None
    return torch.float64 if weight.dtype == torch.float64 else torch.get_autocast_dtype(device)


def _check_state(state: Tensor, size: tuple[int, int, int], name: str, weight: Tensor) -> Tensor:
    if state.size() != size:
        raise RuntimeError(f"Expected {name} size {size}, got {list(state.size())}")
    if state.device != weight.device:
        raise RuntimeError(
            "Input and hidden tensors are not at the same device, "
            f"found input tensor at {weight.device} and hidden tensor at {state.device}"
        )
    if state.layout is not torch.strided:
        raise RuntimeError(f"Expected {name} to be dense, got {state.layout}")
    if state.dtype != weight.dtype:
        if state.is_floating_point() and _autocast_dtype(weight) is not None:
            return state.to(weight.dtype)
        raise RuntimeError(f"Expected {name} dtype {weight.dtype}, got {state.dtype}")
    return state


def _check_lengths(lengths: Tensor, B: int, single: bool, device: torch.device) -> Tensor:
    """``lengths`` as the operator takes it; their values are checked there."""
    if not isinstance(lengths, Tensor):
        raise TypeError(f"lengths must be a Tensor of integers, got {type(lengths).__name__}")
    if lengths.dtype != torch.int64:
        if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
            raise TypeError(f"lengths must be a Tensor of integers, got {lengths.dtype}")
        lengths = lengths.to(torch.int64)
    if lengths.layout is not torch.strided:
        raise TypeError(f"lengths must be a dense Tensor, got {lengths.layout}")
    if single and lengths.dim() == 0:
        lengths = lengths.unsqueeze(0)
    if lengths.dim() != 1 or lengths.size(0) != B:
        raise ValueError(
            f"lengths must have size ({B},), one length for each sequence of the batch, "
            f"got {tuple(lengths.shape)}"
        )
    # Where the input is they may stay: looking at them would wait for the device.
    return lengths if lengths.device in (device, _CPU) else lengths.cpu()


def _check_resets(resets: Tensor, x: Tensor, single: bool, batch_first: bool) -> Tensor:
    """``resets`` in the order of ``x`` as the operator takes it: (T, B), or packed (N,)."""
    if not isinstance(resets, Tensor):
        raise TypeError(f"resets must be a Tensor of bool, got {type(resets).__name__}")
    if resets.dtype != torch.bool:
        raise TypeError(f"resets must be a Tensor of bool, got {resets.dtype}")
    given = resets.shape
    if single:
        resets = resets.unsqueeze(-1)
    elif batch_first and x.dim() == 3 and resets.dim() == 2:
        resets = resets.transpose(0, 1)
    if resets.shape != x.shape[:-1]:
        size = list(x.shape[: 1 if single else -1])
        raise ValueError(
            "resets must be sized like the time and batch axes of the input, "
            f"{tuple(reversed(size)) if batch_first else tuple(size)}, got {tuple(given)}"
        )
    if resets.device != x.device:
        raise ValueError(f"resets must be on the input's device {x.device}, got {resets.device}")
    return resets


def dropout_mask(p: float, num_layers: int, x: Tensor, features: int) -> Tensor:
    """(L-1, T, B, D*P), or packed (L-1, N, D*P): 0 with probability p, otherwise 1/(1-p).

    Drawn layer by layer as ``torch.nn`` draws it, so that one seed gives one result in both.
    """
    if not 0.0 <= p <= 1.0:
        raise RuntimeError(f"dropout probability has to be between 0 and 1, but got {p}")
    mask = x.new_empty(num_layers - 1, *x.shape[:-1], features)
    if p == 1.0:
        return mask.zero_()
    for layer in range(num_layers - 1):
        mask[layer].bernoulli_(1.0 - p).div_(1.0 - p)
    return mask
