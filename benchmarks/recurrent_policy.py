"""The sequence pass of sb3-contrib's recurrent policies: its loop over time, and one call of ours.

    python benchmarks/recurrent_policy.py

Episodes start with a chance of 1 in 50 a step. Both sides compute the same, which is checked, and
take turns; see docs/reinforcement-learning.md. Needs the extras [bench] and [rl].
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from torch import nn

from seq2seq_ext.benchmark.machine import OtherPrograms, description
from seq2seq_ext.benchmark.timing import take_turns
from seq2seq_ext.benchmark.workloads import OURS, Call, Contestant, check, ours_of, tensors, training
from seq2seq_ext.cli.numbers import positive_int
from seq2seq_ext.integrations.sb3 import process_sequence

SB3 = "sb3-contrib"


def passes(T: int, B: int, I: int, H: int) -> dict[str, dict[str, Call]]:
    """What is timed: by work, then by side."""
    theirs = nn.LSTM(I, H)
    sides = {
        SB3: (RecurrentActorCriticPolicy._process_sequence, theirs),
        OURS: (process_sequence, ours_of(theirs)),
    }
    features, d_y = torch.randn(B * T, I), torch.randn(B * T, H)
    h_0, c_0 = torch.randn(2, 1, B, H)
    starts = (torch.rand(B * T) < 0.02).float()

    def forward(process: Call, lstm: nn.Module) -> Call:
        return torch.no_grad()(partial(process, features, (h_0, c_0), starts, lstm))

    def both(process: Call, lstm: nn.Module) -> Call:
        parameters = list(lstm.parameters())
        return training(process, parameters, features, d_y, (h_0, c_0), starts, lstm)

    return {
        "forward": {name: forward(*side) for name, side in sides.items()},
        "forward and backward": {name: both(*side) for name, side in sides.items()},
    }
