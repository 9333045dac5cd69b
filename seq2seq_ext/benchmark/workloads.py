"""The calls that are timed: ours and the peers', with equal weights and equal inputs.

Every contestant hands back all that a caller would use, and a training call asks for every
gradient: those of the input and of all parameters. What a contestant computes is compared with
`torch.nn` before anything is timed, so that no speed is bought with a wrong answer.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import seq2seq_ext
from seq2seq_ext.benchmark import peers
from seq2seq_ext.benchmark.shapes import Case, Task
from seq2seq_ext.benchmark.timing import Call
from seq2seq_ext.nn.replace import NotReplaced

OURS, TORCH = "seq2seq_ext", "torch"
PREPACKED = f"{OURS} prepacked"
# The types that weights can be packed in beside their own, and the tolerance of the results then.
NARROW = {torch.bfloat16: 3e-2, torch.int8: 1e-1}
LAYERS: dict[str, Callable[..., nn.RNNBase]] = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN}
CELL_MODULES: dict[str, Callable[..., nn.RNNCellBase]] = {
    "LSTM": nn.LSTMCell,
    "GRU": nn.GRUCell,
    "RNN": nn.RNNCell,
}


def narrow_name(dtype: torch.dtype) -> str:
    """The name of the contestant whose weights are packed in a narrow type."""
    return f"{OURS} {str(dtype).removeprefix('torch.')}"


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One way to do the work of a case.

    Args:
        name: ``"seq2seq_ext"`` is the one whose speed is in question; others are named after the
            peer or after what is special.
        call: what is timed.
        results: makes the tensors that are to equal those of `torch.nn` out of what `call` returns;
            None where the work is another.
        tolerance: the largest error allowed, as a share of the largest value.
    """

    name: str
    call: Call
    results: Callable[[Any], Sequence[Tensor]] | None
    tolerance: float = 1e-4


class WrongResultError(RuntimeError):
    """A contestant computes something else than `torch.nn`."""


def contestants(case: Task, peer_names: Sequence[str]) -> list[Contestant]:
    """The contestants of a case, `torch.nn` first, all of one random choice of weights and inputs.

    Args:
        case: the work; torch's number of threads is the caller's to set.
        peer_names: the runtimes beside torch, of `peers.RUNTIMES`; none but on the CPU.
    """
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        return _KINDS[case.kind](case, peer_names)


def check(entrants: Sequence[Contestant], what: object) -> None:
    """Compare everyone's results with those of the first.

    Raises:
        WrongResultError: if a result is off by more than the contestant's tolerance.
    """
    reference, *others = entrants
    expected = _results(reference)
    for entrant in others:
        if entrant.results is None:
            continue
        actual = _results(entrant)
        if len(actual) != len(expected):
            raise WrongResultError(
                f"{what}: {entrant.name} returned {len(actual)} tensors, "
                f"{reference.name} {len(expected)}"
            )
        for index, (a, e) in enumerate(zip(actual, expected, strict=True)):
            if a.shape != e.shape:
                raise WrongResultError(
                    f"{what}: {entrant.name}'s result {index} has shape {tuple(a.shape)}, "
                    f"{reference.name}'s {tuple(e.shape)}"
                )
            error, largest = float((a.double() - e).abs().max()), float(e.abs().max())
            if not error <= entrant.tolerance * largest:
                raise WrongResultError(
                    f"{what}: {entrant.name}'s result {index} is off by {error:.3g} from "
                    f"{reference.name}'s, whose largest value is {largest:.3g}"
                )


def _results(entrant: Contestant) -> list[Tensor]:
    assert entrant.results is not None
    return [tensor.clone() for tensor in entrant.results(entrant.call())]


def tensors(result: Any) -> list[Tensor]:
    """All tensors of a result, tuples within tuples unfolded."""
    if isinstance(result, Tensor):
        return [result]
    return [tensor for part in result if part is not None for tensor in tensors(part)]


def ours_of(theirs: nn.Module) -> nn.Module:
    """The replacement of a layer or cell of `torch.nn`: equal weights, its own copy.

    Raises:
        RuntimeError: if it is not replaced, for then it would be torch's layer that is timed.
    """
    left: list[NotReplaced] = []
    ours = seq2seq_ext.replace_modules(copy.deepcopy(theirs), report=left)
    if left:
        raise RuntimeError(f"{OURS}: replace_modules leaves the layer, {left[0].reason}")
    return ours


