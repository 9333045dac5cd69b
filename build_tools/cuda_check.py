"""Compiles every CUDA kernel for every architecture and tells what it takes of a GPU.

The kernels include no header of torch, so that nvcc alone will do: no GPU, no driver, no CUDA
build of torch. A warning fails the check, as do registers that are spilled to memory, anywhere,
and in the persistent kernels, whose speed is that of their registers, any stack frame. What the
compiler says of each kernel goes into a table, docs/cuda_resources.md.

    python build_tools/cuda_check.py [--require] [--jobs N] [--output FILE] [SOURCE ...]

Standard library only.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import preflight

ROOT = preflight.ROOT
FLAGS = ["-std=c++17", "-O3", "-DNDEBUG", "-Xptxas=-v,-warn-spills", "-Werror", "all-warnings"]


@dataclass(frozen=True)
class Usage:
    """What one function takes on one architecture; sizes in bytes."""

    name: str  # as the linker knows it
    architecture: str  # "90"
    kernel: bool  # or a function that kernels call
    registers: int = 0
    shared: int = 0  # static, per block
    stack: int = 0  # per thread, as all that follows
    spill_stores: int = 0
    spill_loads: int = 0

    @property
    def spills(self) -> bool:
        return self.spill_stores > 0 or self.spill_loads > 0


# --- what ptxas says ------------------------------------------------------------------------------

_ENTRY = re.compile(r"Compiling entry function '(\S+)' for 'sm_(\w+)'")
_PROPERTIES = re.compile(r"Function properties for (\S+)")
_FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


def lasting(symbol: str) -> str:
    """A symbol without what the compiler draws for each run: its name of an anonymous namespace.

    >>> lasting("_ZN3s2s32_GLOBAL__N__0123abcd_4_a_cu_77_63run")
    '_ZN3s2s12_GLOBAL__N_13run'
    """
    match = re.search(r"(\d+)_GLOBAL__N__", symbol)
    if match is None:
        return symbol
    length = match[1]
    begin = match.start() + len(length)
    drawn = symbol[begin : begin + int(length)]
    return symbol.replace(length + drawn, "12_GLOBAL__N_1")


def parse(output: str) -> list[Usage]:
    """What ``ptxas -v`` tells of each kernel, and of each function that it did not inline.

    It names the kernel that it compiles, then gives the frame of the kernel or of a function by
    name, then the kernel's registers and shared memory.
    """
    found: dict[tuple[str, str], dict[str, int]] = {}
    kernels: set[str] = set()
    entry = function = architecture = ""
    for line in output.splitlines():
        if match := _ENTRY.search(line):
            entry, architecture = lasting(match[1]), match[2]
            kernels.add(entry)
            found.setdefault((entry, architecture), {})
        elif match := _PROPERTIES.search(line):
            function = lasting(match[1])
        elif match := _FRAME.search(line):
            frame = found.setdefault((function, architecture), {})
            frame["stack"], frame["spill_stores"], frame["spill_loads"] = map(int, match.groups())
        elif match := _USED.search(line):
            shared = _SHARED.search(line)
            found[entry, architecture] |= {
                "registers": int(match[1]),
                "shared": int(shared[1]) if shared else 0,
            }
    return [
        Usage(name, architecture, name in kernels, **sizes)
        for (name, architecture), sizes in found.items()
    ]


def problems(usage: Usage, name: str) -> list[str]:
    """Why a function does not pass; ``name`` is how a reader knows it."""
    where = f"{name} on sm_{usage.architecture}"
    found = []
    if usage.spills:
        found.append(
            f"{where}: registers are spilled, {usage.spill_stores} bytes stored and "
            f"{usage.spill_loads} loaded"
        )
    elif usage.stack and "persistent" in name:
        found.append(f"{where}: a stack frame of {usage.stack} bytes; expected none")
    return found


# --- names ----------------------------------------------------------------------------------------


def demangle(text: str) -> str:
    """A text with its symbols as the source has them; unchanged without c++filt (binutils)."""
    if not shutil.which("c++filt"):
        return text
    return subprocess.run(
        ["c++filt"], input=text, capture_output=True, text=True, check=True
    ).stdout.rstrip("\n")


def readable_names(symbols: Iterable[str]) -> dict[str, str]:
    symbols = sorted(set(symbols))
    full = demangle("\n".join(symbols)).splitlines()
    return {symbol: shorten(name) for symbol, name in zip(symbols, full, strict=True)}


def shorten(name: str) -> str:
    """A demangled name without namespaces, result and parameters.

    >>> shorten("void seq2seq_ext::(anonymous namespace)::run<seq2seq_ext::Lstm<float>, 4>(int*)")
    'run<Lstm<float>, 4>'
    """
    name = name.replace("(anonymous namespace)::", "").replace("(bool)1", "true")
    name = name.replace("(bool)0", "false").removeprefix("void ")
    name = re.sub(r"\b(_GLOBAL__N_\w+|_INTERNAL_\w+|\w+)::", "", name)
    depth = 0
    for position, letter in enumerate(name):
        depth += {"<": 1, ">": -1}.get(letter, 0)
        if letter == "(" and depth == 0 and position:
            return name[:position]
    return name


# --- compiling ------------------------------------------------------------------------------------


def nvcc_flags() -> list[str]:
    """Those of the build that change what is compiled."""
    lines = (ROOT / "cmake" / "nvcc_flags.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


@dataclass(frozen=True)
class Compiled:
    source: Path
    architecture: str
    failed: bool
    output: str
    seconds: float

    def complaints(self) -> str:
        """Why the compiler fails, but for the spills, which are in the table."""
        if not self.failed:
            return ""
        lines = [
            line
            for line in self.output.splitlines()
            if not re.search(r"ptxas info|bytes stack frame|Registers are spilled", line)
        ]
        if not lines and any(usage.spills for usage in parse(self.output)):
            return ""
        return "\n".join(lines) or "nvcc fails and does not say why"


def compile_one(nvcc: str, source: Path, architecture: str, folder: Path) -> Compiled:
    target = folder / f"{source.stem}.{architecture}.o"
    command = [nvcc, *FLAGS, *nvcc_flags(), f"-arch=sm_{architecture}", f"-I{ROOT / 'csrc'}",
               "-c", str(source), "-o", str(target)]  # fmt: skip
    started = time.monotonic()
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - started
    failed = result.returncode != 0
    return Compiled(source, architecture, failed, result.stdout + result.stderr, seconds)


# --- the table ------------------------------------------------------------------------------------


def table(by_source: dict[str, list[Usage]], names: dict[str, str], toolkit: str) -> str:
    """docs/cuda_resources.md: a row per kernel, a column per architecture."""
    lines = [
        "# What the CUDA kernels take of a GPU",
        "",
        f"`make cuda-check` wrote this from what the compiler says, `ptxas -v` of CUDA {toolkit};",
        "nothing in it was measured on a GPU. A cell holds the registers of a thread and, where",
        "there are any, the bytes of static shared memory of a block (`+n`), of a thread's stack",
        "frame (`stack n`) and of its spills. Shared memory that a launch asks for is not counted.",
    ]
    for source, usages in by_source.items():
        kernels: dict[str, dict[str, str]] = {}  # by symbol, so that no two share a row
        for usage in usages:
            if usage.kernel:
                kernels.setdefault(usage.name, {})[usage.architecture] = cell(usage)
        architectures = sorted(
            {usage.architecture for usage in usages}, key=preflight.architecture_order
        )
        header = " | ".join(["kernel", *(f"sm_{name}" for name in architectures)])
        lines += ["", f"## {source}", "", f"| {header} |"]
        lines.append("| --- |" + " ---: |" * len(architectures))
        for symbol in sorted(kernels, key=lambda symbol: names[symbol]):
            row = [kernels[symbol].get(name, "") for name in architectures]
            lines.append(f"| `{names[symbol]}` | {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def cell(usage: Usage) -> str:
    parts = [str(usage.registers)]
    if usage.shared:
        parts.append(f"+{usage.shared}")
    if usage.stack:
        parts.append(f"stack {usage.stack}")
    if usage.spills:
        parts.append(f"spills {usage.spill_stores}/{usage.spill_loads}")
    return " ".join(parts)


# --- the command ----------------------------------------------------------------------------------


def check(nvcc: str, sources: list[Path], jobs: int, output: Path | None) -> int:
    """The exit status; the table is written, or printed, once everything compiles."""
    architectures = [name for name in preflight.cuda_architectures(nvcc) if "+" not in name]
    tasks = [(source, name) for source in sources for name in architectures]
    started = time.monotonic()
    by_source: dict[str, list[Usage]] = {}
    errors: list[str] = []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as pool:
        for done in pool.map(lambda task: compile_one(nvcc, *task, Path(folder)), tasks):
            source = os.path.relpath(done.source, ROOT)
            usages = parse(done.output)
            by_source.setdefault(source, []).extend(usages)
            where = f"{source} for sm_{done.architecture}"
            print(f"{where}: {len(usages)} functions in {done.seconds:.0f} s", flush=True)
            if said := done.complaints():
                errors.append(f"{where}:\n{demangle(said)}")
    usages = [usage for group in by_source.values() for usage in group]
    names = readable_names(usage.name for usage in usages)
    if not errors:
        text = table(by_source, names, preflight.nvcc_version(nvcc))
        if output is None:
            print(text)
        else:
            output.write_text(text, encoding="utf-8")
    for usage in usages:
        errors += problems(usage, names[usage.name])
    if errors:
        print("\n".join(["", *errors]), file=sys.stderr)
        return 1
    print(f"cuda-check: {len(usages)} functions pass, in {time.monotonic() - started:.0f} s")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Compile every kernel for every architecture.")
    parser.add_argument("--require", action="store_true", help="fail where there is no nvcc")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="compilers at once")
    parser.add_argument("--output", type=Path, help="the table's file; printed without one")
    parser.add_argument("sources", type=Path, nargs="*", help="default: every csrc/cuda/*.cu")
    options = parser.parse_args()
    nvcc = preflight.find_nvcc()
    if nvcc is None:
        print("cuda-check: there is no nvcc, so no kernel was compiled")
        return 1 if options.require else 0
    sources = [path.resolve() for path in options.sources]
    sources = sources or sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
    if not sources:
        print("cuda-check: csrc/cuda holds no kernel", file=sys.stderr)
        return 1
    return check(nvcc, sources, options.jobs, options.output)


if __name__ == "__main__":
    sys.exit(main())
