"""What each variant costs beside the plain layer, and beside a loop over time in plain torch.

    python benchmarks/variants.py
    python benchmarks/variants.py --prepack --threads 1

A training step, forward and backward, of one layer; all contestants of a table take turns.
docs/variants/README.md has the figures.  With ``--prepack`` inference with prepacked weights beside
the same layer without, and the errors of narrow weights: docs/prepack.md has those.  On one thread
that counts the CPU time of the thread, of which other programs take less than of the clock's.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, layer_norm, linear

import seq2seq_ext
from seq2seq_ext.benchmark.machine import OtherPrograms, description
from seq2seq_ext.benchmark.timing import Call, Sample, sample_by_clock, take_turns
from seq2seq_ext.benchmark.workloads import inference
from seq2seq_ext.cli.numbers import positive_int

SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "layer_norm": {"layer_norm": True},
    "zoneout": {"zoneout": 0.1},
    "zoneout of h and c": {"zoneout": (0.1, 0.1)},
    "recurrent_dropout, state": {"recurrent_dropout": 0.2},
    "recurrent_dropout, candidate": {
        "recurrent_dropout": 0.2,
        "recurrent_dropout_kind": "candidate",
    },
    "weight_drop": {"weight_drop": 0.2},
    "hard_sigmoid": {"hard_sigmoid": True},
    "residual": {"residual": True},
    "learn_initial_state": {"learn_initial_state": True},
    "peephole": {"peephole": True},
    "cell_clip": {"cell_clip": 3.0},
    "coupled": {"coupled": True},
    "return_cells": {"return_cells": True},
    "forget_bias": {"forget_bias": 1.0},
    "reset_after=False": {"reset_after": False},
}


class Loop(nn.Module):
    """An LSTM as it is written by hand: the input's product at once, then a step after another."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> tuple[Tensor]:
        layer, variant = self.layer, self.layer._variant
        width = layer.weight_hh_l0.size(0)
        gates = linear(x, layer.weight_ih_l0)
        if variant.layer_norm:
            gates = layer_norm(gates, (width,), layer.norm_ih_l0, layer.bias_ih_l0)
        else:
            gates = gates + layer.bias_ih_l0
        h = c = x.new_zeros(x.size(1), layer.hidden_size)
        mask = dropout(torch.ones_like(h), variant.state_dropout)
        outputs = []
        for step in gates.unbind():
            if variant.layer_norm:
                sums = linear(h, layer.weight_hh_l0)
                total = step + layer_norm(sums, (width,), layer.norm_hh_l0, layer.bias_hh_l0)
            else:
                h_in = h * mask if variant.state_dropout else h
                total = step + linear(h_in, layer.weight_hh_l0, layer.bias_hh_l0)
            i, f, g, o = total.chunk(4, 1)
            candidate = dropout(g.tanh(), variant.candidate_dropout)
            new_c = f.sigmoid() * c + i.sigmoid() * candidate
            seen = new_c
            if variant.layer_norm:
                seen = layer_norm(new_c, (h.size(1),), layer.norm_c_l0, layer.bias_c_l0)
            new_h = o.sigmoid() * seen.tanh()
            if variant.zoneout_h:
                new_h = torch.where(torch.rand_like(h) < variant.zoneout_h, h, new_h)
            if variant.zoneout_c:
                new_c = torch.where(torch.rand_like(c) < variant.zoneout_c, c, new_c)
            h, c = new_h, new_c
            outputs.append(h)
        return (torch.stack(outputs),)


LOOPS = [
    "layer_norm",
    "zoneout",
    "zoneout of h and c",
    "recurrent_dropout, state",
    "recurrent_dropout, candidate",
]


def training(module: Callable[..., Any], x: Tensor, d_y: Tensor, parameters: Any) -> Call:
    leaves = [x, *parameters]

    def call() -> object:
        y = module(x)[0]
        return torch.autograd.grad(y, leaves, d_y[..., : y.size(-1)], allow_unused=True)

    return call


# What is prepacked: a layer of each kind of product, small and large, for one sequence and some.
PREPACKED: dict[str, tuple[str, dict[str, Any]]] = {
    "LSTM layer_norm": ("LSTM", {"layer_norm": True}),
    "LSTM zoneout": ("LSTM", {"zoneout": 0.1}),
    "GRU layer_norm": ("GRU", {"layer_norm": True}),
    "GRU reset before, zoneout": ("GRU", {"reset_after": False, "zoneout": 0.1}),
    "RNN layer_norm": ("RNN", {"layer_norm": True}),
}
KEPT = (None, torch.bfloat16, torch.int8)


def prepacked_layers(name: str, H: int) -> list[Any]:
    """A new layer as it is, and prepacked in each dtype."""
    kind, settings = PREPACKED[name]
    layer = getattr(seq2seq_ext, kind)(H, H, **settings).eval()
    return [layer, *(seq2seq_ext.prepack(copy.deepcopy(layer), dtype) for dtype in KEPT)]


def sample_by_cpu_time(call: Call, loops: int) -> float:
    """Seconds that the calling thread has computed."""
    start = time.thread_time()
    for _ in range(loops):
        call()
    return time.thread_time() - start


