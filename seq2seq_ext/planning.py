"""How calls are laid on threads: what the cost model chooses, and how to overrule it.

Three layouts share the work of a layer out (``csrc/cpu/kernels.h``): ``rows``, each thread carries
its own sequences through all steps; ``units``, all threads share every step, each with its own
hidden units; ``layers``, each runs layers of its own, some steps behind the layer below.  A cost
model (``csrc/cpu/plan.cpp``) expects a time of each and takes the fastest.  Results do not depend
on the choice, not in the last bit.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from seq2seq_ext import _C
from seq2seq_ext.nn.layers import GRU, LSTM, RNN
from seq2seq_ext.nn.prepack import operator_options

__all__ = ["Plan", "explain_plan", "set_plan"]

# The numbers of the weight types in csrc/cpu/kernels.h.
_PACKED_AS = {None: 0, torch.bfloat16: 1, torch.int8: 2}


class Plan(NamedTuple):
    """One layout, and what the cost model thinks of it.

    Args:
        threads: how many threads work.
        split: ``"rows"``, ``"units"`` or ``"layers"``; of no meaning for one thread.
        seconds: the time that the cost model expects.
        chosen: whether calls use it.
    """

    threads: int
    split: str
    seconds: float
    chosen: bool


def explain_plan(
    layer: LSTM | GRU | RNN,
    time_steps: int,
    batch_size: int,
    *,
    steps: int | None = None,
    backward: bool = False,
    threads: int | None = None,
) -> list[Plan]:
    """All layouts for a call of ``layer`` on the CPU, the fastest first.

    Args:
        layer: a layer of this package; if it is prepacked, calls without a gradient are meant.
        time_steps: T of the input.
        batch_size: B of the input.
        steps: valid steps of all sequences together, if lengths differ; T * B otherwise.
        backward: whether the backward pass is meant.
        threads: how many there are, ``torch.get_num_threads()`` otherwise.

    Raises:
        TypeError: if ``layer`` is not one of this package's layers.
        ValueError: if a number is out of range.

    >>> plans = explain_plan(LSTM(256, 256), time_steps=50, batch_size=1, threads=1)
    >>> [(plan.threads, plan.split, plan.chosen) for plan in plans]
    [(1, 'rows', True)]
    """
    if not isinstance(layer, (LSTM, GRU, RNN)):
        raise TypeError(
            f"layer must be an LSTM, GRU or RNN of seq2seq_ext, got {type(layer).__name__}"
        )
    most = time_steps * batch_size
    steps = most if steps is None else steps
    threads = torch.get_num_threads() if threads is None else threads
    for name, value, low, high in (
        ("time_steps", time_steps, 1, None),
        ("batch_size", batch_size, 1, None),
        ("steps", steps, 0, most),
        ("threads", threads, 1, 4096),
    ):
        if value < low or (high is not None and value > high):
            limit = f"at least {low}" if high is None else f"{low} to {high}"
            raise ValueError(f"{name} must be {limit}, got {value}")
    cell, num_layers, bidirectional = operator_options(layer)
    packed = -1 if layer._packed is None or backward else _PACKED_AS[layer._packed.dtype]
    found = _C.plans(
        cell,
        backward,
        packed,
        time_steps,
        batch_size,
        steps,
        layer.input_size,
        layer.hidden_size,
        layer.proj_size or layer.hidden_size,
        num_layers,
        2 if bidirectional else 1,
        next(layer.parameters()).element_size(),
        threads,
    )
    return sorted((Plan(*plan) for plan in found), key=lambda plan: plan.seconds)


def set_plan(*, threads: int | None = None, split: str | None = None) -> None:
    """Overrule the cost model from the next call on; without arguments, leave it alone again.

    Where a call cannot be laid out so, it is laid out as nearly so as can be. The environment
    variable ``SEQ2SEQ_EXT_PLAN`` (``"threads=2,split=units"``) does the same from the start.

    Args:
        threads: how many, at most those that torch has.
        split: ``"rows"``, ``"units"`` or ``"layers"``.

    Raises:
        ValueError: if either is none of these.

    >>> set_plan(threads=1)
    >>> set_plan()
    """
    items = [f"threads={threads}"] if threads is not None else []
    items += [f"split={split}"] if split is not None else []
    _C.set_plan(",".join(items))
