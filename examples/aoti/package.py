"""Compiles a model ahead of time: ``python package.py model.pt2``.

main.cpp runs the package without Python; in Python ``torch._inductor.aoti_load_package`` does.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn

import seq2seq_ext as s2s


class Tagger(nn.Module):
    """Scores (T, B, 5) for every step of B sequences, and the LSTM's last states."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = s2s.LSTM(8, 16, num_layers=2, bidirectional=True)
        self.gru = s2s.GRU(32, 16)
        self.output = nn.Linear(16, 5)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, (h_n, c_n) = self.lstm(x, lengths=lengths)
        y, _ = self.gru(y, h_n[:1], lengths=lengths)
        return self.output(y), h_n, c_n


def make() -> Tagger:
    """The model; a real one would load its weights here."""
    torch.manual_seed(0)
    return Tagger().eval()


def main() -> None:
    T, B = torch.export.Dim("T"), torch.export.Dim("B")
    with torch.no_grad():  # else the layers keep what backward would need
        program = torch.export.export(
            make(),
            (torch.randn(6, 3, 8), torch.tensor([6, 2, 4])),
            dynamic_shapes={"x": {0: T, 1: B}, "lengths": {0: B}},
        )
    torch._inductor.aoti_compile_and_package(program, package_path=sys.argv[1])


if __name__ == "__main__":
    main()
