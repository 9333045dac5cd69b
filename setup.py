"""Drives the build that CMakeLists.txt describes; everything else stands in pyproject.toml.

The build folder is kept between runs (`build/cmake/<platform>`), so that installing again
compiles only what changed. CMAKE_ARGS in the environment is passed on to CMake.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "build_tools"))

import preflight  # noqa: E402 - lies in build_tools, which only PEP 517 front ends put on the path


def find_tool(name: str) -> str:
    """Path of cmake or ninja; an isolated build and an activated environment put theirs first."""
    path = shutil.which(name)
    if path is None:
        raise preflight.PreflightError(
            f"there is no {name} in PATH. Install the build requirements (pip install cmake ninja "
            "pybind11), or let pip do so: pip install . without --no-build-isolation."
        )
    return path


class CMakeBuild(build_ext):
    """Builds every extension with one run of CMake and Ninja, and puts each in its place."""

    def build_extensions(self) -> None:
        preflight.check_python_headers()
        environment = {**os.environ, "CXX": preflight.find_compiler()}
        torch = preflight.require_torch()
        tag = f"{self.plat_name}-{sysconfig.get_config_var('SOABI')}"
        cuda = preflight.use_cuda(torch)
        if cuda:
            nvcc = environment["CUDACXX"] = preflight.require_nvcc()
            # CMake keeps the nvcc that a folder was made with.
            tag += f"-cuda{preflight.nvcc_version(nvcc)}"
        build = ROOT / "build" / "cmake" / tag
        configure = [
            f"-DCMAKE_MAKE_PROGRAM={find_tool('ninja')}",  # isolated builds move it each time
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DSEQ2SEQ_EXT_TORCH_DIR={torch.path}",
            f"-DSEQ2SEQ_EXT_CUDA={'ON' if cuda else 'OFF'}",
            f"-DSEQ2SEQ_EXT_OUTPUT_DIR={build / 'module'}",
            # Stated each time: what CMAKE_ARGS changed for one build is not to stay for the next.
            "-DCMAKE_BUILD_TYPE=Release",
            "-DSEQ2SEQ_EXT_SANITIZE=",
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]
        self._cmake("-S", ROOT, "-B", build, "-G", "Ninja", *configure, environment=environment)
        self._show_clangd(build / "compile_commands.json")
        wanted = [ext for ext in self.extensions if cuda or ext is not CUDA]
        targets = [ext.name.rpartition(".")[2] for ext in wanted]
        self._cmake("--build", build, "--target", *targets, environment=environment)
        for ext in wanted:
            self._place(build / "module" / Path(self.get_ext_filename(ext.name)).name, ext)
        if not cuda:  # one of an earlier build would be shipped
            Path(self.get_ext_fullpath(CUDA.name)).unlink(missing_ok=True)

    def get_ext_filename(self, fullname: str) -> str:
        """Where the library of an extension lies in the package."""
        # torch loads the CUDA library, not Python, whose version its name then need not hold.
        if fullname.rpartition(".")[2] == "_cuda":
            return str(Path(*fullname.split(".")).with_suffix(".so"))
        return str(super().get_ext_filename(fullname))

    def _cmake(self, *arguments: object, environment: dict[str, str]) -> None:
        command = [find_tool("cmake"), *map(str, arguments)]
        try:
            subprocess.run(command, check=True, env=environment)
        except subprocess.CalledProcessError as error:
            raise preflight.PreflightError(
                f"`{shlex.join(command)}` ended with {error.returncode}; what it said stands above."
            ) from None

    def _show_clangd(self, database: Path) -> None:
        """Links the compilation database to build/, where clangd looks for it by itself."""
        link = ROOT / "build" / database.name
        link.unlink(missing_ok=True)
        link.symlink_to(database.relative_to(link.parent))

    def _place(self, library: Path, ext: Extension) -> None:
        """Puts a library where setuptools expects it, replacing an older one in one step."""
        target = Path(self.get_ext_fullpath(ext.name))
        self.mkpath(str(target.parent))
        partial = target.with_name(f"{target.name}.{os.getpid()}")
        self.copy_file(str(library), str(partial))
        os.replace(partial, target)

    def copy_extensions_to_source(self) -> None:
        # An editable install: a running process may have the old library mapped, and writing into
        # that file would crash it. Unlinked, it lives on until the process ends.
        build_py = self.get_finalized_command("build_py")
        for ext in self.extensions:
            in_source, _ = self._get_inplace_equivalent(build_py, ext)
            Path(in_source).unlink(missing_ok=True)
        super().copy_extensions_to_source()


# optional: setuptools then accepts that there is none, in a build for the CPU.
CUDA = Extension("seq2seq_ext._cuda", sources=[], optional=True)

setup(
    ext_modules=[Extension("seq2seq_ext._C", sources=[]), CUDA],
    cmdclass={"build_ext": CMakeBuild},
)
