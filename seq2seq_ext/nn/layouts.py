"""The weights of other libraries: how they lie there, and the way to ``torch.nn``'s order and back.

Every library holds the same numbers: for each layer and direction a matrix for the input, one for
the state, and one or two biases, all of them cut into gates. They differ in the order of the gates,
in which way a matrix lies and in the arrays that the biases are put in, which is what
:data:`_LAYOUTS` says. G is the number of gates. Haste has layers with layer normalization as well,
whose gains lie in arrays of their own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from seq2seq_ext.variants import Variant
from seq2seq_ext.variants.stack import Direction

__all__ = ["from_torch", "to_torch"]


class _Cell(NamedTuple):
    """One kind of cell in a layout.

    Attributes:
        mode: ``"LSTM"``, ``"GRU"`` or ``"RNN"``.
        gates: their order; i, f, g, o of an LSTM, r, z, n of a GRU, n of an RNN.
        biases: the shape of each array of biases, the last size in units of G*H. One unit in all:
            the sum of the input's and the state's bias. Two units: the input's, then the state's.
        reset_after: of a GRU.
        norms: the arrays of layer normalization, where the cell has it, and what each holds: both
            gains of gates, (2, G*H), or one of the two that a normalized cell state has, (H,).
    """

    mode: str
    gates: str
    biases: dict[str, tuple[int, ...]]
    reset_after: bool | None = None
    norms: dict[str, tuple[str, ...]] = {}  # noqa: RUF012 (a NamedTuple's default; nobody writes)


class _Layout(NamedTuple):
    """How one library lays weights out.

    Attributes:
        matrices: what it calls those of the input and of the state.
        transposed: whether they are (I, G*H) and (H, G*H), instead of (G*H, I) and (G*H, H).
        reverse: where the second direction is: in the first ``"axis"`` of every array, of size D;
            in as many arrays ``"behind"`` those of the first; or None, there is none.
        cells: those that it has.
        variants: settings of a layer here that its layers have too, as arguments.
    """

    matrices: tuple[str, str]
    transposed: bool
    reverse: str | None
    cells: tuple[_Cell, ...]
    variants: tuple[str, ...] = ()


_TORCH_GATES = {"LSTM": "ifgo", "GRU": "rzn", "RNN": "n"}

_BOTH = ("norm_ih", "norm_hh")
_OF_CELL = ("norm_c", "bias_c")  # not of gates

_LAYOUTS = {
    "keras": _Layout(
        matrices=("kernel", "recurrent_kernel"),
        transposed=True,
        reverse="behind",
        cells=(
            _Cell("LSTM", "ifgo", {"bias": (1,)}),
            _Cell("GRU", "zrn", {"bias": (2, 1)}, reset_after=True),
            _Cell("GRU", "zrn", {"bias": (1,)}, reset_after=False),
            _Cell("RNN", "n", {"bias": (1,)}),
        ),
    ),
    "haste": _Layout(
        matrices=("kernel", "recurrent_kernel"),
        transposed=True,
        reverse=None,
        cells=(
            _Cell("LSTM", "igfo", {"bias": (1,)}),
            _Cell(
                "LSTM",
                "igfo",
                {"bias": (1,)},
                norms={"gamma": _BOTH, "gamma_h": ("norm_c",), "beta_h": ("bias_c",)},
            ),
            _Cell("GRU", "zrn", {"bias": (1,), "recurrent_bias": (1,)}, reset_after=True),
            _Cell(
                "GRU",
                "zrn",
                {"bias": (1,), "recurrent_bias": (1,)},
                reset_after=True,
                norms={"gamma": _BOTH},
            ),
        ),
        variants=("layer_norm", "zoneout", "weight_drop"),
    ),
    "onnx": _Layout(
        matrices=("W", "R"),
        transposed=False,
        reverse="axis",
        cells=(
            _Cell("LSTM", "iofg", {"B": (2,)}),
            _Cell("GRU", "zrn", {"B": (2,)}, reset_after=True),
            _Cell("GRU", "zrn", {"B": (2,)}, reset_after=False),
            _Cell("RNN", "n", {"B": (2,)}),
        ),
    ),
}


def to_torch(
    weights: Any, layout: str, mode: str, reset_after: bool | None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The arguments and the ``state_dict`` of the layer that computes with ``weights``.

    Args:
        weights, layout, reset_after: see :meth:`seq2seq_ext.LSTM.from_weights`.
        mode: ``"LSTM"``, ``"GRU"`` or ``"RNN"``.

    Raises:
        ValueError: if one of them does not fit, naming it.
    """
    form, cells = _find(layout, mode, reset_after)
    layers = {name: _arrays(name, layer, form, cells) for name, layer in _layers(weights)}
    name, first = next(iter(layers.items()))
    cell = _choose(cells, first[0], form)
    I, H, D = _sizes(name, first, form)

    state: dict[str, Tensor] = {}
    for k, (name, sets) in enumerate(layers.items()):
        _check(name, sets, first, _shapes(form, cell, I if k == 0 else D * H, H, D))
        directions = _unbind(sets[0], D) if form.reverse == "axis" else sets
        for suffix, arrays in zip(("", "_reverse")[:D], directions, strict=True):
            for part, tensor in _read(arrays, form, cell).items():
                state[f"{part}_l{k}{suffix}"] = tensor
    arguments = {
        "input_size": I,
        "hidden_size": H,
        "num_layers": len(layers),
        "bias": any(name in first[0] for name in cell.biases),
        "bidirectional": D == 2,
        "dtype": first[0][form.matrices[0]].dtype,
    }
    if cell.reset_after is not None:
        arguments["reset_after"] = cell.reset_after
    if cell.norms:
        arguments["layer_norm"] = True
    return arguments, state


