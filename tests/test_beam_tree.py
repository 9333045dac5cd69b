"""The tree of a beam search is what the search tried: held against a search in plain Python."""

from __future__ import annotations

import pytest
import torch
from generation_cases import BOS, EOS, PAD, TableModel, small_model, sources

from seq2seq_ext.generation import BeamTree, beam_tree


def tokens_of(tree: BeamTree, node: int) -> tuple[int, ...]:
    return tuple(tree.nodes[i].token for i in tree.path(node))


def slow_log_probabilities(
    model: TableModel, source: torch.Tensor, prefix: tuple[int, ...]
) -> list[float]:
    state = model.start(source)
    for token in (BOS, *prefix):
        logits, state = model.step(torch.tensor([token]), state)
    found: list[float] = logits[0].double().log_softmax(-1).tolist()
    return found


def slow_beams(model: TableModel, source: torch.Tensor, k: int, steps: int) -> list[set[tuple]]:
    """The prefixes that go on after each step."""
    beams: dict[tuple[int, ...], float] = {(): 0.0}
    frontiers: list[set[tuple]] = []
    for _ in range(steps):
        longer = {
            (*prefix, token): total + value
            for prefix, total in beams.items()
            for token, value in enumerate(slow_log_probabilities(model, source, prefix))
            if token not in (PAD, BOS)
        }
        best = sorted(longer, key=lambda p: -longer[p])[: 2 * k]
        beams = {p: longer[p] for p in [p for p in best if p[-1] != EOS][:k]}
        frontiers.append(set(beams))
    return frontiers


@pytest.mark.parametrize("row", range(4))
@pytest.mark.parametrize("k", [2, 4])
def test_the_tree_holds_the_beams_of_every_step(row: int, k: int) -> None:
    model = TableModel()
    source = torch.tensor([[1 + row, 1, 1]])
    tree = beam_tree(
        model, source, num_beams=k, num_return_sequences=k, max_new_tokens=6, output_scores=True
    )
    paths = [tokens_of(tree, i) for i in range(len(tree.nodes))]
    assert len(set(paths)) == len(paths)
    frontiers = slow_beams(model, source, k, 6)
    for depth, frontier in enumerate(frontiers, 1):
        found = {p for p in paths if len(p) == depth and p[-1] != EOS}
        # The search ends when nothing better can come, and the last step is of what has ended.
        if depth < max(map(len, paths)):
            assert found == frontier
        else:
            assert found <= frontier
    assert max(map(len, paths)) > 2
    for i, node in enumerate(tree.nodes[1:], 1):
        assert node.parent is not None
        assert node.parent < i
        *prefix, token = tokens_of(tree, i)
        expected = slow_log_probabilities(model, source, tuple(prefix))[token]
        assert node.log_probability == pytest.approx(expected, abs=1e-9)
        assert node.total == pytest.approx(tree.nodes[node.parent].total + expected, abs=1e-9)


@pytest.mark.parametrize("attention", ["none", "general"])
def test_what_was_found_is_what_generate_finds(attention: str) -> None:
    model = small_model(attention=attention)
    source, lengths = sources()
    for row in range(6):
        one = source[row : row + 1, : int(lengths[row])]
        options = {"num_beams": 4, "num_return_sequences": 3, "max_new_tokens": 9}
        tree = beam_tree(model, one, **options, output_scores=True, length_penalty=0.0)
        expected = model.generate(one, **options, length_penalty=0.0)
        assert torch.equal(tree.output.sequences, expected)
        ends = {n.rank: i for i, n in enumerate(tree.nodes) if n.rank is not None}
        assert sorted(ends) == [0, 1, 2]
        scores = tree.output.sequences_scores
        assert scores is not None
        for rank, end in ends.items():
            written = [token for token in expected[rank].tolist() if token]
            assert list(tokens_of(tree, end)) == written
            assert tree.nodes[end].total == pytest.approx(float(scores[rank]), abs=1e-5)


@pytest.mark.parametrize(
    ("source", "options"),
    [
        (torch.ones(2, 3, dtype=torch.int64), {"num_beams": 2}),
        (torch.ones(1, 3, dtype=torch.int64), {}),
        (
            torch.ones(1, 3, dtype=torch.int64),
            {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
        ),
    ],
)
def test_more_than_one_tree_is_refused(source: torch.Tensor, options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="source must be one, searched with num_beams above 1"):
        beam_tree(TableModel(), source, **options)
