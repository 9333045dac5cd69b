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

from seq2seq_ext import _C, loading

ROOT = Path(__file__).resolve().parent.parent
BUILD_TOOLS = ROOT / "build_tools"

needs_source = pytest.mark.skipif(
    not BUILD_TOOLS.is_dir(), reason="needs the source tree, not only the installed package"
)


@pytest.fixture
def preflight(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module of the build's checks, in an environment that sets none of its variables."""
    for name in ("CXX", "CUDACXX", "CUDA_HOME", "SEQ2SEQ_EXT_CUDA", "SEQ2SEQ_EXT_TORCH",
                 "TORCH_CUDA_ARCH_LIST"):  # fmt: skip
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


def fake_nvcc(path: Path, release: str, architectures: str = "") -> Path:
    """One that tells its release, and what it compiles for: "75 80"."""
    code = "".join(f"; echo sm_{name}" for name in architectures.split())
    return script(
        path,
        f'[ "$1" = --list-gpu-code ] && {{ true{code}; exit 0; }}\n'
        f"echo 'Cuda compilation tools, release {release}, V{release}.88'",
    )


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
    def torch_cpu(self, preflight: ModuleType, tmp_path: Path) -> object:
        return preflight.Torch(tmp_path / "torch", "2.13.0+cpu", None)

    @pytest.fixture
    def torch_cuda_13(self, preflight: ModuleType, tmp_path: Path) -> object:
        return preflight.Torch(tmp_path / "torch", "2.13.0+cu130", "13.0")

    @pytest.fixture(autouse=True)
    def no_nvcc(
        self, preflight: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))
        monkeypatch.setattr(preflight, "DEFAULT_CUDA_HOME", tmp_path / "usual")

    def test_unknown_setting(
        self, preflight: ModuleType, monkeypatch: pytest.MonkeyPatch, torch_cpu: object
    ) -> None:
        monkeypatch.setenv("SEQ2SEQ_EXT_CUDA", "yes")
        with pytest.raises(SystemExit, match="'yes'; expected auto, on or off"):
            preflight.use_cuda(torch_cpu)

    def test_auto_takes_what_is_there(
        self, preflight: ModuleType, tmp_path: Path, torch_cpu: object, torch_cuda_13: object
    ) -> None:
        assert preflight.use_cuda(torch_cuda_13) is False
        fake_nvcc(tmp_path / "bin" / "nvcc", "13.2")
        assert preflight.use_cuda(torch_cpu) is False
        assert preflight.use_cuda(torch_cuda_13) is True

    def test_off(
        self,
        preflight: ModuleType,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
        torch_cuda_13: object,
    ) -> None:
        fake_nvcc(tmp_path / "bin" / "nvcc", "12.8")
        monkeypatch.setenv("SEQ2SEQ_EXT_CUDA", "off")
        assert preflight.use_cuda(torch_cuda_13) is False

    @pytest.mark.parametrize("setting", ["auto", "on"])
    def test_of_another_major(
        self,
        preflight: ModuleType,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
        torch_cuda_13: object,
        setting: str,
    ) -> None:
        monkeypatch.setenv("CUDACXX", str(fake_nvcc(tmp_path / "12" / "nvcc", "12.8")))
        monkeypatch.setenv("SEQ2SEQ_EXT_CUDA", setting)
        with pytest.raises(SystemExit, match=r"CUDA 12\.8.*for CUDA 13\.0.*SEQ2SEQ_EXT_CUDA=off"):
            preflight.use_cuda(torch_cuda_13)

    def test_on_without_nvcc(
        self, preflight: ModuleType, monkeypatch: pytest.MonkeyPatch, torch_cuda_13: object
    ) -> None:
        monkeypatch.setenv("SEQ2SEQ_EXT_CUDA", "on")
        with pytest.raises(SystemExit, match=r"no nvcc.*toolkit 13\.0"):
            preflight.use_cuda(torch_cuda_13)

    def test_on_beside_a_cpu_torch(
        self,
        preflight: ModuleType,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
        torch_cpu: object,
    ) -> None:
        fake_nvcc(tmp_path / "cuda" / "bin" / "nvcc", "13.0")
        monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
        monkeypatch.setenv("SEQ2SEQ_EXT_CUDA", "on")
        with pytest.raises(SystemExit, match="is a CPU build"):
            preflight.use_cuda(torch_cpu)

    def test_nvcc_that_does_not_run(
        self, preflight: ModuleType, tmp_path: Path, torch_cuda_13: object
    ) -> None:
        script(tmp_path / "bin" / "nvcc", "echo broken; exit 3")
        with pytest.raises(SystemExit, match="does not tell its release"):
            preflight.use_cuda(torch_cuda_13)

    def test_architectures_are_checked_before_the_build(
        self,
        preflight: ModuleType,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
        torch_cuda_13: object,
    ) -> None:
        fake_nvcc(tmp_path / "bin" / "nvcc", "13.0")
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "6.1")
        with pytest.raises(SystemExit, match=r"TORCH_CUDA_ARCH_LIST holds 6\.1"):
            preflight.use_cuda(torch_cuda_13)

    def test_which_nvcc(
        self, preflight: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        assert preflight.find_nvcc() is None
        with pytest.raises(SystemExit, match="there is no nvcc"):
            preflight.require_nvcc()
        for folder in ("usual/bin", "bin", "home/bin", "named"):  # a later one comes before
            fake_nvcc(tmp_path / folder / "nvcc", "13.0")
            if folder == "home/bin":
                monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
            if folder == "named":
                monkeypatch.setenv("CUDACXX", str(tmp_path / "named" / "nvcc"))
            assert preflight.require_nvcc() == str(tmp_path / folder / "nvcc")
        monkeypatch.setenv("CUDACXX", str(tmp_path / "missing"))
        assert preflight.find_nvcc() is None  # and not another


@needs_source
class TestCudaArchitectures:
    @pytest.mark.parametrize(
        ("requested", "expected"),
        [
            ("8.0", "80"),
            ("8.0;9.0+PTX", "80 90 90+PTX"),
            ("9.0+PTX 7.5", "75 90 90+PTX"),
            ("10.0, 9.0a, 9.0, 9.0", "90 90a 100"),
            ("8.0+PTX;12.0+PTX", "80 120 80+PTX 120+PTX"),
            ("Ampere", "80 86 86+PTX"),
            ("Turing;Hopper;Ampere+Tegra", "75 87 90 75+PTX 90+PTX"),
        ],
    )
    def test_as_torch_writes_them(
        self,
        preflight: ModuleType,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
        requested: str,
        expected: str,
    ) -> None:
        nvcc = fake_nvcc(tmp_path / "nvcc", "13.0", "120 75 80 86 87 89 90 100")
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", requested)
        assert preflight.cuda_architectures(str(nvcc)) == expected.split()

    @pytest.mark.parametrize(
        ("known", "expected"),
        [
            ("", "75 80 86 89 90 100 120 120+PTX"),  # it does not tell
            ("75 80 86 87 88 89 90 100 103 110 120 121", "75 80 86 89 90 100 120 120+PTX"),
            ("50 60 70 75 80 86 87 89 90", "75 80 86 89 90 90+PTX"),
        ],
        ids=["silent", "cuda-13", "cuda-12.4"],
    )
    def test_by_default(
        self, preflight: ModuleType, tmp_path: Path, known: str, expected: str
    ) -> None:
        nvcc = fake_nvcc(tmp_path / "nvcc", "13.0", known)
        assert preflight.cuda_architectures(str(nvcc)) == expected.split()

    @pytest.mark.parametrize(
        ("requested", "message"),
        [
            ("8.0;native", r"holds 'native'; expected compute capabilities such as 8\.0;9\.0\+PTX"),
            ("sm_80", "holds 'sm_80'"),
            ("80", "holds '80'"),
            ("7.0+PTX", r"holds 7\.0\+PTX, and the oldest.* 7\.5"),
            ("8.0 10.0", r"holds 10\.0, which .*nvcc does not know: it compiles for 75, 80, 90"),
        ],
    )
    def test_that_cannot_be_had(
        self,
        preflight: ModuleType,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
        requested: str,
        message: str,
    ) -> None:
        nvcc = fake_nvcc(tmp_path / "nvcc", "12.4", "75 80 90")
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", requested)
        with pytest.raises(SystemExit, match=message):
            preflight.cuda_architectures(str(nvcc))

    def test_of_a_toolkit_too_old(self, preflight: ModuleType, tmp_path: Path) -> None:
        nvcc = fake_nvcc(tmp_path / "nvcc", "9.0", "35 70")
        with pytest.raises(SystemExit, match="compiles for none of 75"):
            preflight.cuda_architectures(str(nvcc))


# --- the whole way down: setup.py ends with the message, and without a traceback ------------------


@needs_source
@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("CXX", "/nonexistent/c++", "no C++ compiler"),
        ("SEQ2SEQ_EXT_TORCH", "/nonexistent", "holds no torch"),
        ("SEQ2SEQ_EXT_CUDA", "yes", "expected auto, on or off"),
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


def binutils(*command: str, library: Path | None = None) -> str:
    if not shutil.which(command[0]):
        pytest.skip(f"needs {command[0]} (binutils)")
    assert _C.__file__ is not None
    return subprocess.run(
        [*command, str(library or _C.__file__)], capture_output=True, text=True, check=True
    ).stdout


@pytest.fixture(params=["_C", "_cuda"])
def library(request: pytest.FixtureRequest) -> Path:
    """Each of the libraries that this build has."""
    assert _C.__file__ is not None
    if request.param == "_C":
        return Path(_C.__file__)
    if _C.build_info()["cuda"] is None:
        pytest.skip("this build has no CUDA library")
    return Path(_C.__file__).with_name("_cuda.so")


def test_uses_only_the_stable_abi_of_torch(library: Path) -> None:
    undefined = binutils("nm", "-D", "--undefined-only", "--demangle", library=library).splitlines()
    assert any("aoti_torch_" in line for line in undefined)  # the C shim: nm did read the library
    assert [line for line in undefined if re.search(r"\b(at|c10|torch)::", line)] == []


def test_exports_nothing_of_its_own(library: Path) -> None:
    defined = binutils("nm", "-D", "--defined-only", "--demangle", library=library)
    assert ("PyInit__C" in defined) is library.name.startswith("_C.")
    assert "seq2seq_ext::" not in defined
    assert not re.search(r"\bcuda[A-Z]", defined)  # of the static cudart


def test_needs_torch_by_name_alone(library: Path) -> None:
    dynamic = binutils("readelf", "--dynamic", "--wide", library=library)
    needed = set(re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic))
    assert "libtorch_cpu.so" in needed
    foreign = r"lib(torch_python|cudart|cuda\b|gomp|omp)"
    assert not {name for name in needed if re.match(foreign, name)}
    assert ("libtorch_cuda.so" in needed) is (library.name == "_cuda.so")
    assert not re.search(r"\((RPATH|RUNPATH)\)", dynamic)


