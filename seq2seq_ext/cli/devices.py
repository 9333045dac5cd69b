"""Where a command's model computes."""

from __future__ import annotations

import argparse
import os

__all__ = ["add_device"]


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--device``."""
    parser.add_argument(
        "--device",
        type=_device,
        default="cpu",
        metavar="DEVICE",
        help="cpu, cuda or cuda:N; under torchrun cuda is each process's own (cpu)",
    )


def _device(text: str) -> str:
    kind, _, index = text.partition(":")
    if kind not in ("cpu", "cuda") or (index and not (kind == "cuda" and index.isdigit())):
        raise argparse.ArgumentTypeError(f"expected cpu, cuda or cuda:N, got {text!r}")
    if kind == "cpu":
        return text
    import torch

    number = int(index or os.environ.get("LOCAL_RANK", "0"))
    count = torch.cuda.device_count()
    if number >= count:
        known = f"cuda:0 to cuda:{count - 1}" if count else "no GPU"
        raise argparse.ArgumentTypeError(f"torch sees {known}, got {text!r}")
    return f"cuda:{number}"
