"""What holds for every recurrent layer, for problems that hypothesis makes up.

None of these compares with another implementation: they say what a sequence, a batch, a length and
a reset mean.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_cases import NAMES, make, random_state, states
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


@st.composite
def layers(draw: st.DrawFn, *, bidirectional: bool | None = None) -> nn.RNNBase:
    """A layer in float64 of any cell and small sizes."""
    cell = draw(st.sampled_from(NAMES))
    hidden_size = draw(st.integers(1, 9))
    options: dict[str, Any] = {}
    if cell != "gru_reset_before" and hidden_size > 1 and draw(st.booleans()):
        options["proj_size"] = draw(st.integers(1, hidden_size - 1))
    torch.manual_seed(draw(st.integers(0, 2**20)))
    return make(
        cell,
        draw(st.integers(1, 6)),
        hidden_size,
        draw(st.integers(1, 3)),
        bias=draw(st.booleans()),
        bidirectional=draw(st.booleans()) if bidirectional is None else bidirectional,
        dtype=torch.float64,
        **options,
    )


sizes = st.integers(1, 8)


def with_gradients(layer: nn.RNNBase, x: Tensor, hx: Any, **options: Any) -> list[Tensor]:
    """y, the last states, and the gradients of x, hx and the weights for a loss of all outputs."""
    leaves = [x.detach().requires_grad_(), *(s.detach().requires_grad_() for s in states(hx))]
    state = leaves[1] if len(leaves) == 2 else tuple(leaves[1:])
    y, h_n = layer(leaves[0], state, **options)
    loss = y.sin().sum() + sum(s.cos().sum() for s in states(h_n))
    return [y, *states(h_n), *torch.autograd.grad(loss, [*leaves, *layer.parameters()])]


def close(found: Any, expected: Any) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


@settings(max_examples=40)
@given(layer=layers(), T=sizes, B=sizes)
def test_batch_of_one_equals_batch_of_many(layer: nn.RNNBase, T: int, B: int) -> None:
    x, hx = torch.randn(T, B, layer.input_size, dtype=torch.float64), random_state(layer, B)
    lengths, resets = torch.randint(0, T + 1, (B,)), torch.rand(T, B) < 0.3
    y, h_n = layer(x, hx, lengths=lengths, resets=resets)
    for b in range(B):
        alone = [s[:, b : b + 1] for s in states(hx)]
        y_b, h_b = layer(
            x[:, b : b + 1],
            alone[0] if len(alone) == 1 else alone,
            lengths=lengths[b : b + 1],
            resets=resets[:, b : b + 1],
        )
        close([y_b, *states(h_b)], [y[:, b : b + 1], *(s[:, b : b + 1] for s in states(h_n))])


@settings(max_examples=40)
@given(
    layer=layers(),
    T=sizes,
    B=sizes,
    filling=st.sampled_from([0.0, 1e30, -7.5, math.nan, math.inf, -math.inf]),
)
def test_padding_changes_nothing(layer: nn.RNNBase, T: int, B: int, filling: float) -> None:
    """Neither what stands past the end of a sequence, nor how much of it."""
    lengths = torch.randint(0, T + 1, (B,))
    x, hx = torch.randn(T, B, layer.input_size, dtype=torch.float64), random_state(layer, B)
    inside = torch.arange(T)[:, None] < lengths
    expected = with_gradients(layer, x.where(inside[..., None], 0), hx, lengths=lengths)
    filled = x.where(inside[..., None], filling)
    found = with_gradients(layer, filled, hx, lengths=lengths)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)
    assert not found[0].where(inside[..., None], 0).ne(found[0]).any()  # outputs past the end: 0

    longer = torch.cat([filled, torch.full((3, B, layer.input_size), filling).double()])
    found = with_gradients(layer, longer, hx, lengths=lengths)
    at_x = 1 + len(states(hx))  # in with_gradients' list: y, the states, then d_x
    for index in (0, at_x):
        assert not found[index][T:].any()
        found[index] = found[index][:T]
    close(found, expected)


@settings(max_examples=40)
@given(layer=layers(bidirectional=False), T=st.integers(2, 9), B=sizes, data=st.data())
def test_two_halves_equal_the_whole(layer: nn.RNNBase, T: int, B: int, data: st.DataObject) -> None:
    cut = data.draw(st.integers(1, T - 1))
    x, hx = torch.randn(T, B, layer.input_size, dtype=torch.float64), random_state(layer, B)
    lengths, resets = torch.randint(0, T + 1, (B,)), torch.rand(T, B) < 0.3
    y, h_n = layer(x, hx, lengths=lengths, resets=resets)
    first, state = layer(x[:cut], hx, lengths=lengths.clamp(max=cut), resets=resets[:cut])
    second, last = layer(x[cut:], state, lengths=(lengths - cut).clamp(min=0), resets=resets[cut:])
    close([torch.cat([first, second]), *states(last)], [y, *states(h_n)])


@settings(max_examples=40)
@given(layer=layers(bidirectional=False), T=st.integers(2, 9), B=sizes, data=st.data())
def test_reset_equals_fresh_start(layer: nn.RNNBase, T: int, B: int, data: st.DataObject) -> None:
    t = data.draw(st.integers(0, T - 1))
    x, hx = torch.randn(T, B, layer.input_size, dtype=torch.float64), random_state(layer, B)
    resets = torch.zeros(T, B, dtype=torch.bool)
    resets[t] = True
    y, h_n = layer(x, hx, resets=resets)
    fresh, last = layer(x[t:])
    close([y[t:], *states(h_n)], [fresh, *states(last)])
    if t > 0:
        close([y[:t]], [layer(x[:t], hx)[0]])


@settings(max_examples=30)
@given(layer=layers(bidirectional=True), T=sizes, B=sizes)
def test_reverse_direction_reads_backwards(layer: nn.RNNBase, T: int, B: int) -> None:
    """The second direction of a layer is a layer of its own over the reversed sequence."""
    if layer.num_layers > 1:
        layer = make_like(layer, num_layers=1, bidirectional=True)
    x, hx = torch.randn(T, B, layer.input_size, dtype=torch.float64), random_state(layer, B)
    resets = torch.rand(T, B) < 0.3
    y, h_n = layer(x, hx, resets=resets)
    single = make_like(layer, num_layers=1, bidirectional=False)
    single.load_state_dict(
        {
            name.removesuffix("_reverse"): value
            for name, value in layer.state_dict().items()
            if name.endswith("_reverse")
        }
    )
    reverse = [s[1:] for s in states(hx)]
    y_reverse, last = single(
        x.flip(0), reverse[0] if len(reverse) == 1 else reverse, resets=resets.flip(0)
    )
    half = y.shape[-1] // 2
    close([y[..., half:].flip(0), *(s[1:] for s in states(h_n))], [y_reverse, *states(last)])


def make_like(layer: nn.RNNBase, **changes: Any) -> nn.RNNBase:
    """A layer of the same cell and sizes but for ``changes``."""
    options: dict[str, Any] = {
        "num_layers": layer.num_layers,
        "bidirectional": layer.bidirectional,
        "bias": layer.bias,
        "dtype": torch.float64,
    }
    if layer.proj_size:
        options["proj_size"] = layer.proj_size
    if layer.mode == "GRU":
        options["reset_after"] = layer.reset_after
    if layer.mode.startswith("RNN"):
        options["nonlinearity"] = layer.nonlinearity
    return type(layer)(layer.input_size, layer.hidden_size, **(options | changes))


@settings(max_examples=40)
@given(layer=layers(), T=sizes, B=sizes)
def test_lengths_equal_packing(layer: nn.RNNBase, T: int, B: int) -> None:
    lengths = torch.randint(1, T + 1, (B,))
    x, hx = torch.randn(T, B, layer.input_size, dtype=torch.float64), random_state(layer, B)
    found = with_gradients(layer, x, hx, lengths=lengths)

    def packed(x: Tensor, hx: Any) -> Any:
        y, h_n = layer(pack_padded_sequence(x, lengths, enforce_sorted=False), hx)
        return pad_packed_sequence(y, total_length=T)[0], h_n

    leaves = [x.detach().requires_grad_(), *(s.detach().requires_grad_() for s in states(hx))]
    y, h_n = packed(leaves[0], leaves[1] if len(leaves) == 2 else tuple(leaves[1:]))
    loss = y.sin().sum() + sum(s.cos().sum() for s in states(h_n))
    close(
        found,
        [y, *states(h_n), *torch.autograd.grad(loss, [*leaves, *layer.parameters()])],
    )


@settings(max_examples=30)
@given(layer=layers(), T=sizes, B=st.integers(2, 8), seed=st.integers(0, 1000))
def test_order_of_the_batch_is_free(layer: nn.RNNBase, T: int, B: int, seed: int) -> None:
    order = torch.randperm(B, generator=torch.Generator().manual_seed(seed))
    x, hx = torch.randn(T, B, layer.input_size, dtype=torch.float64), random_state(layer, B)
    lengths = torch.randint(0, T + 1, (B,))
    y, h_n = layer(x, hx, lengths=lengths)
    shuffled = [s[:, order] for s in states(hx)]
    y_shuffled, h_shuffled = layer(
        x[:, order], shuffled[0] if len(shuffled) == 1 else shuffled, lengths=lengths[order]
    )
    close([y_shuffled, *states(h_shuffled)], [y[:, order], *(s[:, order] for s in states(h_n))])


@settings(max_examples=30)
@given(layer=layers(), T=sizes, B=sizes)
def test_full_lengths_and_no_resets_are_the_plain_call(layer: nn.RNNBase, T: int, B: int) -> None:
    x, hx = torch.randn(T, B, layer.input_size, dtype=torch.float64), random_state(layer, B)
    expected = with_gradients(layer, x, hx)
    for options in (
        {"lengths": torch.full((B,), T)},
        {"resets": torch.zeros(T, B, dtype=torch.bool)},
    ):
        close(with_gradients(layer, x, hx, **options), expected)


@pytest.mark.parametrize("cell", NAMES)
def test_resets_past_the_end_do_nothing(cell: str) -> None:
    layer = make(cell, 3, 4, 2, bidirectional=True)
    x, lengths = torch.randn(6, 2, 3), torch.tensor([2, 4])
    resets = torch.zeros(6, 2, dtype=torch.bool)
    hx = random_state(layer, 2)
    expected = layer(x, hx, lengths=lengths, resets=resets)
    resets[2:, 0], resets[4:, 1] = True, True
    found = layer(x, hx, lengths=lengths, resets=resets)
    assert torch.equal(found[0], expected[0])
    for a, b in zip(states(found[1]), states(expected[1]), strict=True):
        assert torch.equal(a, b)
