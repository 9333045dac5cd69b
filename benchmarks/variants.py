"""What each variant costs beside the plain layer, and beside a loop over time in plain torch.

    python benchmarks/variants.py

A training step, forward and backward, of one layer; all contestants of a table take turns.
docs/variants.md has the figures.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, layer_norm, linear

import seq2seq_ext
from seq2seq_ext.benchmark.machine import OtherPrograms, description
from seq2seq_ext.benchmark.timing import Call, take_turns
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (("hidden-size", 256), ("batch-size", 32), ("time-steps", 50),
                          ("threads", torch.get_num_threads()), ("repeats", 30)):  # fmt: skip
        parser.add_argument(f"--{name}", type=positive_int, default=default, help=f"{default}")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    T, B, H = options.time_steps, options.batch_size, options.hidden_size
    x, d_y = torch.randn(T, B, H, requires_grad=True), torch.randn(T, B, H)
    machine = description()
    print(
        f"{machine['processor']}, {machine['instruction set']}, {options.threads} threads, torch "
        f"{torch.__version__}; H {H}, B {B}, T {T}; forward and backward, best / median of "
        f"{options.repeats} turns\n"
    )
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
