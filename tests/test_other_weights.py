"""from_weights and to_weights, against the libraries themselves: Keras and onnxruntime.

Haste is built with CUDA alone; its equations stand here once more.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from layer_cases import NAMES, make, states

import seq2seq_ext as s2s

os.environ["KERAS_BACKEND"] = "torch"  # read when keras is imported

# Of Keras, which asks torch for arrays in NumPy's older way.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PAGE = Path(__file__).parents[1] / "docs" / "other-weights.md"
T, B, I, H = 6, 4, 3, 5

biases = pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
directions = pytest.mark.parametrize("D", [1, 2], ids=["one-way", "two-way"])


def array(*shape: int) -> np.ndarray:
    return torch.randn(shape).numpy() * np.float32(0.5)


def assert_close(found: torch.Tensor, expected: Any) -> None:
    expected = torch.as_tensor(np.asarray(expected))
    torch.testing.assert_close(found.detach(), expected, rtol=1e-5, atol=1e-5)


# Keras.

KERAS: dict[str, tuple[type[Any], str, dict[str, Any], dict[str, Any]]] = {
    "LSTM": (s2s.LSTM, "LSTM", {}, {}),
    "GRU": (s2s.GRU, "GRU", {}, {"reset_after": True}),
    "GRU-before": (s2s.GRU, "GRU", {"reset_after": False}, {"reset_after": False}),
    "RNN": (s2s.RNN, "SimpleRNN", {}, {}),
    "RNN-relu": (s2s.RNN, "SimpleRNN", {"activation": "relu"}, {"nonlinearity": "relu"}),
}
each_keras = pytest.mark.parametrize("case", KERAS)


def keras_layer(case: str, D: int = 1, size: int = I, **options: Any) -> Any:
    """A layer of Keras with random weights, that gives all its outputs and its last states."""
    import keras

    _, name, theirs, _ = KERAS[case]
    layer = getattr(keras.layers, name)(
        H, return_sequences=True, return_state=True, **theirs, **options
    )
    layer = keras.layers.Bidirectional(layer) if D == 2 else layer
    layer.build((None, T, size))
    layer.set_weights([array(*w.shape) for w in layer.get_weights()])
    return layer


def ours_like(case: str, weights: Any, bias: bool = True, **options: Any) -> Any:
    cls, _, _, ours = KERAS[case]
    # With biases, their form tells whether the reset comes after.
    options |= {k: v for k, v in ours.items() if k != "reset_after" or not bias}
    return cls.from_weights(weights, "keras", batch_first=True, **options)


def keras_call(layer: Any, x: np.ndarray, **options: Any) -> list[np.ndarray]:
    return [y.detach().cpu().numpy() for y in layer(x, **options)]


def flat_states(hx: Any) -> list[torch.Tensor]:
    """States in Keras' order: for each direction h, then c."""
    return [state[d] for d in range(len(states(hx)[0])) for state in states(hx)]


@each_keras
@biases
@directions
def test_keras(case: str, bias: bool, D: int) -> None:
    theirs = keras_layer(case, D, use_bias=bias)
    ours = ours_like(case, theirs.get_weights(), bias)
    assert isinstance(ours, KERAS[case][0])
    assert (ours.input_size, ours.hidden_size, ours.bidirectional) == (I, H, D == 2)
    assert bool(ours.bias) == bias
    assert getattr(ours, "reset_after", True) == (case != "GRU-before")
    x = array(B, T, I)
    y, hx = ours(torch.from_numpy(x))
    expected = keras_call(theirs, x)
    for a, b in zip([y, *flat_states(hx)], expected, strict=True):
        assert_close(a, b)


@each_keras
@directions
def test_keras_masks_are_lengths(case: str, D: int) -> None:
    theirs = keras_layer(case, D)
    x, lengths = array(B, T, I), torch.tensor([6, 1, 4, 3])
    mask = torch.arange(T) < lengths[:, None]
    y, hx = ours_like(case, theirs.get_weights())(torch.from_numpy(x), lengths=lengths)
    expected, *expected_states = keras_call(theirs, x, mask=mask.numpy())
    assert_close(y[mask], expected[mask.numpy()])
    for a, b in zip(flat_states(hx), expected_states, strict=True):
        assert_close(a, b)


