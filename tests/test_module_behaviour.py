"""What people do to a layer beside calling it: ask what it is, set modes, err, thread.

Copies and moves are in test_module_copies.py, weights that are computed or shared in
test_module_weights.py.
"""

from __future__ import annotations

import copy
import multiprocessing
import threading
import warnings
from typing import Any

import pytest
import torch
from layer_cases import LAYERS, both_kinds, each_cell, make, states, twins
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset

import seq2seq_ext.nn as fused

# Being made.

CONSTRUCTIONS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((3, 4), {}),
    ((3, 4, 2), {"bidirectional": True, "bias": False}),
    ((3, 4, 3), {"batch_first": True, "dropout": 0.25}),
    ((3, 4), {"dtype": torch.float64, "device": "cpu"}),
]


@pytest.mark.parametrize(("args", "kwargs"), CONSTRUCTIONS, ids=str)
@both_kinds
def test_same_seed_same_weights_names_and_repr(
    ours: Any, theirs: Any, args: Any, kwargs: Any
) -> None:
    torch.manual_seed(3)
    layer = ours(*args, **kwargs)
    torch.manual_seed(3)
    other = theirs(*args, **kwargs)
    assert list(layer.state_dict()) == list(other.state_dict())
    for a, b in zip(layer.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.dtype == b.dtype
    assert repr(layer) == repr(other)
    assert layer.all_weights[0][0] is layer.weight_ih_l0
    for name in ("mode", "input_size", "num_layers", "bias", "batch_first", "dropout", "proj_size"):
        assert getattr(layer, name) == getattr(other, name)


def test_positional_arguments_stand_where_torch_has_them() -> None:
    arguments = (3, 5, 2, False, True, 0.1, True, 2)
    assert repr(fused.LSTM(*arguments)) == repr(nn.LSTM(*arguments))
    assert repr(fused.GRU(*arguments[:7])) == repr(nn.GRU(*arguments[:7]))
    assert fused.GRU(*arguments).proj_size == 2
    arguments = (3, 5, 2, "relu", False, True, 0.1, True, 2)
    assert repr(fused.RNN(*arguments[:8])) == repr(nn.RNN(*arguments[:8]))
    assert fused.RNN(*arguments).nonlinearity == "relu"
    assert fused.RNN(*arguments).proj_size == 2


def test_dropout_of_one_layer_warns() -> None:
    with pytest.warns(UserWarning, match="dropout option adds dropout after all but last"):
        fused.LSTM(3, 4, dropout=0.5)


@both_kinds
def test_sizes_may_be_zero_dimensional_tensors(ours: Any, theirs: Any) -> None:
    layer = ours(torch.tensor(3), torch.tensor(4), torch.tensor(2))
    assert repr(layer) == repr(theirs(3, 4, 2))
    assert layer(torch.randn(5, 3))[0].shape == (5, 4)


def test_bias_of_an_older_torch() -> None:
    """Before it asked for a bool, torch.nn was made with 1 too; such a layer comes from a file."""
    layer, x = nn.GRU(3, 4), torch.randn(5, 3)
    expected = layer(x)[0]
    layer.bias = 1
    torch.testing.assert_close(fused.replace_modules(layer)(x)[0], expected)


def test_gru_shows_its_reset_gate() -> None:
    assert repr(fused.GRU(3, 4, reset_after=False)) == "GRU(3, 4, reset_after=False)"


# Being asked what it is.


@both_kinds
def test_is_an_instance_of_both(ours: Any, theirs: Any) -> None:
    layer = ours(3, 4)
    assert type(layer) is ours
    assert isinstance(layer, ours)
    assert isinstance(layer, theirs)
    assert isinstance(layer, nn.RNNBase)
    assert not isinstance(layer, nn.Linear)
    assert [isinstance(layer, t) for _, t in LAYERS].count(True) == 1
    assert layer.__class__.__name__ == theirs.__name__
    assert issubclass(layer.__class__, (ours, theirs))
    assert type(layer.__class__(3, 4)) is ours


def test_subclasses_keep_what_is_theirs() -> None:
    class Scaled(fused.LSTM):
        factor = 3.0

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            y, state = super().forward(*args, **kwargs)
            return y * self.scale * self.__class__.factor, state

    layer = Scaled(3, 4)
    assert type(layer) is Scaled
    assert layer.__class__.__name__ == "Scaled"
    assert isinstance(layer, nn.LSTM)
    twin = copy.deepcopy(layer)
    assert type(twin) is Scaled
    x = torch.randn(5, 3)
    assert torch.equal(twin(x)[0], layer(x)[0])
    assert torch.equal(layer(x)[0], fused.LSTM.forward(layer, x)[0] * 3)


# Modes of torch.


@each_cell
def test_no_grad_inference_mode_and_frozen_weights(cell: str) -> None:
    layer, x = make(cell, 3, 4, 2), torch.randn(5, 2, 3)
    expected = layer(x)[0]
    with torch.no_grad():
        y = layer(x)[0]
    assert not y.requires_grad
    assert torch.equal(y, expected)
    with torch.inference_mode():
        y = layer(x)[0]
    assert y.is_inference()
    assert torch.equal(y, expected)
    layer.requires_grad_(False)
    assert not layer(x)[0].requires_grad
    layer(x.requires_grad_())[0].sum().backward()
    assert x.grad is not None
    assert layer.weight_hh_l0.grad is None


@both_kinds
def test_backward_twice_needs_retain_graph(ours: Any, theirs: Any) -> None:
    layer = ours(3, 4)
    y = layer(torch.randn(5, 2, 3))[0].sum()
    first = torch.autograd.grad(y, layer.parameters(), retain_graph=True)
    again = torch.autograd.grad(y, layer.parameters())
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a, b)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(y, layer.parameters())


