"""Every shape that ``seq2seq-ext bench`` knows, ours and `torch.nn`'s."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from seq2seq_ext.benchmark.shapes import SHAPE_SETS, Case, cases
from seq2seq_ext.benchmark.workloads import OURS, TORCH, contestants


def _id(case: Case) -> str:
    """Without spaces, for ``-k "GRU and training and H256B32"``."""
    return f"{case.cell}-{case.work}-{case.kind}-{case.shape}".replace(" ", "")


@pytest.mark.parametrize("name", [TORCH, OURS])
@pytest.mark.parametrize(
    "case", cases(list(SHAPE_SETS), threads=[torch.get_num_threads()]), ids=_id
)
def test_layer(measure: Callable[..., None], case: Case, name: str) -> None:
    measure(str(case), contestants(case, peer_names=()), name)
