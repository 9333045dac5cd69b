"""Learning curves: what the log of a run tells, over its steps."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from seq2seq_ext.plots.figures import COLOURS, as_png, figure_of, font_families

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Log = Sequence[Mapping[str, float]]

# Panels from above: the axis, and of each line its column, name and style.
_PANELS: tuple[tuple[str, tuple[tuple[str, str, str], ...]], ...] = (
    ("loss, nats a token", (("loss", "training", "-"), ("dev_loss", "dev", "o--"))),
    (
        "dev, %",
        (
            ("dev_free_running_exact_match", "exact match", "o-"),
            ("dev_free_running_token_accuracy", "token accuracy", "s--"),
            ("dev_token_error_rate", "token error rate", "^:"),
        ),
    ),
    ("learning rate", (("learning_rate", "", "-"),)),
)


def read_log(path: str | os.PathLike[str]) -> list[dict[str, float]]:
    """The rows of a run's ``metrics.csv``, each with the columns that it has a figure in.

    A last line that is not whole is left out.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds something else.
    """
    with open(path, encoding="utf-8", newline="") as file:
        text = file.read()
    whole, _, _ = text.rpartition("\n")
    rows: list[dict[str, float]] = []
    reader = csv.DictReader(whole.splitlines())
    if not reader.fieldnames or reader.fieldnames[0] != "step":
        raise ValueError(f"{path} must be the log of a run, whose first column is 'step'")
    try:
        for row in reader:
            rows.append({name: float(value) for name, value in row.items() if value})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}, line {reader.line_num} must hold numbers: {error}") from error
    return rows


def learning_curves_as_png(runs: Mapping[str, Log], title: str) -> bytes:
    """Loss, figures of the dev set and learning rate over the steps; a colour for each run.

    Args:
        runs: the rows of each run's log (`read_log`) by the run's name.
        title: above the picture.

    Raises:
        ValueError: if there is no row.
        ModuleNotFoundError: without matplotlib.
    """
    if not any(runs.values()):
        raise ValueError("runs must hold at least one row, got none")
    known = {column for log in runs.values() for row in log for column in row}
    panels = [(label, [line for line in lines if line[0] in known]) for label, lines in _PANELS]
    panels = [(label, lines) for label, lines in panels if lines]
    figure = figure_of(height=0.8 + 2.3 * len(panels), width=7.5)
    drawn = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (label, lines) in zip(drawn, panels, strict=True):
        _draw(axes, runs, lines)
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    drawn[0].set_title(title, family=font_families(title))
    drawn[-1].set_xlabel("step")
    return as_png(figure)


def _draw(axes: Axes, runs: Mapping[str, Log], lines: Sequence[tuple[str, str, str]]) -> None:
    percent = len(lines) > 0 and lines[0][0].startswith("dev_free")
    names = []
    for number, (name, log) in enumerate(runs.items()):
        for k, (column, label, style) in enumerate(lines):
            points = [(row["step"], row[column]) for row in log if column in row]
            if not points:
                continue
            # One run: a colour for each line; several: one for each run.
            colour = COLOURS[(k if len(runs) == 1 else number) % len(COLOURS)]
            names.append(" ".join(filter(None, (name if len(runs) > 1 else "", label))))
            steps, values = zip(*points, strict=True)
            scale = 100 if percent else 1
            axes.plot(
                steps,
                [scale * value for value in values],
                style,
                color=colour,
                label=names[-1] or None,
                markersize=4,
            )
    if any(names):
        axes.legend(prop={"family": font_families("".join(names)), "size": 8})
