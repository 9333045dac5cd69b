"""Derivatives of derivatives, and what is kept for them: every cell and form."""

from __future__ import annotations

import copy
import pickle
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from layer_cases import NAMES, make, random_state, states
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from variant_cases import call, leaves_of, outputs_of

import seq2seq_ext as s2s
from seq2seq_ext import ops, reference
from seq2seq_ext.variants import operator

T, B, I, H = 4, 3, 2, 3
KINDS = {
    "plain": {},
    "two layers, two directions": {"num_layers": 2, "bidirectional": True},
    "no biases": {"bias": False},
}
FORMS: dict[str, dict[str, Any]] = {
    "dense": {},
    "lengths": {"lengths": torch.tensor([2, 4, 0])},
    "resets": {"resets": torch.tensor([[0, 1, 0], [1, 0, 0], [0, 0, 0], [0, 1, 1]]).bool()},
    "packed": {"batch_sizes": torch.tensor([3, 2, 2, 1])},
}
each_cell = pytest.mark.parametrize("cell", NAMES)
each_form = pytest.mark.parametrize("form", FORMS)


def leaves(layer: nn.RNNBase, form: str = "dense") -> list[Tensor]:
    """x, the state and the weights of a call, all of which require a gradient."""
    sizes = (8, I) if form == "packed" else (T, B, I)
    x = torch.randn(*sizes, dtype=layer.weight_ih_l0.dtype)
    tensors = [x, *states(random_state(layer, B)), *layer.parameters()]
    return [t.detach().requires_grad_() for t in tensors]


def outputs(run: Any, layer: nn.RNNBase, cell: str, form: str, tensors: Sequence[Tensor]) -> Any:
    """All results of a function of the signature that ops.rnn and reference.rnn share."""
    n = 3 if cell == "lstm" else 2
    x, h_0, *c_0 = tensors[:n]
    found = run(
        x,
        h_0,
        c_0[0] if c_0 else None,
        tensors[n:],
        cell=cell,
        num_layers=layer.num_layers,
        bidirectional=layer.bidirectional,
        **FORMS[form],
    )
    return tuple(t for t in found if t is not None)


def second_order(
    results: Sequence[Tensor], tensors: Sequence[Tensor], differentiable: bool = False
) -> list[Tensor]:
    """Gradients, and those of the sum of their squares."""
    loss = sum(t.sin().sum() for t in results)
    first = torch.autograd.grad(loss, tensors, create_graph=True)
    penalty = sum(g.square().sum() for g in first)
    return [*first, *torch.autograd.grad(penalty, tensors, create_graph=differentiable)]


@each_form
@pytest.mark.parametrize("kind", KINDS)
@each_cell
def test_equals_the_reference(cell: str, kind: str, form: str) -> None:
    layer = make(cell, I, H, dtype=torch.float64, **KINDS[kind])
    tensors = leaves(layer, form)
    found = second_order(outputs(ops.rnn, layer, cell, form, tensors), tensors)
    expected = second_order(outputs(reference.rnn, layer, cell, form, tensors), tensors)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("proj_size", [0, 2])
def test_equals_the_reference_with_projection_and_dropout(proj_size: int) -> None:
    layer = s2s.LSTM(I, H, 2, proj_size=proj_size, bidirectional=True, dtype=torch.float64)
    tensors, mask = leaves(layer), (torch.rand(1, T, B, 2 * (proj_size or H)) < 0.5).double()
    results = [
        second_order(
            run(*tensors[:3], tensors[3:], cell="lstm", num_layers=2, bidirectional=True,
                dropout_mask=mask),
            tensors,
        )
        for run in (ops.rnn, reference.rnn)
    ]  # fmt: skip
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("H", [1, 8, 33])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh", "rnn_relu"])
def test_in_float32(cell: str, H: int) -> None:
    layer = make(cell, I, H)
    tensors = leaves(layer)
    exact = [t.detach().double().requires_grad_() for t in tensors]
    found = second_order(outputs(ops.rnn, layer, cell, "dense", tensors), tensors)
    expected = second_order(outputs(reference.rnn, layer, cell, "dense", exact), exact)
    for a, b in zip(found, expected, strict=True):
        a, b = a.detach(), b.detach()
        assert float((a.double() - b).abs().max()) <= 2e-5 * max(1.0, float(b.abs().max()))


@pytest.mark.parametrize("form", ["lengths", "packed"])
@each_cell
def test_gradgradcheck(cell: str, form: str) -> None:
    layer = make(cell, I, H, dtype=torch.float64)
    tensors = tuple(leaves(layer, form))

    def run(*tensors: Tensor) -> Any:
        return outputs(ops.rnn, layer, cell, form, tensors)

    assert torch.autograd.gradcheck(run, tensors)
    assert torch.autograd.gradgradcheck(run, tensors)


