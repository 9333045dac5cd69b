"""Parameters that layers with variants have, and their stack at the time of a call.

A layer's variants are keyword arguments; :class:`~seq2seq_ext.variants.Variant` explains them.
Beside those of ``torch.nn`` such a layer has, per layer and direction ``[k]``,

- ``peephole_l[k]``: (3, H), the weights of i, f and o; coupled (2, H), of f and o;
- ``norm_ih_l[k]``, ``norm_hh_l[k]``: (G*H,), gains of the normalized sums, whose biases are the
  layer's own; ``norm_c_l[k]``, ``bias_c_l[k]``: (H,), gain and bias of the normalized cell;

and for the whole layer ``h_0`` and ``c_0``, learnt initial states, (L*D, 1, P), of a GRU with H
for P, and (L*D, 1, H).
Gates of a coupled LSTM are f, g, o: its weights have 3H rows.  The cells' parameters have the same
names without ``_l[k]``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypedDict, cast

import torch
from torch import Tensor, nn

from seq2seq_ext.kernels import autocast_is_on
from seq2seq_ext.variants import Variant
from seq2seq_ext.variants.reference import GATES
from seq2seq_ext.variants.stack import Direction, Stack


class CellVariants(TypedDict, total=False):
    """Keyword arguments of every cell; see :class:`seq2seq_ext.variants.Variant`."""

    layer_norm: bool
    zoneout: float | tuple[float, float]
    recurrent_dropout: float
    recurrent_dropout_kind: str
    weight_drop: float
    hard_sigmoid: bool
    proj_clip: float | None
    learn_initial_state: bool


class LSTMCellVariants(CellVariants, total=False):
    """Those of an LSTM's cell."""

    peephole: bool
    cell_clip: float | None
    coupled: bool
    forget_bias: float | None


class CommonVariants(CellVariants, total=False):
    """Those of every layer."""

    residual: bool | int


class LSTMVariants(CommonVariants, LSTMCellVariants, total=False):
    """Those of an LSTM."""

    return_cells: bool


def set_up_cell(
    cell: Any,
    kind: str,
    proj_size: int,
    variants: LSTMCellVariants | CellVariants,
    device: Any,
    dtype: Any,
) -> None:
    """Give a new cell the settings of its variant and their parameters."""
    for name in ("residual", "return_cells"):
        if name in variants:
            raise TypeError(f"{kind}Cell got an unexpected keyword argument '{name}'")
    if not 0 <= proj_size < cell.hidden_size:
        raise ValueError(
            f"proj_size must be at least 0 and smaller than hidden_size {cell.hidden_size}, "
            f"got {proj_size}"
        )
    check_projection(cell, proj_size)
    variant = Variant(**variants)
    variant.check(kind, bool(cell.bias), bool(proj_size))
    if variant.state_dropout:
        raise ValueError(
            "recurrent_dropout_kind 'state' is for a layer, which draws one mask for all steps: "
            "multiply the cell's hx by a mask, or choose 'candidate'"
        )
    if proj_size:
        cell.proj_size = proj_size
    if proj_size or variant != Variant():
        cell._variant = variant
        add_parameters(cell, device, dtype)
        reset_parameters(cell)


def check_projection(layer: Any, proj_size: int) -> None:
    """Refuse a projection of a GRU whose second product would read gated units of it."""
    if proj_size and not getattr(layer, "reset_after", True):
        raise ValueError(
            "proj_size is for a GRU with reset_after=True, "
            f"got proj_size={proj_size} and reset_after=False"
        )


def hidden_sizes(hidden_size: Any, num_layers: int) -> tuple[int, int, tuple[int, ...] | None]:
    """The first hidden size, the number of layers, and all sizes where they were listed."""
    if not isinstance(hidden_size, (tuple, list)):
        return hidden_size, num_layers, None
    sizes = tuple(hidden_size)
    if not sizes or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise ValueError(
            f"hidden_size must be a positive number, or one for each layer, got {hidden_size}"
        )
    if num_layers not in (1, len(sizes)):
        raise ValueError(
            f"num_layers must be {len(sizes)}, the number of hidden sizes, or left out, "
            f"got {num_layers}"
        )
    return sizes[0], len(sizes), sizes


def layers_of(layer: Any) -> Iterator[tuple[int, int, int, str]]:
    """The layer's index, I, H and the names' ending, for each layer and direction, or a cell."""
    if isinstance(layer, nn.RNNCellBase):
        yield 0, layer.input_size, layer.hidden_size, ""
        return
    D = 2 if layer.bidirectional else 1
    sizes = layer._sizes or [layer.hidden_size] * layer.num_layers
    features = layer.input_size
    for index, H in enumerate(sizes):
        for suffix in ("", "_reverse")[:D]:
            yield index, features, H, f"_l{index}{suffix}"
        features = D * (layer.proj_size or H)


