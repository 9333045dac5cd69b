"""Training on two processes: the losses of one process with the whole batch, and of torch.nn."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, multiprocessing, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

import seq2seq_ext.nn as fused

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="this torch has no gloo"
)

PROCESSES, STEPS, T, B, I, H = 2, 50, 9, 8, 5, 7


class Tagger(nn.Module):
    """Two layers of one kind, one of them in both directions, below a linear one."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.lower = kind(I, H, bidirectional=True)
        self.upper = kind(2 * H, H, num_layers=2)
        self.head = nn.Linear(H, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.upper(self.lower(x)[0])[0])


def replicate(model: Tagger) -> nn.Module:
    return DistributedDataParallel(model)


def shard(model: Tagger) -> nn.Module:
    """FSDP2: each layer and the rest is a group whose parameters are gathered when it is called."""
    for layer in (model.lower, model.upper):
        fully_shard(layer)
        assert isinstance(layer, FSDPModule)
    return fully_shard(model)


def train(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    """The loss of each step."""
    losses = torch.empty(STEPS)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(STEPS):
        optimiser.zero_grad()
        loss = nn.functional.mse_loss(model(x), target)
        loss.backward()
        optimiser.step()
        losses[step] = loss.detach()
    return losses


def work(
    rank: int, folder: Path, wrap: Callable[[Tagger], nn.Module], models: list[Tagger], data: Any
) -> None:
    """What a process does: train each model on its part of the batch, and store all losses.

    It leaves without the interpreter's farewell: a thread of gloo's that then still lets go of a
    tensor would abort the process (pytorch issue 190489).
    """
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=PROCESSES
    )
    x, target = (part.chunk(PROCESSES, dim=1)[rank] for part in data)
    models = copy.deepcopy(models)  # what a process is given is memory that all of them share
    losses = torch.stack([train(wrap(model), x, target) for model in models])
    dist.all_reduce(losses)
    if rank == 0:
        torch.save(losses / PROCESSES, folder / "losses.pt")
    dist.destroy_process_group()
    os._exit(0)


@pytest.mark.parametrize("wrap", [replicate, shard], ids=["DDP", "FSDP2"])
def test_losses_are_those_of_one_process_and_of_torch(
    wrap: Callable[[Tagger], nn.Module], tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    data = torch.randn(T, B, I), torch.randn(T, B, 3)
    theirs = [Tagger(kind) for kind in (nn.LSTM, nn.GRU)]
    ours = [fused.replace_modules(copy.deepcopy(model)) for model in theirs]
    multiprocessing.spawn(work, (tmp_path, wrap, ours, data), nprocs=PROCESSES)
    found = torch.load(tmp_path / "losses.pt")
    for losses, *models in zip(found, ours, theirs, strict=True):
        assert losses[-1] < 0.9 * losses[0]
        for model in models:
            torch.testing.assert_close(losses, train(model, *data), rtol=0, atol=1e-5)
