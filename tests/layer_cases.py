"""What the tests of the layers share: matching layers, the oracle made of torch.nn, error bounds.

Every comparison has three parts: ours; torch.nn in the same dtype; and the truth, which is
``seq2seq_ext.reference`` in float64.  Ours may err at most twice as much as torch.nn does, measured
against the truth, with a floor of a few units in the last place of the largest entry.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import seq2seq_ext.nn as fused
from seq2seq_ext import reference

LAYERS = [(fused.LSTM, nn.LSTM), (fused.GRU, nn.GRU), (fused.RNN, nn.RNN)]
CELLS = [(fused.LSTMCell, nn.LSTMCell), (fused.GRUCell, nn.GRUCell), (fused.RNNCell, nn.RNNCell)]
LAYER_IDS = ["LSTM", "GRU", "RNN"]
CELL_IDS = ["LSTMCell", "GRUCell", "RNNCell"]

_MAKE: dict[str, tuple[type[nn.RNNBase], dict[str, Any]]] = {
    "lstm": (fused.LSTM, {}),
    "gru": (fused.GRU, {}),
    "gru_reset_before": (fused.GRU, {"reset_after": False}),
    "rnn_tanh": (fused.RNN, {}),
    "rnn_relu": (fused.RNN, {"nonlinearity": "relu"}),
}
NAMES = list(_MAKE)
STACKS = [(cell, 0) for cell in NAMES] + [("lstm", 5)]
STACK_IDS = [*NAMES, "lstm_proj"]
FORMS = ["dense", "lengths", "packed", "resets"]

both_kinds = pytest.mark.parametrize(("ours", "theirs"), LAYERS, ids=LAYER_IDS)
each_cell = pytest.mark.parametrize("cell", NAMES)


def twins(ours: Any, theirs: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
    """A layer of ours and one of torch's with the same weights."""
    layer, other = ours(*args, **kwargs), theirs(*args, **kwargs)
    layer.load_state_dict(other.state_dict())
    return layer, other


def make(cell: str, *args: Any, **kwargs: Any) -> nn.RNNBase:
    """The fused layer that computes ``cell`` (a name as :func:`seq2seq_ext.reference.rnn` has)."""
    cls, options = _MAKE[cell]
    return cls(*args, **options, **kwargs)


def random_state(layer: nn.RNNBase, B: int) -> Tensor | tuple[Tensor, Tensor]:
    """A random ``hx`` for ``layer`` and B sequences, in the dtype of its weights."""
    D = 2 if layer.bidirectional else 1
    dtype = layer.weight_ih_l0.dtype
    gru = layer.mode == "GRU"  # whose state is not projected
    P = layer.hidden_size if gru else layer.proj_size or layer.hidden_size
    h_0 = torch.randn(layer.num_layers * D, B, P, dtype=dtype)
    if layer.mode != "LSTM":
        return h_0
    return h_0, torch.randn(layer.num_layers * D, B, layer.hidden_size, dtype=dtype)


