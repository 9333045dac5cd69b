"""Layers with variants: what their keyword arguments do, whatever cell and kernel does it."""

from __future__ import annotations

import copy
import io
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, linear
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import seq2seq_ext
from seq2seq_ext import functional, reference
from seq2seq_ext.variants import Variant

LAYERS = {"LSTM": seq2seq_ext.LSTM, "GRU": seq2seq_ext.GRU, "RNN": seq2seq_ext.RNN}
CELLS: dict[str, Any] = {
    "LSTM": seq2seq_ext.LSTMCell,
    "GRU": seq2seq_ext.GRUCell,
    "RNN": seq2seq_ext.RNNCell,
}
# One setting of each, and whether it draws numbers while training.
SETTINGS: list[tuple[dict[str, Any], bool]] = [
    ({"layer_norm": True}, False),
    ({"zoneout": 0.3}, True),
    ({"recurrent_dropout": 0.3}, True),
    ({"recurrent_dropout": 0.3, "recurrent_dropout_kind": "candidate"}, True),
    ({"weight_drop": 0.3}, True),
    ({"hard_sigmoid": True}, False),
    ({"residual": True}, False),
    ({"learn_initial_state": True}, False),
    ({"zoneout": (0.2, 0.3)}, True),
    ({"peephole": True}, False),
    ({"cell_clip": 0.5}, False),
    ({"proj_size": 3}, False),
    ({"proj_clip": 0.1, "proj_size": 3}, False),
    ({"proj_size": 3, "zoneout": 0.3, "layer_norm": True}, True),
    ({"coupled": True}, False),
    ({"forget_bias": 1.0}, False),
    ({"return_cells": True}, False),
]
FOR_LSTMS = ("peephole", "cell_clip", "coupled", "forget_bias", "return_cells")


def layers() -> list[Any]:
    found = []
    for kind in LAYERS:
        for settings, noisy in SETTINGS:
            lstm_only = any(name in settings for name in FOR_LSTMS) or isinstance(
                settings.get("zoneout"), tuple
            )
            candidate = settings.get("recurrent_dropout_kind") == "candidate"
            if kind != "LSTM" and (lstm_only or (kind == "RNN" and candidate)):
                continue
            name = kind + "-" + "-".join(f"{k}={v}" for k, v in settings.items())
            found.append(pytest.param(kind, settings, noisy, id=name.replace(" ", "")))
    return found


each_layer = pytest.mark.parametrize(("kind", "settings", "noisy"), layers())


def make(kind: str, settings: dict[str, Any], *sizes: Any, **options: Any) -> Any:
    return LAYERS[kind](*(sizes or (6, 6, 2)), **{"dtype": torch.float64} | settings | options)


def flat(value: Any) -> list[Tensor]:
    """All tensors of a result, in order."""
    if isinstance(value, Tensor):
        return [value]
    return [tensor for item in value for tensor in flat(item)]


def equal(a: Any, b: Any) -> None:
    for x, y in zip(flat(a), flat(b), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-12)


@each_layer
def test_takes_every_form_of_input(kind: str, settings: dict[str, Any], noisy: bool) -> None:
    layer = make(kind, settings, bidirectional=True).eval()
    x, lengths = torch.randn(5, 3, 6, dtype=torch.float64), torch.tensor([5, 2, 4])
    whole = layer(x, lengths=lengths)
    output, state, *cells = layer(pack_padded_sequence(x, lengths, enforce_sorted=False))
    padded = [pad_packed_sequence(steps)[0] for steps in (output, *cells)]
    equal((padded[0], state, *padded[1:]), whole)
    first = copy.deepcopy(layer)
    first.batch_first = True
    output, state, *cells = first(x.transpose(0, 1), lengths=lengths)
    equal((output.transpose(0, 1), state, *(c.transpose(0, 1) for c in cells)), whole)
    for b in range(3):
        output, state, *cells = layer(x[: lengths[b], b])
        equal(output, whole[0][: lengths[b], b])
        equal(state, [s[:, b] for s in flat(whole[1])])
        equal(cells, [c[: lengths[b], b] for c in whole[2:]])


