"""A stand-in for CUDA graphs: what a call does is recorded, and done again on the same tensors.

As with a graph, Python is not asked again: a value that it read while recording stays what it was,
and a tensor that the call was not given anew is the recorded one. What a graph must not contain
raises while recording.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
WAITING = {
    aten._local_scalar_dense,
    aten.is_nonzero,
    aten.nonzero,
    aten.equal,
    aten.masked_select,
    aten._unique2,
}
MOVING = {aten._to_copy, aten.copy_}


def tensors(*trees):
    return [leaf for leaf in tree_leaves(trees) if isinstance(leaf, Tensor)]


def check(func, result):
    """Raise where an operator waits for the device, or copies many numbers of Python to it."""
    of_python = func.overloadpacket is aten.lift_fresh and result.dim() > 0
    if func.overloadpacket in WAITING or of_python:
        raise AssertionError(f"{func} waits for the device")


class Recorder(TorchDispatchMode):
    """Keeps every operator that is called, with its arguments and results."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        check(func, result)
        self.calls.append((func, args, kwargs, tensors(result)))
        return result


class OnDevice(TorchDispatchMode):
    """Raises where an operator waits for the device, which is meta, or brings something to it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        check(func, result)
        elsewhere = [x for x in tensors(args, kwargs, result) if x.device.type != "meta"]
        many = any(x.dim() > 0 for x in elsewhere)  # a single number is an argument of a kernel
        if many or (elsewhere and func.overloadpacket in MOVING):
            raise AssertionError(f"{func} moves a tensor to the device")
        return result


def capture(call, *, warm_calls=1):
    """As `seq2seq_ext.cuda_graphs.capture`."""
    steps = call.__self__
    written = tensors(steps.standing, steps.t)
    before = [x.clone() for x in written]

    def restore():  # to capture a call is not to run it
        for tensor, value in zip(written, before, strict=True):
            tensor.copy_(value)

    for _ in range(warm_calls):
        call()
    restore()
    with Recorder() as recorder:
        call()
    restore()

    def replay():
        for func, args, kwargs, results in recorder.calls:
            for old, new in zip(results, tensors(func(*args, **kwargs)), strict=True):
                if old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                    old.copy_(new)

    return replay