def from_torch(
    directions: Sequence[Direction],
    layout: str,
    mode: str,
    reset_after: bool | None,
    D: int,
    variant: Variant | None,
) -> list[list[Tensor]]:
    """The arrays of each layer in ``layout``: what :func:`to_torch` reads.

    Args:
        directions: the weights of a layer without a projection, layer by layer.
        layout, mode, reset_after: as for :func:`to_torch`.
        D: the number of directions.
        variant: the settings of a layer that has some.

    Raises:
        ValueError: if ``layout`` is unknown or has no such layer.
    """
    form, cells = _find(layout, mode, reset_after)
    if D == 2 and form.reverse is None:
        raise ValueError(f"layout {layout!r} has no layer of two directions")
    if variant is not None:
        _check_variant(variant, layout, form, directions[0].b_ih is not None)
    normalized = directions[0].norm_ih is not None
    cell = next(c for c in cells if bool(c.norms) == normalized)
    arrays = [_write(weights, form, cell) for weights in directions]
    layers = [arrays[k : k + D] for k in range(0, len(arrays), D)]
    if form.reverse == "axis":
        return [[torch.stack(same) for same in zip(*layer, strict=True)] for layer in layers]
    return [[array for arrays in layer for array in arrays] for layer in layers]


def _check_variant(variant: Variant, layout: str, form: _Layout, bias: bool) -> None:
    """Refuse settings without which the layout's layer would compute something else."""
    for setting in variant.described():
        # A forget_bias is in the weights, and nothing more.
        if setting.partition("=")[0] not in (*form.variants, "forget_bias"):
            raise ValueError(f"layout {layout!r} has no layer with {setting}")
    if variant.zoneout_c:
        raise ValueError(f"layout {layout!r} has zoneout of h alone, got zoneout={variant.zoneout}")
    if variant.layer_norm and not bias:
        raise ValueError(f"layout {layout!r} has layer_norm with biases alone, got bias=False")


def _find(layout: str, mode: str, reset_after: bool | None) -> tuple[_Layout, list[_Cell]]:
    """The layout, and its cells of this kind: several where ``reset_after`` is yet to be found."""
    if layout not in _LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(_LAYOUTS)}, got {layout!r}")
    form = _LAYOUTS[layout]
    cells = [c for c in form.cells if c.mode == mode and reset_after in (None, c.reset_after)]
    if not cells:
        which = "" if reset_after is None else f" with reset_after={reset_after}"
        raise ValueError(f"layout {layout!r} has no {mode}{which}")
    return form, cells


def _layers(weights: Any) -> list[tuple[str, Any]]:
    """Each layer's arrays as they were given, with the name that errors call them by."""
    if isinstance(weights, (list, tuple)) and any(
        isinstance(layer, (list, tuple, Mapping)) for layer in weights
    ):
        return [(f"weights[{k}]", layer) for k, layer in enumerate(weights)]
    return [("weights", weights)]


