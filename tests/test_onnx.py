"""Export to ONNX: onnxruntime gives the numbers of the layers, from the standard's own operators.

An export takes a second whatever is in the model, so one model makes all calls of a kind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from layer_cases import NAMES, make
from torch import Tensor, nn

import seq2seq_ext as s2s
from seq2seq_ext.data import extras
from seq2seq_ext.variants.operator import recurrence

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
pytest.importorskip("onnx.reference", reason="needs the extra onnx")
pytest.importorskip("onnxscript", reason="needs the extra onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime")

I, H = 3, 4
SIZES = [(6, 3), (1, 1), (9, 5)]  # T, B
# num_layers, bidirectional, bias, batch_first: every two values of every two of them meet.
FORMS = [
    (1, False, True, False),
    (1, False, False, True),
    (1, True, False, True),
    (2, False, False, False),
    (2, True, True, False),
    (2, True, True, True),
]
STATES = {"h_0": {1: "B"}, "c_0": {1: "B"}}

each_cell = pytest.mark.parametrize("cell", NAMES)


def run(path: Path, arguments: Sequence[Tensor]) -> list[Tensor]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    inputs = {n: t.numpy() for n, t in zip(names, arguments, strict=True)}
    return [torch.from_numpy(array) for array in session.run(None, inputs)]


def assert_same(found: list[Tensor], expected: Sequence[Tensor], names: Sequence[Any]) -> None:
    for name, a, b in zip(names, found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def operators(program: torch.onnx.ONNXProgram) -> Counter[str]:
    return Counter(node.op_type for node in program.model.graph)


class Calls(nn.Module):
    """Layers of one cell in every form, each called in every way."""

    def __init__(self, cell: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            make(
                cell,
                I,
                H,
                num_layers,
                bidirectional=bidirectional,
                bias=bias,
                batch_first=batch_first,
            )
            for num_layers, bidirectional, bias, batch_first in FORMS
        )
        self.names: list[str] = []

    def forward(self, x: Tensor, lengths: Tensor, h_0: Tensor, c_0: Tensor) -> list[Tensor]:
        outputs: list[Tensor] = []
        self.names.clear()

        def call(layer: nn.RNNBase, way: str, *arguments: Any, **options: Any) -> None:
            y, state = layer(*arguments, **options)
            outputs.extend([y, *(state if layer.mode == "LSTM" else [state])])
            kinds = ("y", "h_n", "c_n") if layer.mode == "LSTM" else ("y", "h_n")
            self.names.extend(f"{kind} of {layer} with {way}" for kind in kinds)

        for layer in self.layers:
            rows = layer.num_layers * (2 if layer.bidirectional else 1)
            h, c = h_0[:rows], c_0[:rows]
            hx = (h, c) if layer.mode == "LSTM" else h
            given = x.transpose(0, 1) if layer.batch_first else x
            call(layer, "nothing", given)
            call(layer, "lengths", given, lengths=lengths)
            call(layer, "hx and lengths", given, hx, lengths=lengths)
            if not layer.batch_first:
                call(layer, "hx", given, hx)
                one = (h[:, 0], c[:, 0]) if layer.mode == "LSTM" else h[:, 0]
                call(layer, "one sequence", x[:, 0], one)
        return outputs


@each_cell
def test_every_call_of_every_layer(cell: str, tmp_path: Path) -> None:
    model, path = Calls(cell).eval(), tmp_path / "model.onnx"

    def arguments(T: int, B: int) -> tuple[Tensor, ...]:
        lengths = torch.randint(0, T + 1, (B,))
        lengths[-1] = 0
        return torch.randn(T, B, I), lengths, torch.randn(4, B, H), torch.randn(4, B, H)

    program = s2s.onnx.export(
        model,
        arguments(5, 2),
        path,
        dynamic_shapes={"x": {0: "T", 1: "B"}, "lengths": {0: "B"}, **STATES},
        verbose=False,
    )
    calls = sum(layer.num_layers * (3 if layer.batch_first else 5) for layer in model.layers)
    operator = cell.partition("_")[0].upper()
    assert operators(program)[operator] == calls
    onnx.checker.check_model(path, full_check=True)
    for T, B in SIZES:
        given = arguments(T, B)
        with torch.no_grad():
            expected = model(*given)
        assert_same(run(path, given), expected, model.names)


class Steps(nn.Module):
    """Every cell, with and without bias and state, on a batch and on one row."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.ModuleList()
        for bias in (True, False):
            self.cells.append(s2s.LSTMCell(I, H, bias))
            self.cells.extend(s2s.GRUCell(I, H, bias, reset_after=after) for after in (True, False))
            self.cells.extend(s2s.RNNCell(I, H, bias, kind) for kind in ("tanh", "relu"))

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> list[Tensor]:
        outputs: list[Tensor] = []
        for cell in self.cells:
            lstm = isinstance(cell, nn.LSTMCell)
            for found in (
                cell(x),
                cell(x, (h, c) if lstm else h),
                cell(x[0], (h[0], c[0]) if lstm else h[0]),
            ):
                outputs.extend(found if lstm else [found])
        return outputs


