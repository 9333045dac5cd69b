"""Outputs, states and every gradient of the layers, against torch.nn and the reference."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from layer_cases import (
    FORMS,
    LAYER_IDS,
    LAYERS,
    NAMES,
    STACK_IDS,
    STACKS,
    Problem,
    check,
    make,
    random_state,
    run_layer,
    states,
)
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import seq2seq_ext.nn as fused
from seq2seq_ext import functional

SHAPES = list(itertools.product((1, 2, 3), (False, True), (True, False)))
SHAPE_IDS = [f"L{n}-D{1 + d}-{'bias' if b else 'nobias'}" for n, d, b in SHAPES]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("num_layers", "bidirectional", "bias"), SHAPES, ids=SHAPE_IDS)
@pytest.mark.parametrize(("cell", "proj_size"), STACKS, ids=STACK_IDS)
def test_equals_torch(
    cell: str,
    proj_size: int,
    num_layers: int,
    bidirectional: bool,
    bias: bool,
    form: str,
    dtype: torch.dtype,
) -> None:
    proj = {"proj_size": proj_size} if proj_size else {}
    layer = make(
        cell, 6, 11, num_layers, bias=bias, bidirectional=bidirectional, dtype=dtype, **proj
    )
    check(cell, form, layer, T=7, B=5)


@pytest.mark.parametrize("form", ["dense", "lengths", "resets"])
@pytest.mark.parametrize(
    ("T", "B", "I", "H"),
    [
        (1, 1, 1, 1),
        (1, 1, 64, 64),
        (3, 1, 5, 33),
        (2, 17, 3, 16),
        (5, 2, 40, 128),
        (19, 3, 1, 7),
        (2, 64, 2, 31),
        # Beyond every block of the products, on several threads: rows of their own, then units.
        (12, 33, 520, 272),
        (40, 4, 24, 272),
    ],
)
@pytest.mark.parametrize("cell", NAMES)
def test_equals_torch_at_uneven_sizes(cell: str, T: int, B: int, I: int, H: int, form: str) -> None:
    """Sizes on both sides of every vector width, panel and block."""
    check(cell, form, make(cell, I, H), T, B)


@pytest.mark.parametrize("cell", NAMES)
def test_equals_torch_over_many_steps(cell: str) -> None:
    check(cell, "dense", make(cell, 8, 24), T=200, B=4)


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("p", [0.3, 1.0])
@pytest.mark.parametrize(("ours", "theirs"), LAYERS, ids=LAYER_IDS)
def test_dropout_of_one_seed_is_torchs(
    ours: Any, theirs: Any, p: float, bidirectional: bool, packed: bool
) -> None:
    options = {"num_layers": 3, "dropout": p, "bidirectional": bidirectional, "batch_first": True}
    layer, other = ours(4, 6, **options), theirs(4, 6, **options)
    layer.load_state_dict(other.state_dict())
    x: Any = torch.randn(5, 9, 4)
    if packed:
        x = pack_padded_sequence(x, torch.tensor([2, 9, 4, 4, 7]), True, enforce_sorted=False)
    torch.manual_seed(7)
    y, h_n = layer(x)
    torch.manual_seed(7)
    expected, h_n_expected = other(x)
    if packed:
        y, expected = y.data, expected.data
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(h_n, h_n_expected)
    assert torch.rand(()) == _next_after(other, x)

    layer.eval(), other.eval()
    torch.testing.assert_close(states(layer(x)[1]), states(other(x)[1]))


def _next_after(other: nn.Module, x: Any) -> torch.Tensor:
    """The next number of the generator after ``other`` has drawn its dropout."""
    torch.manual_seed(7)
    other(x)
    return torch.rand(())


def test_dropout_set_later_is_used() -> None:
    layer = fused.LSTM(3, 4, 2)
    x = torch.randn(5, 2, 3)
    before = layer(x)[0]
    layer.dropout = 0.9
    assert not torch.equal(layer(x)[0], before)
    assert torch.equal(layer.eval()(x)[0], before)


def test_dropout_gradient_equals_torchs() -> None:
    layer, other = fused.GRU(3, 4, 3, dropout=0.5), nn.GRU(3, 4, 3, dropout=0.5)
    layer.load_state_dict(other.state_dict())
    x = torch.randn(5, 2, 3)
    for module in (layer, other):
        torch.manual_seed(3)
        module(x)[0].square().sum().backward()
    for ours, theirs in zip(layer.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


# Forms of input.


@pytest.mark.parametrize(("ours", "theirs"), LAYERS, ids=LAYER_IDS)
def test_batch_first_unbatched_and_no_state(ours: Any, theirs: Any) -> None:
    for batch_first, bidirectional in itertools.product((False, True), repeat=2):
        options = {"num_layers": 2, "batch_first": batch_first, "bidirectional": bidirectional}
        layer, other = ours(4, 6, **options), theirs(4, 6, **options)
        layer.load_state_dict(other.state_dict())
        for size in [(5, 3, 4), (5, 4), (1, 1, 4), (1, 4), (5, 0, 4), (0, 5, 4)]:
            if size[0 if not batch_first or len(size) == 2 else 1] == 0:
                continue
            x = torch.randn(size)
            (y, h_n), (expected, h_n_expected) = layer(x), other(x)
            torch.testing.assert_close(y, expected)
            assert y.stride() == expected.stride() or y.numel() == 0
            torch.testing.assert_close(states(h_n), states(h_n_expected))
            y, _ = layer(x, h_n)
            torch.testing.assert_close(y, other(x, h_n)[0])


def test_batch_first_lengths_and_resets() -> None:
    layer = fused.GRU(3, 4, bidirectional=True)
    x, lengths, resets = torch.randn(6, 5, 3), torch.tensor([6, 0, 3, 1, 6]), torch.rand(6, 5) < 0.3
    y, h_n = layer(x, lengths=lengths, resets=resets)
    layer.batch_first = True
    y_swapped, h_n_swapped = layer(x.transpose(0, 1), lengths=lengths, resets=resets.T)
    assert torch.equal(y_swapped.transpose(0, 1), y)
    assert torch.equal(h_n_swapped, h_n)


def test_unbatched_lengths_and_resets() -> None:
    layer = fused.LSTM(3, 4, bidirectional=True)
    x, resets = torch.randn(6, 3), torch.tensor([True, False, False, True, False, False])
    y, (h_n, c_n) = layer(x, lengths=torch.tensor([4]), resets=resets)
    expected, (h_expected, c_expected) = layer(
        x.unsqueeze(1), lengths=torch.tensor([4]), resets=resets.unsqueeze(1)
    )
    assert torch.equal(y, expected.squeeze(1))
    assert torch.equal(h_n, h_expected.squeeze(1))
    assert torch.equal(c_n, c_expected.squeeze(1))
    assert torch.equal(layer(x, lengths=torch.tensor(4), resets=resets)[0], y)


@pytest.mark.parametrize("enforce_sorted", [True, False], ids=["sorted", "unsorted"])
@pytest.mark.parametrize(("ours", "theirs"), LAYERS, ids=LAYER_IDS)
def test_packed_sequence(ours: Any, theirs: Any, enforce_sorted: bool) -> None:
    layer, other = ours(4, 6, 2, bidirectional=True), theirs(4, 6, 2, bidirectional=True)
    layer.load_state_dict(other.state_dict())
    lengths = torch.tensor([7, 5, 5, 1] if enforce_sorted else [5, 1, 7, 5])
    packed = pack_padded_sequence(torch.randn(7, 4, 4), lengths, enforce_sorted=enforce_sorted)
    for hx in (None, random_state(layer, 4)):
        (y, h_n), (expected, h_n_expected) = layer(packed, hx), other(packed, hx)
        assert isinstance(y, PackedSequence)
        torch.testing.assert_close(y.data, expected.data)
        for name in ("batch_sizes", "sorted_indices", "unsorted_indices"):
            a, b = getattr(y, name), getattr(expected, name)
            assert a is b or torch.equal(a, b)
        torch.testing.assert_close(states(h_n), states(h_n_expected))


def test_resets_of_a_packed_sequence() -> None:
    layer = fused.GRU(3, 4, 2, bidirectional=True)
    lengths = torch.tensor([3, 6, 4])
    x, resets = torch.randn(6, 3, 3), torch.rand(6, 3) < 0.4
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    packed_resets = pack_padded_sequence(resets, lengths, enforce_sorted=False).data
    y, h_n = layer(packed, resets=packed_resets)
    expected, h_n_expected = layer(x, lengths=lengths, resets=resets)
    torch.testing.assert_close(pad_packed_sequence(y)[0], expected)
    torch.testing.assert_close(h_n, h_n_expected)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8])
def test_lengths_of_any_integer_dtype(dtype: torch.dtype) -> None:
    layer, x = fused.RNN(3, 4), torch.randn(6, 3, 3)
    lengths = torch.tensor([6, 0, 2])
    assert torch.equal(layer(x, lengths=lengths.to(dtype))[0], layer(x, lengths=lengths)[0])


@pytest.mark.parametrize("cell", NAMES)
def test_length_zero_returns_the_state_given(cell: str) -> None:
    layer = make(cell, 3, 4, 2, bidirectional=True)
    hx = random_state(layer, 3)
    y, h_n = layer(torch.randn(5, 3, 3), hx, lengths=torch.tensor([0, 5, 0]))
    for given, found in zip(states(hx), states(h_n), strict=True):
        assert torch.equal(found[:, [0, 2]], given[:, [0, 2]])
    assert not y[:, [0, 2]].any()


def test_state_as_a_list() -> None:
    layer, x = fused.LSTM(3, 4), torch.randn(5, 2, 3)
    h_0, c_0 = random_state(layer, 2)
    assert torch.equal(layer(x, [h_0, c_0])[0], layer(x, (h_0, c_0))[0])


@pytest.mark.parametrize("cell", NAMES)
def test_strided_and_expanded_tensors(cell: str) -> None:
    """Inputs, states, weights and output gradients of any strides give the same numbers."""
    layer = make(cell, 4, 6, 2, bidirectional=True)
    x = torch.randn(5, 3, 8)[..., ::2].requires_grad_()
    hx = [s.transpose(0, 1).contiguous().transpose(0, 1) for s in states(random_state(layer, 3))]
    arguments = hx[0] if len(hx) == 1 else hx
    plain = [s.contiguous() for s in hx]
    y, _ = layer(x, arguments)
    expected, _ = layer(x.contiguous(), plain[0] if len(plain) == 1 else plain)
    torch.testing.assert_close(y, expected)
    # an expanded gradient of the output, as sum() makes it
    grad = torch.autograd.grad(y.sum(), [x, *layer.parameters()])
    factors = torch.ones_like(expected)
    expected_grad = torch.autograd.grad((expected * factors).sum(), [x, *layer.parameters()])
    torch.testing.assert_close(grad, expected_grad)

    one = torch.randn(1, 1, 4).expand(5, 3, 4)
    torch.testing.assert_close(layer(one)[0], layer(one.contiguous())[0])


def test_transposed_weights() -> None:
    layer, x = fused.LSTM(4, 6), torch.randn(5, 3, 4)
    expected = layer(x)[0]
    for parameter in layer.parameters():
        if parameter.dim() == 2:
            parameter.data = parameter.data.t().contiguous().t()
    torch.testing.assert_close(layer(x)[0], expected)


# Gradients of a part of the inputs.


@pytest.mark.parametrize("cell", NAMES)
@pytest.mark.parametrize("wanted", ["x", "hx", "weights", "one_weight", "x+bias"])
def test_gradients_of_a_subset(cell: str, wanted: str) -> None:
    layer = make(cell, 3, 4, 2, bidirectional=True)
    x, hx = torch.randn(5, 2, 3), states(random_state(layer, 2))
    subset = {
        "x": [x],
        "hx": hx,
        "weights": list(layer.parameters()),
        "one_weight": [layer.weight_hh_l1_reverse],
        "x+bias": [x, layer.bias_hh_l0],
    }[wanted]

    def loss() -> torch.Tensor:
        y, h_n = layer(x, hx[0] if len(hx) == 1 else hx)
        return y.sin().sum() + sum(s.cos().sum() for s in states(h_n))

    for tensor in [x, *hx, *layer.parameters()]:
        tensor.requires_grad_(True)
    expected = torch.autograd.grad(loss(), subset)
    for tensor in [x, *hx, *layer.parameters()]:
        tensor.requires_grad_(any(tensor is s for s in subset))
    found = torch.autograd.grad(loss(), subset)
    torch.testing.assert_close(found, expected)


def test_gradient_of_one_output_alone() -> None:
    """h_n, c_n or y alone: the others' gradients are then undefined in the graph."""
    layer = fused.LSTM(3, 4, 2)
    x = torch.randn(5, 2, 3, requires_grad=True)
    y, (h_n, c_n) = layer(x)
    (from_h,) = torch.autograd.grad(h_n[-1].sum(), x, retain_graph=True)
    (from_y,) = torch.autograd.grad(y[-1].sum(), x, retain_graph=True)
    torch.testing.assert_close(from_h, from_y)
    other = nn.LSTM(3, 4, 2)
    other.load_state_dict(layer.state_dict())
    (expected,) = torch.autograd.grad(other(x)[1][1].sum(), x)
    torch.testing.assert_close(torch.autograd.grad(c_n.sum(), x)[0], expected)