def test_weights_changed_between_forward_and_backward_are_noticed() -> None:
    layer = fused.LSTM(3, 4)
    loss = layer(torch.randn(5, 2, 3))[0].sum()
    with torch.no_grad():
        layer.weight_hh_l0.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("detached", [True, False], ids=["truncated", "whole"])
@both_kinds
def test_state_carried_from_chunk_to_chunk(ours: Any, theirs: Any, detached: bool) -> None:
    """Backpropagation through time, truncated or not."""

    def run(layer: nn.RNNBase, x: Tensor) -> list[Tensor]:
        state, losses = None, []
        for chunk in x.split(4):
            y, state = layer(chunk, state)
            losses.append(y.sin().sum())
            if detached:
                losses[-1].backward()
                state = tuple(s.detach() for s in states(state))
                state = state if len(state) == 2 else state[0]
        if not detached:
            sum(losses).backward()
        return [*losses, *states(state), *(weight.grad for weight in layer.parameters())]

    layer, other = twins(ours, theirs, 3, 4, 2)
    x = torch.randn(11, 2, 3)
    torch.testing.assert_close(run(layer, x), run(other, x))


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("form", ["dense", "lengths", "resets"])
@each_cell
def test_checkpoints_compute_forward_twice(cell: str, form: str, use_reentrant: bool) -> None:
    layer = make(cell, 3, 4, 2, dropout=0.5)  # which is to be drawn alike both times
    x = torch.randn(5, 2, 3, requires_grad=True)
    options = {
        "dense": {},
        "lengths": {"lengths": torch.tensor([3, 5])},
        "resets": {"resets": torch.rand(5, 2) < 0.3},
    }[form]

    def call(x: Tensor) -> Tensor:
        return layer(x, **options)[0]

    def run(y: Tensor) -> list[Tensor]:
        layer.zero_grad()
        x.grad = None
        y.sin().sum().backward()
        return [y, x.grad, *(weight.grad for weight in layer.parameters())]

    torch.manual_seed(1)
    expected = run(call(x))
    torch.manual_seed(1)
    found = run(checkpoint(call, x, use_reentrant=use_reentrant))
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


# Errors that name the argument.

