"""An existing model, made faster in one line: the same parameters, outputs, gradients and file.

The model is a tagger as many repositories have it, `nn.LSTM` over packed sequences. It is trained
for some steps, its layers are swapped, and it goes on training with the optimiser that it had; a
twin that keeps torch's layers shows that nothing else changes.

    pip install seq2seq_ext
    python examples/drop_in.py --steps 20
"""

from __future__ import annotations

import argparse
import copy
import time

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import seq2seq_ext as s2s


class Tagger(nn.Module):
    """Somebody's model: it knows nothing of seq2seq_ext."""

    def __init__(self, tokens: int = 1000, tags: int = 12, size: int = 128) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, 64)
        self.lstm = nn.LSTM(64, size, num_layers=2, batch_first=True, bidirectional=True)
        self.output = nn.Linear(2 * size, tags)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(
            self.embedding(tokens), lengths, batch_first=True, enforce_sorted=False
        )
        states, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
        return self.output(states)


def batches(count: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Random sentences of 5 to 60 tokens; a token's tag depends on it and the one before."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(count):
        lengths = torch.randint(5, 61, (32,), generator=generator)
        lengths[0] = 60
        tokens = torch.randint(1, 1000, (32, 60), generator=generator)
        tags = (tokens + tokens.roll(1, 1)) % 12
        behind = torch.arange(60) >= lengths[:, None]
        made.append((tokens.masked_fill(behind, 0), lengths, tags.masked_fill(behind, -100)))
    return made


def train(
    model: Tagger, optimizer: torch.optim.Optimizer, data: list[tuple[Tensor, Tensor, Tensor]]
) -> tuple[list[float], float]:
    """Losses of a step for each batch, and the seconds of the fastest step."""
    losses, fastest = [], float("inf")
    for tokens, lengths, tags in data:
        started = time.perf_counter()
        logits = model(tokens, lengths)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), tags.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        fastest = min(fastest, time.perf_counter() - started)
        losses.append(loss.item())
    return losses, fastest


def main() -> None:
    parser = argparse.ArgumentParser(description="Swap the layers of a model that is in training.")
    parser.add_argument("--steps", type=int, default=20, help="before the swap, and after it")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    data = batches(2 * options.steps)
    model = Tagger()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    before, seconds = train(model, optimizer, data[: options.steps])
    print(f"torch.nn:    loss {before[0]:.4f} -> {before[-1]:.4f}, {1e3 * seconds:.1f} ms a step")

    twin = copy.deepcopy(model)
    twin_optimizer = torch.optim.Adam(twin.parameters(), lr=3e-3)
    twin_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    parameters = list(model.parameters())

    s2s.replace_modules(model)  # the one line

    assert type(model.lstm) is s2s.LSTM
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert model.state_dict().keys() == twin.state_dict().keys()
    after, faster = train(model, optimizer, data[options.steps :])
    theirs, seconds = train(twin, twin_optimizer, data[options.steps :])
    print(f"torch.nn:    loss {theirs[0]:.4f} -> {theirs[-1]:.4f}, {1e3 * seconds:.1f} ms a step")
    print(f"seq2seq_ext: loss {after[0]:.4f} -> {after[-1]:.4f}, {1e3 * faster:.1f} ms a step")
    difference = max(abs(a - b) for a, b in zip(after, theirs, strict=True))
    print(f"largest difference of a loss: {difference:.1e}; {seconds / faster:.1f}x as fast")
    assert difference < 1e-3

    s2s.restore_modules(model)  # and back
    assert type(model.lstm) is nn.LSTM


if __name__ == "__main__":
    main()