@each_layer
def test_two_halves_are_the_whole(kind: str, settings: dict[str, Any], noisy: bool) -> None:
    layer = make(kind, settings).eval()
    x = torch.randn(6, 2, 6, dtype=torch.float64)
    output, state, *cells = layer(x)
    output1, middle, *cells1 = layer(x[:2])
    output2, end, *cells2 = layer(x[2:], middle)
    equal((output, *cells), (torch.cat([output1, output2]), *map(torch.cat, zip(cells1, cells2))))  # noqa: B905
    equal(state, end)
    resets = torch.zeros(6, 2, dtype=torch.bool)
    resets[2] = True
    if "learn_initial_state" not in settings:  # whose start is not the state after a reset
        equal(layer(x, resets=resets)[0][2:], layer(x[2:])[0])


@each_layer
def test_trains_every_parameter_and_draws_only_then(
    kind: str, settings: dict[str, Any], noisy: bool
) -> None:
    layer = make(kind, settings)
    x = torch.randn(5, 3, 6, dtype=torch.float64)
    torch.manual_seed(5)
    first = layer(x)
    flat(first)[0].square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    torch.manual_seed(5)
    equal(layer(x), first)
    other = flat(layer(x))[0]
    assert torch.equal(other, flat(first)[0]) == (not noisy)
    layer.eval()
    assert torch.equal(flat(layer(x))[0], flat(layer(x))[0])


@each_layer
def test_is_copied_stored_and_told(kind: str, settings: dict[str, Any], noisy: bool) -> None:
    layer = make(kind, settings).eval()
    x = torch.randn(5, 3, 6, dtype=torch.float64)
    wanted = layer(x)
    equal(copy.deepcopy(layer)(x), wanted)
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    equal(torch.load(buffer, weights_only=False)(x), wanted)
    other = make(kind, settings).eval()
    other.load_state_dict(layer.state_dict())
    equal(other(x), wanted)
    for name in settings:
        if name != "recurrent_dropout_kind":
            assert f"{name}=" in repr(layer)
    assert isinstance(layer, getattr(nn, kind))


@pytest.mark.parametrize("kind", LAYERS)
def test_without_settings_is_the_plain_layer(kind: str) -> None:
    torch.manual_seed(2)
    plain = LAYERS[kind](3, 4)
    torch.manual_seed(2)
    same = LAYERS[kind](3, 4, layer_norm=False, zoneout=0.0, weight_drop=0.0)
    assert same._variant is None
    assert repr(plain) == repr(same)
    equal(list(plain.parameters()), list(same.parameters()))


def test_layer_norm_is_that_of_the_paper() -> None:
    """Equations 20 to 22 of Ba, Kiros & Hinton (2016), step by step."""
    layer = make("LSTM", {"layer_norm": True}, 4, 3)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    x = torch.randn(5, 2, 4, dtype=torch.float64)
    h = c = torch.zeros(2, 3, dtype=torch.float64)
    for t in range(5):
        gates = layer_norm(linear(h, layer.weight_hh_l0), (12,), layer.norm_hh_l0, layer.bias_hh_l0)
        gates = gates + layer_norm(
            linear(x[t], layer.weight_ih_l0), (12,), layer.norm_ih_l0, layer.bias_ih_l0
        )
        i, f, g, o = gates.chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * layer_norm(c, (3,), layer.norm_c_l0, layer.bias_c_l0).tanh()
    output, (h_n, c_n) = layer(x)
    equal((output[-1], h_n[0], c_n[0]), (h, h, c))


