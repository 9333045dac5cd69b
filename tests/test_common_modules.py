"""PyTorch's own sample and error inputs for its recurrent modules, put to ours.

The inputs live in ``torch.testing._internal``, which is what PyTorch tests itself with; a torch
built without it has no such inputs to give.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from layer_cases import CELLS, LAYERS, assert_within_torch_error
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

common_modules = pytest.importorskip(
    "torch.testing._internal.common_modules", reason="this torch comes without its test inputs"
)

OURS: dict[type[nn.Module], Any] = {theirs: ours for ours, theirs in LAYERS + CELLS}
INFOS = [info for info in common_modules.module_db if info.module_cls in OURS]
DTYPES = [torch.float32, torch.float64]


def test_all_six_modules_have_inputs() -> None:
    assert {info.module_cls for info in INFOS} == set(OURS)


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, PackedSequence):
        return [value.data]
    if isinstance(value, Tensor):
        return [value]
    return [t for item in value or () for t in tensors(item)]


def leaves_of(value: Any, dtype: torch.dtype) -> Any:
    """``value`` in ``dtype``, its tensors (the data of a PackedSequence) as leaves."""
    if isinstance(value, PackedSequence):
        return value._replace(data=leaves_of(value.data, dtype))
    if isinstance(value, Tensor):
        return value.detach().to(dtype).requires_grad_()
    return tuple(leaves_of(item, dtype) for item in value)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])
@pytest.mark.parametrize("info", INFOS, ids=lambda info: info.module_cls.__name__)
def test_sample_inputs(info: Any, dtype: torch.dtype, training: bool) -> None:
    options: dict[str, Any] = {}
    if info.module_cls in (nn.RNN, nn.GRU):
        options["with_packed_sequence"] = True
    samples = list(
        info.module_inputs_func(
            info, device="cpu", dtype=dtype, requires_grad=True, training=training, **options
        )
    )
    assert samples
    for sample in samples:
        constructor, forward = sample.constructor_input, sample.forward_input
        ours = OURS[info.module_cls](*constructor.args, **constructor.kwargs).to(dtype)
        theirs = info.module_cls(*constructor.args, **constructor.kwargs).to(dtype)
        ours.train(training), theirs.train(training)
        theirs.load_state_dict(ours.state_dict())
        results = []
        for module in (ours, theirs, copy.deepcopy(theirs).double()):
            args = leaves_of(forward.args, next(module.parameters()).dtype)
            outputs = tensors(module(*args, **forward.kwargs))
            gradients = torch.autograd.grad(
                sum(o.sin().sum() for o in outputs), [*tensors(args), *module.parameters()]
            )
            results.append([*outputs, *gradients])
        # The samples reach far into saturation, where rounding is all that is left of some.
        assert_within_torch_error(*results, floor=16.0 if dtype == torch.float32 else 1024.0)

        if sample.reference_fn is not None and not isinstance(forward.args[0], PackedSequence):
            expected = sample.reference_fn(ours, *forward.args, **forward.kwargs)
            found = tensors(ours(*forward.args, **forward.kwargs))
            torch.testing.assert_close(found, tensors(expected))


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])
@pytest.mark.parametrize("info", INFOS, ids=lambda info: info.module_cls.__name__)
def test_error_inputs(info: Any, dtype: torch.dtype) -> None:
    """The same error, in type and words, at the same point as this torch raises it."""
    assert info.module_error_inputs_func is not None
    samples = info.module_error_inputs_func(
        info, device="cpu", dtype=dtype, requires_grad=False, training=False
    )
    for sample in samples:
        constructor = sample.module_error_input.constructor_input
        forward = sample.module_error_input.forward_input
        if sample.error_on == common_modules.ModuleErrorEnum.CONSTRUCTION_ERROR:
            with pytest.raises(sample.error_type, match=sample.error_regex):
                OURS[info.module_cls](*constructor.args, **constructor.kwargs)
        else:
            module = OURS[info.module_cls](*constructor.args, **constructor.kwargs).to(dtype)
            with pytest.raises(sample.error_type, match=sample.error_regex):
                module(*forward.args, **forward.kwargs)