T, B, I, H = 5, 2, 3, 4


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"lengths": torch.tensor([1])}, ValueError, r"lengths must have size \(2,\).*got \(1,\)"),
        ({"lengths": torch.tensor([[1, 2]])}, ValueError, r"lengths must have size.*got \(1, 2\)"),
        ({"lengths": torch.tensor([1.0, 2.0])}, TypeError, "lengths .* integers, got torch.float"),
        ({"lengths": torch.tensor([True, True])}, TypeError, "lengths .* integers, got torch.bool"),
        ({"lengths": [1, 2]}, TypeError, "lengths must be a Tensor of integers, got list"),
        ({"lengths": torch.tensor([-1, 2])}, (ValueError, RuntimeError), "lengths.*-1"),
        ({"lengths": torch.tensor([1, 6])}, (ValueError, RuntimeError), "lengths.*6"),
        ({"resets": torch.zeros(T, B)}, TypeError, "resets must be a Tensor of bool, got torch.fl"),
        ({"resets": [True]}, TypeError, "resets must be a Tensor of bool, got list"),
        (
            {"resets": torch.zeros(B, T, dtype=torch.bool)},
            ValueError,
            r"resets must be sized like .* \(5, 2\), got \(2, 5\)",
        ),
    ],
)
@each_cell
def test_bad_lengths_and_resets_are_named(
    cell: str, options: dict[str, Any], error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        make(cell, I, H)(torch.randn(T, B, I), **options)


def test_lengths_are_not_for_packed_input() -> None:
    packed = pack_padded_sequence(torch.randn(T, B, I), torch.tensor([5, 2]))
    with pytest.raises(ValueError, match="a PackedSequence has its own lengths"):
        fused.GRU(I, H)(packed, lengths=torch.tensor([5, 2]))


BAD_CALLS: list[tuple[str, Any]] = [
    ("rank 1", lambda hx: (torch.ones(I), None)),
    ("rank 4", lambda hx: (torch.ones(T, B, I, 1), None)),
    ("features", lambda hx: (torch.ones(T, B, I + 1), None)),
    ("dtype", lambda hx: (torch.ones(T, B, I).double(), None)),
    ("integers", lambda hx: (torch.ones(T, B, I).long(), None)),
    ("no steps", lambda hx: (torch.ones(0, B, I), None)),
    ("no steps unbatched", lambda hx: (torch.ones(0, I), None)),
    ("device", lambda hx: (torch.ones(T, B, I, device="meta"), None)),
    ("state batch", lambda hx: (torch.ones(T, B, I), hx(1, B + 1, H))),
    ("state size", lambda hx: (torch.ones(T, B, I), hx(1, B, H + 1))),
    ("state layers", lambda hx: (torch.ones(T, B, I), hx(2, B, H))),
    ("state rank", lambda hx: (torch.ones(T, B, I), hx(1, H))),
    ("state rank unbatched", lambda hx: (torch.ones(T, I), hx(1, 1, H))),
]


@pytest.mark.parametrize("arguments", [b[1] for b in BAD_CALLS], ids=[b[0] for b in BAD_CALLS])
@both_kinds
def test_errors_are_torchs_in_type_and_words(ours: Any, theirs: Any, arguments: Any) -> None:
    def hx(*size: int) -> Any:
        return (torch.ones(size), torch.ones(size)) if ours is fused.LSTM else torch.ones(size)

    layer, other = twins(ours, theirs, I, H)
    with pytest.raises((ValueError, RuntimeError)) as expected:
        other(*arguments(hx))
    with pytest.raises(expected.type) as found:
        layer(*arguments(hx))
    if torch.__version__ >= "2.13" or "dtype" not in str(found.value):
        assert str(found.value) == str(expected.value)


def test_a_weight_on_another_device_is_named() -> None:
    """The meta device would otherwise answer for all of them, with memory that nobody filled."""
    for module in (fused.GRU(I, H), fused.GRUCell(I, H)):
        name = next(n for n, _ in module.named_parameters() if "bias_hh" in n)
        setattr(module, name, nn.Parameter(torch.ones(3 * H, device="meta")))
        with pytest.raises(RuntimeError, match="weights must all be on cpu, got one on meta"):
            module(torch.randn(B, I))


def test_states_of_another_kind() -> None:
    x, h = torch.randn(T, B, I), torch.zeros(1, B, H)
    with pytest.raises(TypeError, match=r"tuple of two Tensors \(h_0, c_0\) or None, got Tensor"):
        fused.LSTM(I, H)(x, h)
    with pytest.raises(RuntimeError, match="lstm expects two hidden states"):
        fused.LSTM(I, H)(x, (h, h, h))
    with pytest.raises(TypeError, match="hx to be a Tensor or None, got tuple"):
        fused.GRU(I, H)(x, (h, h))
    with pytest.raises(RuntimeError, match=r"Expected hidden dtype .*float32, got .*float64"):
        fused.GRU(I, H)(x, h.double())
    with pytest.raises(TypeError, match="Expected input to be a Tensor or PackedSequence, got lis"):
        fused.GRU(I, H)([[1.0]])


# Threads and processes.


@each_cell
def test_calls_from_several_threads_at_once(cell: str) -> None:
    layers = [make(cell, 8, 16 + n, bidirectional=True) for n in range(4)]
    xs = [torch.randn(20, 6, 8) for _ in layers]

    def work(n: int) -> list[Tensor]:
        y, _ = layers[n](xs[n], lengths=torch.arange(6) * 4)
        return [y.detach(), *torch.autograd.grad(y.sin().sum(), layers[n].parameters())]

    expected = [work(n) for n in range(4)]
    failures: list[Any] = []

    def repeatedly(n: int) -> None:
        try:
            for _ in range(10):
                for a, b in zip(work(n), expected[n], strict=True):
                    torch.testing.assert_close(a, b)
        except BaseException as error:  # a thread must hand its failure over
            failures.append(error)

    threads = [threading.Thread(target=repeatedly, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]


def test_one_layer_in_several_threads() -> None:
    layer, results = fused.LSTM(8, 16), {}
    xs = [torch.randn(10, 3, 8) for _ in range(4)]

    def work(n: int) -> None:
        results[n] = [layer(xs[n])[0] for _ in range(20)][-1]

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n, x in enumerate(xs):
        torch.testing.assert_close(results[n], layer(x)[0])


@pytest.mark.parametrize("count", [1, 2])
def test_numbers_do_not_depend_on_the_threads_of_torch(count: int) -> None:
    layer, x = fused.GRU(16, 40, 2, bidirectional=True), torch.randn(9, 7, 16)
    before = torch.get_num_threads()
    expected = layer(x)[0]
    try:
        torch.set_num_threads(count)
        y = layer(x)[0]
        torch.testing.assert_close(y, expected)
        torch.autograd.grad(y.sum(), layer.parameters())
    finally:
        torch.set_num_threads(before)


class Encoded(Dataset[Tensor]):
    """A data set that runs a layer in the process that asks it for an item."""

    def __init__(self) -> None:
        self.layer = fused.GRU(4, 8, bidirectional=True)
        self.items = torch.randn(6, 5, 4)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Tensor:
        y, _ = self.layer(self.items[index])
        (gradient,) = torch.autograd.grad(y.sum(), [self.layer.weight_hh_l0])
        return torch.cat([y.detach().flatten(), gradient.flatten()])


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_in_the_workers_of_a_data_loader(context: str) -> None:
    data = Encoded()
    expected = torch.stack([data[n] for n in range(len(data))])  # the parent has used its threads
    fused.GRU(16, 64)(torch.randn(20, 32, 16))[0].sum().backward()
    if context not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this platform has no {context}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        loader = DataLoader(
            data, batch_size=2, num_workers=2, multiprocessing_context=context, timeout=60
        )
        found = torch.cat(list(loader))
    torch.testing.assert_close(found, expected)
