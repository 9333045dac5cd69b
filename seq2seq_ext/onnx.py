"""Export to ONNX: each layer as one LSTM, GRU or RNN operator of the standard.

``torch.onnx.export(..., dynamo=True)`` asks a table how to write an operator that it does not know;
:func:`translations` is that table, :func:`export` the two together.  T, B and the lengths stay
dynamic.  Needs the extra ``onnx``.

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
}
_INT32 = 6  # onnx.TensorProto.INT32


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
        NotInOnnxError: for a projection (``proj_size``), ``resets``, dropout between layers while
            training, and layers with variants.
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
    return {rnn_op: _rnn, torch.ops.seq2seq_ext.recurrence.default: _recurrence}


def _require(module: str) -> Any:
    return require(module, extra="onnx", purpose="the export to ONNX")


def _is_part_of_a_layer(node: Any) -> bool:
    origin = node.meta.get("node")
    return origin is not None and origin.target is rnn_op


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
    _refuse(name, per_direction, batch_sizes, resets, dropout_mask)
    one_step = len(x.shape) == 2
    attributes = {
        "hidden_size": weights[1].shape[1],
        "direction": "bidirectional" if bidirectional else "forward",
        **kind,
    }
    if "activations" in kind:
        attributes["activations"] = kind["activations"] * D

    def ints(*values: int) -> Any:
        return op.Constant(value_ints=values)

    def merge(values: Sequence[Any], axis: int) -> Any:
        return values[0] if len(values) == 1 else op.Concat(*values, axis=axis)

    def reorder(weight: Any) -> Any:
        """(G*H, ...) as ONNX has it: (1, G*H, ...)."""
        rows, *columns = weight.shape
        G = len(GATE_ORDER[name])
        if G > 1:
            gates = op.Reshape(weight, ints(G, rows // G, *columns))
            weight = op.Gather(gates, ints(*GATE_ORDER[name]), axis=0)
        return op.Reshape(weight, ints(1, rows, *columns))

    def of_layers(state: Any) -> Any:
        """(L*D, B, H), or (B, H) of one step, as (D, B, H) for each layer."""
        if state is None:
            return [None] * num_layers
        if one_step:
            state = op.Unsqueeze(state, ints(0))
        return [state] if num_layers == 1 else op.Split(state, axis=0, num_outputs=num_layers)

    if one_step:
        x = op.Unsqueeze(x, ints(0))
    empty_rows = None
    if lengths is not None:
        empty_rows = op.Unsqueeze(op.Equal(lengths, ints(0)), ints(1))
        lengths = op.Cast(lengths, to=_INT32)
    states = [of_layers(state) for state in ([h_0, c_0] if name == "LSTM" else [h_0])]

    finals = []
    for layer, given in enumerate(zip(*states, strict=True)):
        directions = [
            [reorder(weight) for weight in weights[k * per_direction : (k + 1) * per_direction]]
            for k in range(layer * D, layer * D + D)
        ]
        w_ih, w_hh, *biases = [merge(parts, 0) for parts in zip(*directions, strict=True)]
        bias = merge(biases, 1) if biases else None
        y, *final = getattr(op, name)(x, w_ih, w_hh, bias, lengths, *given, **attributes)
        if D == 1:
            x = op.Squeeze(y, ints(1))
        else:  # (T, D, B, H) to (T, B, D*H)
            x = op.Reshape(op.Transpose(y, perm=[0, 2, 1, 3]), ints(0, 0, -1))
        if empty_rows is not None and h_0 is not None:
            # The standard does not say what the state after no step is, and onnxruntime says 0.
            final = [
                op.Where(empty_rows, before, after)
                for before, after in zip(given, final, strict=True)
            ]
        finals.append(final)
    last = [merge(parts, 0) for parts in zip(*finals, strict=True)]

    nothing = op.CastLike(op.ConstantOfShape(ints(0)), x)
    if one_step:
        last = [op.Squeeze(state, ints(0)) for state in last]
        return last[0], nothing, last[1] if name == "LSTM" else nothing
    return x, last[0], last[1] if name == "LSTM" else nothing


def _recurrence(*_):  # type: ignore[no-untyped-def]
    raise NotInOnnxError(
        "layers with variants, with a size for each layer, or with a projection of a GRU or RNN "
        "have no operator in ONNX; export plain ones"
    )


def _refuse(
    name: str, per_direction: int, batch_sizes: Any, resets: Any, dropout_mask: Any
) -> None:
    if per_direction in (3, 5):
        raise NotInOnnxError("proj_size: ONNX's LSTM has no projection; export a model without")
    if resets is not None:
        raise NotInOnnxError(
            f"resets: ONNX's {name} cannot zero the state in mid-sequence; export without resets, "
            "and cut sequences where they are to be reset"
        )
    if batch_sizes is not None:
        raise NotInOnnxError(
            f"input: ONNX's {name} takes no PackedSequence; give padded input and lengths"
        )
    if dropout_mask is not None:
        raise NotInOnnxError(
            f"dropout: ONNX's {name} has none between layers; call model.eval() before the export"
        )
