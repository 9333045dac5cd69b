"""The executable specification: against the papers' equations written out, and torch.nn."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from layer_cases import NAMES, Problem, make, run_reference, run_torch
from torch import Tensor, nn

from seq2seq_ext import reference


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def test_lstm_cell_written_out_for_one_unit() -> None:
    """The six equations with numbers, x = 2, h = 0.5, c = -1."""
    w_ih, w_hh = [0.1, -0.2, 0.3, 0.4], [-0.5, 0.6, 0.7, -0.8]
    b_ih, b_hh = [0.01, 0.02, 0.03, 0.04], [0.05, 0.06, 0.07, 0.08]
    i, f, g, o = (
        2 * w + 0.5 * v + b + d for w, v, b, d in zip(w_ih, w_hh, b_ih, b_hh, strict=True)
    )
    c = sigmoid(f) * -1 + sigmoid(i) * math.tanh(g)
    h = sigmoid(o) * math.tanh(c)
    found = reference.lstm_cell(
        *(torch.tensor([[v]], dtype=torch.float64) for v in (2.0, 0.5, -1.0)),
        *(torch.tensor(w, dtype=torch.float64)[:, None] for w in (w_ih, w_hh)),
        *(torch.tensor(b, dtype=torch.float64) for b in (b_ih, b_hh)),
        torch.tensor([[3.0]], dtype=torch.float64),
    )
    assert found[0].item() == pytest.approx(3 * h, rel=1e-14)
    assert found[1].item() == pytest.approx(c, rel=1e-14)


@pytest.mark.parametrize("reset_after", [True, False])
def test_gru_cell_written_out_for_two_units(reset_after: bool) -> None:
    """Two units, since with one the two orders of the reset gate are the same but for the bias."""
    x, h = 0.7, [0.5, -0.25]
    w_ih = [0.1, -0.2, 0.3, 0.4, -0.5, 0.6]
    w_hh = [[0.7, -0.8], [0.9, 0.1], [-0.2, 0.3], [0.4, 0.5], [-0.6, 0.7], [0.8, -0.9]]
    b_ih, b_hh = [0.01, 0.02, 0.03, 0.04, 0.05, 0.06], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    r = [
        sigmoid(w_ih[u] * x + b_ih[u] + w_hh[u][0] * h[0] + w_hh[u][1] * h[1] + b_hh[u])
        for u in range(2)
    ]
    expected = []
    for u in range(2):
        row = w_hh[2 + u]
        z = sigmoid(w_ih[2 + u] * x + b_ih[2 + u] + row[0] * h[0] + row[1] * h[1] + b_hh[2 + u])
        row = w_hh[4 + u]
        if reset_after:
            past = r[u] * (row[0] * h[0] + row[1] * h[1] + b_hh[4 + u])
        else:
            past = row[0] * (r[0] * h[0]) + row[1] * (r[1] * h[1]) + b_hh[4 + u]
        n = math.tanh(w_ih[4 + u] * x + b_ih[4 + u] + past)
        expected.append((1 - z) * n + z * h[u])
    found = reference.gru_cell(
        torch.tensor([[x]], dtype=torch.float64),
        torch.tensor([h], dtype=torch.float64),
        torch.tensor(w_ih, dtype=torch.float64)[:, None],
        torch.tensor(w_hh, dtype=torch.float64),
        torch.tensor(b_ih, dtype=torch.float64),
        torch.tensor(b_hh, dtype=torch.float64),
        reset_after=reset_after,
    )
    assert found.tolist()[0] == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (reference.rnn_cell, nn.RNNCell(4, 5, dtype=torch.float64)),
        (reference.lstm_cell, nn.LSTMCell(4, 5, dtype=torch.float64)),
        (reference.gru_cell, nn.GRUCell(4, 5, dtype=torch.float64)),
        (reference.gru_cell, nn.GRUCell(4, 5, bias=False, dtype=torch.float64)),
    ],
)
def test_cells_equal_torchs(ours: Any, theirs: nn.RNNCellBase) -> None:
    x, h, c = (torch.randn(3, n, dtype=torch.float64) for n in (4, 5, 5))
    state = (h, c) if isinstance(theirs, nn.LSTMCell) else (h,)
    found = ours(x, *state, *theirs.parameters())
    expected = theirs(x, state if len(state) == 2 else h)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("form", ["dense", "lengths", "resets"])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh", "rnn_relu"])
def test_stacks_equal_torchs(cell: str, form: str) -> None:
    for num_layers, bidirectional, bias in itertools.product((1, 3), (False, True), (False, True)):
        layer = make(
            cell, 3, 4, num_layers, bias=bias, bidirectional=bidirectional, dtype=torch.float64
        )
        p = Problem.of(cell, form, layer, T=6, B=4)
        for found, expected in zip(run_reference(p), run_torch(p), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("cell", NAMES)
def test_is_differentiable_twice(cell: str) -> None:
    layer = make(cell, 2, 2, 2, bidirectional=True, dtype=torch.float64)
    p = Problem.of(cell, "lengths", layer, T=3, B=2)
    p.resets = torch.tensor([[False, True], [True, False], [False, False]])
    leaves = [leaf.requires_grad_() for leaf in p.leaves()]

    def outputs(*_: Tensor) -> tuple[Tensor, ...]:
        return tuple(run_reference(p))

    assert torch.autograd.gradcheck(outputs, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(outputs, leaves, fast_mode=True)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_padding_has_no_part_in_values_or_gradients(bad: float) -> None:
    layer = make("lstm", 3, 4, 2, bidirectional=True, dtype=torch.float64)
    p = Problem.of("lstm", "lengths", layer, T=5, B=3)
    p.lengths = torch.tensor([0, 5, 2])
    results = []
    for filling in (0.0, bad):
        x = p.x.clone()
        x[:, 0], x[2:, 2] = filling, filling
        p.x = x
        leaves = [leaf.requires_grad_() for leaf in p.leaves()]
        outputs = run_reference(p)
        loss = sum(output.sin().sum() for output in outputs)
        results.append([*outputs, *torch.autograd.grad(loss, leaves)])
        p.x = x.detach()
    for clean, found in zip(*results, strict=True):
        assert torch.equal(clean, found)


def arguments(**changes: Any) -> dict[str, Any]:
    """A good call of ``reference.rnn``: T 3, B 2, I 4, H 5, one layer, one direction."""
    good = {
        "x": torch.zeros(3, 2, 4),
        "h_0": torch.zeros(1, 2, 5),
        "c_0": torch.zeros(1, 2, 5),
        "weights": [torch.zeros(20, 4), torch.zeros(20, 5)],
        "cell": "lstm",
        "num_layers": 1,
        "bidirectional": False,
    }
    return good | changes


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"cell": "ltsm"}, ValueError, "cell must be one of lstm, gru"),
        ({"c_0": None}, RuntimeError, "c_0 must be given"),
        ({"x": torch.zeros(0, 2, 4)}, RuntimeError, "sequence length to be larger than 0"),
        ({"h_0": torch.zeros(1, 3, 5)}, RuntimeError, "Expected h_0 size"),
        ({"c_0": torch.zeros(1, 2, 6)}, RuntimeError, "Expected c_0 size"),
        ({"weights": [torch.zeros(20, 4)] * 2}, RuntimeError, r"Expected weights\[1\] size"),
        ({"weights": [torch.zeros(20, 4)] * 6}, RuntimeError, "got 6 tensors"),
        ({"h_0": torch.zeros(1, 2, 5).double()}, RuntimeError, "Expected h_0 dtype"),
        ({"lengths": torch.tensor([4, 1])}, ValueError, "between 0 and the 3 time steps"),
        ({"lengths": torch.tensor([-1, 1])}, ValueError, "from -1 to 1"),
        ({"lengths": torch.tensor([1])}, ValueError, "lengths must be torch.int64 of size"),
        ({"lengths": torch.tensor([1.0, 2.0])}, ValueError, "lengths must be torch.int64"),
        ({"resets": torch.zeros(3, 2)}, ValueError, "resets must be torch.bool"),
        ({"resets": torch.zeros(2, 3, dtype=torch.bool)}, ValueError, "resets must be torch.bool"),
        ({"dropout_mask": torch.zeros(1, 3, 2, 5)}, ValueError, "dropout_mask must be"),
        (
            {"batch_sizes": torch.tensor([2, 1]), "lengths": torch.tensor([2, 1])},
            ValueError,
            "exclude each other",
        ),
        (
            {"x": torch.zeros(4, 4), "batch_sizes": torch.tensor([1, 2, 1])},
            ValueError,
            "batch_sizes must fall",
        ),
        (
            {"x": torch.zeros(4, 4), "batch_sizes": torch.tensor([2, 1])},
            ValueError,
            "sum to the 4 rows",
        ),
    ],
)
def test_errors(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    reference.rnn(**arguments())
    with pytest.raises(error, match=message):
        reference.rnn(**arguments(**changes))