def _arrays(name: str, given: Any, form: _Layout, cells: list[_Cell]) -> list[dict[str, Tensor]]:
    """One layer's arrays by their names: a set for each direction, or one that holds both."""
    full = [*form.matrices, *cells[0].biases]
    kinds = [[*form.matrices], full, *([*full, *c.norms] for c in cells if c.norms)]
    wanted = (
        f"{', '.join(kinds[0])} and, where there are biases, {', '.join(cells[0].biases)}, "
    ) + (
        f"and then, where it normalizes, {', '.join(kinds[2][len(full) :])}"
        if len(kinds) > 2
        else "but nothing of peepholes or layer normalisation"
    )
    if isinstance(given, Mapping):
        found = next((names for names in kinds if set(names) == set(given)), None)
        if found is None:
            raise ValueError(f"{name} must hold {wanted}; got {', '.join(map(str, given))}")
        sets = [{array: given[array] for array in found}]
    elif isinstance(given, (list, tuple)):
        D_max = 2 if form.reverse == "behind" else 1
        numbers = {D * len(names): names for D in range(1, D_max + 1) for names in kinds}
        if len(given) not in numbers:
            twice = "" if D_max == 1 else ", and the same again for a second direction"
            raise ValueError(f"{name} must be {wanted}{twice}; got {len(given)} arrays")
        found = numbers[len(given)]
        n = len(found)
        sets = [dict(zip(found, given[k : k + n], strict=True)) for k in range(0, len(given), n)]
    else:
        raise ValueError(
            f"{name} must be a list or a mapping of arrays, got {type(given).__name__}"
        )
    return [{array: _tensor(f"{name}: {array}", value) for array, value in s.items()} for s in sets]


def _tensor(name: str, value: Any) -> Tensor:
    try:
        # A copy of an array of NumPy may be written to, and its strides are not negative.
        tensor = value.detach() if isinstance(value, Tensor) else torch.as_tensor(value.copy())
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{name} must be a tensor or an array of NumPy that torch can hold, "
            f"got {type(value).__name__} ({error})"
        ) from error
    if not tensor.is_floating_point():
        raise ValueError(f"{name} must be of a floating dtype, got {tensor.dtype}")
    return tensor


def _choose(cells: list[_Cell], arrays: dict[str, Tensor], form: _Layout) -> _Cell:
    """The cell whose arrays these are, by names and axes; the first of these names if none fits."""
    cells = [
        cell
        for cell in cells
        if set(cell.norms) == set(arrays) - set(cell.biases) - set(form.matrices)
    ]
    fitting = [
        cell
        for cell in cells
        if all(
            arrays[name].dim() == len(units) + (form.reverse == "axis")
            for name, units in cell.biases.items()
            if name in arrays
        )
    ]
    if len(fitting) > 1:
        raise ValueError("reset_after must be True or False where the arrays do not tell, got None")
    return (fitting or cells)[0]


def _sizes(name: str, sets: list[dict[str, Tensor]], form: _Layout) -> tuple[int, int, int]:
    """I, H and D of the first layer."""
    matrices = {array: sets[0][array] for array in form.matrices}
    axes = 3 if form.reverse == "axis" else 2
    for array, matrix in matrices.items():
        if matrix.dim() != axes:
            raise ValueError(f"{name}: {array} must have {axes} axes, got {tuple(matrix.shape)}")
    w_ih, w_hh = matrices.values()
    D = len(w_ih) if form.reverse == "axis" else len(sets)
    if D not in (1, 2):
        raise ValueError(
            f"{name}: {form.matrices[0]} must have 1 or 2 directions in its first axis, "
            f"got {tuple(w_ih.shape)}"
        )
    inner = -2 if form.transposed else -1
    return w_ih.shape[inner], w_hh.shape[inner], D


