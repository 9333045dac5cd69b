"""The tree of a beam search: every beam that was on its way at some step, and what became of it.

The search itself is not changed: it runs on a stand-in for the model whose steps note which tokens
they are given, and whose state notes which rows go on. So what is drawn is what was searched.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from seq2seq_ext.generation.mixin import GenerationMixin
from seq2seq_ext.generation.options import GenerationOptions
from seq2seq_ext.generation.output import GenerationOutput
from seq2seq_ext.generation.processors import log_probabilities


class BeamNode(NamedTuple):
    """A token that a beam wrote.

    Args:
        parent: the place of the node before it; None of the root, ``<s>``.
        token: its id.
        log_probability: the model's own, in nats, given what stands before.
        total: the sum of it over the path from the root.
        rank: 0 for the last token of the best result, 1 of the second ...; None if the path goes
            on, or was given up here.
    """

    parent: int | None
    token: int
    log_probability: float
    total: float
    rank: int | None


class BeamTree(NamedTuple):
    """What a beam search has tried.

    Args:
        nodes: the root first, each after its parent. Beams that ended and were then beaten by
            ``num_beams`` better ends are not among them.
        output: what the search returned, best first.
    """

    nodes: list[BeamNode]
    output: GenerationOutput

    def path(self, node: int) -> list[int]:
        """The places of the nodes from the first token to `node`, the root left out."""
        path: list[int] = []
        at: int | None = node
        while at:
            path.append(at)
            at = self.nodes[at].parent
        return path[::-1]


def beam_tree(
    model: GenerationMixin[Any],
    source: Tensor,
    options: GenerationOptions | None = None,
    **changes: Any,
) -> BeamTree:
    """Search with beams as `generate` does, and return all that was on its way.

    Args:
        model: in the mode that it is in.
        source: int64 ``(1, T)``.
        options: of the search; ``num_beams`` above 1, and one group.
        **changes: options by name.

    Raises:
        TypeError, ValueError: as `generate`, and if there is no beam, or more than one source or
            group.

    Example:
        >>> import torch
        >>> from seq2seq_ext import Seq2Seq, Seq2SeqConfig
        >>> model = Seq2Seq(Seq2SeqConfig(source_vocab_size=9, target_vocab_size=9)).eval()
        >>> tree = beam_tree(model, torch.tensor([[4, 5]]), num_beams=3, max_new_tokens=4)
        >>> [tree.nodes[i].token for i in tree.path(1)] == [tree.nodes[1].token]
        True
    """
    options = GenerationOptions.of(options, changes)
    if options.num_beams < 2 or options.num_beam_groups != 1 or len(source) != 1:
        raise ValueError(
            "source must be one, searched with num_beams above 1 in one group, got "
            f"{len(source)}, num_beams={options.num_beams} and "
            f"num_beam_groups={options.num_beam_groups}"
        )
    recorder = _Recorder(model)
    output = recorder.generate(source, options=options, return_dict_in_generate=True)
    for rank, (ids, length) in enumerate(
        zip(output.sequences.tolist(), output.lengths.tolist(), strict=True)
    ):
        if length:
            recorder.end(ids[:length], rank)
    return BeamTree(recorder.nodes, output)


class _State:
    """A decoder's state that remembers which rows it was selected from."""

    def __init__(self, inner: Any, rows: list[int] | None = None) -> None:
        self.inner, self.rows = inner, rows

    @property
    def alignments(self) -> Tensor | None:
        found: Tensor | None = getattr(self.inner, "alignments", None)
        return found

    def select(self, rows: Tensor) -> _State:
        return _State(self.inner.select(rows), rows.tolist())


class _Recorder(GenerationMixin[_State]):
    """A model that notes what it is asked."""

    def __init__(self, model: GenerationMixin[Any]) -> None:
        self.config = model.config
        self.nodes = [BeamNode(None, self.config.bos_token_id, 0.0, 0.0, None)]
        self._model = model
        self._at = [0]  # the node of each row
        self._following: dict[int, Tensor] = {}  # log-probabilities of what follows a node
        self._children: dict[tuple[int, int], int] = {}

    def start(self, source: Tensor, source_lengths: Tensor | None = None) -> _State:
        return _State(self._model.start(source, source_lengths))

    def step(self, tokens: Tensor, state: _State) -> tuple[Tensor, _State]:
        if state.rows is not None:
            self._at = [
                self._child(self._at[row], token)
                for row, token in zip(state.rows, tokens.tolist(), strict=True)
            ]
        logits, inner = self._model.step(tokens, state.inner)
        self._following.update(zip(self._at, log_probabilities(logits).double(), strict=True))
        return logits, _State(inner)

    def end(self, ids: Sequence[int], rank: int) -> None:
        """Mark the end of a result; its last token was read by no step."""
        node = 0
        for token in ids:
            node = self._child(node, token)
        self.nodes[node] = self.nodes[node]._replace(rank=rank)

    def _child(self, parent: int, token: int) -> int:
        if (parent, token) not in self._children:
            log_probability = float(self._following[parent][token])
            self._children[parent, token] = len(self.nodes)
            total = self.nodes[parent].total + log_probability
            self.nodes.append(BeamNode(parent, token, log_probability, total, None))
        return self._children[parent, token]
