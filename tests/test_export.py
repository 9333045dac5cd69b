"""``torch.export``, packages of AOTInductor in Python and C++, and TorchScript."""

from __future__ import annotations

import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from layer_cases import CELL_IDS, CELLS, NAMES, Between, make, states
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import seq2seq_ext as s2s

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "aoti"
DOCS = ROOT / "docs" / "export.md"

CXX = os.environ.get("CXX", "g++")
SIZES = [(5, 3), (2, 6), (1, 1), (9, 2)]  # T, B

each_cell = pytest.mark.parametrize("cell", NAMES)
each_strictness = pytest.mark.parametrize("strict", [False, True], ids=["nonstrict", "strict"])


@each_strictness
@each_cell
def test_exports_with_any_number_of_steps_and_sequences(cell: str, strict: bool) -> None:
    model = Between(make(cell, 3, 4, 2, bidirectional=True, batch_first=True)).eval()
    steps, batch = torch.export.Dim("steps", min=2), torch.export.Dim("batch", min=2)
    program = torch.export.export(
        model, (torch.randn(3, 6, 5),), dynamic_shapes=({0: batch, 1: steps},), strict=strict
    )
    names = [str(n.target) for n in program.graph.nodes if n.op == "call_function"]
    assert sum("seq2seq_ext.rnn" in name for name in names) == 1
    for size in [(2, 9, 5), (7, 4, 5)]:
        x = torch.randn(size)
        torch.testing.assert_close(program.module()(x), model(x))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    x = torch.randn(4, 3, 5)
    torch.testing.assert_close(torch.export.load(file).module()(x), model(x))


class Everything(nn.Module):
    """A layer of each kind with everything that a call can give it, and each cell."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(make(cell, 3, 4, 2, bidirectional=True) for cell in NAMES)
        self.cells = nn.ModuleList(ours(3, 4) for ours, _ in CELLS)

    def forward(
        self, x: Tensor, h_0: Tensor, c_0: Tensor, lengths: Tensor, resets: Tensor
    ) -> list[Tensor]:
        outputs: list[Tensor] = []
        for layer in self.layers:
            hx = (h_0, c_0) if layer.mode == "LSTM" else h_0
            y, state = layer(x, hx, lengths=lengths, resets=resets)
            outputs.extend([y, *states(state)])
        for cell in self.cells:
            outputs.extend(states(cell(x[0])))
        return outputs


def arguments(T: int, B: int) -> tuple[Tensor, ...]:
    state = torch.randn(2, 4, B, 4).unbind()
    return torch.randn(T, B, 3), *state, torch.randint(T + 1, (B,)), torch.rand(T, B) < 0.3


def gradients(module: Any, outputs: list[Tensor]) -> dict[str, Tensor]:
    """By the parameters' names, for programs have them in another order."""
    names, parameters = zip(*module.named_parameters(), strict=True)
    found = torch.autograd.grad(sum(y.sin().sum() for y in outputs), parameters)
    return dict(zip(names, found, strict=True))


def export(model: Everything, strict: bool = False) -> torch.export.ExportedProgram:
    T, B = torch.export.Dim("T"), torch.export.Dim("B")
    shapes = ({0: T, 1: B}, {1: B}, {1: B}, {0: B}, {0: T, 1: B})
    return torch.export.export(model, arguments(5, 3), dynamic_shapes=shapes, strict=strict)


@each_strictness
def test_exports_states_lengths_resets_and_cells(strict: bool) -> None:
    model = Everything()
    module = export(model, strict).module()
    for size in SIZES:
        given = arguments(*size)
        found, expected = module(*given), model(*given)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(gradients(module, found), gradients(model, expected))


def test_a_program_exported_without_gradients_says_so() -> None:
    with torch.no_grad():
        program = torch.export.export(s2s.GRU(3, 4), (torch.randn(5, 2, 3),))
    y, _ = program.module()(torch.randn(5, 2, 3))
    with pytest.raises(RuntimeError, match=r"save: expected True for a call .* differentiated"):
        y.sum().backward()