def test_a_projected_gru_keeps_its_state_and_reads_the_projected_one() -> None:
    layer = make("GRU", {}, 4, 5, 2, proj_size=3, zoneout=0.25).eval()
    x = torch.randn(6, 2, 4, dtype=torch.float64)
    h_0 = torch.randn(2, 2, 5, dtype=torch.float64)
    given, h_n = x, []
    for k in range(2):
        w_ih, w_hh, b_ih, b_hh, w_hr = layer.all_weights[k]
        h, outputs = h_0[k], []
        for t in range(6):
            x_r, x_z, x_n = linear(given[t], w_ih, b_ih).chunk(3, 1)
            p_r, p_z, p_n = linear(linear(h, w_hr), w_hh, b_hh).chunk(3, 1)
            z = (x_z + p_z).sigmoid()
            n = (x_n + (x_r + p_r).sigmoid() * p_n).tanh()
            h = 0.25 * h + 0.75 * ((1 - z) * n + z * h)
            outputs.append(linear(h, w_hr))
        given = torch.stack(outputs)
        h_n.append(h)
    equal(layer(x, h_0), (given, torch.stack(h_n)))
    assert {name: tuple(p.shape) for name, p in layer.named_parameters() if "_l1" in name} == {
        "weight_ih_l1": (15, 3),
        "weight_hh_l1": (15, 3),
        "bias_ih_l1": (15,),
        "bias_hh_l1": (15,),
        "weight_hr_l1": (3, 5),
    }


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_a_projected_rnn_carries_the_projected_state(nonlinearity: str) -> None:
    layer = make("RNN", {}, 4, 5, proj_size=3, nonlinearity=nonlinearity)
    w_ih, w_hh, b_ih, b_hh, w_hr = layer.parameters()
    x = torch.randn(6, 2, 4, dtype=torch.float64)
    h, outputs = torch.randn(2, 3, dtype=torch.float64), []
    h_0 = h.unsqueeze(0)
    for t in range(6):
        total = linear(x[t], w_ih, b_ih) + linear(h, w_hh, b_hh)
        h = linear(getattr(torch, nonlinearity)(total), w_hr)
        outputs.append(h)
    equal(layer(x, h_0), (torch.stack(outputs), h.unsqueeze(0)))


@pytest.mark.parametrize("kind", LAYERS)
def test_projections_with_all_else(kind: str) -> None:
    """Second derivatives, lengths of zero and a size for each layer."""
    layer = make(kind, {}, 3, [5, 4], proj_size=2, bidirectional=True, layer_norm=True)
    x = torch.randn(3, 3, 3, dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([3, 0, 2])
    features = [(2, 2), (5, 4)] if kind == "LSTM" else [(5, 4) if kind == "GRU" else (2, 2)]
    state = [[torch.randn(2, 3, H, dtype=torch.float64) for H in sizes] for sizes in features]
    output, end = layer(x, state if kind == "LSTM" else state[0], lengths=lengths)
    assert output.shape == (3, 3, 4)
    assert not output[:, 1].any()
    for given, last in zip(flat(state), flat(end), strict=True):
        assert last.shape == given.shape
        assert torch.equal(last[:, 1], given[:, 1])

    def run(x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        hx: Any = state if kind != "LSTM" else (state[:2], state[2:])
        return tuple(flat(layer(x, hx, lengths=lengths)))

    leaves = (x, *(s.requires_grad_() for s in flat(state)))
    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, leaves, fast_mode=True)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["GRU", "RNN"])
def test_functions_take_the_weights_of_a_projected_layer(kind: str, bias: bool) -> None:
    layer = make(kind, {}, 4, 5, 2, bias=bias, proj_size=3, bidirectional=True)
    function = getattr(functional, kind.lower())
    weights, x = list(layer.parameters()), torch.randn(6, 2, 4, dtype=torch.float64)
    options = {"num_layers": 2, "bidirectional": True}
    equal(function(x, None, weights, **options), layer(x))
    narrow = [*weights[:-1], weights[-1][:, :4]]
    place = len(weights) - 1
    with pytest.raises(
        RuntimeError, match=rf"weights\[{place}\] must have size \(3, 5\), got \(3, 4\)"
    ):
        function(x, None, narrow, **options)
    if kind == "GRU":
        with pytest.raises(ValueError, match="w_hr is for a GRU with reset_after=True"):
            function(x, None, weights, reset_after=False, **options)


@pytest.mark.parametrize("kind", ["GRU", "RNN"])
def test_a_projected_layer_names_a_state_of_the_wrong_size(kind: str) -> None:
    layer = make(kind, {}, 4, 5, proj_size=3)
    x, features = torch.zeros(2, 1, 4, dtype=torch.float64), 5 if kind == "GRU" else 3
    with pytest.raises(
        RuntimeError, match=rf"Expected hidden size \(1, 1, {features}\), got \[1, 1, 4\]"
    ):
        layer(x, torch.zeros(1, 1, 4, dtype=torch.float64))
    cell = CELLS[kind](4, 5, proj_size=3)
    with pytest.raises(RuntimeError, match=f"inconsistent hidden_size: got 4, expected {features}"):
        cell(torch.zeros(1, 4), torch.zeros(1, 4))
    for proj_size in (-1, 5):
        with pytest.raises(ValueError, match="smaller than hidden_size 5, got"):
            CELLS[kind](4, 5, proj_size=proj_size)


