"""What the three lessons share: strings to copy, the training loop, and the figures."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from seq2seq_ext.metrics import LengthBucket
from seq2seq_ext.plots import accuracy_by_length_as_png
from seq2seq_ext.plots.figures import COLOURS, as_png, figure_of

PAD, UNK, BOS, EOS = range(4)
LETTERS = "abcdefghij"
VOCABULARY_SIZE = 4 + len(LETTERS)
LONGEST = 14
FIGURES = Path("figures")


def strings(count: int, seed: int | torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Random strings of 2 to 14 letters: sources (B, 14), lengths (B,), and targets (B, 15).

    The task is to write the string again, and ``</s>`` behind it.
    """
    generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, LONGEST + 1, (count,), generator=generator)
    source = torch.randint(4, VOCABULARY_SIZE, (count, LONGEST), generator=generator)
    source = source.masked_fill(torch.arange(LONGEST) >= lengths[:, None], PAD)
    target = pad(source, (0, 1)).scatter(1, lengths[:, None], EOS)
    return source, lengths, target


def shifted(target: Tensor) -> Tensor:
    """What the decoder reads in training: ``<s>``, then the target but its last token."""
    return pad(target, (1, 0), value=BOS)[:, :-1].masked_fill(target == PAD, PAD)


def text(ids: list[int]) -> str:
    """The letters of ids up to ``</s>``."""
    ids = ids[: ids.index(EOS)] if EOS in ids else ids
    return "".join(LETTERS[i - 4] if i >= 4 else "?" for i in ids)


def train(model: nn.Module, *, steps: int = 1500, batch_size: int = 64) -> list[float]:
    """Teach a model that maps (source, lengths, decoder inputs) to logits; the losses, in nats."""
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 8e-3, total_steps=max(steps, 2))
    losses, started = [], time.perf_counter()
    for step in range(1, steps + 1):
        source, lengths, target = strings(batch_size, generator)
        logits = model(source, lengths, shifted(target))
        loss = cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=PAD)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % max(1, steps // 5) == 0:
            print(f"step {step}: loss {loss.item():.3f}, {time.perf_counter() - started:.0f} s")
    model.eval()
    return losses


def accuracy_by_length(write: Callable[[Tensor, Tensor], Tensor]) -> list[LengthBucket]:
    """How many of 1,000 new strings are written without a mistake, by their length.

    Args:
        write: from sources (B, T) and lengths (B,) to the ids (B, U) that the model writes.
    """
    source, lengths, target = strings(1000, seed=2)
    written = write(source, lengths)
    written = pad(written, (0, target.size(1) - written.size(1)))
    right = (written == target).all(1)
    print(f"exact match on {len(source):,} new strings: {right.double().mean().item():.1%}")
    buckets = []
    for low in range(2, LONGEST + 1, 2):
        chosen = (lengths >= low) & (lengths <= low + 1)
        buckets.append(
            LengthBucket(
                (low, min(low + 1, LONGEST)),
                int(chosen.sum()),
                right[chosen].double().mean().item(),
            )
        )
    return buckets


def keep(name: str, losses: list[float], buckets: list[LengthBucket]) -> None:
    """Remember a lesson's figures for the lessons that follow."""
    FIGURES.mkdir(exist_ok=True)
    path = FIGURES / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    results[name] = {"losses": losses, "buckets": [bucket._asdict() for bucket in buckets]}
    path.write_text(json.dumps(results))


def figures(names: list[str], file: str) -> None:
    """Learning curves and accuracy against length of the lessons so far, shown and written."""
    results = json.loads((FIGURES / "results.json").read_text())
    names = [name for name in names if name in results]
    figure = figure_of(height=3.4, width=7.5)
    axes = figure.subplots()
    for colour, name in zip(COLOURS, names, strict=False):
        losses = torch.tensor(results[name]["losses"])
        width = min(25, len(losses))
        axes.plot(losses.unfold(0, width, 1).mean(1), color=colour, label=name)
    axes.set(xlabel="training step", ylabel="loss, nats a token", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    show(as_png(figure), f"{file}_loss")
    buckets = {
        name: [
            LengthBucket(tuple(b["lengths"]), b["texts"], b["exact_match"])
            for b in results[name]["buckets"]
        ]
        for name in names
    }
    show(accuracy_by_length_as_png(buckets, "Copying strings, a GRU of 64 units"), f"{file}_length")


def show(png: bytes, name: str) -> None:
    """Write a picture, and show it where this is a notebook."""
    FIGURES.mkdir(exist_ok=True)
    (FIGURES / f"{name}.png").write_bytes(png)
    try:
        from IPython import get_ipython
        from IPython.display import Image, display
    except ModuleNotFoundError:
        return
    if get_ipython() is not None:
        display(Image(png))
