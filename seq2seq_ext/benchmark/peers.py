"""The runtimes that a layer of `torch.nn` is exported to today: onnxruntime and OpenVINO.

Both get the same ONNX model, made of the standard's own LSTM, GRU and RNN operators with constant
weights and constant sizes: what an exporter would write at best. Input and output lie in fixed
memory, so that a call allocates nothing and copies nothing around the model.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from seq2seq_ext.benchmark.timing import Call
from seq2seq_ext.data.extras import require
from seq2seq_ext.onnx import GATE_ORDER

_OPSET, _IR_VERSION = 17, 8


def missing(name: str) -> str | None:
    """What a runtime lacks to take part; None if nothing."""
    for package in (name, "onnx", "numpy"):
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed (pip install 'seq2seq_ext[bench]')"
    return None


def version(name: str) -> str:
    """The installed version of a peer."""
    return importlib.metadata.version(name)


def call(
    name: str,
    layer: nn.RNNBase,
    x: Tensor,
    *,
    threads: int,
    states: Sequence[Tensor] = (),
    lengths: Tensor | None = None,
) -> Call:
    """A call that runs `layer` in a runtime and returns the tensors y, h_n and, of an LSTM, c_n.

    The tensors returned are the same in every call, with new content.

    Args:
        name: of `RUNTIMES`.
        layer: a layer of `torch.nn`, its batch second, without projections.
        x: (T, B, I).
        threads: how many the runtime may use, the caller's included.
        states: h_0 and, of an LSTM, c_0, each (L * D, B, H); none: zeros.
        lengths: (B,), int64; None: all of T.
    """
    inputs = {"x": x, **dict(zip(("h_0", "c_0"), states, strict=False))}
    if lengths is not None:
        inputs["lengths"] = lengths.int()
    T, B, _ = x.shape
    state_shape = (layer.num_layers * (2 if layer.bidirectional else 1), B, layer.hidden_size)
    outputs = {"y": torch.zeros(T, B, (2 if layer.bidirectional else 1) * layer.hidden_size)}
    for state in ("h_n", "c_n") if layer.mode == "LSTM" else ("h_n",):
        outputs[state] = torch.zeros(state_shape)
    return RUNTIMES[name](onnx_model(layer, inputs, outputs), inputs, outputs, threads)


def onnx_model(layer: nn.RNNBase, inputs: dict[str, Tensor], outputs: dict[str, Tensor]) -> bytes:
    """A layer as a serialised ONNX model.

    Args:
        layer: of `torch.nn`.
        inputs: ``x``, and optionally ``h_0``, ``c_0`` and ``lengths``; their shapes count.
        outputs: ``y``, ``h_n`` and, of an LSTM, ``c_n``; likewise.
    """
    onnx = require("onnx", extra="bench", purpose="a model for other runtimes")
    helper, types = onnx.helper, onnx.TensorProto
    D = 2 if layer.bidirectional else 1
    T, B, _ = inputs["x"].shape
    H = layer.hidden_size
    operator = layer.mode.partition("_")[0]
    initializers = []
    nodes = []

    def constant(name: str, value: Tensor, data_type: int = types.FLOAT) -> str:
        array = value.detach().contiguous().numpy()
        initializers.append(
            helper.make_tensor(name, data_type, array.shape, array.tobytes(), raw=True)
        )
        return name

    def weights(kind: str, l: int) -> Tensor:
        order = GATE_ORDER[operator]
        directions = []
        for suffix in ("", "_reverse")[:D]:
            value = getattr(layer, f"{kind}_l{l}{suffix}").detach()
            gates = value.chunk(len(order))
            directions.append(torch.cat([gates[gate] for gate in order]))
        return torch.stack(directions)

    constant("merged", torch.tensor([T, B, D * H]), types.INT64)
    if any(f"{name}_0" in inputs for name in "hc") and layer.num_layers > 1:
        constant("state_slices", torch.full((layer.num_layers,), D), types.INT64)
    state_names = [name for name in ("h", "c") if f"{name}_n" in outputs]
    for name in state_names:
        if f"{name}_0" in inputs and layer.num_layers > 1:
            slices = [f"{name}_0_{l}" for l in range(layer.num_layers)]
            nodes.append(helper.make_node("Split", [f"{name}_0", "state_slices"], slices, axis=0))
    x = "x"
    for l in range(layer.num_layers):
        bias = ""
        if layer.bias:
            both = torch.cat([weights("bias_ih", l), weights("bias_hh", l)], dim=1)
            bias = constant(f"b_{l}", both)
        operands = [
            x,
            constant(f"w_{l}", weights("weight_ih", l)),
            constant(f"r_{l}", weights("weight_hh", l)),
            bias,
            "lengths" if "lengths" in inputs else "",
        ]
        single = layer.num_layers == 1
        for name in state_names:
            given = f"{name}_0" in inputs
            operands.append((f"{name}_0" if single else f"{name}_0_{l}") if given else "")
        results = [f"gates_{l}"] + [
            f"{name}_n" if single else f"{name}_n_{l}" for name in state_names
        ]
        options: dict[str, Any] = {"hidden_size": H}
        if D == 2:
            options["direction"] = "bidirectional"
        if layer.mode == "GRU":
            options["linear_before_reset"] = 1
        if layer.mode == "RNN_RELU":
            options["activations"] = ["Relu"] * D
        nodes.append(
            helper.make_node(operator, operands, results, name=f"{operator}_{l}", **options)
        )
        # (T, D, B, H) to (T, B, D * H); where D is 1 nothing moves.
        y = "y" if l == layer.num_layers - 1 else f"y_{l}"
        turned = results[0]
        if D == 2:
            turned = f"turned_{l}"
            nodes.append(helper.make_node("Transpose", [results[0]], [turned], perm=[0, 2, 1, 3]))
        nodes.append(helper.make_node("Reshape", [turned, "merged"], [y]))
        x = y
    if layer.num_layers > 1:
        for name in state_names:
            parts = [f"{name}_n_{l}" for l in range(layer.num_layers)]
            nodes.append(helper.make_node("Concat", parts, [f"{name}_n"], axis=0))

    def info(tensors: dict[str, Tensor]) -> list[Any]:
        return [
            helper.make_tensor_value_info(
                name, types.INT32 if value.dtype == torch.int32 else types.FLOAT, value.shape
            )
            for name, value in tensors.items()
        ]

    graph = helper.make_graph(nodes, "layer", info(inputs), info(outputs), initializers)
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION
    )
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content


class _Onnxruntime:
    """A session whose input and output are bound to the tensors' memory.

    Its threads go on spinning after a call for the next one to start sooner: the default, which is
    the fastest for calls in a row. `timing.rest` waits until they have gone to sleep.
    """

    def __init__(
        self, model: bytes, inputs: dict[str, Tensor], outputs: dict[str, Tensor], threads: int
    ) -> None:
        onnxruntime = require("onnxruntime", extra="bench", purpose="the peer onnxruntime")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        self._session = onnxruntime.InferenceSession(
            model, options, providers=["CPUExecutionProvider"]
        )
        self._binding = self._session.io_binding()
        self._inputs, self._outputs = inputs, outputs  # the binding holds addresses alone
        for tensors, bind in (
            (inputs, self._binding.bind_input),
            (outputs, self._binding.bind_output),
        ):
            for name, value in tensors.items():
                element = value.numpy().dtype
                bind(name, "cpu", 0, element, tuple(value.shape), value.data_ptr())

    def __call__(self) -> object:
        self._session.run_with_iobinding(self._binding)
        return list(self._outputs.values())


class _OpenVINO:
    """A compiled model with one infer request, whose tensors lie in the tensors' memory."""

    def __init__(
        self, model: bytes, inputs: dict[str, Tensor], outputs: dict[str, Tensor], threads: int
    ) -> None:
        openvino = require("openvino", extra="bench", purpose="the peer OpenVINO")
        core = openvino.Core()
        options = {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            # Without this it computes in bfloat16 where the processor has it.
            "INFERENCE_PRECISION_HINT": "f32",
        }
        self._request = core.compile_model(
            core.read_model(model), "CPU", options
        ).create_infer_request()
        self._inputs, self._outputs = inputs, outputs  # the request holds addresses alone
        for name, value in {**inputs, **outputs}.items():
            self._request.set_tensor(name, openvino.Tensor(value.numpy(), shared_memory=True))

    def __call__(self) -> object:
        self._request.infer(share_outputs=True)
        return list(self._outputs.values())


RUNTIMES: dict[str, Callable[[bytes, dict[str, Tensor], dict[str, Tensor], int], Call]] = {
    "onnxruntime": _Onnxruntime,
    "openvino": _OpenVINO,
}