def test_return_cells_gives_c_of_every_step_and_its_gradient() -> None:
    layer = make("LSTM", {"return_cells": True}, 4, 3, bidirectional=True)
    x = torch.randn(5, 2, 4, dtype=torch.float64, requires_grad=True)
    output, (_, c_n), cells = layer(x, lengths=torch.tensor([5, 3]))
    assert cells.shape == output.shape
    equal(cells[4, 0, :3], c_n[0, 0])
    equal(cells[2, 1, :3], c_n[0, 1])
    equal(cells[0, :, 3:], c_n[1])
    assert not cells[3:, 1].any()
    plain = nn.LSTM(4, 3, bidirectional=True, dtype=torch.float64)
    plain.load_state_dict(layer.state_dict())
    steps = [plain(x[: t + 1, :1])[1][1][0, 0] for t in range(5)]  # c of the first direction
    equal(cells[:, 0, :3], torch.stack(steps))
    weights = torch.randn(5, 3, dtype=torch.float64)
    [got] = torch.autograd.grad((cells[:, 0, :3] * weights).sum(), x)
    [want] = torch.autograd.grad((torch.stack(steps) * weights).sum(), x)
    equal(got, want)


@pytest.mark.parametrize("kind", LAYERS)
def test_each_layer_may_have_its_own_size(kind: str) -> None:
    layer = make(kind, {}, 4, [5, 3, 2], bidirectional=True)
    x, lengths = torch.randn(6, 3, 4, dtype=torch.float64), torch.tensor([6, 0, 4])
    h_0 = [torch.randn(2, 3, H, dtype=torch.float64) for H in (5, 3, 2)]
    hx = (h_0, [h + 1 for h in h_0]) if kind == "LSTM" else h_0
    output, state = layer(x, hx, lengths=lengths)
    below = x
    for index, H in enumerate((5, 3, 2)):
        single = getattr(nn, kind)(below.size(-1), H, bidirectional=True, dtype=torch.float64)
        names = {name: name.replace("_l0", f"_l{index}") for name in single.state_dict()}
        single.load_state_dict({a: layer.state_dict()[b] for a, b in names.items()})
        ours = LAYERS[kind](below.size(-1), H, bidirectional=True, dtype=torch.float64)
        ours.load_state_dict(single.state_dict())
        start = (hx[0][index], hx[1][index]) if kind == "LSTM" else hx[index]
        below, end = ours(below, start, lengths=lengths)
        got = [part[index] for part in state] if kind == "LSTM" else [state[index]]
        equal(got, flat(end))
    equal(output, below)
    assert layer.hidden_size == (5, 3, 2)
    assert layer.num_layers == 3


def test_residual_adds_a_layers_input() -> None:
    layer = make("GRU", {"residual": 2}, 4, 4, 3)
    given = x = torch.randn(5, 2, 4, dtype=torch.float64)
    single = seq2seq_ext.GRU(4, 4, dtype=torch.float64)
    for index in range(3):
        weights = layer.state_dict()
        single.load_state_dict(
            {name: weights[name.replace("_l0", f"_l{index}")] for name in single.state_dict()}
        )
        y = single(x)[0]
        x = y + x if index >= 2 else y
    equal(layer(given)[0], x)


def test_forget_bias_is_where_the_gate_begins() -> None:
    for coupled, first in ((False, 4), (True, 0)):
        layer = make("LSTM", {"forget_bias": 1.5, "coupled": coupled}, 3, 4, 2)
        for index in range(2):
            total = getattr(layer, f"bias_ih_l{index}") + getattr(layer, f"bias_hh_l{index}")
            assert torch.equal(total[first : first + 4], torch.full((4,), 1.5, dtype=torch.float64))


