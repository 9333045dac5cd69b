"""Accuracy against length: where a vector of fixed size runs out of room."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from seq2seq_ext.metrics import LengthBucket
from seq2seq_ext.plots.figures import COLOURS, as_png, figure_of


def accuracy_by_length_as_png(models: Mapping[str, Sequence[LengthBucket]], title: str) -> bytes:
    """Lines of exact match over the source's length, one a model, above the number of texts.

    Args:
        models: the buckets of each model by its name; those of all models have the same lengths.
        title: above the picture.

    Raises:
        ValueError: if there is nothing to draw, or the models' buckets are not of equal lengths.
        ModuleNotFoundError: without matplotlib.
    """
    first = next(iter(models.values()), [])
    lengths = [bucket.lengths for bucket in first]
    if not first or any([b.lengths for b in buckets] != lengths for buckets in models.values()):
        raise ValueError("models must hold at least one bucket, and the same lengths each")
    figure = figure_of(height=4.6, width=7.5)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    places = range(len(first))
    for colour, (name, buckets) in zip(COLOURS, models.items(), strict=False):
        share = [100 * bucket.exact_match for bucket in buckets]
        above.plot(places, share, marker="o", color=colour, label=name)
    above.set(ylabel="exact match, %", ylim=(0, 103), title=title)
    above.grid(alpha=0.3)
    above.legend()
    below.bar(places, [bucket.texts for bucket in first], color="#999999")
    below.set(ylabel="texts", xlabel="length of the source")
    labels = [str(low) if low == high else f"{low}-{high}" for low, high in lengths]
    below.set_xticks(places, labels)
    return as_png(figure)
