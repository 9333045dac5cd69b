"""``replace_modules``: put the fused layers in the place of ``torch.nn``'s, in a model that exists.

A layer is not copied: the very object changes its class, from ``nn.LSTM`` to
:class:`seq2seq_ext.LSTM` and so on.  So whatever refers to it goes on working by itself: the
parameters in an optimiser, hooks and the handles that remove them, a second place in the model or
a variable outside of it, parametrizations, pruning masks, train or eval mode, device and dtype.

A dynamically quantised layer is the same object afterwards too, but its weights are new ones.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from seq2seq_ext.kernels import DTYPES
from seq2seq_ext.loading import CUDA_PROBLEM
from seq2seq_ext.nn.cells import GRUCell, LSTMCell, RNNCell
from seq2seq_ext.nn.layers import GRU, LSTM, RNN, _actual_class

__all__ = ["NotReplaced", "replace_modules", "restore_modules"]

Model = TypeVar("Model", bound=nn.Module)

_FUSED: dict[type[nn.Module], type[nn.Module]] = {
    nn.LSTM: LSTM,
    nn.GRU: GRU,
    nn.RNN: RNN,
    nn.LSTMCell: LSTMCell,
    nn.GRUCell: GRUCell,
    nn.RNNCell: RNNCell,
}
_TORCH = {fused: theirs for theirs, fused in _FUSED.items()}
_BY_NAME = {theirs.__name__: fused for theirs, fused in _FUSED.items()}
# Named, not imported: PyTorch means to give these classes up one day.
_DYNAMIC_MODULE = "torch.ao.nn.quantized.dynamic.modules.rnn"
_QUANTISED_ATTRIBUTES = (
    "_packed_weight_ih",
    "_packed_weight_hh",
    "bias_ih",
    "bias_hh",
    "dtype",
    "weight_dtype",
    "version",
)


class NotReplaced(NamedTuple):
    """A recurrent layer that was left as it is.

    Attributes:
        name: its qualified name in the model; empty for the model itself.
        module: the layer.
        reason: why, as a sentence without a full stop.
    """

    name: str
    module: nn.Module
    reason: str


def replace_modules(model: Model, *, report: list[NotReplaced] | None = None) -> Model:
    """Let every ``nn.LSTM``, ``nn.GRU``, ``nn.RNN`` and cell of ``model`` compute fused.

    Each of them changes, in place, into the class of the same name of this package.  It is the
    same object with the same parameters, hooks, buffers, mode, device and dtype, so an optimiser
    made before goes on working, and ``state_dict`` stays as it was.

    Layers and cells in torch's dynamically quantised form, qint8 or float16, change as well. What
    their weights stand for becomes parameters in float32 that require no gradient, and so their
    names in ``state_dict`` are those of ``torch.nn``. Inputs are no longer rounded to 8 bits.
    ``prepack(model, torch.int8)`` makes the weights narrow again.

    Left as they are: subclasses of these classes (they may compute something else), scripted
    layers and those quantised in any other form, layers whose ``forward`` was set on the instance,
    and layers of a dtype or on a device that the package does not compute on.

    Args:
        model: any module; may be such a layer itself.
        report: a list that receives a :class:`NotReplaced` for each recurrent layer left as it is.
            If None, they are named in one ``UserWarning`` instead.

    Returns:
        ``model``.

    Raises:
        TypeError: if ``model`` is not a module.

    >>> model = torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.GRU(4, 8))
    >>> weight = model[1].weight_hh_l0
    >>> type(replace_modules(model)[1])
    <class 'seq2seq_ext.nn.layers.GRU'>
    >>> model[1].weight_hh_l0 is weight
    True
    """
    _check_model(model, "replace_modules")
    left: list[NotReplaced] = [] if report is None else report
    already = len(left)
    for name, module in model.named_modules():
        cls = _class_without_parametrization(module)
        if cls in _FUSED or _is_dynamic(cls):
            reason = _why_not(module)
            if reason is None:
                if cls in _FUSED:
                    _change_class(module, _FUSED[cls])
                else:
                    _dequantise(module)
                continue
        elif cls in _TORCH:
            continue
        else:
            reason = _why_not_class(module)
            if reason is None:
                continue
        left.append(NotReplaced(name, module, reason))
    warn_of(left[already:] if report is None else [], "replace_modules")
    return model


def restore_modules(model: Model, *, report: list[NotReplaced] | None = None) -> Model:
    """Undo :func:`replace_modules`: give every layer of this package its class in ``torch.nn``.

    Layers that were made as this package's change too, where ``torch.nn`` can compute the same.
    What was quantised is so again, unless its weights were changed meanwhile: then ``torch.nn``'s
    layer of float32 holds them.

    Args:
        model: any module; may be such a layer itself.
        report: a list that receives a :class:`NotReplaced` for each layer that ``torch.nn`` has no
            counterpart of.  If None, they are named in one ``UserWarning`` instead.

    Returns:
        ``model``.

    Raises:
        TypeError: if ``model`` is not a module.

    >>> model = torch.nn.Sequential(torch.nn.GRU(4, 8))
    >>> type(restore_modules(replace_modules(model))[0])
    <class 'torch.nn.modules.rnn.GRU'>
    """
    _check_model(model, "restore_modules")
    left: list[NotReplaced] = [] if report is None else report
    already = len(left)
    for name, module in model.named_modules():
        cls = _class_without_parametrization(module)
        if cls in _TORCH:
            if module._variant is not None:
                left.append(NotReplaced(name, module, "torch.nn has no layers with variants"))
            elif _is_still_quantised(module):
                _requantise(module)
            elif getattr(module, "reset_after", True):
                module.__dict__.pop("_quantised", None)
                _change_class(module, _TORCH[cls])
            else:
                left.append(NotReplaced(name, module, "torch.nn has no GRU with reset_after=False"))
    warn_of(left[already:] if report is None else [], "restore_modules")
    return model


def _check_model(model: Any, function: str) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{function} expects a torch.nn.Module, got {type(model).__name__}")


def _parametrized(module: nn.Module) -> bool:
    """Whether ``type(module)`` is a class made by torch.nn.utils.parametrize for this module."""
    return "parametrizations" in module._modules and type(module).__name__.startswith(
        "Parametrized"
    )


def _class_without_parametrization(module: nn.Module) -> type:
    cls = type(module)
    base = cls.__bases__[0] if _parametrized(module) else cls
    layer_class: type = base.__dict__.get("_layer_class", base)
    return layer_class


def _change_class(module: nn.Module, cls: type[nn.Module]) -> None:
    if _parametrized(module):
        # The properties that compute the weights stand in a class of this module's own.
        own = type(module)
        namespace = {
            key: value
            for key, value in own.__dict__.items()
            if key not in ("__dict__", "__weakref__", "__doc__", "_answered_class")
        }
        # Where there is an answer for __class__, that is what parametrize derives from.
        cls = type(own.__name__, (cls.__dict__.get("_answered_class", cls),), namespace)
    _actual_class.__set__(module, cls)
    module.__dict__.pop("_packed", None)  # what prepack gave one of ours is nothing to torch.nn's
    if isinstance(module, nn.RNNBase):
        # nn.RNNBase looks its weights up anew; in ours the list is not kept.
        module.__dict__.pop("_flat_weights", None)
        module._init_flat_weights()


def _is_dynamic(cls: type) -> bool:
    """Whether ``cls`` is a dynamically quantised layer or cell of torch."""
    return cls.__module__ == _DYNAMIC_MODULE and cls.__name__ in _BY_NAME


def _dequantised(module: Any) -> dict[str, Tensor]:
    """The weights that a dynamically quantised layer stands for, as ``torch.nn`` names them."""
    # Weights kept in float16 are handed out in float32.
    weights = {name: weight.dequantize() for name, weight in module.get_weight().items()}
    return weights | {name: bias for name, bias in module.get_bias().items() if bias is not None}


def _dequantise(module: Any) -> None:
    """Make a dynamically quantised layer one of this package's."""
    weights = _dequantised(module)
    options = ("num_layers", "bidirectional", "nonlinearity")
    fresh = _BY_NAME[type(module).__name__](
        module.input_size,
        module.hidden_size,
        bias=any(name.startswith("bias") for name in weights),
        device="meta",
        **{name: getattr(module, name) for name in options if hasattr(module, name)},
    )
    # ``quantised`` is what the layer was, and both have their hooks in the same dictionaries.
    quantised = copy.copy(module)
    for name in _QUANTISED_ATTRIBUTES:
        module.__dict__.pop(name, None)
    module._modules = {k: v for k, v in module._modules.items() if k != "_all_weight_values"}
    module._parameters = fresh._parameters | {
        name: nn.Parameter(weight.clone(), requires_grad=False) for name, weight in weights.items()
    }
    added = {k: v for k, v in fresh.__dict__.items() if k not in module.__dict__}
    module.__dict__.update(added, bias=fresh.bias, _quantised=(quantised, list(added)))
    _change_class(module, type(fresh))


