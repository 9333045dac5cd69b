"""``seq2seq-ext info``: all that a problem report should hold."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import sys

import torch

import seq2seq_ext
from seq2seq_ext.benchmark.machine import processor
from seq2seq_ext.loading import CUDA_PROBLEM

_EXTRAS = ("lightning", "rich", "safetensors", "lemminflect", "onnxruntime", "openvino")


def add_parser(subcommands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand ``info``."""
    parser = subcommands.add_parser(
        "info",
        help="print versions, instruction set, threads, CUDA",
        description="Print what a problem report needs: versions of everything, the instruction "
        "set and threads in use, how the extension was built, and the CUDA device.",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the facts, one ``name: value`` a line."""
    for name, value in facts():
        print(f"{name + ':':<28}{value}")
    print()
    print("To report a problem, open an issue" + _tracker() + " with the lines above, the shortest")
    print("program that shows the problem, what it did and what you expected.")
    return 0


def facts() -> list[tuple[str, str]]:
    """Names and values, from the package down to the machine."""
    rows = [("seq2seq_ext", seq2seq_ext.__version__), ("torch", torch.__version__)]
    rows += [(name, _version(name)) for name in _EXTRAS]
    rows.append(("python", f"{sys.version.split()[0]} ({platform.python_implementation()})"))
    rows.append(("system", f"{platform.system()} {platform.release()} {platform.machine()}"))
    rows.append(("processor", processor()))
    rows.append(("instruction set", seq2seq_ext.cpu_isa()))
    rows += [(f"build {name}", _plain(value)) for name, value in seq2seq_ext.build_info().items()]
    rows.append(("threads", f"{torch.get_num_threads()} (torch.get_num_threads())"))
    rows.append(("torch's CUDA", torch.version.cuda or "none, a CPU build"))
    rows.append(("CUDA kernels", CUDA_PROBLEM or "loaded"))
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(index)
            memory = device.total_memory / 2**30
            name = f"{device.name}, sm_{device.major}{device.minor}, {memory:.1f} GiB"
            rows.append((f"CUDA device {index}", name))
    else:
        rows.append(("CUDA device", "none"))
    return rows


def _plain(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(str(item) for item in value) or "none"
    return "none" if value is None or value == "" else str(value)


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _tracker() -> str:
    """`` at <address>`` if the installed package names its issue tracker, else nothing."""
    try:
        urls = importlib.metadata.metadata("seq2seq_ext").get_all("Project-URL") or []
    except importlib.metadata.PackageNotFoundError:
        return ""
    for entry in urls:
        label, _, address = str(entry).partition(",")
        if label.strip().lower() in ("issues", "bug tracker", "bugs"):
            return f" at {address.strip()}"
    return ""
