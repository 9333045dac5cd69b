"""The heat map of a hypothesis's alignments."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from seq2seq_ext.plots.figures import as_png, figure_of, font_families, spelled


def attention_as_png(source: Sequence[str], target: Sequence[str], alignments: Tensor) -> bytes:
    """What each token of the target was written from, as a grid of shades.

    Args:
        source: S tokens.
        target: U tokens, ``</s>`` perhaps the last.
        alignments: (U, S), each row a distribution; more of either axis is cut off.

    Raises:
        ValueError: if there is no token, or alignments are fewer than the tokens.
        ModuleNotFoundError: without matplotlib.
    """
    if not source or not target:
        raise ValueError("source and target must hold at least one token each")
    if (
        alignments.dim() != 2
        or alignments.size(0) < len(target)
        or alignments.size(1) < len(source)
    ):
        raise ValueError(
            f"alignments must be at least ({len(target)}, {len(source)}), as target and source, "
            f"got {tuple(alignments.shape)}"
        )
    grid = alignments[: len(target), : len(source)].detach().float().cpu().numpy()
    width, height = (1.2 + 0.36 * len(side) for side in (source, target))
    figure = figure_of(height=max(2.0, height), width=max(2.6, width + 0.6))
    axes = figure.subplots()
    image = axes.imshow(grid, cmap="Blues", vmin=0, vmax=1, aspect="equal")
    fonts = {"family": font_families("".join([*source, *target]))}
    axes.set_xticks(range(len(source)), spelled(source), fontdict=fonts)
    axes.set_yticks(range(len(target)), spelled(target), fontdict=fonts)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.set(xlabel="read", ylabel="written")
    axes.xaxis.set_label_position("top")
    figure.colorbar(image, ax=axes, shrink=0.8, label="alignment")
    return as_png(figure)
