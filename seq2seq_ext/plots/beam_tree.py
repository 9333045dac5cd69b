"""The tree of a beam search: what was tried, what was given up, and what came of it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from seq2seq_ext.generation.tree import BeamTree
from seq2seq_ext.plots.figures import COLOURS, as_png, figure_of, font_families, spelled

_GIVEN_UP = "#999999"


def beam_tree_as_png(tree: BeamTree, tokens: Sequence[str], title: str) -> bytes:
    """A tree from left to right: a column of tokens a step, a line from each to what follows it.

    Paths of results are coloured, the best one's the first colour; at their ends stand the rank and
    the score that it goes by, or where the search gave none, the log-probability of the whole text.
    Paths in grey were given up. The wider a line, the more probable is the token after what stands
    before it.

    Args:
        tree: what `beam_tree` gives.
        tokens: by their ids.
        title: above the picture.

    Raises:
        ValueError: if the tree has no token.
        ModuleNotFoundError: without matplotlib.
    """
    if len(tree.nodes) < 2:
        raise ValueError("tree must hold at least one token, got none")
    children: dict[int, list[int]] = {i: [] for i in range(len(tree.nodes))}
    for i, node in enumerate(tree.nodes):
        if node.parent is not None:
            children[node.parent].append(i)
    heights = _heights(tree, children)
    depths = [len(tree.path(i)) for i in range(len(tree.nodes))]
    ranks = _ranks(tree)
    leaves = round(max(heights)) + 1
    labels = spelled([tokens[node.token] for node in tree.nodes])
    longest = max(map(len, labels))
    width = (max(depths) + 1) * max(0.55, 0.13 * longest + 0.3) + 2.0
    figure = figure_of(height=max(2.4, 0.32 * leaves + 0.9), width=max(4.0, width))
    axes = figure.subplots()
    fonts = font_families("".join(labels))
    scores = tree.output.sequences_scores
    for i in sorted(range(1, len(tree.nodes)), key=lambda i: -_order(ranks[i])):
        node = tree.nodes[i]
        colour = _GIVEN_UP if ranks[i] is None else COLOURS[_order(ranks[i]) % len(COLOURS)]
        parent = node.parent or 0
        axes.plot(
            (depths[parent], depths[i]),
            (heights[parent], heights[i]),
            color=colour,
            linewidth=0.6 + 3.4 * math.exp(node.log_probability),
            zorder=1,
        )
        if node.rank is not None:
            score = node.total if scores is None else float(scores[node.rank])
            axes.annotate(
                f"{node.rank + 1}: {score:.2f}",
                (depths[i], heights[i]),
                xytext=(10 + 7 * len(labels[i]) / 2, 0),
                textcoords="offset points",
                va="center",
                color=colour,
                fontsize=8,
            )
    for i, label in enumerate(labels):
        colour = "black" if ranks[i] is not None or i == 0 else _GIVEN_UP
        axes.text(
            depths[i],
            heights[i],
            label,
            ha="center",
            va="center",
            color=colour,
            family=fonts,
            fontsize=9,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
            zorder=2,
        )
    axes.set(xlabel="tokens written", xlim=(-0.5, max(depths) + 1.6))
    axes.set_title(title, family=font_families(title))
    axes.set_xticks(range(max(depths) + 1))
    axes.invert_yaxis()
    axes.yaxis.set_visible(False)
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)
    return as_png(figure)


def _heights(tree: BeamTree, children: dict[int, list[int]]) -> list[float]:
    """A row of its own for each leaf, the more probable above; others are amid what follows."""
    heights = [0.0] * len(tree.nodes)
    next_leaf = 0
    stack = [(0, False)]
    while stack:
        i, done = stack.pop()
        below = sorted(children[i], key=lambda c: -tree.nodes[c].log_probability)
        if not below:
            heights[i] = float(next_leaf)
            next_leaf += 1
        elif done:
            heights[i] = sum(heights[c] for c in below) / len(below)
        else:
            stack.append((i, True))
            stack.extend((c, False) for c in reversed(below))
    return heights


def _ranks(tree: BeamTree) -> list[int | None]:
    """The best result that goes through each node; None where none does."""
    ranks: list[int | None] = [None] * len(tree.nodes)
    ends = [i for i, node in enumerate(tree.nodes) if node.rank is not None]
    for end in sorted(ends, key=lambda i: -_order(tree.nodes[i].rank)):
        for i in tree.path(end):
            ranks[i] = tree.nodes[end].rank
    return ranks


def _order(rank: int | None) -> int:
    return 1_000_000 if rank is None else rank
