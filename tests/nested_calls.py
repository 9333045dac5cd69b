"""Calls from within other parallel work, for test_threads.py: each in a process of its own.

``python nested_calls.py WAY EXPECTED`` calls layers in one of the `WAYS` and compares every bit
with EXPECTED, what the plain calls of another process returned. A process that hangs can be ended
by its parent, and tells before where it stands. The `FAULTS` are to be found.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import seq2seq_ext as s2s

SECONDS = 120  # a process has, of which it needs 5 where the machine is idle

Call = tuple[nn.RNNBase, Tensor]


def calls() -> list[Call]:
    """Layers and inputs, the same in every process."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        return [
            (s2s.LSTM(24, 48, num_layers=2), torch.randn(20, 5, 24)),
            (s2s.GRU(24, 48, bidirectional=True), torch.randn(20, 1, 24)),
        ]


def results(made: list[Call]) -> list[Tensor]:
    """Forward without gradients, then forward and backward."""
    found: list[Tensor] = []
    for layer, x in made:
        with torch.no_grad():
            found.append(layer(x)[0])
        with torch.enable_grad():  # hooks have it off
            leaf = x.clone().requires_grad_()
            y = layer(leaf)[0]
            loss = y.square().sum()
        found += [y.detach(), *torch.autograd.grad(loss, [leaf, *layer.parameters()])]
    return found


class Check:
    """A call of it makes all calls, laid on as many threads as there are in every way.

    Args:
        file: holds the results expected.
    """

    def __init__(self, file: str) -> None:
        self.made, self.expected = calls(), torch.load(file)
        self.done: list[int] = []  # the threads that have, by their numbers in the system

    def __call__(self) -> None:
        for split in ("rows", "units", "layers"):
            s2s.set_plan(threads=64, split=split)
            for found, expected in zip(results(self.made), self.expected, strict=True):
                assert torch.equal(found, expected), f"{split}: {(found - expected).abs().max()}"
        self.done.append(threading.get_native_id())


def plain(check: Check) -> None:
    check()


def python_threads(check: Check) -> None:
    """Four at once, each with another number of threads."""

    def run(threads: int) -> None:
        torch.set_num_threads(threads)
        assert torch.get_num_threads() == threads
        for _ in range(3):
            check()

    in_threads([partial(run, threads) for threads in (1, 2, 3, 4)])
    assert len(check.done) == 12


def openmp_region(check: Check) -> None:
    """Within a parallel region of the very OpenMP that torch uses, on each of its threads."""
    library = ctypes.CDLL(next(openmp_libraries()))
    failures: list[BaseException] = []

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    def region(_: object) -> None:
        try:
            assert library.omp_in_parallel()
            check()
        except BaseException as error:  # none may leave a region
            failures.append(error)

    library.GOMP_parallel(region, None, 3, 0)
    if failures:
        raise failures[0]
    assert len(set(check.done)) == len(check.done) > 1


def openmp_libraries() -> Iterator[str]:
    """Paths of those that are loaded, torch's own first."""
    with open("/proc/self/maps", encoding="utf-8") as maps:
        paths = {line.split()[-1] for line in maps if ".so" in line}
    names = ("libgomp", "libiomp", "libomp")
    found = [path for path in paths if os.path.basename(path).startswith(names)]
    yield from sorted(found, key=lambda path: "torch" not in path)


def interop_pool(check: Check) -> None:
    """On the threads on which TorchScript's fork runs."""

    def body(x: Tensor) -> Tensor:
        check()
        return x.clone()

    library = torch.library.Library("nested_calls", "DEF")
    library.define("check(Tensor x) -> Tensor")
    library.impl("check", body, "CompositeImplicitAutograd")
    torch.jit.script(forked)(torch.ones(1), 6)
    assert len(check.done) == 6
    assert threading.get_native_id() not in check.done
    # The pool may not have let go of Python's objects yet, and would abort Python's end then,
    # whatever the operator.
    os._exit(0)


def forked(x: Tensor, count: int) -> list[Tensor]:
    futures = [torch.jit.fork(torch.ops.nested_calls.check, x) for _ in range(count)]
    return [torch.jit.wait(future) for future in futures]


def backward_hooks(check: Check) -> None:
    """Where backward of one layer calls hooks that run others, forward and backward."""

    def run() -> None:
        layer, x = s2s.LSTM(16, 32), torch.randn(9, 4, 16, requires_grad=True)
        y = layer(x)[0]
        before = len(check.done)
        for tensor in (y, x, layer.weight_hh_l0):
            tensor.register_hook(lambda _: check())
        y.sum().backward()
        assert len(check.done) == before + 3

    run()
    in_threads([run])


def spawned_workers(check: Check) -> None:
    """In workers of a DataLoader, one with a thread, one with two."""
    loader = DataLoader(
        Items(sys.argv[2]),
        num_workers=2,
        multiprocessing_context="spawn",
        worker_init_fn=own_threads,
        timeout=SECONDS // 2,
    )
    assert torch.cat(list(loader)).tolist() == [0, 1, 2, 3]


class Items(Dataset[int]):
    def __init__(self, file: str) -> None:
        self.file = file

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        Check(self.file)()
        return index


def own_threads(worker: int) -> None:
    torch.set_num_threads(worker + 1)


def in_threads(works: list[Callable[[], None]]) -> None:
    """All at once; raises the first of their failures."""
    failures: list[BaseException] = []

    def run(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # a thread must hand its failure over
            failures.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def wait_for_ever(_: Check) -> None:
    threading.Event().wait()


def other_weights(check: Check) -> None:
    with torch.no_grad():
        check.made[0][0].weight_hh_l1[3, 5] += 1e-3
    check()


WAYS = {
    way.__name__: way
    for way in (
        plain,
        python_threads,
        openmp_region,
        interop_pool,
        backward_hooks,
        spawned_workers,
    )
}
FAULTS = {"wait_for_ever": wait_for_ever, "other_weights": other_weights}


if __name__ == "__main__":
    faulthandler.dump_traceback_later(SECONDS - 10)
    (WAYS | FAULTS)[sys.argv[1]](Check(sys.argv[2]))