def _is_still_quantised(module: nn.Module) -> bool:
    """Whether the weights of ``module`` are those it had in quantised form."""
    quantised, _ = module.__dict__.get("_quantised", (None, ()))
    return quantised is not None and all(
        (now := module._parameters.get(name)) is not None
        and now.is_cpu
        and now.dtype == weight.dtype
        and torch.equal(now, weight)
        for name, weight in _dequantised(quantised).items()
    )


def _requantise(module: nn.Module) -> None:
    """Undo :func:`_dequantise`; attributes that were set meanwhile stay."""
    quantised, added = module.__dict__.pop("_quantised")
    for name in (*added, "bias", "_parameters", "_packed"):
        module.__dict__.pop(name, None)
    modules = quantised._modules | module._modules
    module.__dict__.update(quantised.__dict__ | module.__dict__, _modules=modules)
    _actual_class.__set__(module, type(quantised))


def _why_not(module: nn.Module) -> str | None:
    """Why a layer of one of torch's own classes cannot be served; None if it can."""
    if "forward" in module.__dict__:
        return "its forward was set on the instance"
    for parameter in module.parameters():
        device = parameter.device.type
        if device == "cuda" and CUDA_PROBLEM is not None:
            return f"its parameters are on a GPU, but {CUDA_PROBLEM}"
        if device not in ("cpu", "cuda", "meta"):
            return f"its parameters are on the device {parameter.device}"
        if parameter.dtype not in DTYPES:
            return f"its parameters are {parameter.dtype}"
    return None