def _shapes(form: _Layout, cell: _Cell, I: int, H: int, D: int) -> dict[str, tuple[int, ...]]:
    """The shape of every array."""
    rows = len(cell.gates) * H
    lead = (D,) if form.reverse == "axis" else ()
    shapes = {
        array: lead + ((size, rows) if form.transposed else (rows, size))
        for array, size in zip(form.matrices, (I, H), strict=True)
    }
    shapes |= {b: (*lead, *units[:-1], units[-1] * rows) for b, units in cell.biases.items()}
    return shapes | {n: (2, rows) if held == _BOTH else (H,) for n, held in cell.norms.items()}


def _check(
    name: str,
    sets: list[dict[str, Tensor]],
    first: list[dict[str, Tensor]],
    shapes: dict[str, tuple[int, ...]],
) -> None:
    """Refuse arrays whose shapes are wrong, or whose names or kinds are not the first layer's."""
    if [list(s) for s in sets] != [list(s) for s in first]:
        raise ValueError(
            f"{name}: every layer must hold the same arrays, those of the first "
            f"{', '.join(a for s in first for a in s)}; got {', '.join(a for s in sets for a in s)}"
        )
    example = next(iter(first[0].values()))
    for arrays in sets:
        for array, tensor in arrays.items():
            if tuple(tensor.shape) != shapes[array]:
                raise ValueError(
                    f"{name}: {array} must have the shape {shapes[array]}, "
                    f"got {tuple(tensor.shape)}"
                )
            if (tensor.dtype, tensor.device) != (example.dtype, example.device):
                raise ValueError(
                    f"{name}: {array} must be {example.dtype} on {example.device} like the first "
                    f"array, got {tensor.dtype} on {tensor.device}"
                )


def _unbind(arrays: dict[str, Tensor], D: int) -> list[dict[str, Tensor]]:
    """A set of arrays for each direction from one that holds D of them in its first axis."""
    return [{name: tensor[direction] for name, tensor in arrays.items()} for direction in range(D)]


def _read(arrays: dict[str, Tensor], form: _Layout, cell: _Cell) -> dict[str, Tensor]:
    """One direction's arrays under the names and in the order of ``torch.nn``."""
    w_ih, w_hh = (arrays[name].T if form.transposed else arrays[name] for name in form.matrices)
    parts = {"weight_ih": w_ih, "weight_hh": w_hh}
    given = [arrays[name].flatten() for name in cell.biases if name in arrays]
    if given:
        biases = torch.cat(given)
        rows = len(w_hh)
        parts["bias_ih"] = biases[:rows]
        parts["bias_hh"] = biases[rows:] if len(biases) > rows else torch.zeros_like(biases)
    for name, held in cell.norms.items():
        parts |= zip(held, arrays[name].reshape(len(held), -1), strict=True)
    return {
        name: part.clone()
        if name in _OF_CELL
        else _reorder(part, cell.gates, _TORCH_GATES[cell.mode])
        for name, part in parts.items()
    }


def _write(weights: Direction, form: _Layout, cell: _Cell) -> list[Tensor]:
    """Undo :func:`_read` for the weights of one direction, in the order of ``cell``'s arrays."""

    def gates(weight: Tensor) -> Tensor:
        return _reorder(weight.detach(), _TORCH_GATES[cell.mode], cell.gates)

    matrices = [gates(weights.w_ih), gates(weights.w_hh)]
    arrays = [w.T.contiguous() if form.transposed else w for w in matrices]
    if weights.b_ih is not None and weights.b_hh is not None:
        biases = [gates(weights.b_ih), gates(weights.b_hh)]
        units = [math.prod(shape) for shape in cell.biases.values()]
        both = biases if sum(units) == 2 else [biases[0] + biases[1]]
        rows = len(biases[0])
        parts = torch.split(torch.cat(both), [n * rows for n in units])
        for part, shape in zip(parts, cell.biases.values(), strict=True):
            arrays.append(part.reshape(*shape[:-1], shape[-1] * rows))
    for held in cell.norms.values():
        norms = [getattr(weights, name) for name in held]
        if held == _BOTH:
            arrays.append(torch.stack([gates(norm) for norm in norms]))
        else:
            arrays.append(norms[0].detach().clone())
    return arrays


def _reorder(weight: Tensor, order: str, wanted: str) -> Tensor:
    """A copy of ``weight``, (G*H, ...), whose gates are in another order."""
    gates = torch.tensor_split(weight, len(order))
    return torch.cat([gates[order.index(gate)] for gate in wanted])