def add_parameters(layer: Any, device: Any, dtype: torch.dtype | None) -> None:
    """Give a layer the parameters that its variant and sizes want beside torch's, or instead."""
    variant: Variant = layer._variant
    cell: str = layer._cell
    G, lstm = GATES[cell], cell in ("lstm", "coupled_lstm")

    def add(name: str, *size: int) -> None:
        layer.register_parameter(name, nn.Parameter(torch.empty(size, device=device, dtype=dtype)))

    proj_size, sizes = getattr(layer, "proj_size", 0), getattr(layer, "_sizes", None)
    for _, features, H, end in layers_of(layer):
        P = proj_size or H
        if sizes is not None or proj_size or cell == "coupled_lstm":
            add("weight_ih" + end, G * H, features)
            add("weight_hh" + end, G * H, P)
            if layer.bias:
                add("bias_ih" + end, G * H)
                add("bias_hh" + end, G * H)
            if proj_size:
                add("weight_hr" + end, P, H)
        if variant.peephole:
            add("peephole" + end, G - 1, H)
        if variant.layer_norm:
            add("norm_ih" + end, G * H)
            add("norm_hh" + end, G * H)
            if lstm:
                add("norm_c" + end, H)
                if layer.bias:
                    add("bias_c" + end, H)
    if variant.learn_initial_state:
        rows, P, H = stack_of(layer).state_size
        add("h_0", rows, 1, P)
        if lstm:
            add("c_0", rows, 1, H)


@torch.no_grad()
def reset_parameters(layer: Any) -> None:
    """Start all parameters: weights as ``torch.nn`` does, gains at 1, initial states at 0."""
    for _, _, H, end in layers_of(layer):
        bound = H**-0.5
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr", "peephole"):
            parameter = getattr(layer, name + end, None)
            if parameter is not None:
                nn.init.uniform_(parameter, -bound, bound)
        for name in ("norm_ih", "norm_hh", "norm_c"):
            parameter = getattr(layer, name + end, None)
            if parameter is not None:
                nn.init.ones_(parameter)
        if getattr(layer, "bias_c" + end, None) is not None:
            nn.init.zeros_(getattr(layer, "bias_c" + end))
    if layer._variant.forget_bias is not None:
        set_forget_bias(layer, layer._variant.forget_bias)
    for name in ("h_0", "c_0"):
        if getattr(layer, name, None) is not None:
            nn.init.zeros_(getattr(layer, name))


@torch.no_grad()
def set_forget_bias(layer: Any, bias: float) -> None:
    """Let both biases of the forget gates of an LSTM or its cell sum up to `bias`."""
    for _, _, H, end in layers_of(layer):
        first = 0 if layer._cell == "coupled_lstm" else H
        getattr(layer, "bias_ih" + end)[first : first + H] = bias
        getattr(layer, "bias_hh" + end)[first : first + H] = 0.0


def directions_of(layer: Any) -> list[Direction]:
    """The weights of a layer or cell as they are now, layer by layer."""

    def weight(name: str) -> Tensor | None:
        return cast("Tensor | None", getattr(layer, name, None))

    return [
        Direction(
            getattr(layer, "weight_ih" + end),
            getattr(layer, "weight_hh" + end),
            weight("bias_ih" + end),
            weight("bias_hh" + end),
            weight("weight_hr" + end),
            *(weight(name + end) for name in Direction._fields[5:]),
        )
        for _, _, _, end in layers_of(layer)
    ]


def stack_of(layer: Any) -> Stack:
    """The layer's weights and settings as they are now, or as they were drawn for a sequence."""
    drawn: Stack | None = layer.__dict__.get("_drawn")
    if drawn is not None:
        return drawn
    sizes = None
    if getattr(layer, "_sizes", None) is not None:
        gru = layer._cell == "gru"  # whose state is not projected
        sizes = [(H if gru else layer.proj_size or H, H) for H in layer._sizes]
    return Stack(
        directions_of(layer),
        layer._cell,
        2 if getattr(layer, "bidirectional", False) else 1,
        layer._variant,
        layer.training,
        sizes,
        getattr(layer, "h_0", None),
        getattr(layer, "c_0", None),
        layer._packed,
    )


def step(cell: Any, x: Tensor, h: Tensor | None, c: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """A cell's step: a sequence of one, in the dtype of the weights.

    Returns h and c; of a GRU with a projection its output and its state.
    """
    if autocast_is_on() and x.device.type in ("cpu", "cuda"):
        with torch.autocast(x.device.type, enabled=False):
            return _step(cell, x, h, c)
    return _step(cell, x, h, c)


def _step(cell: Any, x: Tensor, h: Tensor | None, c: Tensor | None) -> tuple[Tensor, Tensor | None]:
    stack = stack_of(cell)
    if h is None:
        h_0, c_0 = stack.initial_state(x.size(0), False)
    else:
        h_0, c_0 = h.unsqueeze(0), None if c is None else c.unsqueeze(0)
    y, h_n, c_n, _ = stack.run(x.unsqueeze(0), h_0, c_0)
    if stack.projects_state:
        return y.squeeze(0), h_n.squeeze(0)
    return h_n.squeeze(0), None if c_n is None else c_n.squeeze(0)


def joined(states: Any, name: str, sizes: Sequence[int]) -> Tensor:
    """States of layers of unequal sizes, side by side, from one tensor for each layer."""
    if not isinstance(states, (tuple, list)) or len(states) != len(sizes):
        raise RuntimeError(
            f"Expected {name} to hold a Tensor for each of the {len(sizes)} layers, got "
            + (f"{len(states)}" if isinstance(states, (tuple, list)) else type(states).__name__)
        )
    for index, (state, size) in enumerate(zip(states, sizes, strict=True)):
        if not isinstance(state, Tensor):
            raise TypeError(f"{name}[{index}] must be a Tensor, got {type(state).__name__}")
        if state.size(-1) != size:
            raise RuntimeError(
                f"Expected {name}[{index}] of {size} features, got {list(state.size())}"
            )
    return torch.cat(list(states), dim=-1)