def test_cells(tmp_path: Path) -> None:
    model, path = Steps().eval(), tmp_path / "model.onnx"
    s2s.onnx.export(
        model,
        (torch.randn(2, I), torch.randn(2, H), torch.randn(2, H)),
        path,
        dynamic_shapes=({0: "B"},) * 3,
        verbose=False,
    )
    onnx.checker.check_model(path, full_check=True)
    for B in (1, 2, 5):
        given = torch.randn(B, I), torch.randn(B, H), torch.randn(B, H)
        with torch.no_grad():
            expected = model(*given)
        assert_same(run(path, given), expected, range(len(expected)))


# What a cell of this name may have, noise-free; every setting that is exported meets another.
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("lstm", {"peephole": True}),
    ("lstm", {"peephole": True, "coupled": True, "bidirectional": True, "num_layers": 2}),
    ("lstm", {"coupled": True, "bias": False}),
    ("lstm", {"coupled": True, "hard_sigmoid": True, "forget_bias": 1.0}),
    ("lstm", {"peephole": True, "hard_sigmoid": True, "weight_drop": 0.5, "bias": False}),
    ("lstm", {"hidden_size": [4, 6], "bidirectional": True, "learn_initial_state": True}),
    ("lstm", {"forget_bias": 1.0, "recurrent_dropout": 0.5, "num_layers": 2, "dropout": 0.5}),
    ("gru", {"hard_sigmoid": True, "bidirectional": True}),
    ("gru", {"hard_sigmoid": True, "bias": False}),
    ("gru", {"hidden_size": (5, 4), "learn_initial_state": True, "recurrent_dropout": 0.5}),
    ("gru_reset_before", {"hard_sigmoid": True, "num_layers": 2, "residual": True}),
    ("gru_reset_before", {"learn_initial_state": True, "weight_drop": 0.5}),
    ("rnn_tanh", {"residual": True, "num_layers": 3, "hard_sigmoid": True}),
    ("rnn_tanh", {"learn_initial_state": True, "bidirectional": True, "batch_first": True}),
    ("rnn_relu", {"hidden_size": [4, 6], "bias": False}),
]


def with_variants(cell: str, options: dict[str, Any]) -> nn.RNNBase:
    """In evaluation mode; no parameter is zero or one, as some begin."""
    layer = make(cell, I, **{"hidden_size": H, **options}).eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return layer


