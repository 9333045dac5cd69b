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
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from layer_cases import CELL_IDS, CELLS, NAMES, Between, make, random_state, states
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import seq2seq_ext as s2s

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "aoti"
DOCS = ROOT / "docs" / "export.md"

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


class Stream(nn.Module):
    """A layer of one cell with everything that a call can give it, and the state it returns."""

    def __init__(self, cell: str) -> None:
        super().__init__()
        self.layer = make(cell, 3, 4, 2, bidirectional=True)

    def forward(
        self, x: Tensor, hx: Any, lengths: Tensor, resets: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        y, state = self.layer(x, hx, lengths=lengths, resets=resets)
        return y, states(state)


def stream_arguments(model: Stream, T: int, B: int) -> tuple[Any, ...]:
    hx = random_state(model.layer, B)
    return torch.randn(T, B, 3), hx, torch.randint(0, T + 1, (B,)), torch.rand(T, B) < 0.3


@each_strictness
@each_cell
def test_exports_with_states_lengths_and_resets(cell: str, strict: bool) -> None:
    model = Stream(cell)
    T, B = torch.export.Dim("T"), torch.export.Dim("B")
    state = ({1: B}, {1: B}) if cell == "lstm" else {1: B}
    program = torch.export.export(
        model,
        stream_arguments(model, 5, 3),
        dynamic_shapes=({0: T, 1: B}, state, {0: B}, {0: T, 1: B}),
        strict=strict,
    )
    for size in [(5, 3), (2, 6), (1, 1), (9, 2)]:
        arguments = stream_arguments(model, *size)
        torch.testing.assert_close(program.module()(*arguments), model(*arguments))


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


def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("aoti_example", EXAMPLE / "package.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def make_example(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Makes a target of the example's Makefile, OUT being its folder, and returns what it says."""
    if not EXAMPLE.is_dir():
        pytest.skip("needs the source tree, not only the package")
    for program in ("make", os.environ.get("CXX", "g++")):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")
    folder = tmp_path_factory.mktemp("aoti")
    package = Path(s2s.__file__).parents[1]
    path = os.pathsep.join(filter(None, [str(package), os.environ.get("PYTHONPATH")]))

    def make_target(target: str) -> str:
        result = subprocess.run(
            ["make", f"PYTHON={sys.executable}", f"OUT={folder}", "CXXFLAGS=-O0", target],
            cwd=EXAMPLE,
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    return make_target


def test_a_package_runs_in_python(make_example: Callable[[str], str]) -> None:
    path = make_example("package").splitlines()[-1]
    model, package = example().make(), torch._inductor.aoti_load_package(path)
    for T, B in [(6, 3), (9, 5), (1, 1), (2, 12)]:
        x, lengths = torch.randn(T, B, 8), torch.randint(0, T + 1, (B,))
        with torch.no_grad():
            expected = model(x, lengths)
        torch.testing.assert_close(tuple(package(x, lengths)), expected)


def test_a_package_runs_in_cpp(make_example: Callable[[str], str]) -> None:
    if not sysconfig.get_config_var("Py_ENABLE_SHARED"):
        pytest.skip("this Python has no shared library, which the extension module needs in C++")
    lines = make_example("run").splitlines()[-3:]
    T, B = 7, 4
    x = torch.linspace(-1, 1, T * B * 8).view(T, B, 8)
    with torch.no_grad():
        expected = example().make()(x, torch.arange(B) % (T + 1))
    for line, tensor in zip(lines, expected, strict=True):
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
@each_cell
def test_traces_serve_any_size_with_and_without_gradients(cell: str) -> None:
    model = Stream(cell)
    with torch.no_grad():
        traced = torch.jit.trace(model, stream_arguments(model, 5, 3))
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    loaded = torch.jit.load(file)
    for size in [(5, 3), (2, 6), (1, 1), (9, 2)]:
        arguments = stream_arguments(model, *size)
        expected = model(*arguments)
        with torch.no_grad():
            torch.testing.assert_close(traced(*arguments), expected)
        found = loaded(*arguments)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(
            torch.autograd.grad(found[0].sin().sum(), loaded.parameters()),
            torch.autograd.grad(expected[0].sin().sum(), model.parameters()),
        )


@torch_script
def test_a_trace_draws_the_same_dropout() -> None:
    layer = s2s.GRU(3, 4, 3, dropout=0.5)
    traced = torch.jit.trace(layer, (torch.randn(5, 2, 3),), check_trace=False)
    x = torch.randn(8, 6, 3)
    torch.manual_seed(1)
    found = traced(x)
    torch.manual_seed(1)
    torch.testing.assert_close(found, layer(x))


@torch_script
@pytest.mark.parametrize(("ours", "theirs"), CELLS, ids=CELL_IDS)
def test_traces_of_cells(ours: Any, theirs: Any) -> None:
    cell = ours(3, 4)
    traced, x = torch.jit.trace(cell, (torch.randn(2, 3),)), torch.randn(5, 3)
    torch.testing.assert_close(traced(x), cell(x))