def time_prepacked(T: int, repeats: int, sample: Sample) -> None:
    print(
        "| layer | H | B | T | plain, µs | None | bfloat16 | int8 |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    )
    for name in PREPACKED:
        for H in (256, 512, 1024):
            layers = prepacked_layers(name, H)
            for B, steps in ((1, T), (8, T), (1, 1)):
                x = torch.randn(steps, B, H)
                plain, *packed = take_turns(
                    [inference(layer, x) for layer in layers], repeats=repeats, sample=sample
                )
                speed_ups = " | ".join(
                    f"{plain.best / p.best:.2f}x / {plain.median / p.median:.2f}x" for p in packed
                )
                print(
                    f"| {name} | {H} | {B} | {steps} | {1e6 * plain.best:.0f} / "
                    f"{1e6 * plain.median:.0f} | {speed_ups} |",
                    flush=True,
                )


def rounded(layer: Any, dtype: torch.dtype) -> Any:
    """A copy in float64 whose matrices are what ``dtype`` keeps of them."""
    twin = copy.deepcopy(layer).double()
    for name, weight in twin.named_parameters():
        if name.startswith("weight"):
            step = weight.data.abs().amax(1, keepdim=True) / 127
            integers = (weight.data / step).round() * step
            weight.data = integers if dtype == torch.int8 else weight.data.to(dtype).double()
    return twin


def compare_prepacked(T: int) -> None:
    """Differences from float32, and what rounding alone makes of a layer that computes in float64.

    The largest and the mean of three layers; 8 sequences.
    """
    columns = "largest | rounded: largest | mean"
    print(
        f"\n| layer | H | T | bfloat16: {columns} | int8: {columns} |\n| --- |{' ---: |' * 8}",
        flush=True,
    )
    for name in PREPACKED:
        for H in (64, 256, 512):
            cells = ""
            for dtype in KEPT[1:]:
                largest = of_rounding = mean = 0.0
                for seed in range(3):
                    torch.manual_seed(seed)
                    layers = prepacked_layers(name, H)
                    x = torch.randn(T, 8, H)
                    exact = copy.deepcopy(layers[0]).double()
                    with torch.inference_mode():
                        error = layers[1 + KEPT.index(dtype)](x)[0] - layers[0](x)[0]
                        alone = rounded(layers[0], dtype)(x.double())[0] - exact(x.double())[0]
                    largest = max(largest, float(error.abs().max()))
                    of_rounding = max(of_rounding, float(alone.abs().max()))
                    mean += float(error.abs().mean()) / 3
                cells += f" {largest:.1e} | {of_rounding:.1e} | {mean:.1e} |"
            print(f"| {name} | {H} | {T} |{cells}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (("hidden-size", 256), ("batch-size", 32), ("time-steps", 50),
                          ("threads", torch.get_num_threads()), ("repeats", 30)):  # fmt: skip
        parser.add_argument(f"--{name}", type=positive_int, default=default, help=f"{default}")
    parser.add_argument("--prepack", action="store_true", help="inference with packed weights")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    T, B, H = options.time_steps, options.batch_size, options.hidden_size
    x, d_y = torch.randn(T, B, H, requires_grad=True), torch.randn(T, B, H)
    machine = description()
    work = "inference" if options.prepack else f"H {H}, B {B}, T {T}; forward and backward"
    print(
        f"{machine['processor']}, {machine['instruction set']}, {options.threads} threads, torch "
        f"{torch.__version__}; {work}, best / median of {options.repeats} turns\n"
    )
    if options.prepack:
        one = options.threads == 1
        time_prepacked(T, options.repeats, sample_by_cpu_time if one else sample_by_clock)
        compare_prepacked(T)
        return
    made: dict[str, dict[str, Any]] = {}
    for kind in ("LSTM", "GRU", "RNN"):
        made[kind] = {}
        for name, settings in {**SETTINGS, "proj_size, H / 2": {"proj_size": H // 2}}.items():
            try:
                made[kind][name] = getattr(seq2seq_ext, kind)(H, H, **settings)
            except (TypeError, ValueError):  # a variant that this cell has not
                continue
    for kind, layers in made.items():
        others = OtherPrograms()
        timings = take_turns(
            [training(layer, x, d_y, layer.parameters()) for layer in layers.values()],
            repeats=options.repeats,
        )
        print(f"| {kind} | ms | beside the plain layer |\n| --- | ---: | ---: |")
        for name, timing in zip(layers, timings, strict=True):
            print(
                f"| {name} | {1e3 * timing.best:.1f} / {1e3 * timing.median:.1f} "
                f"| {timing.best / timings[0].best:.2f}x / "
                f"{timing.median / timings[0].median:.2f}x |"
            )
        print(f"\nOther programs used {others.cores_used():.1f} cores.\n", flush=True)
    print("| LSTM | loop, ms | ours, ms | ratio |\n| --- | ---: | ---: | ---: |")
    for name in LOOPS:
        layer = made["LSTM"][name]
        sides = [Loop(layer), layer]
        loop, ours = take_turns(
            [training(side, x, d_y, layer.parameters()) for side in sides],
            repeats=options.repeats,
        )
        print(
            f"| {name} | {1e3 * loop.best:.1f} / {1e3 * loop.median:.1f} "
            f"| {1e3 * ours.best:.1f} / {1e3 * ours.median:.1f} "
            f"| {loop.best / ours.best:.1f}x / {loop.median / ours.median:.1f}x |",
            flush=True,
        )


if __name__ == "__main__":
    main()
