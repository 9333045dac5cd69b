"""The check of what kernels take of a GPU: how it reads the compiler, and what it lets pass.

The compiler's words were captured from nvcc 13.0; a script says them where a whole run is tested.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BUILD_TOOLS = Path(__file__).resolve().parent.parent / "build_tools"
if not BUILD_TOOLS.is_dir():
    pytest.skip("needs the source tree, not only the package", allow_module_level=True)
sys.path.insert(0, str(BUILD_TOOLS))

import cuda_check  # noqa: E402
from cuda_check import Usage  # noqa: E402

SCALE = "_ZN11seq2seq_ext36_GLOBAL__N__3fcf3cea_4_a_cu_7d0fb06f12scale_kernelIdLi5EEEvPT_iS2_"
SCALE_LASTING = "_ZN11seq2seq_ext12_GLOBAL__N_112scale_kernelIdLi5EEEvPT_iS2_"
SPILLY = "_ZN11seq2seq_ext36_GLOBAL__N__3fcf3cea_4_a_cu_7d0fb06f6spillyEPf"
SPILLY_LASTING = "_ZN11seq2seq_ext12_GLOBAL__N_16spillyEPf"
HELPER = "_ZN11seq2seq_ext6helperEPfi"

CLEAN = f"""\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '{SCALE}' for 'sm_75'
ptxas info    : Function properties for {SCALE}
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 10 registers, used 1 barriers, 2048 bytes smem, 376 bytes cmem[0]
ptxas info    : Compile time = 2.134 ms
"""
# As an error, since warnings are: the figures follow all the same.
SPILLED = f"""\
ptxas error   : Registers are spilled to local memory in function '{SPILLY}', 2204 bytes spill \
stores, 2464 bytes spill loads
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '{SPILLY}' for 'sm_90'
ptxas info    : Function properties for {SPILLY}
    1168 bytes stack frame, 2204 bytes spill stores, 2464 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 1168 bytes cumulative stack size
ptxas info    : Compile time = 58.214 ms
"""
# A function that is called and not inlined stands between its kernel's frame and registers.
CALLED = f"""\
ptxas info    : Compiling entry function '{SCALE}' for 'sm_120'
ptxas info    : Function properties for {SCALE}
    16 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Function properties for {HELPER}
    0 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 24 registers, used 0 barriers, 16 bytes cumulative stack size
