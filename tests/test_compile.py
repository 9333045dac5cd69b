"""``torch.compile``: a layer is one node, compiled once for all sizes, with eager's numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from layer_cases import CELL_IDS, CELLS, NAMES, Between, make, random_state, states
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.nn.utils import parametrizations

import seq2seq_ext.nn as fused
from seq2seq_ext import ops

each_cell = pytest.mark.parametrize("cell", NAMES)


@pytest.fixture(autouse=True)
def nothing_compiled_before() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


class Three(nn.Module):
    """One layer of each kind, in different forms, and all that they return."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = fused.LSTM(3, 8, 2, bidirectional=True, proj_size=4)
        self.gru = fused.GRU(8, 6, batch_first=True, reset_after=False)
        self.rnn = fused.RNN(6, 5, nonlinearity="relu", bidirectional=True)

    def forward(self, x: Tensor, lengths: Tensor, h_0: Tensor) -> list[Tensor]:
        y, (h_n, c_n) = self.lstm(x, lengths=lengths)
        y, h_gru = self.gru(y.transpose(0, 1), h_0, lengths=lengths)
        y, h_rnn = self.rnn(y.transpose(0, 1))
        return [y, h_n, c_n, h_gru, h_rnn]


# T, B.  None is 1, for which torch compiles anew whatever the model; and those of the first call
# are no other size of its inputs, for torch takes equal sizes for one until it learns otherwise.
SIZES = [(9, 4), (2, 2), (6, 3), (4, 7), (30, 5), (5, 2), (3, 12), (7, 7), (2, 9), (12, 3)]


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
def test_three_layers_compile_as_one_graph_once(autocast: bool) -> None:
    model = Three()
    compiled = torch.compile(model, fullgraph=True, dynamic=True)

    def run(function: Any, *arguments: Tensor) -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            outputs = function(*arguments)
        loss = sum(output.float().square().sum() for output in outputs)
        return [*outputs, *torch.autograd.grad(loss, [arguments[0], *model.parameters()])]

    with torch._dynamo.config.patch(error_on_recompile=True):
        for T, B in SIZES:
            lengths = torch.randint(0, T + 1, (B,))
            arguments = torch.randn(T, B, 3, requires_grad=True), lengths, torch.randn(1, B, 6)
            torch.testing.assert_close(run(compiled, *arguments), run(model, *arguments))
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


@pytest.mark.parametrize("with_lengths", [False, True], ids=["dense", "lengths"])
@each_cell
def test_compiles_as_one_graph_for_all_sizes(cell: str, with_lengths: bool) -> None:
    from torch._dynamo.testing import CompileCounterWithBackend

    model = Between(make(cell, 3, 4, 2, bidirectional=True, batch_first=True))
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=counter)
    compilations = set()
    for T, B in [(6, 3), (9, 4), (4, 7)]:
        x = torch.randn(B, T, 5)
        lengths = torch.randint(0, T + 1, (B,)) if with_lengths else None
        found, expected = compiled(x, lengths), model(x, lengths)
        torch.testing.assert_close(found, expected)
        grads = torch.autograd.grad(found.square().sum(), model.parameters())
        torch.testing.assert_close(
            grads, torch.autograd.grad(expected.square().sum(), model.parameters())
        )
        compilations.add(counter.frame_count)
    assert len(compilations) == 1, "another size was compiled anew"
    nodes = [str(node.target) for node in counter.graphs[-1].graph.nodes]
    assert sum("seq2seq_ext.rnn" in name for name in nodes) == 1


def test_compiles_with_dropout_and_resets() -> None:
    layer = fused.GRU(3, 4, 3, dropout=0.5)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for T in (5, 8):
        x, resets = torch.randn(T, 2, 3), torch.rand(T, 2) < 0.3
        torch.manual_seed(1)
        found = compiled(x, resets=resets)[0]
        torch.manual_seed(1)
        torch.testing.assert_close(found, layer(x, resets=resets)[0])


@pytest.mark.parametrize(("ours", "theirs"), CELLS, ids=CELL_IDS)
def test_cells_compile_as_one_graph(ours: Any, theirs: Any) -> None:
    cell = ours(3, 4)
    compiled = torch.compile(cell, fullgraph=True, dynamic=True, backend="aot_eager")
    for B in (2, 5):
        x = torch.randn(B, 3)
        torch.testing.assert_close(compiled(x), cell(x))


def test_parametrized_layers_run_under_compile() -> None:
    layer, x = fused.LSTM(3, 4), torch.randn(5, 2, 3)
    parametrizations.weight_norm(layer, "weight_hh_l0")
    model = Between(layer)
    compiled = torch.compile(model, backend="aot_eager")
    x = torch.randn(5, 2, 5)
    torch.testing.assert_close(compiled(x), model(x))


@each_cell
def test_operator_passes_opcheck(cell: str) -> None:
    from torch.library import opcheck

    for options in (
        {},
        {"lengths": torch.tensor([5, 0, 3])},
        {"resets": torch.rand(5, 3) < 0.4},
    ):
        layer = make(cell, 3, 4, 2, bidirectional=True)
        hx = [s.requires_grad_() for s in states(random_state(layer, 3))]
        x = torch.randn(5, 3, 3, requires_grad=True)
        arguments = (
            x,
            hx[0],
            hx[1] if len(hx) == 2 else None,
            list(layer.parameters()),
            ops.CELLS.index(cell),
            2,
            True,
            True,
        )
        checks = ["test_schema", "test_autograd_registration", "test_faketensor"]
        if "lengths" not in options:
            # This one compares every output, and with lengths the reserve, which is sized for the
            # longest that they could be, has an end that nobody writes or reads. What compiled
            # layers compute from lengths has a test of its own.
            checks.append("test_aot_dispatch_dynamic")
        results = opcheck(torch.ops.seq2seq_ext.rnn.default, arguments, options, test_utils=checks)
        assert set(results.values()) == {"SUCCESS"}
