"""The build: what it finds, what it says where something is missing, and the binary it makes.

Compilers and torches are faked by scripts and folders, so that every message is seen on one
machine. The tests of the build's own code need the source tree and say so where only the installed
package is there.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import site
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest
import torch

from seq2seq_ext import _C

ROOT = Path(__file__).resolve().parent.parent
BUILD_TOOLS = ROOT / "build_tools"

needs_source = pytest.mark.skipif(
    not BUILD_TOOLS.is_dir(), reason="needs the source tree, not only the installed package"
)


@pytest.fixture
def preflight(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module of the build's checks, in an environment that sets none of its variables."""
    for name in ("CXX", "CUDACXX", "CUDA_HOME", "SEQ2SEQ_EXT_CUDA", "SEQ2SEQ_EXT_TORCH"):
        monkeypatch.delenv(name, raising=False)
    spec = importlib.util.spec_from_file_location("preflight", BUILD_TOOLS / "preflight.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "preflight", module)
    spec.loader.exec_module(module)
    return module


def fake_torch(site_packages: Path, version: str = "2.13.0", cuda: str | None = None) -> Path:
    """The parts of a torch package that the build looks at."""
    folder = site_packages / "torch"
    headers = folder / "include" / "torch" / "csrc" / "stable"
    headers.mkdir(parents=True)
    (headers / "library.h").touch()
    (folder / "version.py").write_text(
        "from typing import Optional\n"
        f"__version__ = {version!r}\ndebug = False\ncuda: Optional[str] = {cuda!r}\n"
    )
    return folder


def script(path: Path, body: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def fake_compiler(path: Path, **macros: int) -> Path:
    return script(path, "\n".join(f"echo '#define {name} {n}'" for name, n in macros.items()))


def fake_nvcc(path: Path, release: str) -> Path:
    return script(path, f"echo 'Cuda compilation tools, release {release}, V{release}.88'")


# --- which torch ----------------------------------------------------------------------------------


@needs_source
class TestFindTorch:
    def test_in_this_environment(self, preflight: ModuleType) -> None:
        found = preflight.find_torch()
        assert found.path == Path(torch.__file__).parent
        assert found.version == torch.__version__
        assert found.cuda == torch.version.cuda

    def test_despite_build_isolation(self, tmp_path: Path) -> None:
        # pip's isolated build runs the environment's interpreter with its site-packages taken out
        # of sys.path.
        code = (
            "import sys\n"
            "sys.path = [p for p in sys.path if not p.endswith('-packages')]\n"
            "import importlib.util as u; assert u.find_spec('torch') is None\n"
            "import preflight; print(preflight.find_torch().path)"
        )
        environment = {k: v for k, v in os.environ.items() if k != "SEQ2SEQ_EXT_TORCH"}
        environment["PYTHONPATH"] = str(BUILD_TOOLS)
        result = subprocess.run(
            [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True,
            text=True, check=True,
        )  # fmt: skip
        assert result.stdout.strip() == str(Path(torch.__file__).parent)

    def test_in_the_active_virtual_environment(
        self, preflight: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        tag = f"python{sys.version_info.major}.{sys.version_info.minor}"
        torch_folder = fake_torch(tmp_path / "lib" / tag / "site-packages")
        hide_torch(monkeypatch)
        assert preflight.find_torch() is None
        monkeypatch.setenv("VIRTUAL_ENV", str(tmp_path))
        assert preflight.find_torch().path == torch_folder

    def test_by_override(
        self, preflight: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("SEQ2SEQ_EXT_TORCH", str(fake_torch(tmp_path, "2.11.0+cu130", "13.0")))
        found = preflight.find_torch()
        assert found == preflight.Torch(tmp_path / "torch", "2.11.0+cu130", "13.0")

    def test_override_without_torch(
        self, preflight: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("SEQ2SEQ_EXT_TORCH", str(tmp_path))
        with pytest.raises(SystemExit, match=rf"SEQ2SEQ_EXT_TORCH is .*{tmp_path.name}.*no torch"):
            preflight.find_torch()

    @pytest.mark.parametrize("version", ["1.13.1", "2.9.1+cu128"])
    def test_too_old(
        self, preflight: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str
    ) -> None:
        monkeypatch.setenv("SEQ2SEQ_EXT_TORCH", str(fake_torch(tmp_path, version)))
        with pytest.raises(SystemExit, match=r"too old(.|\n)*torch>=2\.10(.|\n)*pip install") as e:
            preflight.find_torch()
        assert version in str(e.value)

    @pytest.mark.parametrize("version", ["2.10.0", "2.10.0a0+git1234", "2.13.0", "3.0.0"])
    def test_new_enough(
        self, preflight: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str
    ) -> None:
        monkeypatch.setenv("SEQ2SEQ_EXT_TORCH", str(fake_torch(tmp_path, version)))
        assert preflight.find_torch().version == version

    def test_without_headers(
        self, preflight: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        folder = fake_torch(tmp_path)
        shutil.rmtree(folder / "include")
        monkeypatch.setenv("SEQ2SEQ_EXT_TORCH", str(folder))
        with pytest.raises(SystemExit, match="without the C"):
            preflight.find_torch()

    @pytest.mark.parametrize("kind", ["wheel", "editable"])
    def test_is_required_only_where_there_is_none(
        self, preflight: ModuleType, monkeypatch: pytest.MonkeyPatch, kind: str
    ) -> None:
        pytest.importorskip("setuptools", reason="needs setuptools, a build requirement")
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, "argv", ["setup.py"])
        monkeypatch.syspath_prepend(str(BUILD_TOOLS))
        monkeypatch.delitem(sys.modules, "backend", raising=False)
        backend = importlib.import_module("backend")
        monkeypatch.setattr(backend.build_meta, f"get_requires_for_build_{kind}", lambda config: [])
        hook = getattr(backend, f"get_requires_for_build_{kind}")
        # The very requirement of the package at run time: pip then resolves both to one wheel.
        assert preflight.TORCH_REQUIREMENT in (importlib.metadata.requires("seq2seq_ext") or [])
        assert hook() == []
        hide_torch(monkeypatch)
        assert hook() == [preflight.TORCH_REQUIREMENT]


def hide_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes this interpreter's environment look empty to the search."""
    standard_library = [entry for entry in sys.path if not entry.endswith("-packages")]
    monkeypatch.setattr(sys, "path", standard_library)
    monkeypatch.setattr(site, "getsitepackages", list)
    monkeypatch.setattr(site, "getusersitepackages", lambda: "/nonexistent")
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)


# --- which compiler -------------------------------------------------------------------------------


@needs_source
class TestFindCompiler:
    @pytest.mark.parametrize(
        "macros",
        [{"__GNUC__": 11}, {"__GNUC__": 4, "__clang_major__": 14}, {"__GNUC__": 15}],
        ids=["gcc-11", "clang-14", "gcc-15"],
    )
    def test_new_enough(
        self,
        preflight: ModuleType,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
        macros: dict[str, int],
    ) -> None:
        fake_compiler(tmp_path / "c++", **macros)
        monkeypatch.setenv("PATH", str(tmp_path))
        assert preflight.find_compiler() == "c++"

    @pytest.mark.parametrize(
        ("macros", "problem"),
        [
            ({"__GNUC__": 10}, "GCC 10, 11 is the oldest"),
            ({"__GNUC__": 4, "__clang_major__": 13}, "clang 13, 14 is the oldest"),
            ({}, "neither GCC nor clang"),
        ],
        ids=["gcc-10", "clang-13", "unknown"],
    )
    def test_unfit(
        self,
        preflight: ModuleType,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
        macros: dict[str, int],
        problem: str,
    ) -> None:
        compiler = fake_compiler(tmp_path / "my-c++", **macros)
        monkeypatch.setenv("CXX", str(compiler))
        with pytest.raises(SystemExit, match=problem) as error:
            preflight.find_compiler()
        assert "apt install g++" in str(error.value)
        assert str(compiler) in str(error.value)

    def test_none(
        self, preflight: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(SystemExit, match=r"no C\+\+ compiler.*found none.*apt install g\+\+"):
            preflight.find_compiler()

    def test_broken(
        self, preflight: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("CXX", str(script(tmp_path / "c++", "exit 1")))
        with pytest.raises(SystemExit, match="does not run"):
            preflight.find_compiler()

    def test_newer_one_beside_an_old_one(
        self, preflight: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        fake_compiler(tmp_path / "c++", __GNUC__=9)
        fake_compiler(tmp_path / "clang++", __GNUC__=4, __clang_major__=18)
        monkeypatch.setenv("PATH", str(tmp_path))
        assert preflight.find_compiler() == "clang++"

    def test_python_headers_missing(
        self, preflight: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
        with pytest.raises(SystemExit, match=r"Python\.h.*apt install python3-dev"):
            preflight.check_python_headers()


# --- CUDA -----------------------------------------------------------------------------------------


@needs_source
class TestCuda:
    @pytest.fixture
    def with_kernels(self, tmp_path: Path) -> Path:
        """A source tree of a version that has CUDA kernels."""
        (tmp_path / "csrc" / "cuda").mkdir(parents=True)
        (tmp_path / "csrc" / "cuda" / "rnn.cu").touch()
        return tmp_path

    @pytest.fixture
    def torch_cpu(self, preflight: ModuleType, tmp_path: Path) -> object:
        return preflight.Torch(tmp_path / "torch", "2.13.0+cpu", None)

    @pytest.fixture
    def torch_cuda_13(self, preflight: ModuleType, tmp_path: Path) -> object:
        return preflight.Torch(tmp_path / "torch", "2.13.0+cu130", "13.0")

    @pytest.fixture(autouse=True)
    def no_nvcc(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))

    def test_this_version_builds_for_the_cpu(
        self, preflight: ModuleType, torch_cuda_13: object, tmp_path: Path
    ) -> None:
        fake_nvcc(tmp_path / "bin" / "nvcc", "13.0")
        assert preflight.use_cuda(torch_cuda_13) is False

    def test_on_without_kernels(
        self, preflight: ModuleType, monkeypatch: pytest.MonkeyPatch, torch_cuda_13: object
    ) -> None:
        monkeypatch.setenv("SEQ2SEQ_EXT_CUDA", "on")
        with pytest.raises(SystemExit, match="this version of seq2seq_ext has no CUDA kernels"):
            preflight.use_cuda(torch_cuda_13)

    def test_unknown_setting(
        self, preflight: ModuleType, monkeypatch: pytest.MonkeyPatch, torch_cpu: object
    ) -> None:
        monkeypatch.setenv("SEQ2SEQ_EXT_CUDA", "yes")
        with pytest.raises(SystemExit, match="'yes'; expected auto, on or off"):
            preflight.use_cuda(torch_cpu)

    def test_auto_takes_what_is_there(
        self, preflight: ModuleType, with_kernels: Path, torch_cpu: object, torch_cuda_13: object
    ) -> None:
        assert preflight.use_cuda(torch_cuda_13, with_kernels) is False
        fake_nvcc(with_kernels / "bin" / "nvcc", "13.2")
        assert preflight.use_cuda(torch_cpu, with_kernels) is False
        assert preflight.use_cuda(torch_cuda_13, with_kernels) is True

    def test_off(
        self,
        preflight: ModuleType,
        monkeypatch: pytest.MonkeyPatch,
        with_kernels: Path,
        torch_cuda_13: object,
    ) -> None:
        fake_nvcc(with_kernels / "bin" / "nvcc", "12.8")
        monkeypatch.setenv("SEQ2SEQ_EXT_CUDA", "off")
        assert preflight.use_cuda(torch_cuda_13, with_kernels) is False

    @pytest.mark.parametrize("setting", ["auto", "on"])
    def test_of_another_major(
        self,
        preflight: ModuleType,
        monkeypatch: pytest.MonkeyPatch,
        with_kernels: Path,
        torch_cuda_13: object,
        setting: str,
    ) -> None:
        monkeypatch.setenv("CUDACXX", str(fake_nvcc(with_kernels / "12" / "nvcc", "12.8")))
        monkeypatch.setenv("SEQ2SEQ_EXT_CUDA", setting)
        with pytest.raises(SystemExit, match=r"CUDA 12\.8.*for CUDA 13\.0.*SEQ2SEQ_EXT_CUDA=off"):
            preflight.use_cuda(torch_cuda_13, with_kernels)

    def test_on_without_nvcc(
        self,
        preflight: ModuleType,
        monkeypatch: pytest.MonkeyPatch,
        with_kernels: Path,
        torch_cuda_13: object,
    ) -> None:
        monkeypatch.setenv("SEQ2SEQ_EXT_CUDA", "on")
        with pytest.raises(SystemExit, match=r"no nvcc.*toolkit 13\.0"):
            preflight.use_cuda(torch_cuda_13, with_kernels)

    def test_on_beside_a_cpu_torch(
        self,
        preflight: ModuleType,
        monkeypatch: pytest.MonkeyPatch,
        with_kernels: Path,
        torch_cpu: object,
    ) -> None:
        fake_nvcc(with_kernels / "cuda" / "bin" / "nvcc", "13.0")
        monkeypatch.setenv("CUDA_HOME", str(with_kernels / "cuda"))
        monkeypatch.setenv("SEQ2SEQ_EXT_CUDA", "on")
        with pytest.raises(SystemExit, match="is a CPU build"):
            preflight.use_cuda(torch_cpu, with_kernels)

    def test_nvcc_that_does_not_run(
        self, preflight: ModuleType, with_kernels: Path, torch_cuda_13: object
    ) -> None:
        script(with_kernels / "bin" / "nvcc", "echo broken; exit 3")
        with pytest.raises(SystemExit, match="does not tell its release"):
            preflight.use_cuda(torch_cuda_13, with_kernels)


# --- the whole way down: setup.py ends with the message, and without a traceback ------------------


@needs_source
@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("CXX", "/nonexistent/c++", "no C++ compiler"),
        ("SEQ2SEQ_EXT_TORCH", "/nonexistent", "holds no torch"),
        ("SEQ2SEQ_EXT_CUDA", "on", "has no CUDA kernels"),
    ],
)
def test_setup_says_what_is_wrong(tmp_path: Path, variable: str, value: str, message: str) -> None:
    pytest.importorskip("setuptools", reason="needs setuptools, a build requirement")
    result = subprocess.run(
        [sys.executable, str(ROOT / "setup.py"), "build_ext", "--build-lib", str(tmp_path)],
        env={**os.environ, variable: value}, cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode != 0
    assert "seq2seq_ext cannot be built here" in result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr


# --- the binary -----------------------------------------------------------------------------------


def binutils(*command: str) -> str:
    if not shutil.which(command[0]):
        pytest.skip(f"needs {command[0]} (binutils)")
    assert _C.__file__ is not None
    return subprocess.run(
        [*command, _C.__file__], capture_output=True, text=True, check=True
    ).stdout


def test_uses_only_the_stable_abi_of_torch() -> None:
    undefined = binutils("nm", "--dynamic", "--undefined-only", "--demangle").splitlines()
    assert any("aoti_torch_" in line for line in undefined)  # the C shim: nm did read the library
    assert [line for line in undefined if re.search(r"\b(at|c10|torch)::", line)] == []


def test_exports_nothing_of_its_own() -> None:
    defined = binutils("nm", "--dynamic", "--defined-only", "--demangle")
    assert "PyInit__C" in defined
    assert "seq2seq_ext::" not in defined


def test_needs_torch_by_name_alone() -> None:
    dynamic = binutils("readelf", "--dynamic", "--wide")
    needed = set(re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic))
    assert "libtorch_cpu.so" in needed
    assert not {name for name in needed if re.match(r"lib(torch_python|torch_cuda|gomp|omp)", name)}
    assert not re.search(r"\((RPATH|RUNPATH)\)", dynamic)


def test_build_info() -> None:
    info = _C.build_info()
    assert info["version"] == _C.__version__ == importlib.metadata.version("seq2seq_ext")
    assert info["torch_target_version"] == "2.10"
    assert re.match(r"\d+\.\d+", info["torch_version"])
    assert re.match(r"(GNU|Clang|AppleClang) \d+", info["compiler"])
    assert info["processor"] == platform.machine()
    assert "-O" in info["flags"]
    assert not {"-march=native", "-ffast-math", "-fopenmp"} & set(info["flags"].split())
    assert info["cuda"] is None


@needs_source
@pytest.mark.parametrize("unit", ["isa_neon.cpp", "dispatch.cpp", "plan.cpp"])
def test_kernels_compile_for_aarch64(tmp_path: Path, unit: str) -> None:
    compiler = shutil.which("aarch64-linux-gnu-g++")
    if compiler is None:
        pytest.skip("needs a cross compiler: apt install g++-aarch64-linux-gnu")
    output = tmp_path / "unit.o"
    subprocess.run(
        [compiler, "-std=c++17", "-O0", "-Wall", "-Wextra", "-Wno-psabi", f"-I{ROOT / 'csrc'}",
         "-c", str(ROOT / "csrc" / "cpu" / unit), "-o", str(output)],
        check=True,
    )  # fmt: skip
    assert output.stat().st_size > 0