def states(hx: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """``hx`` or h_n, whatever the cell, as a list of tensors."""
    return [hx] if isinstance(hx, Tensor) else list(hx)


class Between(nn.Module):
    """A layer between others, and what a step of training makes of it."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        D = 2 if layer.bidirectional else 1
        self.before = nn.Linear(5, layer.input_size)
        self.layer = layer
        self.after = nn.Linear(D * layer.hidden_size, 2)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        y, _ = self.layer(self.before(x), lengths=lengths)
        return self.after(y)


@dataclass
class Problem:
    """One call of a layer: its weights and input as leaves, in one dtype.

    ``x`` is (T, B, I) whatever the form; ``form`` says how ``lengths`` and ``resets`` are handed
    over.  Tensors are independent of each other, so that gradients of all of them can be asked.
    """

    cell: str
    form: str  # dense, lengths, packed or resets
    num_layers: int
    bidirectional: bool
    weights: list[Tensor]
    x: Tensor
    h_0: Tensor
    c_0: Tensor | None
    lengths: Tensor | None
    resets: Tensor | None

    @classmethod
    def of(cls, cell: str, form: str, layer: nn.RNNBase, T: int, B: int) -> Problem:
        hx = states(random_state(layer, B))
        lengths = resets = None
        if form in ("lengths", "packed"):
            lengths = torch.randint(1, T + 1, (B,))
        if form == "resets":
            resets = torch.rand(T, B) < 0.3
        return cls(
            cell=cell,
            form=form,
            num_layers=layer.num_layers,
            bidirectional=bool(layer.bidirectional),
            weights=[w.detach().clone() for w in layer._flat_weights],
            x=torch.randn(T, B, layer.input_size, dtype=hx[0].dtype),
            h_0=hx[0],
            c_0=hx[1] if len(hx) == 2 else None,
            lengths=lengths,
            resets=resets,
        )

    def to(self, dtype: torch.dtype, device: str | torch.device | None = None) -> Problem:
        """The same in another dtype and perhaps on another device; lengths stay on the CPU."""
        values = dict(self.__dict__)
        for name in ("x", "h_0", "c_0"):
            values[name] = None if values[name] is None else values[name].to(device, dtype)
        values["weights"] = [w.to(device, dtype) for w in self.weights]
        values["resets"] = None if self.resets is None else self.resets.to(device)
        return Problem(**values)

    def leaves(self) -> list[Tensor]:
        tensors = [self.x, self.h_0, *self.weights]
        return tensors if self.c_0 is None else [*tensors, self.c_0]


Outputs = list[Tensor]


def run_reference(p: Problem) -> Outputs:
    y, h_n, c_n = reference.rnn(
        p.x,
        p.h_0,
        p.c_0,
        p.weights,
        cell=p.cell,
        num_layers=p.num_layers,
        bidirectional=p.bidirectional,
        lengths=p.lengths,
        resets=p.resets,
    )
    return [y, h_n] if c_n is None else [y, h_n, c_n]


def run_layer(layer: nn.RNNBase, p: Problem) -> Outputs:
    """The fused layer, called as a user would, with ``p.weights`` in the place of its own."""
    hx = p.h_0 if p.c_0 is None else (p.h_0, p.c_0)
    x: Tensor | PackedSequence = p.x
    options: dict[str, Any] = {"resets": p.resets}
    if p.form == "packed":
        x = pack_padded_sequence(p.x, p.lengths, enforce_sorted=False)
    else:
        options["lengths"] = p.lengths
    named = dict(zip(layer._flat_weights_names, p.weights, strict=True))
    y, h_n = torch.func.functional_call(layer, named, (x, hx), options)
    if isinstance(y, PackedSequence):
        y, _ = nn.utils.rnn.pad_packed_sequence(y, total_length=p.x.shape[0])
    return [y, *states(h_n)]


def run_torch(p: Problem) -> Outputs:
    """torch.nn in the dtype of ``p``: every piece between resets is a sequence of its own."""
    T, B = p.x.shape[:2]
    D = 2 if p.bidirectional else 1
    per_direction = len(p.weights) // (p.num_layers * D)
    lengths = [T] * B if p.lengths is None else p.lengths.tolist()
    x = p.x
    last: list[list[Tensor]] = []
    for layer in range(p.num_layers):
        directions = []
        for direction in range(D):
            k = layer * D + direction
            weights = p.weights[k * per_direction : (k + 1) * per_direction]
            state = [p.h_0[k]] if p.c_0 is None else [p.h_0[k], p.c_0[k]]
            if p.resets is None and p.lengths is None:
                y, *h = _torch_call(p.cell, x.flip(0) if direction else x, state, weights)
                directions.append(y.flip(0) if direction else y)
            else:
                rows, finals = [], []
                for b in range(B):
                    steps = list(range(lengths[b]))[:: -1 if direction else 1]
                    y, *h_b = _torch_pieces(p, x[:, b], steps, [s[b] for s in state], weights, b)
                    rows.append(_scatter(y, steps, T))
                    finals.append(h_b)
                directions.append(torch.stack(rows, dim=1))
                h = [torch.stack(parts) for parts in zip(*finals, strict=True)]
            last.append(h)
        x = torch.cat(directions, dim=-1)
    return [x, *(torch.stack(parts) for parts in zip(*last, strict=True))]


def _torch_pieces(
    p: Problem, x: Tensor, steps: list[int], state: list[Tensor], weights: list[Tensor], b: int
) -> Outputs:
    """One sequence in one direction: its steps in the order of reading, cut before each reset."""
    pieces: list[list[int]] = []
    for t in steps:
        if not pieces or (p.resets is not None and p.resets[t, b]):
            pieces.append([])
        pieces[-1].append(t)
    if p.resets is not None and p.resets[steps[0], b]:
        state = [torch.zeros_like(s) for s in state]
    outputs = []
    for number, piece in enumerate(pieces):
        if number > 0:
            state = [torch.zeros_like(s) for s in state]
        y, *after = _torch_call(p.cell, x[piece].unsqueeze(1), [s[None] for s in state], weights)
        outputs.append(y.squeeze(1))
        state = [s.squeeze(0) for s in after]
    return [torch.cat(outputs), *state]


def _torch_call(cell: str, x: Tensor, state: list[Tensor], weights: list[Tensor]) -> Outputs:
    """One layer in one direction of torch's own operator: (T, B, I) and (B, P) states."""
    hx = [s.unsqueeze(0) for s in state]
    # cuDNN keeps what backward needs only where it is told that this is training.
    options = (len(weights) >= 4, 1, 0.0, x.is_cuda, False, False)
    if cell == "lstm":
        y, *h = torch._VF.lstm(x, hx, weights, *options)
    else:
        y, *h = getattr(torch._VF, cell)(x, hx[0], weights, *options)
    return [y, *(s.squeeze(0) for s in h)]


def _scatter(y: Tensor, steps: list[int], T: int) -> Tensor:
    """(len(steps), P) in the order of reading to (T, P) in the order of time, 0 elsewhere."""
    return y.new_zeros(T, y.shape[-1]).index_put((torch.tensor(steps, device=y.device),), y)


def gradients(outputs: Outputs, leaves: list[Tensor], seed: int = 1) -> list[Tensor]:
    """Gradients of a fixed random weighting of all outputs, in the order of ``leaves``."""
    device = outputs[0].device
    generator = torch.Generator(device).manual_seed(seed)
    loss = outputs[0].new_zeros(())
    for output in outputs:
        factors = torch.randn(output.shape, generator=generator, dtype=torch.float64, device=device)
        loss = loss + (output * factors.to(output.dtype)).sum()
    # A sequence that is reset at its first step takes its initial state out of torch.nn's graph.
    return list(torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True))