def test_initial_state_is_learnt_and_can_be_given() -> None:
    layer = make("LSTM", {"learn_initial_state": True}, 3, 4, 2)
    with torch.no_grad():
        layer.h_0.normal_()
        layer.c_0.normal_()
    x = torch.randn(5, 3, 3, dtype=torch.float64)
    given = (layer.h_0.expand(-1, 3, -1), layer.c_0.expand(-1, 3, -1))
    equal(layer(x), layer(x, given))
    equal(layer(x[:, 0]), layer(x[:, 0], tuple(s[:, 0] for s in given)))
    zeros = tuple(torch.zeros_like(s) for s in given)
    plain = nn.LSTM(3, 4, 2, dtype=torch.float64)
    plain.load_state_dict({k: v for k, v in layer.state_dict().items() if k not in ("h_0", "c_0")})
    equal(layer(x, zeros), plain(x))


def test_state_dropout_is_one_mask_for_all_steps() -> None:
    """With W_hh = 1 and a unit that keeps growing, a dropped state shows in every step alike."""
    layer = seq2seq_ext.RNN(1, 8, nonlinearity="relu", bias=False, recurrent_dropout=0.5)
    with torch.no_grad():
        layer.weight_ih_l0.fill_(1.0)
        layer.weight_hh_l0.copy_(torch.eye(8))
    y = layer(torch.ones(6, 16, 1))[0]
    dropped = y[1] == 1
    assert 0.3 < float(dropped.double().mean()) < 0.7
    for t in range(2, 6):
        assert torch.equal(y[t] == 1, dropped)