@pytest.mark.parametrize("cell", NAMES)
@pytest.mark.parametrize("form", ["dense", "lengths", "resets"])
def test_gradcheck(cell: str, form: str) -> None:
    layer = make(cell, 2, 3, 2, bidirectional=True, dtype=torch.float64)
    p = Problem.of(cell, form, layer, T=3, B=2)
    if cell == "rnn_relu":  # finite differences need room on both sides of the kink
        p.weights = [w + 0.05 * w.sign() for w in p.weights]
    leaves = [leaf.requires_grad_() for leaf in p.leaves()]

    def outputs(*_: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(run_layer(layer, p))

    assert torch.autograd.gradcheck(outputs, leaves, fast_mode=True)


@pytest.mark.parametrize("cell", NAMES)
def test_gradgradcheck(cell: str) -> None:
    layer = make(cell, 2, 3, dtype=torch.float64)
    p = Problem.of(cell, "lengths", layer, T=3, B=2)
    leaves = [leaf.requires_grad_() for leaf in p.leaves()]

    def outputs(*_: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(run_layer(layer, p))

    assert torch.autograd.gradgradcheck(outputs, leaves, fast_mode=True)


# Functional forms.


def test_functional_equals_the_layer() -> None:
    x = torch.randn(5, 3, 4)
    options = {"num_layers": 2, "bidirectional": True}
    for cls, function in [
        (fused.LSTM, functional.lstm),
        (fused.GRU, functional.gru),
        (fused.RNN, functional.rnn),
    ]:
        layer = cls(4, 6, **options)
        y, h_n = function(x, None, list(layer.parameters()), **options)
        expected, h_n_expected = layer(x)
        assert torch.equal(y, expected)
        for a, b in zip(states(h_n), states(h_n_expected), strict=True):
            assert torch.equal(a, b)


def test_functional_rnn_names_an_unknown_nonlinearity() -> None:
    with pytest.raises(ValueError, match="Unknown nonlinearity 'sin'"):
        functional.rnn(torch.ones(2, 1, 1), None, [torch.ones(1, 1)] * 2, nonlinearity="sin")
