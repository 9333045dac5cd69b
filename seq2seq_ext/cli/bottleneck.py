"""``seq2seq-ext demo bottleneck``: a vector of fixed size against attention, in one picture."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from seq2seq_ext import training
from seq2seq_ext.data import PairDataset
from seq2seq_ext.data.extras import check
from seq2seq_ext.data.files import write_bytes_atomically
from seq2seq_ext.metrics import LengthBucket, by_length
from seq2seq_ext.models import Seq2Seq, Seq2SeqConfig

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
    sets: tuple[PairDataset, PairDataset, PairDataset],
    settings: training.TrainingOptions,
) -> int:
    """Train both models on one task, each for as long, and draw them.

    Args:
        options: those of ``demo``.
        console: where it is told.
        folder: for the pictures, and in a folder each the models.
        sets: training, dev and test set.
        settings: of each model's training.

    Returns:
        0, the exit status.
    """
    check("matplotlib", extra="plot", purpose="the picture")
    from seq2seq_ext.plots import accuracy_by_length_as_png, attention_as_png

    train_set, dev_set, test_set = sets
    references = [target for _, target in test_set.pairs]
    sources = [source for source, _ in test_set.pairs]
    buckets: dict[str, list[LengthBucket]] = {}
    found: dict[str, float] = {}
    for name, changes in _MODELS.items():
        torch.manual_seed(options.seed)
        model = Seq2Seq(
            Seq2SeqConfig(
                source_vocab_size=len(train_set.source_vocabulary),
                target_vocab_size=len(train_set.target_vocabulary),
                cell=options.cell,
                encoder_hidden_size=options.hidden_size or HIDDEN_SIZE,
                decoder_hidden_size=options.hidden_size or HIDDEN_SIZE,
                **changes,
            )
        )
        typical = train_set[range(min(options.batch_size, len(train_set)))]
        torch.set_num_threads(options.threads or training.fastest_num_threads(model, typical))
        parameters = sum(p.numel() for p in model.parameters())
        console.print(f"{name}: {parameters:,} parameters, {torch.get_num_threads()} threads")
        report = training.train(model, train_set, settings, console=console)
        dev, test = training.evaluate(model, dev_set), training.evaluate(model, test_set)
        buckets[name] = by_length(sources, test.predictions, references)
        found[name] = test.free_running.exact_match
        trained = training.Run(
            model,
            train_set.source_vocabulary,
            train_set.target_vocabulary,
            settings={"task": NAME, **asdict(settings)},
            metrics={
                "training": asdict(report),
                "dev": dev.figures(),
                "test": test.figures(),
                "by_length": [bucket._asdict() for bucket in buckets[name]],
            },
        )
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
