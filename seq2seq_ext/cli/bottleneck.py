"""``seq2seq-ext demo bottleneck``: a vector of fixed size against attention, in one picture."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from seq2seq_ext import training
from seq2seq_ext.cli.learning import demo_model, learn
from seq2seq_ext.data import Sets
from seq2seq_ext.data.extras import check
from seq2seq_ext.data.files import write_bytes_atomically
from seq2seq_ext.metrics import LengthBucket, by_length

if TYPE_CHECKING:
    from rich.console import Console

NAME = "bottleneck"
HIDDEN_SIZE = 64
# Both models but for how the decoder sees the source.
_MODELS: dict[str, dict[str, Any]] = {
    "context vector": {"reverse_source": True},
    "attention": {"attention": "general", "bidirectional": True},
}


def run(
    options: argparse.Namespace,
    console: Console,
    folder: Path,
    sets: Sets,
    settings: training.TrainingOptions,
) -> int:
    """Train both models on one task, each for as long, and draw them.

    Args:
        options: those of ``demo``.
        console: where it is told.
        folder: for the pictures, and in a folder each the models.
        sets: the words.
        settings: of each model's training.

    Returns:
        0, the exit status.
    """
    check("matplotlib", extra="plot", purpose="the picture")
    from seq2seq_ext.plots import accuracy_by_length_as_png, attention_as_png

    sources, references = zip(*sets.test.pairs, strict=True)
    buckets: dict[str, list[LengthBucket]] = {}
    found: dict[str, float] = {}
    for name, changes in _MODELS.items():
        model = demo_model(options, sets.train, HIDDEN_SIZE, **changes)
        parameters = sum(p.numel() for p in model.parameters())
        console.print(f"{name}: {parameters:,} parameters, {torch.get_num_threads()} threads")
        trained, _, test = learn(model, sets, settings, NAME, console)
        buckets[name] = by_length(sources, test.predictions, references)
        found[name] = test.free_running.exact_match
        figures = {"by_length": [bucket._asdict() for bucket in buckets[name]]}
        trained = replace(trained, metrics={**trained.metrics, **figures})
        training.save_run(folder / name.replace(" ", "_"), trained)
    _print_table(console, buckets)
    title = f"Plurals that were never seen, {options.cell.upper()} of "
    title += f"{options.hidden_size or HIDDEN_SIZE} units"
    picture = folder / "bottleneck.png"
    write_bytes_atomically(picture, accuracy_by_length_as_png(buckets, title))
    longest = max(sources, key=len)
    output = trained.model.generate(
        torch.tensor([trained.source_vocabulary.encode(longest)]),
        max_new_tokens=2 * len(longest),
        return_dict_in_generate=True,
        return_attention=True,
    )
    assert output.alignments is not None
    ids = output.sequences[0, : int(output.lengths[0])].tolist()
    heat_map = folder / "attention.png"
    written = [trained.target_vocabulary.to_list()[i] for i in ids]
    write_bytes_atomically(heat_map, attention_as_png(list(longest), written, output.alignments[0]))
    console.print(f"\npictures: {picture}, {heat_map}")
    shares = ", ".join(f"{name} {share:.1%}" for name, share in found.items())
    console.print(f"exact match on {len(references):,} unseen words: {shares}")
    return 0


def _print_table(console: Console, models: dict[str, list[LengthBucket]]) -> None:
    from rich.table import Table

    table = Table(title="\nexact match by length", title_justify="left", box=None)
    for column in ("letters", "words", *models):
        table.add_column(column, justify="right")
    for rows in zip(*models.values(), strict=True):
        low, high = rows[0].lengths
        letters = str(low) if low == high else f"{low}-{high}"
        table.add_row(letters, str(rows[0].texts), *(f"{row.exact_match:.1%}" for row in rows))
    console.print(table)
