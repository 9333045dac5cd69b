"""What a source build needs, found and checked before anything is downloaded or compiled.

The backend asks early, so that a missing compiler is reported before a torch is fetched for
nothing; setup.py asks again and hands the answers to CMake; and a CMake run by hand asks through
the command line below. Every check ends either in an answer or in a `PreflightError` that says
what is wrong and what to do. Standard library only: this runs where nothing is installed yet.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import site
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MIN_TORCH = (2, 10)
MIN_GCC = 11
MIN_CLANG = 14
TORCH_REQUIREMENT = f"torch>={MIN_TORCH[0]}.{MIN_TORCH[1]}"
# The GPUs that the CUDA library is built for where TORCH_CUDA_ARCH_LIST does not say, as compute
# capabilities without the dot: Turing, Ampere, Ada, Hopper, Blackwell. The oldest is the oldest
# that will do, and PTX of the newest serves what comes after it.
CUDA_ARCHITECTURES = ("75", "80", "86", "89", "90", "100", "120")
# The families that torch's own extension builder knows in TORCH_CUDA_ARCH_LIST.
CUDA_FAMILIES = {
    "Turing": "7.5+PTX",
    "Ampere": "8.0;8.6+PTX",
    "Ampere+Tegra": "8.7",
    "Ada": "8.9+PTX",
    "Hopper": "9.0+PTX",
    "Blackwell": "10.0;10.3;12.0;12.1+PTX",
    "Blackwell+Tegra": "11.0",
}
DEFAULT_CUDA_HOME = Path("/usr/local/cuda")  # where NVIDIA's installers link the toolkit to
# Python 3.11 named the layout of virtual environments, which Debian's own layout differs from.
VENV_SCHEME = "venv" if "venv" in sysconfig.get_scheme_names() else "posix_prefix"


class PreflightError(SystemExit):
    """Ends the build with a message and no traceback: the reader is a user, not a developer."""

    def __init__(self, message: str) -> None:
        super().__init__(f"\nseq2seq_ext cannot be built here: {message}\n")


# --- torch --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Torch:
    """A torch on disk; never imported, since the build may run beside a broken or foreign one."""

    path: Path  # the package's folder, which holds include/ and lib/
    version: str  # "2.13.0+cpu"
    cuda: str | None  # "13.0" for a CUDA build


def read_torch(path: Path) -> Torch:
    """Reads `torch/version.py`, the one file that tells version and CUDA without an import."""
    values: dict[str, object] = {}
    for node in ast.parse((path / "version.py").read_text(encoding="utf-8")).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        value = getattr(node, "value", None)
        for target in targets:
            if isinstance(target, ast.Name) and isinstance(value, ast.Constant):
                values[target.id] = value.value
    cuda = values.get("cuda")
    return Torch(path, str(values.get("__version__")), cuda if isinstance(cuda, str) else None)


def site_packages() -> Iterator[Path]:
    """Folders that may hold the target environment's torch, the likeliest first.

    pip's build isolation hides the environment that is being installed into: `sys.path` then names
    only the build requirements. Yet the interpreter is still that environment's own, so that
    `site` goes on telling where its packages lie. `python -m build` makes an environment of its
    own instead; there, VIRTUAL_ENV names the one that the user has activated.
    """
    yield from (Path(entry or ".") for entry in sys.path)
    yield from map(Path, site.getsitepackages())
    if sys.prefix == sys.base_prefix:
        yield Path(site.getusersitepackages())
    if active := os.environ.get("VIRTUAL_ENV"):
        for key in ("platlib", "purelib"):
            yield Path(sysconfig.get_path(key, VENV_SCHEME, {"base": active, "platbase": active}))


def find_torch() -> Torch | None:
    """The torch to build against, or None where the target environment has none.

    SEQ2SEQ_EXT_TORCH, the folder of a torch package, overrides the search.

    Raises:
        PreflightError: SEQ2SEQ_EXT_TORCH names no torch, or the torch found is too old.
    """
    if override := os.environ.get("SEQ2SEQ_EXT_TORCH"):
        if not (Path(override) / "version.py").is_file():
            raise PreflightError(
                f"SEQ2SEQ_EXT_TORCH is {override!r}, which holds no torch. Expected the folder of "
                "a torch package: the one that contains version.py, include and lib."
            )
        torch = read_torch(Path(override).resolve())
    else:
        for folder in site_packages():
            if (folder / "torch" / "version.py").is_file():
                torch = read_torch((folder / "torch").resolve())
                break
        else:
            return None
    if version_tuple(torch.version) < MIN_TORCH:
        raise PreflightError(
            f"torch {torch.version} in {torch.path} is too old, seq2seq_ext needs "
            f"{TORCH_REQUIREMENT}. Upgrade it (pip install --upgrade '{TORCH_REQUIREMENT}'), or "
            "set SEQ2SEQ_EXT_TORCH to the folder of a newer torch package."
        )
    if not (torch.path / "include" / "torch" / "csrc" / "stable" / "library.h").is_file():
        raise PreflightError(
            f"torch {torch.version} in {torch.path} comes without the C++ headers of the stable "
            "ABI (include/torch/csrc/stable). Install the torch wheel from PyPI or pytorch.org, "
            "or set SEQ2SEQ_EXT_TORCH to the folder of a torch package that has them."
        )
    return torch


def require_torch() -> Torch:
    """`find_torch`, where there has to be one.

    Raises:
        PreflightError: there is none, or what `find_torch` raises.
    """
    torch = find_torch()
    if torch is None:
        raise PreflightError(
            f"{sys.executable} has no torch to build against. Install one (pip install "
            f"'{TORCH_REQUIREMENT}'), or set SEQ2SEQ_EXT_TORCH to the folder of a torch package."
        )
    return torch


def version_tuple(version: str) -> tuple[int, int]:
    """(2, 13) for "2.13.0a0+cpu"; (0, 0) for what is no version."""
    match = re.match(r"(\d+)\.(\d+)", version)
    return (int(match[1]), int(match[2])) if match else (0, 0)


# --- compiler -----------------------------------------------------------------------------------


def find_compiler() -> str:
    """The C++ compiler, as the value that CMake is to find in CXX.

    CXX is taken as it stands; without it, the first of c++, g++ and clang++ that is new enough.

    Raises:
        PreflightError: there is none, it does not run, or it is too old.
    """
    candidates = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    rejected: list[str] = []
    for candidate in candidates:
        if not shutil.which(shlex.split(candidate)[0]):
            continue
        problem = compiler_problem(candidate)
        if problem is None:
            return candidate
        rejected.append(f"{candidate} {problem}")
    wanted = f"g++ {MIN_GCC} or newer, or clang++ {MIN_CLANG} or newer"
    found = "; ".join(rejected) or f"looked for {', '.join(candidates)} in PATH and found none"
    raise PreflightError(
        f"no C++ compiler that can build it ({found}). Install {wanted} "
        "(Debian and Ubuntu: apt install g++; Fedora: dnf install gcc-c++; "
        "conda: conda install gxx_linux-64), or name one in the environment variable CXX."
    )


def compiler_problem(compiler: str) -> str | None:
    """What is wrong with a compiler, or None. It is asked for its macros, not for its name."""
    command = [*shlex.split(compiler), "-dM", "-E", "-x", "c++", os.devnull]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        return f"does not run: {error}"
    macros = dict(re.findall(r"^#define (__clang_major__|__GNUC__) (\d+)", result.stdout, re.M))
    if "__clang_major__" in macros:  # clang also claims to be GCC 4
        major, minimum, name = int(macros["__clang_major__"]), MIN_CLANG, "clang"
    elif "__GNUC__" in macros:
        major, minimum, name = int(macros["__GNUC__"]), MIN_GCC, "GCC"
    else:
        return "is neither GCC nor clang"
    return f"is {name} {major}, {minimum} is the oldest that will do" if major < minimum else None


def check_python_headers() -> None:
    """Raises PreflightError where this Python came without Python.h."""
    include = Path(sysconfig.get_path("include"))
    if not (include / "Python.h").is_file():
        raise PreflightError(
            f"this Python has no C headers ({include}/Python.h is missing). Install them (Debian "
            "and Ubuntu: apt install python3-dev; Fedora: dnf install python3-devel)."
        )


# --- CUDA ---------------------------------------------------------------------------------------


def find_nvcc() -> str | None:
    """nvcc by CUDACXX, CUDA_HOME, PATH or the toolkit's usual folder: the order of CMake and torch.

    A variable that is set and names none is not passed over.
    """
    if os.environ.get("CUDACXX"):
        return shutil.which(os.environ["CUDACXX"])
    if os.environ.get("CUDA_HOME"):
        return shutil.which("nvcc", path=str(Path(os.environ["CUDA_HOME"]) / "bin"))
    return shutil.which("nvcc") or shutil.which("nvcc", path=str(DEFAULT_CUDA_HOME / "bin"))


def nvcc_version(nvcc: str) -> str:
    """ "13.0" for a toolkit of that release.

    Raises:
        PreflightError: nvcc does not run or does not tell.
    """
    try:
        output = subprocess.run(
            [nvcc, "--version"], capture_output=True, text=True, check=True, timeout=60
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        output = str(error)
    if match := re.search(r"release (\d+\.\d+)", output):
        return match[1]
    raise PreflightError(
        f"{nvcc} does not tell its release ({output.strip() or 'no output'}). Repair the CUDA "
        "toolkit, name another nvcc in CUDACXX, or build for the CPU with SEQ2SEQ_EXT_CUDA=off."
    )


def cuda_architectures(nvcc: str) -> list[str]:
    """What the CUDA library is compiled for: ["80", "90", "90+PTX"].

    A number stands for machine code, "+PTX" for the portable form that a driver compiles for GPUs
    newer than the library. TORCH_CUDA_ARCH_LIST says which, in torch's syntax: "8.0;9.0+PTX" or
    "8.0 9.0+PTX", families such as "Ampere" included. Without it, `CUDA_ARCHITECTURES` as far as
    this nvcc knows them.

    Raises:
        PreflightError: TORCH_CUDA_ARCH_LIST names what is no architecture, or one that is too old
            for the kernels or unknown to this nvcc.
    """
    known = known_architectures(nvcc)
    requested = os.environ.get("TORCH_CUDA_ARCH_LIST", "")
    for family, members in CUDA_FAMILIES.items():
        requested = re.sub(rf"(?<![\w+]){re.escape(family)}(?![\w+])", members, requested)
    entries = [entry for entry in re.split(r"[;,\s]+", requested) if entry]
    if not entries:
        chosen = [name for name in CUDA_ARCHITECTURES if not known or name in known]
        if not chosen:
            raise PreflightError(
                f"{nvcc} compiles for none of {', '.join(CUDA_ARCHITECTURES)}. Install another "
                "CUDA toolkit, or build for the CPU with SEQ2SEQ_EXT_CUDA=off."
            )
        return [*chosen, f"{chosen[-1]}+PTX"]

    code: set[str] = set()
    ptx: set[str] = set()
    for entry in entries:
        match = re.fullmatch(r"(\d+)\.(\d[af]?)(\+PTX)?", entry)
        if match is None:
            raise PreflightError(
                f"TORCH_CUDA_ARCH_LIST holds {entry!r}; expected compute capabilities such as "
                f"8.0;9.0+PTX, or one of {', '.join(CUDA_FAMILIES)}."
            )
        name = match[1] + match[2]
        if architecture_order(name) < architecture_order(CUDA_ARCHITECTURES[0]):
            raise PreflightError(
                f"TORCH_CUDA_ARCH_LIST holds {entry}, and the oldest GPUs that the kernels run on "
                "are of 7.5. Take it out, or build for the CPU with SEQ2SEQ_EXT_CUDA=off."
            )
        if known and name.rstrip("af") not in known:
            raise PreflightError(
                f"TORCH_CUDA_ARCH_LIST holds {entry}, which {nvcc} does not know: it compiles for "
                f"{', '.join(known)}. Take it out, or install another CUDA toolkit."
            )
        code.add(name)
        if match[3]:
            ptx.add(name)
    return [
        *sorted(code, key=architecture_order),
        *(f"{name}+PTX" for name in sorted(ptx, key=architecture_order)),
    ]


def architecture_order(name: str) -> tuple[int, str]:
    """Sorts "90" before "90a" before "100"."""
    digits = name.rstrip("af")
    return int(digits), name[len(digits) :]


def known_architectures(nvcc: str) -> list[str]:
    """What this nvcc compiles for, oldest first; nothing where it does not tell."""
    command = [nvcc, "--list-gpu-code"]
    try:
        output = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=60
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return sorted(re.findall(r"^sm_(\d+)$", output, re.M), key=architecture_order)


def use_cuda(torch: Torch) -> bool:
    """Whether the CUDA library is built: SEQ2SEQ_EXT_CUDA = auto (default), on or off.

    auto means that nvcc is there and torch is a CUDA build. No GPU is needed to build.

    Raises:
        PreflightError: the setting is none of the three, asks for what cannot be had, nvcc and
            torch are of different CUDA majors, or TORCH_CUDA_ARCH_LIST is not to be had.
    """
    setting = os.environ.get("SEQ2SEQ_EXT_CUDA", "auto").lower() or "auto"
    if setting not in ("auto", "on", "off"):
        raise PreflightError(f"SEQ2SEQ_EXT_CUDA is {setting!r}; expected auto, on or off.")
    if setting == "off":
        return False
    nvcc = find_nvcc()
    if setting == "on" and nvcc is None:
        raise PreflightError(
            "SEQ2SEQ_EXT_CUDA=on, but there is no nvcc in CUDACXX, CUDA_HOME, PATH or "
            f"{DEFAULT_CUDA_HOME}. Install the CUDA toolkit"
            f"{f' {torch.cuda}' if torch.cuda else ''}, or build for the CPU with "
            "SEQ2SEQ_EXT_CUDA=off."
        )
    if setting == "on" and torch.cuda is None:
        raise PreflightError(
            f"SEQ2SEQ_EXT_CUDA=on, but torch {torch.version} in {torch.path} is a CPU build. "
            "Install a CUDA build of torch, or build for the CPU with SEQ2SEQ_EXT_CUDA=off."
        )
    if nvcc is None or torch.cuda is None:
        return False
    toolkit = nvcc_version(nvcc)
    if toolkit.split(".")[0] != torch.cuda.split(".")[0]:
        raise PreflightError(
            f"nvcc is of CUDA {toolkit} ({nvcc}), but torch {torch.version} was built for CUDA "
            f"{torch.cuda}, and the two majors have to agree. Install the CUDA toolkit "
            f"{torch.cuda} and name its nvcc in CUDACXX, install a torch built for CUDA "
            f"{toolkit.split('.')[0]}, or build for the CPU with SEQ2SEQ_EXT_CUDA=off."
        )
    cuda_architectures(nvcc)
    return True


def require_nvcc() -> str:
    """`find_nvcc`, where there has to be one.

    Raises:
        PreflightError: there is none.
    """
    nvcc = find_nvcc()
    if nvcc is None:
        raise PreflightError(
            "a CUDA build was asked for, but there is no nvcc in CUDACXX, CUDA_HOME, PATH or "
            f"{DEFAULT_CUDA_HOME}. Install the CUDA toolkit, or build for the CPU."
        )
    return nvcc


if __name__ == "__main__":  # for the Makefile, and for a CMake that was run by hand
    question = sys.argv[1] if len(sys.argv) == 2 else ""
    if question == "compiler":
        check_python_headers()
        print(find_compiler())
    elif question == "torch":
        print(require_torch().path)
    elif question == "nvcc":
        print(require_nvcc())
    elif question == "cuda-architectures":
        print(" ".join(cuda_architectures(require_nvcc())))
    else:
        sys.exit("usage: preflight.py compiler | torch | nvcc | cuda-architectures")