@each_keras
def test_keras_go_backwards_is_a_turned_input(case: str) -> None:
    theirs = keras_layer(case, go_backwards=True)
    x = array(B, T, I)
    y, hx = ours_like(case, theirs.get_weights())(torch.from_numpy(x).flip(1))
    for a, b in zip([y, *flat_states(hx)], keras_call(theirs, x), strict=True):
        assert_close(a, b)


@each_keras
@directions
def test_keras_layers_are_stacked(case: str, D: int) -> None:
    theirs = [keras_layer(case, D), keras_layer(case, D, size=D * H)]
    ours = ours_like(case, [layer.get_weights() for layer in theirs])
    assert ours.num_layers == 2
    x = array(B, T, I)
    expected = keras_call(theirs[1], keras_call(theirs[0], x)[0])
    y, hx = ours(torch.from_numpy(x))
    for a, b in zip([y, *flat_states(hx)[-len(expected) + 1 :]], expected, strict=True):
        assert_close(a, b)


@each_keras
@biases
@directions
def test_keras_takes_our_weights(case: str, bias: bool, D: int) -> None:
    cls, _, _, options = KERAS[case]
    ours = cls(I, H, bias=bias, bidirectional=D == 2, batch_first=True, **options)
    theirs = keras_layer(case, D, use_bias=bias)
    [weights] = ours.to_weights("keras")
    theirs.set_weights([w.numpy() for w in weights])
    x = array(B, T, I)
    y, hx = ours(torch.from_numpy(x))
    for a, b in zip([y, *flat_states(hx)], keras_call(theirs, x), strict=True):
        assert_close(a, b)


# ONNX.

ONNX: dict[str, tuple[type[Any], str, dict[str, Any], dict[str, Any]]] = {
    "LSTM": (s2s.LSTM, "LSTM", {}, {}),
    "GRU": (s2s.GRU, "GRU", {"linear_before_reset": 1}, {"reset_after": True}),
    "GRU-before": (s2s.GRU, "GRU", {"linear_before_reset": 0}, {"reset_after": False}),
    "RNN": (s2s.RNN, "RNN", {}, {}),
    "RNN-relu": (s2s.RNN, "RNN", {"activations": ["Relu"]}, {"nonlinearity": "relu"}),
}
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def onnx_call(
    case: str, weights: Sequence[np.ndarray], x: np.ndarray, lengths: np.ndarray
) -> list[np.ndarray]:
    """What onnxruntime computes in a graph of that one node: Y (T, D, B, H), then the states."""
    import onnx
    import onnxruntime
    from onnx import helper, numpy_helper

    _, operator, attributes, _ = ONNX[case]
    D = len(weights[0])
    if "activations" in attributes:
        attributes = {"activations": attributes["activations"] * D}
    names = ["W", "R", "B"][: len(weights)]
    outputs = ["Y", "Y_h"] + (["Y_c"] if operator == "LSTM" else [])
    node = helper.make_node(
        operator,
        ["x", *names, *([""] * (3 - len(names))), "lengths"],
        outputs,
        hidden_size=H,
        direction="bidirectional" if D == 2 else "forward",
        **attributes,
    )
    graph = helper.make_graph(
        [node],
        "layer",
        [
            helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, x.shape),
            helper.make_tensor_value_info("lengths", onnx.TensorProto.INT32, lengths.shape),
        ],
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(w, n) for w, n in zip(weights, names, strict=True)],
    )
    opset = helper.make_opsetid("", 14)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=8)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": x, "lengths": lengths})


