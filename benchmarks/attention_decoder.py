"""A training step of a decoder with attention and input feeding, beside a loop in plain torch.

    python benchmarks/attention_decoder.py

Both are the decoder of Luong et al. 2015 with one LSTM layer, teacher forced: the loop calls
``nn.LSTMCell`` and forms attention step by step, ours runs all steps in one operator. Their losses
and gradients are compared first; then they take turns. The last column is what the ratio would be
if ours did nothing but the multiply-adds of its products, at the peak of the cores.
docs/attention.md has the figures.
"""

from __future__ import annotations

import argparse
import math
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from seq2seq_ext.benchmark.limits import measure_limits
from seq2seq_ext.benchmark.machine import OtherPrograms, description
from seq2seq_ext.benchmark.timing import Call, take_turns
from seq2seq_ext.cli.numbers import positive_int
from seq2seq_ext.decoder import attention_decoder

# Sequences, units, positions of the source, and steps.
SHAPES = ((1, 256, 10, 10), (16, 128, 12, 12), (64, 128, 12, 12), (32, 256, 30, 30))


def contestants(B: int, H: int, S: int, T: int, additive: bool) -> list[Call]:
    """The loop's training step and ours, of the same numbers."""
    cell = nn.LSTMCell(2 * H, H)  # reads an embedding and the attentional vector
    key, query, combine = (nn.Linear(n * H, H, bias=False) for n in (1, 1, 2))
    v = nn.Parameter(torch.randn(H) / math.sqrt(H))
    embedded, memory = torch.randn(T, B, H), torch.randn(B, S, H)
    modules = [cell, key, combine] + ([query] if additive else [])
    parameters = [p for module in modules for p in module.parameters()] + ([v] if additive else [])

    def loop() -> Tensor:
        keys, h, c, fed = key(memory), *torch.zeros(3, B, H)
        outputs = []
        for e in embedded:
            h, c = cell(torch.cat([e, fed], 1), (h, c))
            if additive:
                energies = torch.tanh(query(h)[:, None] + keys) @ v
            else:
                energies = torch.bmm(keys, h[:, :, None])[:, :, 0]
            context = torch.bmm(energies.softmax(1)[:, None], memory)[:, 0]
            fed = torch.tanh(combine(torch.cat([context, h], 1)))
            outputs.append(fed)
        return torch.stack(outputs).square().mean()

    def ours() -> Tensor:
        of_embedded, of_fed = torch.split(cell.weight_ih, H, dim=1)  # as the models do it
        result = attention_decoder(
            linear(embedded, of_embedded, cell.bias_ih + cell.bias_hh),
            [of_fed, cell.weight_hh],
            key(memory),
            memory,
            cell="lstm",
            w_query=query.weight if additive else None,
            v=v if additive else None,
            w_out=combine.weight,
        )
        assert result.attentional is not None
        return result.attentional.square().mean()

    torch.testing.assert_close(ours(), loop(), rtol=1e-5, atol=1e-6)
    of_both = (torch.autograd.grad(loss(), parameters) for loss in (ours, loop))
    for a, b in zip(*of_both, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5 * float(b.abs().max()))
    return [
        lambda: torch.autograd.grad(loop(), parameters),
        lambda: torch.autograd.grad(ours(), parameters),
    ]


def operations(B: int, H: int, S: int, T: int, additive: bool) -> int:
    """Floating-point operations of the products of a training step."""
    of_step = 3 * H * 4 * H + 2 * H * H + 2 * S * H + additive * H * H
    forward = T * B * of_step + B * S * H * H  # multiply-adds; the second are keys
    return 2 * 3 * forward  # backward forms a product for each factor of one


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=positive_int, default=10, help="turns of each side; 10")
    parser.add_argument(
        "--threads", type=positive_int, default=torch.get_num_threads(), help="threads of torch"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    machine, others = description(), OtherPrograms()
    peak = measure_limits(options.threads).peak
    print(
        f"{machine['processor']}, {machine['instruction set']}, {options.threads} threads, torch "
        f"{torch.__version__}, float32, {peak / 1e9:.0f} GFLOP/s. Best / median of "
        f"{options.repeats} turns, in ms.\n"
    )
    print("| attention | sequences | units | source | steps | loop | ours | ratio | at the limit |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for additive, shape in product((False, True), SHAPES):
        theirs, ours = take_turns(
            contestants(*shape, additive), repeats=options.repeats, most_seconds=60.0
        )
        sizes = " | ".join(map(str, shape))
        print(
            f"| {'additive' if additive else 'dot product'} | {sizes} "
            f"| {1e3 * theirs.best:.1f} / {1e3 * theirs.median:.1f} "
            f"| {1e3 * ours.best:.1f} / {1e3 * ours.median:.1f} "
            f"| {theirs.best / ours.best:.2f}x / {theirs.median / ours.median:.2f}x "
            f"| {theirs.best / (operations(*shape, additive) / peak):.2f}x |",
            flush=True,
        )
    print(f"\nOthers used {others.cores_used():.1f} cores.")


if __name__ == "__main__":
    main()