"""
REFUSED = """\
ptxas error   : Value of threads per SM for entry _Z6spillyPf is out of range. .minnctapersm will \
be ignored
ptxas fatal   : Ptx assembly aborted due to errors
"""


# --- what the compiler says -----------------------------------------------------------------------


def test_reads_a_kernel() -> None:
    assert cuda_check.parse(CLEAN) == [Usage(SCALE_LASTING, "75", True, registers=10, shared=2048)]


def test_reads_spills() -> None:
    assert cuda_check.parse(SPILLED) == [
        Usage(
            SPILLY_LASTING,
            "90",
            True,
            registers=32,
            stack=1168,
            spill_stores=2204,
            spill_loads=2464,
        )
    ]


def test_reads_a_function_that_is_called() -> None:
    assert cuda_check.parse(CALLED) == [
        Usage(SCALE_LASTING, "120", True, registers=24, stack=16),
        Usage(HELPER, "120", False, spill_stores=4, spill_loads=8),
    ]


def test_reads_several_and_nothing() -> None:
    assert len(cuda_check.parse(CLEAN + SPILLED + CALLED)) == 4
    assert cuda_check.parse(REFUSED) == []
    assert cuda_check.parse("") == []


@pytest.mark.parametrize(
    ("output", "failed", "said"),
    [
        (CLEAN, False, ""),
        (SPILLED, True, ""),  # told by the figures
        (SPILLED + "error: no", True, "error: no"),
        (REFUSED, True, REFUSED.strip()),
        ("", True, "nvcc fails and does not say why"),
        (CLEAN + "Segmentation fault", True, "Segmentation fault"),
        (CLEAN, True, "nvcc fails and does not say why"),
    ],
)
def test_hands_on_what_else_the_compiler_says(output: str, failed: bool, said: str) -> None:
    done = cuda_check.Compiled(Path("a.cu"), "90", failed, output, 0.0)
    assert done.complaints() == said


# --- what passes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sizes", "message"),
    [
        ("step_kernel<float>", {}, None),
        ("step_kernel<float>", {"stack": 16}, None),
        ("persistent_kernel<float>", {"registers": 255, "shared": 4096}, None),
        ("persistent_kernel<float>", {"stack": 16}, "sm_80: a stack frame of 16 bytes"),
        ("step_kernel<float>", {"spill_stores": 4}, "sm_80: registers are spilled, 4 bytes"),
        ("persistent_kernel<float>", {"stack": 8, "spill_loads": 8}, "and 8 loaded"),
    ],
)
def test_what_passes(name: str, sizes: dict[str, int], message: str | None) -> None:
    found = cuda_check.problems(Usage("symbol", "80", True, **sizes), name)
    assert len(found) == (message is not None)
    assert all(message in problem and name in problem for problem in found if message)


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("full", "short"),
    [
        ("void seq2seq_ext::cuda::step<float>(seq2seq_ext::cuda::Forward<float>)", "step<float>"),
        ("seq2seq_ext::(anonymous namespace)::clean(float*, int)", "clean"),
        (
            "void a::_GLOBAL__N__3f_4_a_cu_7d::run<a::Cell<__half>, 4, (bool)1>(a::P<__half>)",
            "run<Cell<__half>, 4, true>",
        ),
        ("void run<(a::Cell)3>(int)", "run<(Cell)3>"),
        (SCALE, SCALE),  # without c++filt
    ],
)
def test_names_without_what_a_reader_knows(full: str, short: str) -> None:
    assert cuda_check.shorten(full) == short


# --- the command ----------------------------------------------------------------------------------


def run(
    tmp_path: Path, output: str | None, status: int = 0, *arguments: str
) -> subprocess.CompletedProcess[str]:
    """The command beside an nvcc that says ``output``, or none; C++ names are left as they are."""
    tools = tmp_path / "bin"
    tools.mkdir(exist_ok=True)
    environment = {"PATH": str(tools), "CUDA_HOME": str(tmp_path), "TORCH_CUDA_ARCH_LIST": "7.5"}
    if output is not None:
        (tmp_path / "output").write_text(output)
        (tools / "nvcc").write_text(
            "#!/bin/sh\ncase $1 in\n"
            "  --version) echo 'Cuda compilation tools, release 13.0, V13.0.88';;\n"
            "  --list-gpu-code) echo sm_75;;\n"
            f"  *) while read -r line; do echo \"$line\"; done < '{tmp_path}/output' >&2\n"
            f"    exit {status};;\nesac\n"
        )
        (tools / "nvcc").chmod(0o755)
    return subprocess.run(
        [sys.executable, str(BUILD_TOOLS / "cuda_check.py"), *arguments],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_writes_a_table_of_what_passes(tmp_path: Path) -> None:
    table = tmp_path / "table.md"
    result = run(tmp_path, CLEAN, 0, "--output", str(table), "csrc/cuda/some.cu")
    assert result.returncode == 0, result.stderr
    assert "1 functions pass" in result.stdout
    text = table.read_text()
    assert "CUDA 13.0" in text
    assert "csrc/cuda/some.cu" in text
    assert "| kernel | sm_75 |" in text
    assert f"| `{SCALE_LASTING}` | 10 +2048 |" in text


def test_refuses_spills_and_shows_them(tmp_path: Path) -> None:
    table = tmp_path / "table.md"
    result = run(tmp_path, SPILLED, 255, "--output", str(table), "csrc/cuda/some.cu")
    assert result.returncode == 1
    assert "registers are spilled, 2204 bytes stored and 2464 loaded" in result.stderr
    assert "32 stack 1168 spills 2204/2464" in table.read_text()


def test_refuses_what_does_not_compile(tmp_path: Path) -> None:
    table = tmp_path / "table.md"
    table.write_text("the last that compiled")
    result = run(tmp_path, REFUSED, 255, "--output", str(table), "csrc/cuda/some.cu")
    assert result.returncode == 1
    assert "out of range" in result.stderr
    assert table.read_text() == "the last that compiled"


def test_says_that_there_is_no_compiler(tmp_path: Path) -> None:
    result = run(tmp_path, None)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "cuda-check: there is no nvcc, so no kernel was compiled\n"
    assert run(tmp_path, None, 0, "--require").returncode == 1
