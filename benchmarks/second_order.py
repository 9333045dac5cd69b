"""Second derivatives beside torch's, gradients of each sample beside a loop, and save="states".

    python benchmarks/second_order.py

Contestants take turns. docs/autograd.md explains the figures. A second derivative is the time of

    y = layer(x)
    g = grad(sin(y).sum(), [x, *weights], create_graph=True)
    (sum of squares of g).backward()

torch.nn's layers have one without oneDNN only. "at most" is torch's time over that of the matrix
products which nobody can leave out: 18 of T*B rows of a layer with as many features as units.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

import seq2seq_ext as s2s
from seq2seq_ext.benchmark.machine import OtherPrograms, description
from seq2seq_ext.benchmark.timing import Call, Timing, take_turns
from seq2seq_ext.cli.numbers import positive_int

T = 50
SHAPES = ((256, 32), (128, 32), (256, 8), (128, 8), (64, 8), (256, 1))  # H and I, B
GATES = {"LSTM": 4, "GRU": 3}
PRODUCTS = 18


def second_derivative(layer: Any, x: Tensor) -> None:
    tensors = [x, *layer.parameters()]
    gradients = torch.autograd.grad(layer(x)[0].sin().sum(), tensors, create_graph=True)
    torch.stack([g.square().sum() for g in gradients]).sum().backward()  # type: ignore[no-untyped-call]


def pair(name: str, H: int) -> tuple[Any, Any]:
    """A layer of torch's and ours with the same weights."""
    theirs = getattr(nn, name)(H, H)
    ours = getattr(s2s, name)(H, H)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def second_derivatives(name: str, H: int, B: int) -> list[Call]:
    theirs, ours = pair(name, H)
    x = torch.randn(T, B, H, requires_grad=True)
    rows, weights = torch.randn(T * B, H), torch.randn(H, GATES[name] * H)

    def without_onednn() -> None:
        with torch.backends.mkldnn.flags(enabled=False):
            second_derivative(theirs, x)

    def products() -> None:
        for _ in range(PRODUCTS):
            rows @ weights

    return [without_onednn, lambda: second_derivative(ours, x), products]


def of_each_sample(name: str, H: int, B: int) -> list[Call]:
    theirs, layer = pair(name, H)
    xs = torch.randn(B, T, H)
    parameters = dict(layer.named_parameters())
    detached = {key: value.detach() for key, value in parameters.items()}

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        y: Tensor = functional_call(layer, parameters, (x,))[0]
        return y.sin().sum()

    def loop(layer: Any = layer) -> dict[str, Tensor]:
        weights = list(layer.parameters())
        every = [torch.autograd.grad(layer(x)[0].sin().sum(), weights) for x in xs]
        return dict(zip(parameters, map(torch.stack, zip(*every, strict=True)), strict=True))

    def at_once() -> dict[str, Tensor]:
        found: dict[str, Tensor] = vmap(grad(loss), (None, 0))(detached, xs)
        return found

    for key, value in loop().items():
        torch.testing.assert_close(at_once()[key], value, rtol=1e-3, atol=1e-4)
    return [partial(loop, theirs), loop, at_once]


def training(name: str, H: int, B: int) -> Iterator[tuple[str, Call, int]]:
    """How ``save`` is set, a training step, and the bytes that its forward pass keeps."""
    x = torch.randn(T, B, H)
    for save in ("gates", "states"):
        layer = getattr(s2s, name)(H, H, save=save)
        kept: dict[int, int] = {}

        def pack(tensor: Tensor, kept: dict[int, int] = kept) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            y = layer(x)[0]
        of_others = {t.untyped_storage().data_ptr() for t in (x, y, *layer.parameters())}
        size = sum(count for pointer, count in kept.items() if pointer not in of_others)

        def step(layer: nn.Module = layer) -> None:
            layer(x)[0].sum().backward()

        yield save, step, size


def both(timing: Timing) -> str:
    return f"{1e3 * timing.best:.1f} / {1e3 * timing.median:.1f}"


def ratio(a: Timing, b: Timing) -> str:
    return f"{a.best / b.best:.2f}x / {a.median / b.median:.2f}x"


def table(*columns: str) -> None:
    print("\n| " + " | ".join(columns) + " |")
    print("| --- |" + " ---: |" * (len(columns) - 1))


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

    def timed(calls: list[Call]) -> list[Timing]:
        return take_turns(calls, repeats=options.repeats, most_seconds=60.0)

    machine, others = description(), OtherPrograms()
    print(
        f"{machine['processor']}, {machine['instruction set']}, {options.threads} threads, torch "
        f"{torch.__version__}, float32, T {T}. Best and median of {options.repeats} turns, in ms."
    )
    table("second derivative", "torch", "ours", "ratio", "at most")
    for name, (H, B) in product(GATES, SHAPES):
        theirs, ours, limit = timed(second_derivatives(name, H, B))
        most = theirs.best / limit.best
        print(
            f"| {name}, H {H}, B {B} | {both(theirs)} | {both(ours)} | {ratio(theirs, ours)} "
            f"| {most:.1f}x |",
            flush=True,
        )
    table(
        "gradients of each sample", "loop, torch", "loop, ours", "vmap(grad)", "over torch", "ours"
    )
    for name, H in product(GATES, (256, 128, 64)):
        theirs, ours, at_once = timed(of_each_sample(name, H, 32))
        print(
            f"| {name}, H {H}, B 32 | {both(theirs)} | {both(ours)} | {both(at_once)} "
            f"| {ratio(theirs, at_once)} | {ratio(ours, at_once)} |",
            flush=True,
        )
    table("training step", "gates", "states", "states take", "gates keep", "states keep")
    for name in GATES:
        _, steps, sizes = zip(*training(name, 256, 32), strict=True)
        gates, states = timed(list(steps))
        kept = " | ".join(f"{size / 1e6:.1f} MB" for size in sizes)
        print(
            f"| {name}, H 256, B 32 | {both(gates)} | {both(states)} | {ratio(states, gates)} "
            f"| {kept} |"
        )
    print(f"\nOthers used {others.cores_used():.1f} cores.")


if __name__ == "__main__":
    main()
