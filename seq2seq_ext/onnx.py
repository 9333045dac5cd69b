"""Export to ONNX: each layer as one LSTM, GRU or RNN operator of the standard.

``torch.onnx.export(..., dynamo=True)`` asks a table how to write an operator that it does not know;
:func:`translations` is that table, :func:`export` the two together.  T, B and the lengths stay
dynamic.  Needs the extra ``onnx``.

A layer with variants is an operator for each direction, where the standard's has its mathematics:
peepholes are its input P, hard sigmoids its activations, and a coupled LSTM is one whose input gate
has the forget gate's weights with the other sign, since 1 - sigmoid(a) = sigmoid(-a).  (The
attribute ``input_forget`` does not say which of the two gates is computed.)

Sizes are those of :mod:`seq2seq_ext.ops`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch

from seq2seq_ext.data.extras import require
from seq2seq_ext.kernels import CELLS, rnn_op
from seq2seq_ext.variants import operator

__all__ = ["GATE_ORDER", "NotInOnnxError", "export", "translations"]

# For each operator of ONNX, where its gates stand among ours: i o f c among i f g o, z r h among
# r z n.
GATE_ORDER = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}

_OPERATORS: dict[str, tuple[str, dict[str, Any]]] = {
    "lstm": ("LSTM", {}),
    "gru": ("GRU", {"linear_before_reset": 1}),
    "gru_reset_before": ("GRU", {"linear_before_reset": 0}),
    "rnn_tanh": ("RNN", {"activations": ["Tanh"]}),
    "rnn_relu": ("RNN", {"activations": ["Relu"]}),
    "coupled_lstm": ("LSTM", {}),
}
recurrence_op = torch.ops.seq2seq_ext.recurrence.default
_INT32 = 6  # onnx.TensorProto.INT32
_IN_BIAS = "seq2seq_ext.in_bias"  # among what is kept of a node: a bias of a layer is made of it


class NotInOnnxError(NotImplementedError):
    """A call does what the LSTM, GRU and RNN of ONNX cannot express."""


def export(
    model: torch.nn.Module | torch.export.ExportedProgram,
    args: tuple[Any, ...] = (),
    f: str | os.PathLike[str] | None = None,
    *,
    export_params: bool = True,
    keep_initializers_as_inputs: bool = False,
    external_data: bool | None = None,
    **options: Any,
) -> torch.onnx.ONNXProgram:
    """Export a model with layers of this package to ONNX, and write it to a file.

    What :func:`torch.onnx.export` does with :func:`translations`, and then the weights, which ONNX
    wants in another order, are stored in that order: the file holds them once and nothing is left
    to do with them when it is loaded.

    Args:
        model: in evaluation mode; parameters float32 for most runtimes, float64 is written too.
        args: example inputs.
        f: path of the file to write; None writes none.
        export_params, keep_initializers_as_inputs: as for :func:`torch.onnx.export`.
        external_data: whether weights go to a file of their own beside ``f``; None: where they
            take more than the 2 GB that one file can hold.
        options: further ones of :func:`torch.onnx.export`, such as ``kwargs``, ``dynamic_shapes``,
            ``input_names`` and ``output_names``.

    Returns:
        The program; its ``model_proto`` is what was written, and calling it runs onnxruntime.

    Raises:
        MissingExtraError: if onnxscript is not installed.
        NotInOnnxError: for a projection (``proj_size``), ``resets``, dropout while training, and
            the variants ``layer_norm``, ``zoneout``, ``cell_clip`` and ``return_cells``.
        torch.onnx.OnnxExporterError: if anything else cannot be exported.

    >>> import seq2seq_ext as s2s
    >>> gru = s2s.GRU(10, 20, num_layers=2, bidirectional=True).eval()
    >>> x, lengths = torch.randn(5, 3, 10), torch.tensor([5, 0, 2])
    >>> program = s2s.onnx.export(
    ...     gru,
    ...     (x,),
    ...     kwargs={"lengths": lengths},
    ...     dynamic_shapes={"input": {0: "T", 1: "B"}, "lengths": {0: "B"}},
    ...     verbose=False,
    ... )
    >>> [node.op_type for node in program.model.graph if node.op_type == "GRU"]
    ['GRU', 'GRU']
    """
    table = {**translations(), **options.pop("custom_translation_table", {})}
    optimizer = _require("onnxscript.optimizer")
    try:
        program = torch.onnx.export(
            model, args, dynamo=True, custom_translation_table=table, **options
        )
    except torch.onnx.OnnxExporterError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, NotInOnnxError):
            cause = cause.__cause__
        if cause is None:
            raise
        raise cause from None
    assert program is not None
    optimizer.fold_constants(
        program.model, output_size_limit=sys.maxsize, should_fold=_is_part_of_a_layer
    )
    optimizer.remove_unused_nodes(program.model)
    if f is not None:
        program.save(
            f,
            include_initializers=export_params,
            keep_initializers_as_inputs=keep_initializers_as_inputs,
            external_data=external_data,
        )
    return program


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """How to write this package's operator in ONNX, for ``custom_translation_table`` of
    :func:`torch.onnx.export`.

    The exporter leaves it to whoever loads the file to bring large weights into the order of ONNX;
    :func:`export` does that beforehand.

    Raises:
        MissingExtraError: if onnxscript is not installed.

    >>> import seq2seq_ext as s2s
    >>> program = torch.onnx.export(
    ...     s2s.LSTM(3, 4).eval(),
    ...     (torch.randn(5, 2, 3),),
    ...     dynamo=True,
    ...     custom_translation_table=s2s.onnx.translations(),
    ...     verbose=False,
    ... )
    """
    _require("onnxscript")
    return {rnn_op: _rnn, recurrence_op: _recurrence}


def _require(module: str) -> Any:
    return require(module, extra="onnx", purpose="the export to ONNX")


def _is_part_of_a_layer(node: Any) -> bool:
    origin = node.meta.get("node")
    return _IN_BIAS in node.meta or (
        origin is not None and origin.target in (rnn_op, recurrence_op)
    )


def _rnn(  # type: ignore[no-untyped-def]
    x,
    h_0,
    c_0,
    weights,
    cell,
    num_layers=1,
    bidirectional=False,
    save=False,
    packed=None,
    turn=0,
    lengths=None,
    batch_sizes=None,
    resets=None,
    dropout_mask=None,
    allow_tf32=False,
):
    """``seq2seq_ext::rnn`` without its reserve, which only backward reads.

    Annotations would tell the exporter for which arguments to choose this function; it is for all.
    """
    op = _require("onnxscript").opset18
    name, kind = _OPERATORS[CELLS[cell]]
    D = 2 if bidirectional else 1
    per_direction = len(weights) // (num_layers * D)
    _refuse(name, per_direction in (3, 5), batch_sizes, resets)
    if dropout_mask is not None:
        raise _training("dropout", f"ONNX's {name} has none between layers")
    one_step, H = len(x.shape) == 2, weights[1].shape[1]
    attributes = {
        "hidden_size": H,
        "direction": "bidirectional" if bidirectional else "forward",
        **kind,
    }
    if "activations" in kind:
        attributes["activations"] = kind["activations"] * D

    def merge(values: Sequence[Any], axis: int) -> Any:
        return values[0] if len(values) == 1 else op.Concat(*values, axis=axis)

    def of_layers(state: Any) -> Any:
        """(L*D, B, H), or (B, H) of one step, as (D, B, H) for each layer."""
        if state is None:
            return [None] * num_layers
        if one_step:
            state = op.Unsqueeze(state, _ints(op, 0))
        return [state] if num_layers == 1 else op.Split(state, axis=0, num_outputs=num_layers)

    if one_step:
        x = op.Unsqueeze(x, _ints(op, 0))
    states = [of_layers(state) for state in ([h_0, c_0] if name == "LSTM" else [h_0])]
    steps = _steps(op, lengths)

    finals = []
    for layer, given in enumerate(zip(*states, strict=True)):
        directions = [
            [
                _gates(op, weight, (H, *weight.shape[1:]), GATE_ORDER[name])
                for weight in weights[k * per_direction : (k + 1) * per_direction]
            ]
            for k in range(layer * D, layer * D + D)
        ]
        w_ih, w_hh, *biases = [merge(parts, 0) for parts in zip(*directions, strict=True)]
        bias = merge(biases, 1) if biases else None
        y, final = _call(op, name, [x, w_ih, w_hh, bias], steps, given, None, attributes)
        if D == 1:
            x = op.Squeeze(y, _ints(op, 1))
        else:  # (T, D, B, H) to (T, B, D*H)
            x = op.Reshape(op.Transpose(y, perm=[0, 2, 1, 3]), _ints(op, 0, 0, -1))
        finals.append(final)
    last = [merge(parts, 0) for parts in zip(*finals, strict=True)]

    nothing = _zeros(op, x, 0)
    if one_step:
        last = [op.Squeeze(state, _ints(op, 0)) for state in last]
        return last[0], nothing, last[1] if name == "LSTM" else nothing
    return x, last[0], last[1] if name == "LSTM" else nothing


def _recurrence(  # type: ignore[no-untyped-def]
    x,
    w_hh,
    b_hn,
    w_hr,
    h_0,
    c_0,
    h_mask,
    peephole,
    norm_hh,
    norm_c,
    bias_c,
    seed,
    lengths,
    batch_sizes,
    resets,
    cell,
    reverse,
    hard_sigmoid,
    zoneout_h,
    zoneout_c,
    candidate_dropout,
    cell_clip,
    proj_clip,
    stream,
    save,
    return_cells,
):
    """``seq2seq_ext::recurrence``: ``y, cells, h_n, c_n``, without what only backward reads."""
    op = _require("onnxscript").opset18
    kind = operator.CELLS[cell]
    name, options = _OPERATORS[kind]
    _refuse(name, w_hr is not None, batch_sizes, resets)
    if h_mask is not None or candidate_dropout:
        raise _training("recurrent_dropout", f"ONNX's {name} has none")
    if _is_drawn(w_hh):
        raise _training("weight_drop", f"ONNX's {name} has none")
    for argument, wanted, why in (
        ("layer_norm", norm_hh is not None or norm_c is not None, "does not normalize"),
        ("zoneout", zoneout_h or zoneout_c, "does not mix a state with the one before"),
        ("cell_clip", cell_clip, "clips the sums of the gates too, with its attribute clip"),
        ("return_cells", return_cells, "returns the last c alone"),
    ):
        if wanted:
            raise NotInOnnxError(f"{argument}: ONNX's {name} {why}; export a model without")

    # Its gates among those of the cell, and of an LSTM the rows of P among those of the peephole.
    order, seen, signs = GATE_ORDER[name], (0, 2, 1), [1.0] * len(GATE_ORDER[name])
    if kind == "coupled_lstm":  # f g o, and f o
        order, seen, signs = (0, 2, 0, 1), (0, 1, 0), [-1.0, 1.0, 1.0, 1.0]
    H = w_hh.shape[0] // len(set(order))
    attributes = {
        "hidden_size": H,
        "direction": "reverse" if reverse else "forward",
        **options,
    }
    if hard_sigmoid and name != "RNN":
        attributes["activations"] = ["HardSigmoid", "Tanh", "Tanh"][: 3 if name == "LSTM" else 2]
        attributes["activation_alpha"], attributes["activation_beta"] = [1 / 6], [0.5]

    x, w_ih, b_ih = _factors(op, x)
    bias = None
    if b_ih is not None or b_hn is not None:
        rows = w_hh.shape[0]
        b_ih = _zeros(op, w_hh, rows) if b_ih is None else b_ih
        b_hh = _zeros(op, w_hh, rows if b_hn is None else 2 * H)
        b_hh = b_hh if b_hn is None else op.Concat(b_hh, b_hn, axis=0)
        bias = op.Concat(*(_gates(op, b, (H,), order, signs) for b in (b_ih, b_hh)), axis=1)
    weights = [x, *(_gates(op, w, (H, -1), order, signs) for w in (w_ih, w_hh)), bias]
    given = [
        None if state is None else op.Unsqueeze(state, _ints(op, 0))
        for state in ([h_0, c_0] if name == "LSTM" else [h_0])
    ]
    sees = None if peephole is None else _gates(op, peephole, (H,), seen, signs[:3])
    y, final = _call(op, name, weights, _steps(op, lengths), given, sees, attributes)
    h_n, *c_n = [op.Squeeze(state, _ints(op, 0)) for state in final]
    nothing = _zeros(op, y, 0)
    return op.Squeeze(y, _ints(op, 1)), nothing, h_n, c_n[0] if c_n else nothing


def _ints(op: Any, *values: int) -> Any:
    return op.Constant(value_ints=values)


def _zeros(op: Any, like: Any, size: int) -> Any:
    """(size,), in the dtype of ``like``."""
    return op.Expand(op.CastLike(op.Constant(value_float=0.0), like), _ints(op, size))


def _gates(
    op: Any, weight: Any, gate: Sequence[int], order: Sequence[int], signs: Sequence[float] = ()
) -> Any:
    """A weight of all gates as ONNX has it, with an axis of size 1 before it.

    Args:
        gate: the sizes of one gate's; the last may be -1.
        order: which gate comes first, and so on; one may come twice.
        signs: what each of them is multiplied by.
    """
    if len(order) > 1:
        weight = op.Reshape(weight, _ints(op, len(set(order)), *gate))
        weight = op.Gather(weight, _ints(op, *order), axis=0)
        if min(signs, default=1.0) < 0:
            turn = op.Constant(value_floats=signs)
            turn = op.Reshape(op.CastLike(turn, weight), _ints(op, len(signs), *(1 for _ in gate)))
            weight = op.Mul(weight, turn)
    return op.Reshape(weight, _ints(op, 1, len(order) * gate[0], *gate[1:]))


def _steps(op: Any, lengths: Any) -> tuple[Any, Any]:
    """``sequence_lens``, and which sequences, (B, 1), are of no step."""
    if lengths is None:
        return None, None
    empty = op.Unsqueeze(op.Equal(lengths, _ints(op, 0)), _ints(op, 1))
    return op.Cast(lengths, to=_INT32), empty


def _call(
    op: Any,
    name: str,
    weights: Sequence[Any],
    steps: tuple[Any, Any],
    states: Sequence[Any],
    peephole: Any,
    attributes: dict[str, Any],
) -> tuple[Any, list[Any]]:
    """The operator, for ``weights`` X, W, R and B: Y, (T, D, B, H), and the last states."""
    lengths, empty = steps
    sees = () if peephole is None else (peephole,)
    y, *final = getattr(op, name)(*weights, lengths, *states, *sees, **attributes)
    if empty is not None and states[0] is not None:
        # The standard does not say what the state after no step is, and onnxruntime says 0.
        final = [
            op.Where(empty, before, after) for before, after in zip(states, final, strict=True)
        ]
    return y, final


def _factors(op: Any, x: Any) -> tuple[Any, Any, Any]:
    """What ``x = input @ w_ih.T + b_ih``, a linear layer in ONNX, is made of; b_ih may be None.

    What is made in another way is its own input, whose weights are the identity.
    """
    node, b_ih = x.producer(), None
    if node is not None and node.op_type == "Add" and _rank(node.inputs[1]) == 1:
        product, b_ih = node.inputs
        node = product.producer()
    if node is not None and node.op_type == "MatMul":
        factor, w_ih = node.inputs
        node = w_ih.producer()
        if node is not None and node.op_type == "Transpose" and _rank(node.inputs[0]) == 2:
            if b_ih is not None:
                _mark(b_ih)
            return factor, node.inputs[0], b_ih
    size = x.shape[-1]
    return x, op.CastLike(op.EyeLike(op.ConstantOfShape(_ints(op, size, size))), x), None


def _is_drawn(value: Any) -> bool:
    """Whether random numbers have a part in a value."""
    node = value.producer()
    if node is None:
        return False
    return node.op_type.startswith("Random") or any(map(_is_drawn, filter(None, node.inputs)))


def _rank(value: Any) -> int | None:
    return None if value.shape is None else len(value.shape)


def _mark(value: Any) -> None:
    """Have :func:`export` calculate a value beforehand, with all that it is made of."""
    node = value.producer()
    if node is not None and _IN_BIAS not in node.meta:
        node.meta[_IN_BIAS] = True
        for given in filter(None, node.inputs):
            _mark(given)


def _refuse(name: str, projected: bool, batch_sizes: Any, resets: Any) -> None:
    if projected:
        raise NotInOnnxError(f"proj_size: ONNX's {name} has no projection; export a model without")
    if resets is not None:
        raise NotInOnnxError(
            f"resets: ONNX's {name} cannot zero the state in mid-sequence; export without resets, "
            "and cut sequences where they are to be reset"
        )
    if batch_sizes is not None:
        raise NotInOnnxError(
            f"input: ONNX's {name} takes no PackedSequence; give padded input and lengths"
        )


def _training(argument: str, why: str) -> NotInOnnxError:
    return NotInOnnxError(f"{argument}: {why}; call model.eval() before the export")