@pytest.mark.parametrize("form", ["dense", "lengths", "packed", "resets", "reverse"])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh", "rnn_relu"])
def test_third_derivatives_equal_the_reference(cell: str, form: str) -> None:
    arguments = call(cell, (), form, T=3, B=2, H=2)
    tensors = list(leaves_of(arguments).values())

    def derivatives(run: Any) -> list[Tensor]:
        loss = sum(t.sin().sum() for t in outputs_of(run, arguments))
        every = []
        for _ in range(4):
            gradients = torch.autograd.grad(loss, tensors, create_graph=True)
            every += gradients
            loss = sum(g.sin().sum() for g in gradients)
        return every

    found = derivatives(operator.recurrence)
    expected = derivatives(operator.reference.recurrence)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("form", ["dense", "lengths", "resets"])
@each_cell
def test_third_derivatives_of_layers_equal_the_reference(cell: str, form: str) -> None:
    layer = make(cell, I, H, dtype=torch.float64, **KINDS["two layers, two directions"])
    tensors = leaves(layer, form)
    found, expected = (
        second_order(second_order(outputs(run, layer, cell, form, tensors), tensors, True), tensors)
        for run in (ops.rnn, reference.rnn)
    )
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)


@each_cell
def test_one_step(cell: str) -> None:
    layer = make(cell, I, H, dtype=torch.float64)
    x, *rest = leaves(layer)
    n = 2 if cell == "lstm" else 1
    tensors = [x[0], *(s[0] for s in rest[:n]), *rest[n:]]
    given = (*tensors[: n + 1], *[None] * (2 - n))
    found = [t for t in ops.step(*given, tensors[n + 1 :], cell) if t is not None]
    every = [None if t is None else t.unsqueeze(0) for t in given]
    _, *expected = reference.rnn(
        *every, tensors[n + 1 :], cell=cell, num_layers=1, bidirectional=False
    )
    expected = [t[0] for t in expected if t is not None]
    torch.testing.assert_close(second_order(found, tensors), second_order(expected, tensors))


class Count(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[func.name()] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh", "rnn_relu"])
def test_needs_no_more_operators_for_more_steps(cell: str) -> None:
    layer = make(cell, I, H)
    counts = []
    for steps in (3, 30):
        x = torch.randn(steps, B, I, requires_grad=True)
        with Count() as count:
            second_order([layer(x)[0]], [x, *layer.parameters()])
        counts.append(count.calls.total())
    assert counts[0] == counts[1]


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh", "rnn_relu"])
def test_forward_runs_once_and_its_backward_once_for_both(cell: str) -> None:
    layer = make(cell, I, H, **KINDS["two layers, two directions"])
    x = torch.randn(T, B, I, requires_grad=True)
    with Count() as count:
        second_order([layer(x)[0]], [x, *layer.parameters()])
    passes = {name.split("::")[1]: n for name, n in count.calls.items() if "seq2seq" in name}
    assert passes == {"rnn": 1, "recurrence_backward": 2 * 4, "recurrence_tangent": 4}


@each_cell
def test_graph_lives_as_long_as_torch_would_keep_it(cell: str) -> None:
    layer = make(cell, I, H, dtype=torch.float64)
    x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
    tensors = [x, *layer.parameters()]

    def penalty() -> Tensor:
        first = torch.autograd.grad(layer(x)[0].sin().sum(), tensors, create_graph=True)
        return sum((g.square().sum() for g in first), torch.zeros(()))

    loss = penalty()
    kept = torch.autograd.grad(loss, tensors, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(loss, tensors), kept)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(loss, tensors)
    loss = penalty()
    with torch.no_grad():
        layer.weight_hh_l0.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, tensors)


