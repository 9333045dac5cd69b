"""How fast a layer is here: ours and `torch.nn`'s, turn by turn, best and median.

Taking turns lets both see the same machine: whatever else runs slows one as much as the other.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from seq2seq_ext.benchmark.timing import take_turns
from seq2seq_ext.nn import replace_modules


class LayerTiming(NamedTuple):
    """Milliseconds a call of one layer and one kind of work.

    Args:
        layer: ``"GRU"`` or ``"LSTM"``.
        work: ``"inference"`` or ``"training"`` (forward and backward).
        torch_best: of `torch.nn`.
        torch_median: of `torch.nn`.
        ours_best: of `seq2seq_ext.nn`.
        ours_median: of `seq2seq_ext.nn`.
    """

    layer: str
    work: str
    torch_best: float
    torch_median: float
    ours_best: float
    ours_median: float

    @property
    def speedup(self) -> float:
        """Median of `torch.nn` over our median."""
        return self.torch_median / self.ours_median


def layer_timings(
    *,
    batch_size: int = 32,
    time_steps: int = 50,
    hidden_size: int = 256,
    seconds: float = 1.0,
    min_repeats: int = 5,
) -> list[LayerTiming]:
    """Time a GRU and an LSTM of equal weights in inference and training, on the CPU.

    Args:
        batch_size: B.
        time_steps: T.
        hidden_size: H, the input's width too.
        seconds: for each row of the table.
        min_repeats: turns at least, whatever they take.
    """
    timings = []
    for name, layer_class in (("GRU", nn.GRU), ("LSTM", nn.LSTM)):
        theirs: nn.Module = layer_class(hidden_size, hidden_size)
        holder = nn.Sequential(layer_class(hidden_size, hidden_size))
        holder[0].load_state_dict(theirs.state_dict())
        replace_modules(holder)
        x = torch.randn(time_steps, batch_size, hidden_size)
        for work, call in (("inference", _infer), ("training", _train)):
            layers = (theirs, holder[0])
            times = take_turns(
                [partial(call, layer, x) for layer in layers], repeats=min_repeats, seconds=seconds
            )
            torch_ms, our_ms = ((1e3 * time.best, 1e3 * time.median) for time in times)
            timings.append(LayerTiming(name, work, *torch_ms, *our_ms))
    return timings


def _infer(layer: nn.Module, x: Tensor) -> None:
    with torch.inference_mode():
        layer(x)


def _train(layer: nn.Module, x: Tensor) -> None:
    layer.zero_grad()
    layer(x)[0].sum().backward()