def test_zoneout_expects_while_evaluating() -> None:
    layer = seq2seq_ext.GRU(3, 4, zoneout=0.25, dtype=torch.float64).eval()
    plain = [layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0, layer.bias_hh_l0]
    x = torch.randn(6, 2, 3, dtype=torch.float64)
    h = torch.zeros(2, 4, dtype=torch.float64)
    for t in range(6):
        h = 0.25 * h + 0.75 * reference.gru_cell(x[t], h, *plain)
    equal(layer(x)[1][0], h)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("LSTM", {"zoneout": 1.0}, "zoneout must be a probability"),
        ("LSTM", {"zoneout": (0.1, 0.2, 0.3)}, "zoneout must be a probability, or a pair"),
        ("LSTM", {"weight_drop": -0.1}, "weight_drop must be a probability"),
        ("LSTM", {"recurrent_dropout_kind": "both"}, "must be 'state' or 'candidate', got 'both'"),
        ("LSTM", {"cell_clip": 0.0}, "cell_clip must be a positive number or None, got 0.0"),
        ("LSTM", {"proj_clip": 1.0}, "proj_clip is for a layer with proj_size"),
        ("GRU", {"proj_clip": 1.0}, "proj_clip is for a layer with proj_size"),
        ("RNN", {"proj_size": 6}, "proj_size has to be smaller than hidden_size"),
        (
            "GRU",
            {"proj_size": 2, "reset_after": False},
            "reset_after=True, got proj_size=2 and reset_after=False",
        ),
        ("LSTM", {"forget_bias": 1.0, "bias": False}, "forget_bias is for a layer with biases"),
        ("LSTM", {"residual": -1}, "residual must be a bool or the number of a layer"),
        ("GRU", {"peephole": True}, "peephole is for an LSTM"),
        ("GRU", {"zoneout": (0.1, 0.1)}, "zoneout of c is for an LSTM"),
        ("RNN", {"return_cells": True}, "return_cells is for an LSTM"),
        (
            "RNN",
            {"recurrent_dropout": 0.1, "recurrent_dropout_kind": "candidate"},
            "an RNN has no candidate",
        ),
    ],
)
def test_bad_settings_are_named(kind: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(kind, settings)


@pytest.mark.parametrize(
    ("sizes", "num_layers", "message"),
    [
        ([], 1, "hidden_size must be a positive number, or one for each layer"),
        ([3, 0], 1, "hidden_size must be a positive number"),
        ([3, 2], 3, "num_layers must be 2"),
    ],
)
def test_bad_sizes_are_named(sizes: list[int], num_layers: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        seq2seq_ext.LSTM(3, sizes, num_layers)
    layer = seq2seq_ext.GRU(3, [3, 2])
    with pytest.raises(RuntimeError, match="a Tensor for each of the 2 layers, got Tensor"):
        layer(torch.zeros(2, 1, 3), torch.zeros(2, 1, 3))
    with pytest.raises(RuntimeError, match=r"hx\[1\] of 2 features"):
        layer(torch.zeros(2, 1, 3), [torch.zeros(1, 1, 3)] * 2)


def test_torch_has_no_counterpart_to_restore() -> None:
    model = nn.Sequential(
        seq2seq_ext.LSTM(3, 4, peephole=True),
        seq2seq_ext.GRUCell(3, 4, zoneout=0.1),
        seq2seq_ext.GRU(3, 4, proj_size=2),
    )
    report: list[Any] = []
    seq2seq_ext.restore_modules(model, report=report)
    assert [item.reason for item in report] == ["torch.nn has no layers with variants"] * 3
    assert type(model[0]) is seq2seq_ext.LSTM


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'zone_out'"):
        seq2seq_ext.LSTM(3, 4, zone_out=0.1)  # type: ignore[call-arg]
    assert Variant() == Variant(zoneout=(0, 0))


@pytest.mark.parametrize("proj_size", [0, 3])
@pytest.mark.parametrize("kind", LAYERS)
def test_compiles_without_a_break(kind: str, proj_size: int) -> None:
    settings = {"layer_norm": True, "zoneout": 0.1, "proj_size": proj_size}
    layer = make(kind, settings, bidirectional=True, dtype=torch.float32)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for T, B in ((5, 3), (7, 2)):
        x = torch.randn(T, B, 6, requires_grad=True)
        results = []
        for run in (layer, compiled):
            torch.manual_seed(3)
            y = run(x)[0]
            results.append((y, *torch.autograd.grad(y.sum(), [x, *layer.parameters()])))
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b)


# ---- cells ---------------------------------------------------------------------------------------

LAYERS_ONLY = ("residual", "return_cells")


@each_layer
def test_a_cell_takes_the_steps_of_its_layer(
    kind: str, settings: dict[str, Any], noisy: bool
) -> None:
    if any(name in settings for name in LAYERS_ONLY):
        with pytest.raises(TypeError, match="unexpected keyword argument"):
            CELLS[kind](4, 6, **settings)
        return
    if "recurrent_dropout" in settings and "recurrent_dropout_kind" not in settings:
        with pytest.raises(ValueError, match="is for a layer, which draws one mask"):
            CELLS[kind](4, 6, **settings)
        return
    layer, cell = (
        make(kind, settings, 4, 6).eval(),
        CELLS[kind](4, 6, dtype=torch.float64, **settings).eval(),
    )
    weights = layer.state_dict()
    cell.load_state_dict({name: weights[_of_layer(name)] for name in cell.state_dict()})
    x = torch.randn(5, 3, 4, dtype=torch.float64)
    # A GRU's cell with a projection returns what its layer does; all others the state.
    two_results = kind == "GRU" and "proj_size" in settings
    state = None
    for t in range(5):
        result = cell(x[t], state)
        state = result[1] if two_results else result
    output, end = layer(x)
    equal(result, [output[-1], end[0]] if two_results else [s[0] for s in flat(end)])
    first = layer(x[:1, 0])
    equal(cell(x[0, 0]), [s[0] for s in flat(first if two_results else first[1])])
    cell.train()
    once, again = (flat(cell(x[0], state))[0] for _ in range(2))
    assert torch.equal(once, again) == (not noisy)


def _of_layer(name: str) -> str:
    return name if name in ("h_0", "c_0") else f"{name}_l0"


# ---- the pages -----------------------------------------------------------------------------------

PAGES = sorted((Path(__file__).parents[1] / "docs" / "variants").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_examples_of_a_page_run(page: Path) -> None:
    examples = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)
    assert examples
    names: dict[str, Any] = {}
    for example in examples:
        exec(example, names)


@pytest.mark.skipif(not PAGES, reason="the docs are not beside the tests")
def test_the_overview_names_every_setting() -> None:
    overview = next(page for page in PAGES if page.stem == "README").read_text()
    settings = {field.name for field in fields(Variant)} - {"recurrent_dropout_kind"}
    assert {name for name in settings if f"`{name}" not in overview} == set()