def prepacked(ours: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """A copy of one of our layers whose weights stay packed."""
    return seq2seq_ext.prepack(copy.deepcopy(ours), dtype)


def layer_of(case: Task) -> nn.RNNBase:
    """The layer of `torch.nn` that a case asks for, of random weights."""
    s = case.shape
    projection = {"proj_size": s.proj_size} if s.proj_size else {}
    layer = LAYERS[case.cell](
        s.input_size,
        s.hidden_size,
        s.num_layers,
        bidirectional=s.num_directions == 2,
        **projection,
    )
    return layer.to(case.device, case.dtype)


def inference(module: nn.Module, *args: Any, **options: Any) -> Call:
    """A call that runs a module, set to evaluate, without autograd and returns what it returns.

    In training mode cuDNN would keep what backward needs.
    """
    module.eval()

    def call() -> object:
        with torch.inference_mode():
            return module(*args, **options)

    return call


def training(
    module: Callable[..., Any],
    parameters: Sequence[Tensor],
    x: Tensor | PackedSequence,
    d_y: Tensor,
    *args: Any,
    **options: Any,
) -> Call:
    """A call that runs forward and backward.

    Args:
        module: what is called; the output is the first of what it returns, or all.
        parameters: whose gradients are asked for beside that of `x`.
        x: its input.
        d_y: the gradient of the output, shaped like it; of the data of a packed one.
        *args: further arguments of the module.
        **options: further arguments of the module.

    Returns:
        The call; it returns the gradients of the input and of the parameters.
    """
    if isinstance(x, PackedSequence):
        leaf = x.data.detach().clone().requires_grad_()
        x = PackedSequence(leaf, x.batch_sizes, x.sorted_indices, x.unsorted_indices)
    else:
        leaf = x = x.detach().clone().requires_grad_()
    inputs = [leaf, *parameters]

    def call() -> object:
        y = module(x, *args, **options)
        if isinstance(y, tuple) and not isinstance(y, PackedSequence):
            y = y[0]
        return torch.autograd.grad(y.data if isinstance(y, PackedSequence) else y, inputs, d_y)

    return call


# --- the kinds of cases ---------------------------------------------------------------------------


def _random(case: Task, features: int) -> Tensor:
    """(T, B, features), drawn in float32 on the CPU, so that it is the same wherever it goes."""
    drawn = torch.randn(case.shape.time_steps, case.shape.batch_size, features)
    return drawn.to(case.device, case.dtype)


def _input(case: Task) -> Tensor:
    return _random(case, case.shape.input_size)


def _output_gradient(case: Task) -> Tensor:
    return _random(case, case.shape.num_directions * case.shape.output_size)


def _dense(
    case: Task, peer_names: Sequence[str], narrow: Sequence[torch.dtype] = ()
) -> list[Contestant]:
    """In inference on the CPU ours twice: runtimes, like a prepacked layer, order weights first.

    Prepacked once more in each of the types in `narrow`.
    """
    theirs = layer_of(case)
    ours = ours_of(theirs)
    x = _input(case)
    if case.training:
        d_y = _output_gradient(case)
        return [
            Contestant(
                name=name,
                call=training(side, list(side.parameters()), x, d_y),
                results=tensors,
            )
            for name, side in ((TORCH, theirs), (OURS, ours))
        ]
    sides = {TORCH: theirs, OURS: ours}
    if case.device == "cpu":
        sides[PREPACKED] = prepacked(ours)
    entrants = [
        Contestant(name=name, call=inference(side, x), results=tensors)
        for name, side in sides.items()
    ]
    entrants += [
        Contestant(
            name=narrow_name(dtype),
            call=inference(prepacked(ours, dtype), x),
            results=tensors,
            tolerance=NARROW[dtype],
        )
        for dtype in narrow
    ]
    return entrants + [
        Contestant(name=name, call=_peer(case, name, theirs, x), results=tensors)
        for name in peer_names
    ]


def _step(case: Task, peer_names: Sequence[str]) -> list[Contestant]:
    s = case.shape
    cell = CELL_MODULES[case.cell](s.input_size, s.hidden_size)
    ours = ours_of(cell)
    x, d_h = torch.randn(s.batch_size, s.input_size), torch.randn(s.batch_size, s.hidden_size)
    states = [torch.randn(s.batch_size, s.hidden_size) for _ in range(1 + (case.cell == "LSTM"))]
    hx = tuple(states) if case.cell == "LSTM" else states[0]
    if case.training:
        return [
            Contestant(
                name=name,
                call=training(side, list(side.parameters()), x, d_h, hx),
                results=tensors,
            )
            for name, side in ((TORCH, cell), (OURS, ours))
        ]
    sides = {TORCH: cell, OURS: ours, PREPACKED: prepacked(ours)}
    entrants = [
        Contestant(name=name, call=inference(side, x, hx), results=tensors)
        for name, side in sides.items()
    ]
    layer = LAYERS[case.cell](s.input_size, s.hidden_size)
    layer.load_state_dict({f"{name}_l0": value for name, value in cell.state_dict().items()})
    runtime_states = [state[None] for state in states]
    return entrants + [
        Contestant(
            name=name,
            call=_peer(case, name, layer, x[None], states=runtime_states),
            # They return y beside h_n, which at one step is the same.
            results=lambda result: [state[0] for state in result[1:]],
        )
        for name in peer_names
    ]


def _lengths(case: Task, peer_names: Sequence[str]) -> list[Contestant]:
    """Packing is not timed, though callers of `torch.nn` pay for it and those of `lengths=` do not.

    What all ways have in common are the final states, or the gradients of the parameters.
    """
    theirs = layer_of(case)
    ours = ours_of(theirs)
    x, lengths = _input(case), case.lengths
    assert lengths is not None
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    if case.training:
        d_y = _output_gradient(case)
        d_packed = pack_padded_sequence(d_y, lengths, enforce_sorted=False).data

        def run(side: nn.Module, x: Any, d_y: Tensor, **options: Any) -> Call:
            return training(side, list(side.parameters()), x, d_y, **options)

        calls = {
            TORCH: run(theirs, packed, d_packed),
            OURS: run(ours, x, d_y, lengths=lengths),
            f"{OURS} packed": run(ours, packed, d_packed),
            f"{OURS} dense": run(ours, x, d_y),
        }
    else:
        calls = {
            TORCH: inference(theirs, packed),
            OURS: inference(ours, x, lengths=lengths),
            f"{OURS} packed": inference(ours, packed),
            f"{OURS} dense": inference(ours, x),
        }
        for name in peer_names:
            calls[name] = _peer(case, name, theirs, x, lengths=lengths)
    return [
        Contestant(
            name=name,
            call=call,
            results=None if name.endswith("dense") else lambda result: tensors(result[1:]),
        )
        for name, call in calls.items()
    ]


def _resets(case: Task, peer_names: Sequence[str]) -> list[Contestant]:
    """Episodes end with a chance of 1 in 50 a step, where RL libraries loop over time in Python."""
    theirs = layer_of(case)
    ours = ours_of(theirs)
    x = _input(case)
    resets = (torch.rand(x.shape[:2]) < 0.02).to(x.device)
    layer_loop = StepLoop(theirs)
    cell_loop = StepLoop(_cell_of(theirs))
    loops = {
        TORCH: (layer_loop, theirs),
        f"{TORCH} cells": (cell_loop, cell_loop.step),
        OURS: (ours, ours),
        f"{OURS} without resets": (ours, ours),
    }
    d_y = _output_gradient(case)
    entrants = []
    for name, (module, owner) in loops.items():
        options = {} if name.endswith("without resets") else {"resets": resets}
        if case.training:
            call = training(module, list(owner.parameters()), x, d_y, **options)
        else:
            call = inference(module, x, **options)
        first = (lambda result: tensors(result)) if case.training else (lambda result: [result[0]])
        entrants.append(Contestant(name=name, call=call, results=first if options else None))
    return entrants


class StepLoop(nn.Module):
    """What reinforcement learning does with a layer or a cell where episodes end: a Python loop.

    The state is multiplied by zero where an episode starts, then one step is made, as in the
    recurrent policies of sb3-contrib.

    Args:
        step: a layer of one layer and direction, or a cell, of `torch.nn`.
    """

    def __init__(self, step: nn.RNNBase | nn.RNNCellBase) -> None:
        super().__init__()
        self.step = step
        self.is_cell = isinstance(step, nn.RNNCellBase)

    def forward(self, x: Tensor, resets: Tensor) -> tuple[Tensor]:
        """y (T, B, H) of x (T, B, I) and resets (T, B), bool."""
        keep = (~resets).to(x.dtype)[..., None]
        shape = (x.size(1), self.step.hidden_size)
        h = x.new_zeros(shape if self.is_cell else (1, *shape))
        has_cell_state = isinstance(self.step, (nn.LSTM, nn.LSTMCell))
        state: Any = (h, h) if has_cell_state else h
        outputs = []
        for t in range(x.size(0)):
            state = (keep[t] * state[0], keep[t] * state[1]) if has_cell_state else keep[t] * state
            if self.is_cell:
                state = self.step(x[t], state)
                outputs.append(state[0] if has_cell_state else state)
            else:
                y, state = self.step(x[t : t + 1], state)
                outputs.append(y)
        return (torch.stack(outputs) if self.is_cell else torch.cat(outputs),)


def _cell_of(layer: nn.RNNBase) -> nn.RNNCellBase:
    cell = CELL_MODULES[layer.mode.partition("_")[0]](layer.input_size, layer.hidden_size)
    cell.load_state_dict({k.removesuffix("_l0"): v for k, v in layer.state_dict().items()})
    weight = next(layer.parameters())
    return cell.to(weight.device, weight.dtype)


def _peer(case: Task, name: str, *args: Any, **options: Any) -> Call:
    """A runtime's call; they take part on the CPU alone."""
    assert isinstance(case, Case)
    return peers.call(name, *args, **options, threads=case.threads)


_KINDS: dict[str, Callable[[Task, Sequence[str]], list[Contestant]]] = {
    "dense": _dense,
    "odd": _dense,
    "lengths": _lengths,
    "resets": _resets,
    "step": _step,
    "prepack": partial(_dense, narrow=tuple(NARROW)),
}
