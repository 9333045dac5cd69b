"""Greedy and beam search on a GPU, whose every step is one replay of a CUDA graph.

A graph works on the same tensors again and again, so all that a step reads and writes has a place
of its own here, of one size: beams that do not exist have the score -inf, and how many tokens are
written stands in a tensor. From the tokens of one step to those of the next, embedding, cells,
attention, output, log-softmax, the best continuations, what they finish and the states of the beams
that go on, nothing waits for the device. The steps are those of `seq2seq_ext.generation.beam`.

After every few steps the search looks how many sources are left. Where they are half as many, they
move to the graph of half the size, so that what is done is computed no more. Sources come filled up
to a power of two, and to a multiple of 16 positions, so that few graphs serve all batches.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils import _pytree as pytree

from seq2seq_ext.cuda_graphs import capture
from seq2seq_ext.generation.beam import Beams, BeamSearch, Hypotheses
from seq2seq_ext.generation.options import GenerationOptions
from seq2seq_ext.generation.output import GenerationOutput
from seq2seq_ext.generation.processors import ForcedPrefix, SpecialTokens
from seq2seq_ext.generation.state import StepModel
from seq2seq_ext.ops import tf32_allowed

__all__ = ["Steps", "search_by_graphs"]

STEPS_BETWEEN_LOOKS = 4
MULTIPLE_OF_POSITIONS = 16
GRAPHS_KEPT = 16


def search_by_graphs(
    model: StepModel[Any],
    source: Tensor,
    source_lengths: Tensor | None,
    options: GenerationOptions,
    special: SpecialTokens,
) -> GenerationOutput:
    """What greedy or beam search finds, as by `GenerationMixin.generate`.

    Args:
        model: keeps its graphs for the next call.
        source: int64 ``(B, T)``, at least one token.
        source_lengths: int64 ``(B,)``; None takes rows up to their last token not ``<pad>``.
        options: of a search without further options.
        special: the ids that matter.

    Raises:
        TypeError: if the state of `model` holds other than tensors, numbers and tuples of them.
        ValueError: if a step changes the size of a tensor of the state, or a number.
    """
    if options.num_beams == 1:  # one beam that ends at its first </s>, scored without its length
        options = replace(options, early_stopping=True, length_penalty=0.0)
    batch_size, positions = source.shape
    rows = torch.arange(_power_of_two(batch_size), device=source.device)
    added = -positions % MULTIPLE_OF_POSITIONS
    copied = rows.clamp(max=batch_size - 1)
    source = functional.pad(source, (0, added), value=special.pad_token_id)[copied]
    if source_lengths is not None:
        source_lengths = source_lengths[copied.to(source_lengths.device)]
    prefix = ForcedPrefix.read(None, len(rows), special, source.device)
    search = BeamSearch(options, special, prefix, None, source.device)
    graphs = _graphs_of(model)
    with graphs.lock:
        finished = _search(model, source, source_lengths, search, rows < batch_size, graphs)
        output = search.output(finished.at(slice(batch_size)))
    if output.alignments is None:
        return output
    return output._replace(alignments=output.alignments[..., : output.alignments.size(2) - added])


class Standing(NamedTuple):
    """Where a search stands.

    Args:
        sources: int64 ``(n,)``, places in the batch of those that are not done.
        beams: of these sources.
        state: a row for each of their running beams, and perhaps more rows behind.
    """

    sources: Tensor
    beams: Beams
    state: Any


class Steps:
    """Steps of a search, on tensors that stay where they are.

    Args:
        model: makes the steps.
        search: to go on with.
        standing: from where; all groups are full, with beams that do not exist if need be.
        t: tokens written so far.
    """

    def __init__(
        self, model: StepModel[Any], search: BeamSearch, standing: Standing, t: int
    ) -> None:
        self._step, self._search = model.step, search
        self.t = torch.full((1,), t, device=standing.sources.device)
        self.standing: Standing = pytree.tree_map_only(Tensor, torch.clone, standing)

    def load(self, standing: Standing, t: int) -> None:
        """Go on from there; all sizes are those of before."""
        self.t.fill_(t)
        _overwrite(self.standing, standing)

    def advance(self) -> None:
        """Write one more token of every beam."""
        sources, beams, state = self.standing
        logits, state = self._step(beams.tokens.flatten(), state)
        own, alignments = self._search.read(logits, state)
        beams = self._search.advance(beams, own, alignments, sources, self.t)
        _overwrite(self.standing, Standing(sources, beams, state.select(beams.rows.flatten())))
        self.t += 1

    def count(self) -> int:
        """Sources that are not done; waits for the device."""
        return int(self.standing.beams.exist.flatten(1).any(1).sum())


def _search(
    model: StepModel[Any],
    source: Tensor,
    source_lengths: Tensor | None,
    search: BeamSearch,
    real: Tensor,
    graphs: _Graphs,
) -> Hypotheses:
    """What is finished of every source that is `real`."""
    state = model.start(source, source_lengths)
    first = torch.full_like(source[:, 0], search.special.bos_token_id)
    logits, state = model.step(first, state)
    own, alignments = search.read(logits, state)
    sources = torch.arange(len(source), device=source.device)
    beams = search.advance(search.begin(own, alignments), own, alignments, sources, 0)
    beams = beams._replace(running=beams.running.only(real[:, None, None]))
    standing = Standing(sources, beams, state.select(beams.rows.flatten()))
    finished = beams.finished.map(torch.clone)
    t, limit = 1, search.options.max_new_tokens
    while True:
        sources, beams, state = standing
        if t == limit:
            beams = search.end(beams, sources, t - 1)
        finished.put(sources, beams.finished)
        kept = beams.exist.flatten(1).any(1).nonzero()[:, 0]
        if not kept.numel():
            return finished
        size = _power_of_two(kept.numel())
        standing = _filled(standing, kept, size, search.group_size)
        steps, replay = graphs.steps(model, search, standing, t)
        steps.load(standing, t)
        left = size
        while t < limit and _power_of_two(left) == size:
            for _ in range(min(STEPS_BETWEEN_LOOKS, limit - t)):
                replay()
                t += 1
            left = steps.count()
        _, beams, state = steps.standing
        standing = Standing(sources[kept], beams.at(slice(kept.numel())), state)


def _filled(standing: Standing, kept: Tensor, size: int, group_size: int) -> Standing:
    """The sources `kept`, and copies of one whose beams do not exist: `size` of full groups."""
    sources, beams, state = standing
    count, (groups, width) = kept.numel(), beams.tokens.shape[1:]
    place = torch.arange(size, device=kept.device)
    column = torch.arange(group_size, device=kept.device)
    exist = (place < count)[:, None, None] & (column < width)
    of = kept[place.clamp(max=count - 1)]
    rows = torch.arange(beams.tokens.numel(), device=kept.device).view_as(beams.tokens)
    beams = beams._replace(rows=rows).at(of)
    beams = beams.take(column.clamp(max=width - 1).expand(size, groups, -1))
    beams = beams._replace(running=beams.running.only(exist))
    return Standing(sources[of], beams, state.select(beams.rows.flatten()))


def _power_of_two(number: int) -> int:
    """The least that is not below `number`; 0 of 0."""
    return 1 << (number - 1).bit_length() if number else 0


def _overwrite(old: Any, new: Any) -> None:
    """Write all tensors of `new` into those of `old`, which are as many and as large."""
    before, tree = pytree.tree_flatten(old)
    after, tree_after = pytree.tree_flatten(new)
    if tree != tree_after:
        raise ValueError(
            "a step must leave the state's structure as it is for cuda_graph=True, "
            f"got {tree_after.num_leaves} tensors and numbers behind {tree.num_leaves}"
        )
    for mine, theirs in zip(before, after, strict=True):
        if mine is theirs:
            continue
        if isinstance(mine, Tensor) and isinstance(theirs, Tensor) and mine.shape == theirs.shape:
            mine.copy_(theirs)
        elif isinstance(mine, Tensor) or isinstance(theirs, Tensor) or mine != theirs:
            raise ValueError(
                "a step must leave the sizes of the state's tensors, and its numbers, as they are "
                f"for cuda_graph=True, got {_told(theirs)} behind {_told(mine)}"
            )


def _told(leaf: Any) -> str:
    return f"a tensor of shape {tuple(leaf.shape)}" if isinstance(leaf, Tensor) else repr(leaf)


# ---- graphs of a model ---------------------------------------------------------------------------


class _Graphs:
    """Graphs of one model, the latest `GRAPHS_KEPT`; none is of weights that have moved."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._kept: OrderedDict[Hashable, tuple[Any, Callable[[], None]]] = OrderedDict()
        self._made_of: Hashable = None

    def __reduce__(self) -> tuple[type[_Graphs], tuple[()]]:
        return type(self), ()  # copies of a model make their own

    def steps(
        self, model: StepModel[Any], search: BeamSearch, standing: Standing, t: int
    ) -> tuple[Steps, Callable[[], None]]:
        """Steps for a search that stands there, and what replays one."""
        made_of = _made_of(model)
        if made_of != self._made_of:
            self._kept.clear()
            self._made_of = made_of
        key = (search.options, search.batch_size, search.special, *_sizes(standing))
        if key not in self._kept:
            steps = Steps(model, search, standing, t)
            self._kept[key] = steps, capture(steps.advance, warm_calls=1)
            while len(self._kept) > GRAPHS_KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]


def _graphs_of(model: Any) -> _Graphs:
    graphs: _Graphs = model.__dict__.setdefault("_graphs", _Graphs())
    return graphs


def _sizes(standing: Any) -> list[Hashable]:
    """What a graph for `standing` depends on.

    Raises:
        TypeError: if there is something else than tensors and numbers.
    """
    leaves, tree = pytree.tree_flatten(standing)
    found: list[Hashable] = [str(tree)]
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            found.append((leaf.shape, leaf.dtype, leaf.device))
        elif leaf is None or isinstance(leaf, (bool, int, float, str)):
            found.append(leaf)
        else:
            raise TypeError(
                "the state of a model must be made of tensors, numbers and tuples for "
                f"cuda_graph=True, got {type(leaf).__name__}"
            )
    return found


def _made_of(model: Any) -> Hashable:
    """Where the weights lie, and what else decides which kernels a step launches."""
    autocast = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    mode = (*autocast, tf32_allowed())
    if not isinstance(model, nn.Module):
        return mode
    weights = (*model.parameters(), *model.buffers())
    return (
        mode,
        tuple((weight.data_ptr(), weight.dtype, weight.shape) for weight in weights),
        tuple(module.training for module in model.modules()),
    )