@pytest.mark.parametrize("case", ONNX)
@biases
@directions
def test_onnxruntime(case: str, bias: bool, D: int) -> None:
    cls, operator, _, options = ONNX[case]
    rows = GATES[operator] * H
    weights = [array(D, rows, I), array(D, rows, H), array(D, 2 * rows)][: 3 if bias else 2]
    x, lengths = array(T, B, I), np.array([6, 1, 4, 3], dtype=np.int32)
    Y, *expected = onnx_call(case, weights, x, lengths)
    named = dict(zip(["W", "R", "B"], weights, strict=False))
    for given in (weights, named, [weights], [named]):
        ours = cls.from_weights(given, "onnx", **options)
        assert (ours.num_layers, bool(ours.bias), ours.bidirectional) == (1, bias, D == 2)
        y, hx = ours(torch.from_numpy(x), lengths=torch.from_numpy(lengths).long())
        assert_close(y.unflatten(-1, (D, H)).transpose(1, 2), Y)
        for a, b in zip(states(hx), expected, strict=True):
            assert_close(a, b)
    for a, b in zip(ours.to_weights("onnx")[0], weights, strict=True):
        assert np.array_equal(a.numpy(), b)


# Haste.


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def normalized(v: np.ndarray, gain: Any) -> np.ndarray:
    return gain * (v - v.mean(-1, keepdims=True)) / np.sqrt(v.var(-1, keepdims=True) + 1e-5)


