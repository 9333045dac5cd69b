"""``seq2seq-ext plan``: how the CUDA engine would lay layers on a GPU, which need not be here."""

from __future__ import annotations

import argparse
import sys
from itertools import product
from typing import TYPE_CHECKING

import torch

from seq2seq_ext.cli.lists import one_of, several
from seq2seq_ext.cli.numbers import positive_int
from seq2seq_ext.cuda_planning import CudaDevice, CudaPlan, cuda_devices, plan_of_shape
from seq2seq_ext.data.extras import check

if TYPE_CHECKING:
    from rich.table import Table

CELLS = {"LSTM": "lstm", "GRU": "gru", "RNN": "rnn_tanh"}
# TF32 is float32 that tensor cores may round.
DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "tf32": torch.float32,
    "float32": torch.float32,
    "float64": torch.float64,
}
PASSES = ("forward", "backward")
_LINE = 200

_EXAMPLES = """\
examples:
  seq2seq-ext plan --devices h100 --cells LSTM --dtypes float16
  seq2seq-ext plan --devices a100,h100 --hidden-sizes 512,1024 --batch-sizes 32 --directions 2
  seq2seq-ext plan --devices here --plan tiles=2,rows=16

A persistent launch keeps the recurrent weights in registers and shared memory for all steps, with
one block on a multiprocessor (SM). SHARED is a block's shared memory, of which WEIGHTS IN SHARED is
a part; KB are 1024 bytes. docs/cuda.md tells how the plan is made.
"""


def add_parser(subcommands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand ``plan``."""
    parser = subcommands.add_parser(
        "plan",
        help="print how the CUDA kernels would be laid on a GPU",
        description="Print the launch plans of the CUDA engine over a grid of shapes, one a row. "
        "No GPU is needed.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    known = list(cuda_devices())
    for option, names, default, what in (
        ("--devices", (*known, "here"), known, "here: torch's current GPU"),
        ("--cells", CELLS, list(CELLS), ""),
        ("--dtypes", DTYPES, ["float16", "float32"], "tf32: float32 with TF32 allowed"),
        ("--passes", PASSES, list(PASSES), ""),
    ):
        chosen = "all" if len(default) == len(names) else ",".join(default)
        parser.add_argument(
            option,
            type=several(one_of(names)),
            default=default,
            metavar="A,B",
            help=f"of {', '.join(names)}{what and '; ' + what} ({chosen})",
        )
    for option, numbers, what in (
        ("--hidden-sizes", [64, 128, 256, 512, 768, 1024, 1536, 2048], "hidden sizes"),
        ("--batch-sizes", [1, 16, 64, 256], "batch sizes"),
    ):
        parser.add_argument(
            option,
            type=several(positive_int),
            default=numbers,
            metavar="N,M",
            help=f"{what} ({','.join(map(str, numbers))})",
        )
    parser.add_argument(
        "--directions",
        type=several(one_of(("1", "2"))),
        default=["1", "2"],
        metavar="N,M",
        help="1, 2 for bidirectional layers (1,2)",
    )
    parser.add_argument(
        "--time-steps", type=positive_int, default=100, metavar="N", help="time steps (100)"
    )
    parser.add_argument(
        "--plan",
        default="",
        metavar="TEXT",
        help="force general, or some of persistent, tiles=N, slices=N, groups=N, rows=N",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print a table for each device, cell, dtype and number of directions."""
    check("rich", extra="train", purpose="seq2seq-ext plan")
    from rich.console import Console

    # A file or a pipe has no width; there a row is a line.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _LINE)
    for name in options.devices:
        device = CudaDevice.of(None if name == "here" else name)
        console.print(f"\n[bold]{_described(name, device)}[/]", soft_wrap=True)
        for cell, dtype, directions in product(options.cells, options.dtypes, options.directions):
            console.print(_table(options, device, cell, dtype, int(directions)))
    return 0


def _described(name: str, device: CudaDevice) -> str:
    shown = torch.cuda.get_device_name() if name == "here" else name
    return (
        f"{shown}: compute capability {device.capability // 10}.{device.capability % 10}, "
        f"{device.multiprocessors} SMs of {device.registers_per_multiprocessor} registers, "
        f"{_kb(device.shared_per_block)} KB of shared memory a block"
    )


def _table(
    options: argparse.Namespace, device: CudaDevice, cell: str, dtype: str, directions: int
) -> Table:
    from rich.table import Table

    title = f"\n{cell}, {dtype}, {directions} direction{'s' if directions > 1 else ''}"
    table = Table(title=title, title_justify="left", box=None)
    for column in ("H", "B"):
        table.add_column(column, justify="right", no_wrap=True)
    for column in ("pass", "way"):
        table.add_column(column, no_wrap=True)
    for column in (
        "blocks",
        "of SMs",
        "threads",
        "launches",
        "shared\nKB",
        "weights in\nregisters KB",
        "weights in\nshared KB",
    ):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("why not persistent", overflow="fold")
    for H, B, which in product(options.hidden_sizes, options.batch_sizes, options.passes):
        plan = plan_of_shape(
            CELLS[cell],
            DTYPES[dtype],
            H,
            time_steps=options.time_steps,
            batch_size=B,
            num_directions=directions,
            backward=which == "backward",
            device=device,
            allow_tf32=dtype == "tf32",
            plan=options.plan,
        )
        table.add_row(str(H), str(B), which, *_cells(plan, device))
    return table


def _cells(plan: CudaPlan, device: CudaDevice) -> tuple[str, ...]:
    if not plan.persistent:
        return "general", *[""] * 7, plan.why
    return (
        "persistent",
        str(plan.blocks),
        f"{plan.blocks / device.multiprocessors:.0%}",
        str(plan.threads),
        str(plan.launches),
        _kb(plan.shared_bytes),
        _kb(plan.weights_in_registers),
        _kb(plan.weights_in_shared),
        "",
    )


def _kb(count: int) -> str:
    return f"{count / 1024:.0f}" if count % 1024 == 0 else f"{count / 1024:.1f}"