def _why_not_class(module: nn.Module) -> str | None:
    """Why a recurrent layer of another class is left alone; None if it is no recurrent layer."""
    if isinstance(module, torch.jit.ScriptModule):
        scripted = getattr(module, "original_name", "") in _BY_NAME
        return "it is scripted" if scripted else None
    cls = type(module)
    if isinstance(module, tuple(_TORCH)):
        return None  # a subclass of this package's layer computes fused already
    if isinstance(module, tuple(_FUSED)):
        return f"{cls.__module__}.{cls.__qualname__} is a subclass of {_base_name(module)}"
    if any(_is_dynamic(base) for base in cls.__mro__):
        return f"{cls.__module__}.{cls.__qualname__} is a subclass of a quantised layer"
    if cls.__name__ in _BY_NAME and "quant" in cls.__module__:
        return "it is quantised in another form than torch's dynamic one"
    return None


def _base_name(module: nn.Module) -> str:
    return next(f"nn.{theirs.__name__}" for theirs in _FUSED if isinstance(module, theirs))


def warn_of(left: list[NotReplaced], function: str) -> None:
    """Tell a caller of ``function`` which layers it left, in one warning if there are any."""
    if left:
        lines = "".join(f"\n  {name or '(the model)'}: {reason}" for name, _, reason in left)
        warnings.warn(f"{function} left these layers as they are:{lines}", stacklevel=3)