def test_a_packed_sequence_is_not_exported() -> None:
    class Packing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = s2s.GRU(3, 4)

        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            return self.layer(pack_padded_sequence(x, lengths))[1]

    with pytest.raises(RuntimeError, match=r"GRU: Expected padded input and lengths .* exported"):
        torch.export.export(Packing(), (torch.randn(5, 2, 3), torch.tensor([5, 2])))


# Packages of AOTInductor.


def test_a_package_runs_in_python(tmp_path: Path) -> None:
    if shutil.which(CXX) is None:
        pytest.skip(f"needs {CXX}")
    model = Everything()
    path = torch._inductor.aoti_compile_and_package(
        export(model), package_path=str(tmp_path / "model.pt2")
    )
    package = torch._inductor.aoti_load_package(path)
    for size in SIZES:
        given = arguments(*size)
        torch.testing.assert_close(package(*given), model(*given))


def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("aoti_example", EXAMPLE / "package.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_package_runs_in_cpp(tmp_path: Path) -> None:
    """The example's Makefile packages the model, compiles the program and runs it."""
    if not EXAMPLE.is_dir():
        pytest.skip("needs the source tree, not only the package")
    if not sysconfig.get_config_var("Py_ENABLE_SHARED"):
        pytest.skip("this Python has no shared library, which the extension module needs in C++")
    for program in ("make", CXX):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")
    package = Path(s2s.__file__).parents[1]
    path = os.pathsep.join(filter(None, [str(package), os.environ.get("PYTHONPATH")]))
    result = subprocess.run(
        [
            "make",
            "--no-print-directory",
            f"PYTHON={sys.executable}",
            f"OUT={tmp_path}",
            f"CXX={CXX}",
            "CXXFLAGS=-O0",
        ],
        cwd=EXAMPLE,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    T, B = 7, 4
    x = torch.linspace(-1, 1, T * B * 8).view(T, B, 8)
    with torch.no_grad():
        expected = example().make()(x, torch.arange(B) % (T + 1))
    for line, tensor in zip(result.stdout.splitlines()[-3:], expected, strict=True):
        found = torch.tensor([float(number) for number in line.split()])
        torch.testing.assert_close(found.view(tensor.shape), tensor)


def test_the_examples_of_the_docs_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxscript", reason="needs the extra onnx")
    if not DOCS.is_file():
        pytest.skip("needs the source tree, not only the package")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```$", DOCS.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 6
    namespace: dict[str, Any] = {"__name__": "docs"}
    for block in blocks:
        exec(compile(block, str(DOCS), "exec"), namespace)


# TorchScript, which torch has deprecated and programs still use.

torch_script = pytest.mark.filterwarnings(
    "ignore:.*torch.jit.*deprecated:DeprecationWarning", "ignore::torch.jit.TracerWarning"
)
modules = pytest.mark.parametrize(
    "module",
    [cls(3, 4) for cls, _ in CELLS] + [make(cell, 3, 4) for cell in NAMES],
    ids=[*CELL_IDS, *NAMES],
)


@torch_script
@modules
def test_script_says_what_to_use_instead(module: nn.Module) -> None:
    message = rf"cannot compile {type(module).__name__} .*torch.export.*onnx.export.*jit.trace"
    for model in (module, nn.Sequential(nn.Linear(3, 3), module)):
        with pytest.raises(RuntimeError, match=message):
            torch.jit.script(model)


@torch_script
def test_traces_serve_any_size_with_and_without_gradients() -> None:
    model = Everything()
    with torch.no_grad():
        traced = torch.jit.trace(model, arguments(5, 3))
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    loaded = torch.jit.load(file)

    for size in SIZES:
        given = arguments(*size)
        expected = model(*given)
        with torch.no_grad():
            torch.testing.assert_close(traced(*given), expected)
        found = loaded(*given)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(gradients(loaded, found), gradients(model, expected))


@torch_script
def test_a_trace_draws_the_same_dropout() -> None:
    layer = s2s.GRU(3, 4, 3, dropout=0.5)
    traced = torch.jit.trace(layer, (torch.randn(5, 2, 3),), check_trace=False)
    x = torch.randn(8, 6, 3)
    torch.manual_seed(1)
    found = traced(x)
    torch.manual_seed(1)
    torch.testing.assert_close(found, layer(x))