def test_tells_no_path_of_the_build(library: Path) -> None:
    # What asserts and checks would print: with the folder of the sources, or of torch's headers.
    named = re.findall(rb"[\x21-\x7e]+\.(?:h|cpp|cuh?)\b", library.read_bytes())
    assert any(name.endswith(b".h") for name in named)
    assert [name for name in named if name.startswith(b"/")] == []


def test_build_info() -> None:
    info = _C.build_info()
    assert info["version"] == _C.__version__ == importlib.metadata.version("seq2seq_ext")
    assert info["torch_target_version"] == "2.10"
    assert re.match(r"\d+\.\d+", info["torch_version"])
    assert re.match(r"(GNU|Clang|AppleClang) \d+", info["compiler"])
    assert info["processor"] == platform.machine()
    assert "-O" in info["flags"]
    assert not {"-march=native", "-ffast-math", "-fopenmp"} & set(info["flags"].split())
    assert (info["cuda"] is None) is (info["cuda_version"] is None)
    if info["cuda"] is not None:
        assert all(re.fullmatch(r"\d+[af]?(\+PTX)?", name) for name in info["cuda"])
        assert re.fullmatch(r"\d+\.\d+", info["cuda_version"])


# --- the CUDA library -----------------------------------------------------------------------------


class TestLoading:
    """Which torch the CUDA library is loaded beside, and what a call on a GPU says elsewhere."""

    @pytest.fixture
    def loaded(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """The libraries that torch is asked to load, and does not."""
        paths: list[str] = []
        monkeypatch.setattr(torch.ops, "load_library", paths.append)
        return paths

    def built(
        self, monkeypatch: pytest.MonkeyPatch, library: str | None, torch_s: str | None
    ) -> None:
        monkeypatch.setattr(loading._C, "build_info", lambda: {"cuda_version": library})
        monkeypatch.setattr(torch.version, "cuda", torch_s)

    @pytest.mark.parametrize("torch_s", ["13.0", "13.2"])
    def test_beside_the_same_major(
        self, monkeypatch: pytest.MonkeyPatch, loaded: list[str], torch_s: str
    ) -> None:
        self.built(monkeypatch, "13.0", torch_s)
        assert loading.load_cuda_library() is None
        assert [Path(path).name for path in loaded] == ["_cuda.so"]

    @pytest.mark.parametrize(
        ("library", "torch_s", "message"),
        [
            (None, None, "this build of seq2seq_ext has no CUDA kernels.*SEQ2SEQ_EXT_CUDA=on"),
            (None, "13.0", "this build of seq2seq_ext has no CUDA kernels"),
            ("13.0", None, r"built with CUDA 13\.0, and torch .* is a CPU build"),
            ("13.0", "12.8", r"built with CUDA 13\.0, and torch .* was built for CUDA 12\.8"),
        ],
    )
    def test_stays_out_elsewhere(
        self,
        monkeypatch: pytest.MonkeyPatch,
        loaded: list[str],
        library: str | None,
        torch_s: str | None,
        message: str,
    ) -> None:
        self.built(monkeypatch, library, torch_s)
        assert re.search(message, loading.load_cuda_library() or "")
        assert loaded == []

    def test_that_does_not_load(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self.built(monkeypatch, "13.0", "13.0")
        monkeypatch.setattr(loading, "_LIBRARY", tmp_path / "_cuda.so")
        assert re.search(r"do not load: .*_cuda\.so", loading.load_cuda_library() or "")

    @pytest.mark.skipif(loading.CUDA_PROBLEM is None, reason="the CUDA kernels are loaded")
    def test_a_call_on_a_gpu_says_why_not(self) -> None:
        on_a_gpu = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
        weights = [torch.zeros(8, 3), torch.zeros(8, 2)]
        with pytest.raises(RuntimeError) as error:
            torch.ops.seq2seq_ext.rnn.default.redispatch(
                on_a_gpu, torch.zeros(5, 4, 3), None, None, weights, 0
            )
        assert str(error.value) == f"got tensors on a GPU, but {loading.CUDA_PROBLEM}"
        with pytest.raises(RuntimeError, match="got tensors on a GPU"):
            torch.ops.seq2seq_ext.prepack.default.redispatch(on_a_gpu, weights, 0)
