"""``torch.func`` and forward mode on layers, cells and functions: by loops and differences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from layer_cases import NAMES, make, random_state, states
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import (
    functional_call,
    grad,
    grad_and_value,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    stack_module_state,
    vmap,
)
from torch.nn.utils.rnn import PackedSequence

import seq2seq_ext as s2s
from seq2seq_ext import functional

T, B, I, H, V = 4, 2, 2, 3, 5
DOUBLE = torch.float64
LAYERS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in NAMES},
    "deep": ("gru", {"num_layers": 2, "bidirectional": True}),
    "projected": ("lstm", {"proj_size": 2}),
    "projected gru": ("gru", {"proj_size": 2}),
    "projected rnn": ("rnn_tanh", {"proj_size": 2}),
    "no biases": ("lstm", {"bias": False}),
    "normalized": ("lstm", {"layer_norm": True, "peephole": True}),
    "zoneout": ("gru", {"zoneout": 0.3}),
}
each_layer = pytest.mark.parametrize("name", LAYERS)


def layer_of(name: str) -> Any:
    cell, options = LAYERS[name]
    return make(cell, I, H, dtype=DOUBLE, **options).eval()


def values(layer: Any) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in layer.named_parameters()}


def loss(layer: Any, parameters: dict[str, Tensor], x: Tensor, *rest: Any, **given: Any) -> Tensor:
    y, h = functional_call(layer, parameters, (x, *rest), given)
    return sum(t.sin().sum() for t in (y, *states(h)))


def expected_gradients(layer: Any, *call: Any, **given: Any) -> dict[str, Tensor]:
    parameters = dict(layer.named_parameters())
    found = torch.autograd.grad(loss(layer, parameters, *call, **given), list(parameters.values()))
    return dict(zip(parameters, found, strict=True))


# ---- grad and vmap -------------------------------------------------------------------------------


@each_layer
def test_gradients_of_each_sample_equal_those_of_a_loop(name: str) -> None:
    layer = layer_of(name)
    xs = torch.randn(V, T, I, dtype=DOUBLE)
    found, value = vmap(
        grad_and_value(lambda parameters, x: loss(layer, parameters, x)), (None, 0)
    )(values(layer), xs)
    for v in range(V):
        expected = expected_gradients(layer, xs[v])
        torch.testing.assert_close({k: g[v] for k, g in found.items()}, expected)
        torch.testing.assert_close(value[v], loss(layer, values(layer), xs[v]))


@pytest.mark.parametrize("axis", [0, 1, 2])
@each_layer
def test_everything_batched_but_the_weights(name: str, axis: int) -> None:
    layer = layer_of(name)
    xs = torch.randn(V, T, B, I, dtype=DOUBLE)
    hx = [random_state(layer, B) for _ in range(V)]
    lengths, resets = torch.randint(0, T + 1, (V, B)), torch.rand(V, T, B) < 0.3

    def one(x: Tensor, h: tuple[Tensor, ...], lengths: Tensor, resets: Tensor) -> Any:
        state = h if layer.mode == "LSTM" else h[0]
        return grad(lambda x, p: loss(layer, p, x, state, lengths=lengths, resets=resets), (0, 1))(
            x, values(layer)
        )

    stacked = tuple(torch.stack(parts) for parts in zip(*map(states, hx), strict=True))
    found = vmap(one, (axis, 0, 0, 0))(xs.movedim(0, axis), stacked, lengths, resets)
    for v in range(V):
        x = xs[v].clone().requires_grad_()
        result = loss(layer, dict(layer.named_parameters()), x, hx[v], lengths=lengths[v],
                      resets=resets[v])  # fmt: skip
        d_x, *d_weights = torch.autograd.grad(result, [x, *layer.parameters()])
        torch.testing.assert_close(found[0][v], d_x)
        for a, b in zip(found[1].values(), d_weights, strict=True):
            torch.testing.assert_close(a[v], b)


@pytest.mark.parametrize("name", ["lstm", "gru", "gru_reset_before"])
def test_packed_sequences(name: str) -> None:
    layer, sizes = layer_of(name), torch.tensor([3, 2, 2, 1])
    xs = torch.randn(V, 8, I, dtype=DOUBLE)

    def one(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        y, _ = functional_call(layer, parameters, (PackedSequence(x, sizes),))
        return y.data.sin().sum()

    found = vmap(grad(one), (None, 0))(values(layer), xs)
    parameters = dict(layer.named_parameters())
    for v in range(V):
        expected = torch.autograd.grad(one(parameters, xs[v]), list(parameters.values()))
        for a, b in zip(found.values(), expected, strict=True):
            torch.testing.assert_close(a[v], b)


@each_layer
def test_ensembles(name: str) -> None:
    layers = [layer_of(name) for _ in range(3)]
    parameters, buffers = stack_module_state(layers)
    x = torch.randn(T, B, I, dtype=DOUBLE)
    found = vmap(lambda p: loss(layers[0], p, x))(parameters)
    gradients = vmap(grad(lambda p: loss(layers[0], p, x)))(parameters)
    assert not buffers
    for v, layer in enumerate(layers):
        torch.testing.assert_close(found[v], loss(layer, values(layer), x))
        expected = expected_gradients(layer, x)
        torch.testing.assert_close({k: g[v] for k, g in gradients.items()}, expected)


@each_layer
def test_vmap_is_followed_by_autograd(name: str) -> None:
    layer = layer_of(name)
    xs = torch.randn(V, T, I, dtype=DOUBLE)
    y = vmap(lambda x: layer(x)[0])(xs)
    expected = layer(xs.transpose(0, 1))[0].transpose(0, 1)
    torch.testing.assert_close(y, expected)
    found = torch.autograd.grad(y.sin().sum(), list(layer.parameters()))
    torch.testing.assert_close(
        found, torch.autograd.grad(expected.sin().sum(), list(layer.parameters()))
    )


def test_autograd_follows_a_gradient_of_torch_func() -> None:
    """An inner step by torch.func, an outer one by autograd: as meta-learning does."""
    layer = layer_of("lstm")
    x = torch.randn(T, B, I, dtype=DOUBLE)
    parameters = dict(layer.named_parameters())
    inner = grad(lambda p: loss(layer, p, x))(parameters)
    adapted = {name: value - 0.1 * inner[name] for name, value in parameters.items()}
    found = torch.autograd.grad(loss(layer, adapted, x), list(parameters.values()))
    first = torch.autograd.grad(
        loss(layer, parameters, x), list(parameters.values()), create_graph=True
    )
    adapted = {n: p - 0.1 * g for (n, p), g in zip(parameters.items(), first, strict=True)}
    expected = torch.autograd.grad(loss(layer, adapted, x), list(parameters.values()))
    torch.testing.assert_close(found, expected)


NOISY: list[tuple[str, dict[str, Any]]] = [
    ("lstm", {"num_layers": 2, "dropout": 0.5}),
    ("lstm", {"zoneout": (0.3, 0.3)}),
    ("gru", {"recurrent_dropout": 0.5}),
    ("gru", {"recurrent_dropout": 0.5, "recurrent_dropout_kind": "candidate"}),
    ("rnn_tanh", {"weight_drop": 0.5}),
]


@pytest.mark.parametrize(("cell", "options"), NOISY, ids=str)
def test_noise_under_vmap_is_what_was_asked_for(cell: str, options: dict[str, Any]) -> None:
    layer = make(cell, I, 16, dtype=DOUBLE, **options)
    xs = torch.randn(1, T, B, I, dtype=DOUBLE).expand(V, -1, -1, -1).contiguous()
    for run in (lambda x: layer(x)[0], grad(lambda x: layer(x)[0].sum())):
        with pytest.raises(RuntimeError, match="randomness"):
            vmap(run)(xs)
        same = vmap(run, randomness="same")(xs)
        different = vmap(run, randomness="different")(xs)
        assert all(torch.allclose(same[0], one) for one in same[1:])
        assert not any(torch.allclose(different[0], one) for one in different[1:])


# ---- forward mode --------------------------------------------------------------------------------


def by_differences(run: Any, x: Tensor, t: Tensor) -> Tensor:
    step = 1e-5
    return (run(x + step * t) - run(x - step * t)) / (2 * step)


@each_layer
def test_jvp_of_input_state_and_weights(name: str) -> None:
    layer = layer_of(name)
    tensors = (
        torch.randn(T, B, I, dtype=DOUBLE),
        *states(random_state(layer, B)),
        *values(layer).values(),
    )
    tangents = tuple(map(torch.randn_like, tensors))
    n = 3 if layer.mode == "LSTM" else 2

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        state = tensors[1:n] if n == 3 else tensors[1]
        parameters = dict(zip(values(layer), tensors[n:], strict=True))
        y, h = functional_call(layer, parameters, (tensors[0], state))
        return (y, *states(h))

    results, found = jvp(run, tensors, tangents)
    _, pull = torch.func.vjp(run, *tensors)
    cotangents = tuple(map(torch.randn_like, results))
    transposed = sum((a * b).sum() for a, b in zip(pull(cotangents), tangents, strict=True))
    forward = sum((a * b).sum() for a, b in zip(found, cotangents, strict=True))
    torch.testing.assert_close(forward, transposed)
    with forward_ad.dual_level():
        duals = run(*map(forward_ad.make_dual, tensors, tangents))
        again = [forward_ad.unpack_dual(dual).tangent for dual in duals]
    torch.testing.assert_close(again, list(found))

    def moved(by: Tensor) -> Tensor:
        return run(*(a + by * b for a, b in zip(tensors, tangents, strict=True)))[0]

    steps = by_differences(moved, torch.zeros((), dtype=DOUBLE), torch.ones((), dtype=DOUBLE))
    torch.testing.assert_close(found[0], steps, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("wanted", ["x", "weight_hh_l0", "bias_hh_l0"])
@pytest.mark.parametrize("name", ["lstm", "gru", "rnn_tanh", "rnn_relu"])
def test_jvp_of_one_alone(name: str, wanted: str) -> None:
    layer = layer_of(name)
    given = {"x": torch.randn(T, B, I, dtype=DOUBLE), **values(layer)}

    def run(value: Tensor) -> Tensor:
        changed = {**given, wanted: value}
        x = changed.pop("x")
        return functional_call(layer, changed, (x,))[0]

    t = torch.randn_like(given[wanted])
    _, found = jvp(run, (given[wanted],), (t,))
    torch.testing.assert_close(found, by_differences(run, given[wanted], t), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("form", ["lengths", "resets", "packed"])
@pytest.mark.parametrize("name", ["lstm", "gru", "deep"])
def test_jvp_of_every_form(name: str, form: str) -> None:
    layer, sizes = layer_of(name), torch.tensor([3, 2, 2, 1])
    x = torch.randn(*((8, I) if form == "packed" else (T, B, I)), dtype=DOUBLE)

    def run(x: Tensor) -> Tensor:
        if form == "packed":
            return layer(PackedSequence(x, sizes))[0].data
        if form == "lengths":
            return layer(x, lengths=torch.tensor([1, 3]))[0]
        return layer(x, resets=torch.tensor([[0, 1], [1, 0], [0, 0], [0, 1]]).bool())[0]

    t = torch.randn_like(x)
    with torch.no_grad():
        _, found = jvp(run, (x,), (t,))
        expected = by_differences(run, x, t)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("make_cell", [s2s.LSTMCell, s2s.GRUCell, s2s.RNNCell])
def test_cells(make_cell: Any) -> None:
    cell = make_cell(I, H, dtype=DOUBLE)
    xs, t = torch.randn(2, V, I, dtype=DOUBLE)

    def run(x: Tensor) -> Tensor:
        return states(cell(x))[-1]

    torch.testing.assert_close(vmap(run)(xs), run(xs))
    _, found = jvp(run, (xs,), (t,))
    torch.testing.assert_close(found, by_differences(run, xs, t), rtol=1e-6, atol=1e-6)
    with forward_ad.dual_level():
        dual = run(forward_ad.make_dual(xs, t))
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, found)
    torch.testing.assert_close(jacfwd(run)(xs[0]), jacrev(run)(xs[0]))
    each = vmap(grad(lambda x: run(x).sin().sum()))(xs)
    torch.testing.assert_close(each, grad(lambda x: run(x).sin().sum())(xs))


@pytest.mark.parametrize("run", [functional.lstm, functional.gru, functional.rnn])
def test_functions(run: Any) -> None:
    rows = {"lstm": 4, "gru": 3, "rnn": 1}[run.__name__] * H
    weights = [torch.randn(rows, I, dtype=DOUBLE), torch.randn(rows, H, dtype=DOUBLE)]
    x, t = torch.randn(2, T, B, I, dtype=DOUBLE)
    _, found = jvp(lambda x: run(x, None, weights)[0], (x,), (t,))
    expected = by_differences(lambda x: run(x, None, weights)[0], x, t)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


# ---- derivatives of derivatives ------------------------------------------------------------------


@each_layer
def test_hessians_and_jacobians(name: str) -> None:
    layer = layer_of(name)
    x = torch.randn(3, I, dtype=DOUBLE)

    def run(x: Tensor) -> Tensor:
        return loss(layer, dict(layer.named_parameters()), x)

    expected = torch.autograd.functional.hessian(run, x)
    for second in (hessian, lambda f: jacrev(jacrev(f)), lambda f: jacrev(jacfwd(f))):
        torch.testing.assert_close(second(run)(x), expected)
    t = torch.randn_like(x)
    product = grad(lambda x: jvp(run, (x,), (t,))[1])(x)
    torch.testing.assert_close(product.flatten(), expected.view(6, 6) @ t.flatten())
    _, product = jvp(grad(run), (x,), (t,))
    torch.testing.assert_close(product.flatten(), expected.view(6, 6) @ t.flatten())
    torch.testing.assert_close(jacfwd(lambda x: layer(x)[0])(x), jacrev(lambda x: layer(x)[0])(x))


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_autograd_follows_a_tangent(name: str) -> None:
    """Reverse over forward, where the inner derivative is torch.func's or that of dual tensors."""
    layer = layer_of(name)
    weights = list(layer.parameters())
    x, t = torch.randn(2, T, B, I, dtype=DOUBLE)
    _, by_func = jvp(lambda x: layer(x)[0], (x,), (t,))
    with forward_ad.dual_level():
        dual = layer(forward_ad.make_dual(x, t))[0]
        by_duals = forward_ad.unpack_dual(dual).tangent
        found = [torch.autograd.grad(y.sin().sum(), weights) for y in (by_func, by_duals)]
    y = x.clone().requires_grad_()
    v = torch.zeros(T, B, H, dtype=DOUBLE, requires_grad=True)
    (pulled,) = torch.autograd.grad(layer(y)[0], y, v, create_graph=True)
    (tangent,) = torch.autograd.grad(pulled, v, t, create_graph=True)
    expected = torch.autograd.grad(tangent.sin().sum(), weights)
    for one in found:
        torch.testing.assert_close(one, expected)