class VariantCalls(nn.Module):
    """Layers with variants, each called with and without state and lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(with_variants(cell, options) for cell, options in VARIANTS)
        self.names: list[str] = []

    def forward(self, x: Tensor, lengths: Tensor) -> list[Tensor]:
        outputs: list[Tensor] = []
        self.names.clear()
        for layer in self.layers:
            given = x.transpose(0, 1) if layer.batch_first else x
            y, state = layer(given)
            for result in ((y, state), layer(given, state, lengths=lengths)):
                found = flat(result)
                outputs.extend(found)
                self.names.extend(f"{i} of {layer}" for i in range(len(found)))
        return outputs


def flat(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    return [tensor for part in result for tensor in flat(part)]


def test_every_variant_that_has_an_operator(tmp_path: Path) -> None:
    model, path = VariantCalls().eval(), tmp_path / "model.onnx"

    def arguments(T: int, B: int) -> tuple[Tensor, Tensor]:
        lengths = torch.randint(0, T + 1, (B,))
        lengths[-1] = 0
        return 2 * torch.randn(T, B, I), lengths

    program = s2s.onnx.export(
        model,
        arguments(5, 2),
        path,
        dynamic_shapes={"x": {0: "T", 1: "B"}, "lengths": {0: "B"}},
        verbose=False,
    )
    found = operators(program)
    directions = sum(la.num_layers * (2 if la.bidirectional else 1) for la in model.layers)
    assert found["LSTM"] + found["GRU"] + found["RNN"] == 2 * directions
    assert not found["MatMul"]  # the input's products are the operators'
    onnx.checker.check_model(path, full_check=True)
    for T, B in SIZES:
        given = arguments(T, B)
        with torch.no_grad():
            expected = model(*given)
        assert_same(run(path, given), expected, model.names)


def test_cells_and_calls_of_the_operator(tmp_path: Path) -> None:
    """Gates that no linear layer gave, at which the operator's own weights are the identity."""

    class Calls(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = s2s.LSTMCell(I, H, peephole=True, coupled=True)
            self.gru = s2s.GRUCell(I, H, hard_sigmoid=True, learn_initial_state=True)
            self.w_hh = nn.Parameter(torch.randn(3 * H, H))
            self.b_hn = nn.Parameter(torch.randn(H))

        def forward(self, x: Tensor, gates: Tensor, h: Tensor, c: Tensor) -> list[Tensor]:
            direct = recurrence(gates, self.w_hh, cell="gru", b_hn=self.b_hn, reverse=True)
            return [*self.lstm(x), *self.lstm(x, (h, c)), self.gru(x), direct[0], direct[2]]

    model, path = Calls().eval(), tmp_path / "model.onnx"
    given = torch.randn(2, I), torch.randn(5, 2, 3 * H), torch.randn(2, H), torch.randn(2, H)
    s2s.onnx.export(model, given, path, verbose=False)
    with torch.no_grad():
        expected = model(*given)
    assert_same(run(path, given), expected, range(len(expected)))


def test_float64_in_the_standards_own_evaluator(tmp_path: Path) -> None:
    """onnxruntime has no recurrent operators in float64, and the evaluator no relu in them."""
    names = [name for name in NAMES if name != "rnn_relu"]
    layers = [make(cell, I, H).double().eval() for cell in names]

    class All(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(layers)

        def forward(self, x: Tensor) -> list[Tensor]:
            return [layer(x)[0] for layer in self.layers]

    x, model = torch.randn(5, 2, I, dtype=torch.float64), All()
    program = s2s.onnx.export(model, (x,), verbose=False)
    found = onnx.reference.ReferenceEvaluator(program.model_proto).run(None, {"x": x.numpy()})
    for name, a, b in zip(names, found, model(x), strict=True):
        torch.testing.assert_close(torch.from_numpy(a), b, rtol=0, atol=1e-14, msg=name)


def test_the_weights_are_in_the_file_once_and_in_order(tmp_path: Path) -> None:
    layer, path = s2s.LSTM(64, 128, 2, bidirectional=True).eval(), tmp_path / "model.onnx"
    program = s2s.onnx.export(
        layer, (torch.randn(5, 2, 64),), path, dynamic_shapes=({0: "T", 1: "B"},), verbose=False
    )
    # What is left merges directions and layers of outputs; nothing of it touches a weight.
    assert operators(program) == {"LSTM": 2, "Transpose": 2, "Reshape": 2, "Concat": 2}
    size = sum(weight.nbytes for weight in layer.parameters())
    assert size < path.stat().st_size < size + 16_000
    x = torch.randn(7, 3, 64)
    with torch.no_grad():
        y, (h_n, c_n) = layer(x)
    assert_same(run(path, [x]), [y, h_n, c_n], ["y", "h_n", "c_n"])


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_the_weights_of_variants_are_in_the_file_once_and_in_order(
    cell: str, tmp_path: Path
) -> None:
    options = {"peephole": True} if cell == "lstm" else {"hard_sigmoid": True}
    layer, path = make(cell, 64, 128, 2, **options).eval(), tmp_path / "model.onnx"
    program = s2s.onnx.export(
        layer, (torch.randn(5, 2, 64),), path, dynamic_shapes=({0: "T", 1: "B"},), verbose=False
    )
    name, states = cell.upper(), 2 if cell == "lstm" else 1
    left = Counter(node.op_type for node in program.model.graph)
    assert left.pop(name) == 2
    assert set(left) <= {"Squeeze", "Unsqueeze", "Concat"}
    size = sum(weight.nbytes for weight in layer.parameters())
    assert size < path.stat().st_size < size + 16_000
    x = torch.randn(7, 3, 64)
    with torch.no_grad():
        expected = flat(layer(x))
    assert_same(run(path, [x]), expected, range(1 + states))


def test_the_table_serves_torchs_own_function(tmp_path: Path) -> None:
    """It leaves large weights for the runtime to order."""
    layer, path = s2s.GRU(64, 128).eval(), tmp_path / "model.onnx"
    program = torch.onnx.export(
        layer,
        (torch.randn(5, 2, 64),),
        path,
        dynamo=True,
        custom_translation_table=s2s.onnx.translations(),
        dynamic_shapes=({0: "T", 1: "B"},),
        verbose=False,
    )
    assert operators(program)["GRU"] == 1
    x = torch.randn(7, 3, 64)
    with torch.no_grad():
        expected = layer(x)
    assert_same(run(path, [x]), expected, ["y", "h_n"])


def test_a_model_around_a_layer(tmp_path: Path) -> None:
    """Embeddings, a projection, and weights that are computed, as torch.export has them."""

    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(11, I)
            self.encoder = nn.utils.parametrizations.weight_norm(
                s2s.LSTM(I, H, batch_first=True, bidirectional=True), "weight_hh_l0"
            )
            self.output = nn.Linear(2 * H, 7)

        def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
            return self.output(self.encoder(self.embedding(tokens), lengths=lengths)[0])

    model, path = Tagger().eval(), tmp_path / "model.onnx"
    T, B = torch.export.Dim("T"), torch.export.Dim("B")
    program = torch.export.export(
        model,
        (torch.zeros(2, 5, dtype=torch.int64), torch.tensor([5, 2])),
        dynamic_shapes=({0: B, 1: T}, {0: B}),
    )
    s2s.onnx.export(program, f=path, verbose=False)
    tokens, lengths = torch.randint(11, (4, 6)), torch.tensor([6, 0, 3, 1])
    with torch.no_grad():
        expected = model(tokens, lengths)
    assert_same(run(path, [tokens, lengths]), [expected], ["output"])


X = torch.randn(5, 2, I)
REFUSED: list[tuple[nn.Module, dict[str, Any], str]] = [
    (s2s.LSTM(I, H, proj_size=2).eval(), {}, "proj_size: ONNX's LSTM has no projection"),
    (s2s.LSTM(I, H, proj_size=2, bias=False).eval(), {}, "proj_size"),
    (
        s2s.GRU(I, H).eval(),
        {"resets": torch.zeros(5, 2, dtype=torch.bool)},
        "resets: ONNX's GRU cannot zero the state in mid-sequence",
    ),
    (s2s.LSTM(I, H, layer_norm=True).eval(), {}, "layer_norm: ONNX's LSTM does not normalize"),
    (s2s.GRU(I, H, layer_norm=True).eval(), {}, "layer_norm: ONNX's GRU"),
    (s2s.RNN(I, H, zoneout=0.1).eval(), {}, "zoneout: ONNX's RNN does not mix"),
    (s2s.LSTM(I, H, zoneout=(0.0, 0.1)).eval(), {}, "zoneout: ONNX's LSTM"),
    (s2s.LSTM(I, H, cell_clip=1.0).eval(), {}, "cell_clip: ONNX's LSTM clips the sums"),
    (s2s.LSTM(I, H, return_cells=True).eval(), {}, "return_cells: ONNX's LSTM returns the last"),
    (s2s.LSTM(I, H, peephole=True, proj_size=2).eval(), {}, "proj_size"),
    (
        s2s.GRU(I, H, hard_sigmoid=True).eval(),
        {"resets": torch.zeros(5, 2, dtype=torch.bool)},
        "resets: ONNX's GRU cannot zero",
    ),
    (s2s.GRU(I, H, recurrent_dropout=0.1), {}, r"recurrent_dropout: .* call model.eval\(\)"),
    (
        s2s.LSTM(I, H, recurrent_dropout=0.1, recurrent_dropout_kind="candidate"),
        {},
        "recurrent_dropout: ONNX's LSTM has none",
    ),
    (s2s.LSTM(I, H, weight_drop=0.1), {}, r"weight_drop: .* call model.eval\(\)"),
    (s2s.GRU(I, H, proj_size=2).eval(), {}, "proj_size: ONNX's GRU has no projection"),
    (s2s.RNN(I, H, 2, dropout=0.5), {}, r"dropout: ONNX's RNN .* call model.eval\(\)"),
]


@pytest.mark.filterwarnings("ignore:.*while it is in training mode:UserWarning")
@pytest.mark.parametrize(("layer", "options", "message"), REFUSED)
def test_what_onnx_cannot_express_is_refused(
    layer: nn.Module, options: dict[str, Tensor], message: str
) -> None:
    with pytest.raises(s2s.onnx.NotInOnnxError, match=message):
        s2s.onnx.export(layer, (X,), kwargs=options, verbose=False)


@pytest.mark.filterwarnings("ignore:.*while it is in training mode:UserWarning")
def test_torchs_own_function_hands_on_the_reason() -> None:
    layer, options, message = REFUSED[2]
    with pytest.raises(torch.onnx.OnnxExporterError) as error:
        torch.onnx.export(
            layer,
            (X,),
            kwargs=options,
            dynamo=True,
            custom_translation_table=s2s.onnx.translations(),
            verbose=False,
        )
    assert message in str(error.value)


def test_other_errors_are_torchs() -> None:
    with pytest.raises(torch.onnx.OnnxExporterError, match="Expected 4, got 3"):
        s2s.onnx.export(s2s.GRU(I + 1, H).eval(), (X,), verbose=False)


def test_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(extras.MissingExtraError, match=r"pip install 'seq2seq_ext\[onnx\]'"):
        s2s.onnx.translations()
    with pytest.raises(extras.MissingExtraError, match=r"pip install 'seq2seq_ext\[onnx\]'"):
        s2s.onnx.export(s2s.GRU(I, H), (X,))