def haste_lstm(x: np.ndarray, w: dict[str, np.ndarray], zoneout: float = 0.0) -> Any:
    """``y, states``, of the layer with layer normalization if its gains are there."""
    norm = "gamma" in w
    h = c = np.zeros((B, H))
    y = []
    for x_t in x:
        Wx, Rh = x_t @ w["kernel"], h @ w["recurrent_kernel"]
        if norm:
            Wx, Rh = normalized(Wx, w["gamma"][0]), normalized(Rh, w["gamma"][1])
        i, g, f, o = np.split(Wx + Rh + w["bias"], 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        seen = normalized(c, w["gamma_h"]) + w["beta_h"] if norm else c
        h = zoneout * h + (1 - zoneout) * sigmoid(o) * np.tanh(seen)
        y.append(h)
    return np.stack(y), [h, c]


def haste_gru(x: np.ndarray, w: dict[str, np.ndarray], zoneout: float = 0.0) -> Any:
    h = np.zeros((B, H))
    y = []
    for x_t in x:
        Wx, Rh = x_t @ w["kernel"], h @ w["recurrent_kernel"]
        if "gamma" in w:
            Wx, Rh = normalized(Wx, w["gamma"][0]), normalized(Rh, w["gamma"][1])
        z_x, r_x, g_x = np.split(Wx + w["bias"], 3, axis=1)
        z_h, r_h, g_h = np.split(Rh + w["recurrent_bias"], 3, axis=1)
        z = sigmoid(z_x + z_h)
        new = z * h + (1 - z) * np.tanh(g_x + sigmoid(r_x + r_h) * g_h)
        h = zoneout * h + (1 - zoneout) * new
        y.append(h)
    return np.stack(y), [h]


def haste_weights(cls: type[Any], norm: bool) -> dict[str, np.ndarray]:
    """In the order in which haste's layers list them."""
    G, lstm = (4, True) if cls is s2s.LSTM else (3, False)
    sizes = {"kernel": (I, G * H), "recurrent_kernel": (H, G * H), "bias": (G * H,)}
    sizes |= {} if lstm else {"recurrent_bias": (G * H,)}
    if norm:
        sizes |= {"gamma": (2, G * H)} | ({"gamma_h": (H,), "beta_h": (H,)} if lstm else {})
    return {name: array(*size).astype("d") for name, size in sizes.items()}


@pytest.mark.parametrize("zoneout", [0.0, 0.3])
@pytest.mark.parametrize("norm", [False, True], ids=["plain", "normalized"])
@pytest.mark.parametrize(("cls", "equations"), [(s2s.LSTM, haste_lstm), (s2s.GRU, haste_gru)])
def test_haste(cls: Any, equations: Any, norm: bool, zoneout: float) -> None:
    weights = haste_weights(cls, norm)
    x = array(T, B, I).astype("d")
    expected, expected_states = equations(x, weights, zoneout)
    options = {"zoneout": zoneout, "weight_drop": 0.5} if zoneout else {}
    for given in (weights, list(weights.values()), {k: weights[k] for k in sorted(weights)}):
        layer = cls.from_weights(given, "haste", **options).eval()
        y, hx = layer(torch.from_numpy(x))
        torch.testing.assert_close(y, torch.from_numpy(expected), rtol=0, atol=1e-12)
        for a, b in zip(states(hx), expected_states, strict=True):
            torch.testing.assert_close(a[0], torch.from_numpy(b), rtol=0, atol=1e-12)
    [back] = layer.to_weights("haste")
    for w, given in zip(back, weights.values(), strict=True):
        assert np.array_equal(w.detach().numpy(), given)
        w.zero_()  # a copy
    assert torch.equal(layer(torch.from_numpy(x))[0], y)


def test_a_stack_of_normalized_layers_of_haste() -> None:
    first = haste_weights(s2s.LSTM, True)
    second = haste_weights(s2s.LSTM, True) | {"kernel": array(H, 4 * H).astype("d")}
    x = array(T, B, I).astype("d")
    layer = s2s.LSTM.from_weights([first, second], "haste")
    expected, _ = haste_lstm(haste_lstm(x, first)[0], second)
    assert_close(layer(torch.from_numpy(x))[0], expected)
    with pytest.raises(ValueError, match=r"weights\[1\]: every layer must hold the same arrays"):
        s2s.LSTM.from_weights([first, haste_weights(s2s.LSTM, False)], "haste")


# There and back.


@pytest.mark.parametrize("layout", ["keras", "haste", "onnx"])
@pytest.mark.parametrize("cell", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@biases
@directions
def test_round_trip(layout: str, cell: str, dtype: torch.dtype, bias: bool, D: int) -> None:
    layer = make(cell, I, H, 2, bias=bias, bidirectional=D == 2, dtype=dtype)
    options = {}
    if cell.startswith("gru"):
        options["reset_after"] = layer.reset_after
    if cell.startswith("rnn"):
        options["nonlinearity"] = layer.nonlinearity
    if layout == "haste" and (D == 2 or cell not in ("lstm", "gru")):
        with pytest.raises(ValueError, match="layout 'haste' has no"):
            layer.to_weights(layout)
        return
    before = {name: w.clone() for name, w in layer.state_dict().items()}
    weights = layer.to_weights(layout)
    twin = type(layer).from_weights(weights, layout, **options)
    for arrays in weights:
        for w in arrays:
            assert w.is_contiguous()
            w.zero_()  # neither layer looks at it
    assert repr(twin) == repr(layer)
    assert all(p.requires_grad and p.is_contiguous() for p in twin.parameters())
    assert list(twin.state_dict()) == list(before)
    one_bias = (layout, cell) == ("haste", "lstm") or (layout == "keras" and cell != "gru")
    for name, w in twin.state_dict().items():
        assert w.dtype == dtype
        assert torch.equal(layer.state_dict()[name], before[name])
        if "bias_ih" in name and one_bias:
            assert torch.equal(w, before[name] + before[name.replace("_ih", "_hh")])
        elif "bias_hh" in name and one_bias:
            assert not w.any()
        else:
            assert torch.equal(w, before[name])


def test_the_arrays_are_copied_whatever_their_kind() -> None:
    given = [array(1, 4 * H, I), array(1, 4 * H, H)]
    for w in given:
        w.flags.writeable = False  # as onnx hands them out
    layer = s2s.LSTM.from_weights([w[::-1] for w in given], "onnx")
    with torch.no_grad():
        for p in layer.parameters():
            p.zero_()
    assert all(w.any() for w in given)

    parameters = [torch.nn.Parameter(torch.ones(1, H, I)), torch.nn.Parameter(torch.ones(1, H, H))]
    layer = s2s.RNN.from_weights(parameters, "onnx")
    layer.requires_grad_(False).weight_ih_l0.zero_()
    assert parameters[0].requires_grad
    assert parameters[0].all()


def test_making_a_layer_draws_no_random_numbers() -> None:
    weights = s2s.LSTM(I, H).to_weights("keras")
    before = torch.get_rng_state()
    s2s.LSTM.from_weights(weights, "keras")
    assert torch.equal(torch.get_rng_state(), before)


def test_subclasses_make_themselves() -> None:
    class Own(s2s.LSTM):
        pass

    layer = Own.from_weights(s2s.LSTM(I, H).to_weights("keras"), "keras")
    assert type(layer) is Own


@pytest.mark.skipif(not PAGE.exists(), reason="the documentation is not beside the tests")
@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_the_examples_of_the_page_run() -> None:
    examples = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len(examples) == 5
    names: dict[str, Any] = {}
    for example in examples:
        exec(example, names)
    assert not torch.equal(names["gru"].weight_ih_l0, torch.zeros(15, 3))
    assert type(names["model"][0]) is s2s.LSTM


# Bad input.

K, R, BIAS = torch.zeros(I, 4 * H), torch.zeros(H, 4 * H), torch.zeros(4 * H)
GK, GR = torch.zeros(I, 3 * H), torch.zeros(H, 3 * H)
W, RR = torch.zeros(1, 4 * H, I), torch.zeros(1, 4 * H, H)

BAD: list[tuple[Any, Any, str, dict[str, Any], str]] = [
    (s2s.LSTM, [K, R], "torch", {}, "layout must be one of keras, haste, onnx, got 'torch'"),
    (s2s.RNN, [K, R], "haste", {}, "layout 'haste' has no RNN"),
    (s2s.GRU, [GK, GR], "haste", {"reset_after": False}, "has no GRU with reset_after=False"),
    (s2s.LSTM, [K, R], "keras", {"reset_after": True}, "has no LSTM with reset_after=True"),
    (s2s.GRU, [GK, GR], "keras", {}, "reset_after must be True or False .* got None"),
    (s2s.LSTM, [K], "keras", {}, "weights must be kernel, .* the same again .*; got 1 arrays"),
    (s2s.LSTM, [], "keras", {}, "weights must be kernel, .* got 0 arrays"),
    (s2s.LSTM, [K] * 5, "keras", {}, "got 5 arrays"),
    (s2s.LSTM, [K, R, BIAS] * 2, "haste", {}, "gamma must have the shape"),
    (s2s.LSTM, [K, R, BIAS] * 3, "haste", {}, "bias, and then, .*, gamma, .*; got 9 arrays"),
    (s2s.GRU, [GK, GR, BIAS], "haste", {}, "bias, recurrent_bias, .*; got 3 arrays"),
    (s2s.LSTM, {"kernel": K, "bias": BIAS}, "haste", {}, "weights must hold .* got kernel, bias"),
    (
        s2s.LSTM,
        {"kernel": K, "recurrent_kernel": R, "bias": BIAS, "gamma": BIAS},
        "haste",
        {},
        "weights must hold .* and then, where it normalizes, gamma, gamma_h, beta_h; got .*, gamma",
    ),
    (
        s2s.LSTM,
        {"kernel": K, "recurrent_kernel": R, "bias": BIAS, "gamma": BIAS},
        "keras",
        {},
        "weights must hold kernel, .* but nothing of .* layer normalisation; got .*, bias, gamma",
    ),
    (
        s2s.LSTM,
        [K, R, BIAS, BIAS, torch.ones(H), torch.ones(H)],
        "haste",
        {},
        r"gamma must have the shape \(2, 20\), got \(20,\)",
    ),
    (
        s2s.GRU,
        [GK, GR, torch.zeros(3 * H), torch.zeros(3 * H), torch.ones(2, 4 * H)],
        "haste",
        {},
        r"gamma must have the shape \(2, 15\), got \(2, 20\)",
    ),
    (s2s.LSTM, K, "keras", {}, "weights must be a list or a mapping of arrays, got Tensor"),
    (s2s.LSTM, [K, "R"], "keras", {}, "weights: recurrent_kernel must be a tensor .* got str"),
    (s2s.LSTM, [K, R.long()], "keras", {}, "recurrent_kernel must be of a floating dtype, got"),
    (s2s.LSTM, [K, R.double()], "keras", {}, r"kernel must be torch.float32 .* torch.float64 on"),
    (s2s.LSTM, [BIAS, R], "keras", {}, r"kernel must have 2 axes, got \(20,\)"),
    (s2s.LSTM, [K.T, R], "keras", {}, r"kernel must have the shape \(20, 20\), got \(20, 3\)"),
    (s2s.LSTM, [K, R.T], "keras", {}, r"must have the shape \(3, 80\), got \(3, 20\)"),
    (s2s.LSTM, [K, R, BIAS[1:]], "keras", {}, r"bias must have the shape \(20,\), got \(19,\)"),
    (
        s2s.GRU,
        [GK, GR, torch.zeros(2, 3 * H)],
        "keras",
        {"reset_after": False},
        r"bias must have the shape \(15,\), got \(2, 15\)",
    ),
    (s2s.GRU, [GK, GR, torch.zeros(3, 3 * H)], "keras", {}, r"the shape \(2, 15\), got \(3, 15\)"),
    (s2s.LSTM, [[K, R], [K, R]], "keras", {}, r"weights\[1\]: kernel .* \(5, 20\), got \(3, 20\)"),
    (s2s.LSTM, [[K, R], [R, R, BIAS]], "keras", {}, r"weights\[1\]: every layer must hold"),
    (s2s.LSTM, [[K, R], [R, R] * 2], "keras", {}, r"weights\[1\]: every layer must hold the same"),
    (s2s.LSTM, [[K, R], R], "keras", {}, r"weights\[1\] must be a list or a mapping of arrays"),
    (s2s.LSTM, [W[0], RR[0]], "onnx", {}, r"W must have 3 axes, got \(20, 3\)"),
    (s2s.LSTM, [W.expand(3, -1, -1), RR], "onnx", {}, r"1 or 2 directions .* got \(3, 20, 3\)"),
    (s2s.LSTM, [W, RR.expand(2, -1, -1)], "onnx", {}, r"R must .* \(1, 20, 5\), got \(2, 20, 5\)"),
]


@pytest.mark.parametrize(("cls", "weights", "layout", "options", "message"), BAD)
def test_bad_input_is_named(
    cls: Any, weights: Any, layout: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        cls.from_weights(weights, layout, **options)


def test_sizes_are_those_of_the_weights() -> None:
    with pytest.raises(TypeError, match="num_layers"):
        s2s.LSTM.from_weights([K, R], "keras", num_layers=2)


def test_layers_that_no_layout_has() -> None:
    with pytest.raises(ValueError, match="has no projection, got proj_size=2"):
        s2s.LSTM(I, H, proj_size=2).to_weights("onnx")
    with pytest.raises(ValueError, match="layout must be one of keras, haste, onnx, got 'caffe'"):
        s2s.LSTM(I, H).to_weights("caffe")
    with pytest.raises(ValueError, match="has no layer of two directions"):
        s2s.LSTM(I, H, bidirectional=True).to_weights("haste")
    [[*_, bias]] = s2s.LSTM(I, H, forget_bias=2.0).to_weights("keras")  # that is in the weights
    assert torch.all(bias[H : 2 * H] == 2)
    with pytest.raises(ValueError, match="has layers of one size, got hidden_size=\\(4, 2\\)"):
        s2s.LSTM(I, [4, 2]).to_weights("haste")


@pytest.mark.parametrize(
    ("layout", "cls", "options", "message"),
    [
        ("keras", s2s.GRU, {"layer_norm": True}, "'keras' has no layer with layer_norm=True"),
        ("onnx", s2s.LSTM, {"zoneout": 0.1}, r"'onnx' has no layer with zoneout=\(0.1, 0.0\)"),
        ("haste", s2s.LSTM, {"zoneout": (0.1, 0.1)}, "'haste' has zoneout of h alone"),
        ("haste", s2s.LSTM, {"peephole": True}, "'haste' has no layer with peephole=True"),
        ("haste", s2s.GRU, {"layer_norm": True, "bias": False}, "with biases alone"),
        ("haste", s2s.GRU, {"layer_norm": True, "reset_after": False}, "has no GRU with"),
    ],
)
def test_variants_that_a_layout_has_not(
    layout: str, cls: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        cls(I, H, **options).to_weights(layout)