def assert_within_torch_error(
    ours: Sequence[Tensor], theirs: Sequence[Tensor], truth: Sequence[Tensor], floor: float = 8.0
) -> None:
    """Each of ``ours`` errs at most twice as much as ``theirs``, or ``floor`` ulp of its scale."""
    assert len(ours) == len(theirs) == len(truth)
    for index, (a, b, exact) in enumerate(zip(ours, theirs, truth, strict=True)):
        assert a.shape == b.shape == exact.shape, f"tensor {index}"
        if exact.numel() == 0:
            continue
        error = (a.double() - exact).abs().max().item()
        torch_error = (b.double() - exact).abs().max().item()
        ulp = torch.finfo(a.dtype).eps * exact.abs().max().item()
        assert error <= 2 * torch_error + floor * ulp, (
            f"tensor {index}: error {error:.3g}, torch.nn's {torch_error:.3g}, ulp {ulp:.3g}"
        )


def check(
    cell: str, form: str, layer: nn.RNNBase, T: int, B: int, floor: float | None = None
) -> None:
    """Compare one call of ``layer`` with torch.nn and the reference, with all gradients."""
    given = Problem.of(cell, form, layer, T, B)
    dtype = given.x.dtype

    def both(run: Any, p: Problem) -> list[torch.Tensor]:
        for leaf in p.leaves():
            leaf.requires_grad_()
        outputs = run(p)
        found = gradients(outputs, p.leaves())
        return [o.detach() for o in outputs] + found

    truth = both(run_reference, given.to(torch.float64))
    ours = both(lambda p: run_layer(layer, p), given.to(dtype))
    if cell == "gru_reset_before":  # not in torch.nn: the reference in this dtype stands in
        theirs = both(run_reference, given.to(dtype))
    else:
        theirs = both(run_torch, given.to(dtype))
    # Against a truth in float64 the error of float64 itself is noise: only the floor holds.
    floor = floor or (64.0 if dtype == torch.float64 else 8.0)
    assert_within_torch_error(ours, theirs, truth, floor)