def test_gradient_penalty_by_the_input_alone() -> None:
    """What a critic is trained with: weights learn from the gradient by the input."""
    layer = s2s.LSTM(I, H, dtype=torch.float64)
    theirs = nn.LSTM(I, H, dtype=torch.float64)
    theirs.load_state_dict(layer.state_dict())
    x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
    for one in (layer, theirs):
        (gradient,) = torch.autograd.grad(one(x)[0].sum(), x, create_graph=True)
        (gradient.norm(dim=2) - 1).square().sum().backward()
    for a, b in zip(layer.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


# ---- the operators' own rules --------------------------------------------------------------------


def tangent_arguments(cell: str) -> list[Any]:
    """Arguments of recurrence_tangent, with all that it may have."""
    given = {name: value for name, value in call(cell).items() if name in operator.Tensors._fields}
    tensors = operator.Tensors(**{k: v.detach() for k, v in given.items()})
    options = operator.Options(operator.CELLS.index(cell))
    _, _, _, _, *kept = torch.ops.seq2seq_ext.recurrence(*tensors, *options, True, False)
    y = torch.randn_like(kept[1]).view(*tensors.x.shape[:2], -1)
    results = torch.ops.seq2seq_ext.recurrence_backward(
        *tensors, *options, y, None, None, None, None, None, *kept, True
    )
    whole_c = results[7] if cell == "lstm" else None
    t_sum = torch.randn(kept[1].size(0), tensors.x.size(-1), dtype=y.dtype)
    return [*tensors, *options, t_sum, kept[0], results[6], whole_c, cell == "lstm"]


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh", "rnn_relu"])
def test_tangent_keeps_the_rules_of_torch(cell: str) -> None:
    torch.library.opcheck(
        torch.ops.seq2seq_ext.recurrence_tangent.default,
        tuple(tangent_arguments(cell)),
        test_utils=("test_schema", "test_faketensor"),
    )


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("cell", 2, "cell: expected lstm, gru, rnn_tanh or rnn_relu, got gru_reset_before"),
        ("h_mask", torch.ones(3, 5).double(), "h_mask: expected none for a second derivative"),
        ("zoneout_h", 0.5, "zoneout_h: expected none"),
        ("t_sum", torch.zeros(3, 20).double(), r"t_sum: expected shape \(15, 20\), got \(3, 20\)"),
        ("step", torch.zeros(15, 5, 5).double(), r"step: expected shape \(15, 6, 5\)"),
        ("whole_c", None, "whole_c: expected a tensor for an LSTM with whole_h, else None"),
    ],
)
def test_bad_tangents_are_named(name: str, value: Any, message: str) -> None:
    names = [*operator.Tensors._fields, *operator.Options._fields]
    names += ["t_sum", "step", "whole_h", "whole_c", "return_cells"]
    arguments = dict(zip(names, tangent_arguments("lstm"), strict=True)) | {name: value}
    if name == "cell":
        arguments |= {"x": arguments["x"][..., :15], "w_hh": arguments["w_hh"][:15], "c_0": None}
    with pytest.raises(RuntimeError, match=message):
        torch.ops.seq2seq_ext.recurrence_tangent(*arguments.values())


# ---- what is kept --------------------------------------------------------------------------------

VARIANTS: list[dict[str, Any]] = [
    {},
    {"num_layers": 2, "bidirectional": True, "dropout": 0.5},
    {"zoneout": 0.3, "layer_norm": True},
]


@pytest.mark.parametrize("how", ["states", "checkpoint", "reentrant"])
@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_computing_once_more_changes_nothing(options: dict[str, Any], how: str) -> None:
    layer = s2s.LSTM(I, H, dtype=torch.float64, **options)
    x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)

    def run(one: Any, derive: Any = second_order) -> list[Tensor]:
        torch.manual_seed(1)
        return list(derive([one(x)], [x, *layer.parameters()]))

    def first_order(results: list[Tensor], tensors: list[Tensor]) -> list[Tensor]:
        for tensor in tensors:
            tensor.grad = None
        results[0].sin().sum().backward()  # torch.autograd.grad is refused by re-entrant ones
        return [tensor.grad for tensor in tensors]

    def plain(x: Tensor) -> Tensor:
        return layer(x, lengths=torch.tensor([4, 1, 0]))[0]

    def again(x: Tensor) -> Tensor:
        if how != "states":
            return checkpoint(plain, x, use_reentrant=how == "reentrant")
        layer.save = "states"
        try:
            return plain(x)
        finally:
            layer.save = "gates"

    derive = first_order if how == "reentrant" else second_order
    torch.testing.assert_close(run(again, derive), run(plain, derive))


@each_cell
def test_states_are_less_than_gates(cell: str) -> None:
    sizes = {}
    for save in ("gates", "states"):
        layer = make(cell, 16, 16, save=save)
        kept: dict[int, int] = {}

        def pack(tensor: Tensor, kept: dict[int, int] = kept) -> Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        x = torch.randn(20, 8, 16)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            layer(x)
        sizes[save] = sum(kept.values())
    assert sizes["states"] < sizes["gates"]


def test_save_is_a_setting_that_is_kept() -> None:
    layer = s2s.GRU(I, H, save="states")
    assert repr(layer) == "GRU(2, 3, save='states')"
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other.save == "states"
    packed = pack_padded_sequence(torch.randn(T, B, I), torch.tensor([4, 2, 1]))
    torch.testing.assert_close(layer(packed)[0].data.sum(), layer(packed)[0].data.sum())
    with pytest.raises(ValueError, match="save must be one of gates, states, got 'all'"):
        s2s.LSTM(I, H, save="all")
