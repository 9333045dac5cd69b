"""The sequence pass of sb3-contrib's recurrent policies: its loop over time, and one call of ours.

    python benchmarks/recurrent_policy.py

Episodes start with a chance of 1 in 50 a step. Both sides compute the same, which is checked, and
take turns; docs/reinforcement-learning.md tells more. Needs the extra [rl].
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import torch
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from torch import nn

from seq2seq_ext.benchmark.limits import measure_limits
from seq2seq_ext.benchmark.machine import OtherPrograms, description
from seq2seq_ext.benchmark.shapes import INFERENCE, TRAINING, WORKS, Shape, Task
from seq2seq_ext.benchmark.timing import Call, take_turns
from seq2seq_ext.benchmark.workloads import OURS, Contestant, check, ours_of, tensors, training
from seq2seq_ext.cli.numbers import positive_int
from seq2seq_ext.integrations.sb3 import process_sequence

SB3 = "sb3-contrib"
MOST_SECONDS = 60.0  # of a row, on a machine that others use
NAMES = {INFERENCE: "forward", TRAINING: "forward and backward"}


def entrants(task: Task) -> list[Contestant]:
    """Both sides of a kind of work, sb3-contrib's first."""
    s = task.shape
    T, B, I, H = s.time_steps, s.batch_size, s.input_size, s.hidden_size
    theirs = nn.LSTM(I, H)
    sides = (
        (SB3, RecurrentActorCriticPolicy._process_sequence, theirs),
        (OURS, process_sequence, ours_of(theirs)),
    )
    features, d_y = torch.randn(B * T, I), torch.randn(B * T, H)
    h_0, c_0 = torch.randn(2, 1, B, H)
    starts = (torch.rand(B * T) < 0.02).float()

    def call(process: Callable[..., Any], lstm: nn.Module) -> Call:
        arguments = ((h_0, c_0), starts, lstm)
        if task.training:
            return training(process, list(lstm.parameters()), features, d_y, *arguments)
        return torch.no_grad()(partial(process, features, *arguments))

    return [
        Contestant(name=name, call=call(process, lstm), results=tensors)
        for name, process, lstm in sides
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def add(name: str, default: Any, what: str, **options: Any) -> None:
        parser.add_argument(
            name, type=positive_int, default=default, help=f"{what}; {default}", **options
        )

    add("--time-steps", 128, "steps of a sequence")
    add("--environments", [2, 8], "sequences", nargs="+")
    add("--input-size", 64, "features of a step")
    add("--hidden-sizes", [64, 128, 256], "hidden units", nargs="+")
    add("--threads", torch.get_num_threads(), "threads of torch")
    add("--repeats", 30, "turns of each side")
    options = parser.parse_args()
    torch.manual_seed(0)
    limits = measure_limits(options.threads)
    machine = description()
    print(
        f"{machine['processor']}, {machine['instruction set']}, {options.threads} threads, torch "
        f"{torch.__version__}; T {options.time_steps}, I {options.input_size}. "
        f"Best and median of {options.repeats} turns; the ratio at "
        "the limit is that of their best to the least time that this machine can take.\n"
    )
    print(f"| B | H | work | {SB3}, ms | {OURS}, ms | ratio | at the limit | others used |")
    print("| ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: |")
    for B, H, work in product(options.environments, options.hidden_sizes, WORKS):
        shape = Shape(
            hidden_size=H,
            batch_size=B,
            time_steps=options.time_steps,
            input_size=options.input_size,
        )
        task = Task(kind="resets", cell="LSTM", work=work, shape=shape)
        sides = entrants(task)
        check(sides, shape)
        others = OtherPrograms()
        theirs, ours = take_turns(
            [side.call for side in sides], repeats=options.repeats, most_seconds=MOST_SECONDS
        )
        cores = others.cores_used()
        weight_bytes = task.recurrent_weights * task.dtype.itemsize
        least = sum(
            limits.seconds(flop=each.flop, sweeps=each.sweeps, weight_bytes=weight_bytes)
            for each in task.passes
        )
        print(
            f"| {B} | {H} | {NAMES[work]} "
            f"| {1e3 * theirs.best:.2f} / {1e3 * theirs.median:.2f} "
            f"| {1e3 * ours.best:.2f} / {1e3 * ours.median:.2f} "
            f"| {theirs.best / ours.best:.1f}x / {theirs.median / ours.median:.1f}x "
            f"| {theirs.best / least:.1f}x | {cores:.1f} cores |",
            flush=True,
        )


if __name__ == "__main__":
    main()
