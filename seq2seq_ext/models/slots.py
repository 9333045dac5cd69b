"""Where a model keeps its weights, to be read in every call.

To look a parameter up by its attribute takes `torch.nn.Module` as long as a small kernel runs, and
a model has many. Its parameters can be put in the place of others at any time, so they cannot be
kept; the dictionaries in which they stand can.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from seq2seq_ext import transforms
from seq2seq_ext.kernels import autocast_is_on

__all__ = ["Slots", "slots_of", "weights_of"]

Made = TypeVar("Made", bound="Slots")


class Slots:
    """Parameters of a module, and of modules in it, by their names.

    Args:
        root: the module.
        names: of its parameters, as in its ``state_dict``; the empty name stands for `nothing`.
        nothing: what `read` puts where there is no parameter.
        modules: names of others in it that must have no hooks either.

    Raises:
        KeyError: if there is none of such a name. One that is computed in each call is none, and
            so is one of a module that is not torch's own, or does more with it.
    """

    def __init__(
        self,
        root: nn.Module,
        names: Iterable[str],
        nothing: Any = None,
        modules: Iterable[str] = (),
    ) -> None:
        self._modules: list[tuple[dict[str, Any], str, nn.Module, dict[str, Any]]] = []
        self._hooks: list[dict[int, Any]] = []
        self._slots: list[tuple[dict[str, Any], str]] = []
        self._nothing = nothing
        known = {"": root}

        def module_at(path: str) -> nn.Module:
            if path not in known:
                outer, _, child = path.rpartition(".")
                among: dict[str, Any] = module_at(outer)._modules
                known[path] = module = among[child]
                if not _is_plain(module):
                    raise KeyError(path)
                self._modules.append((among, child, module, module._parameters))
                self._hooks += (module._forward_hooks, module._forward_pre_hooks)
            return known[path]

        for name in names:
            path, _, last = name.rpartition(".")
            parameters: dict[str, Any] = module_at(path)._parameters if name else {"": nothing}
            parameters[last]  # raises KeyError
            self._slots.append((parameters, last))
        for path in modules:
            module_at(path)

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()  # copies of a model look for theirs anew

    def current(self) -> bool:
        """Whether the modules are still those of the model."""
        for among, name, module, parameters in self._modules:
            if among.get(name) is not module or module._parameters is not parameters:
                return False
        return True

    def hooked(self) -> bool:
        """Whether a module of these but the root has a hook."""
        return any(self._hooks)

    def read(self) -> list[Tensor]:
        """The parameters as they are now, in the order of the names.

        Raises:
            KeyError: if one is computed in each call by now.
        """
        nothing = self._nothing
        found = [parameters[name] for parameters, name in self._slots]
        return [nothing if tensor is None else tensor for tensor in found]


def _is_plain(module: nn.Module) -> bool:
    """Whether the module does what its weights tell, and no more."""
    for known in (nn.Embedding, nn.Linear, nn.Dropout):
        if isinstance(module, known) and type(module) is not known:
            return False
    return not isinstance(module, nn.Embedding) or module.max_norm is None


def _is_unusual(module: Any) -> bool:
    """Whether a call of a module with a ``config`` may be more than its modules' operators."""
    return bool(
        torch.is_grad_enabled()
        or (module.training and module.config.dropout)
        or autocast_is_on()
        or transforms.watched()
    )


def slots_of(root: nn.Module, made: Callable[[Any], Made]) -> Made:
    """What `made` makes of `root`, which keeps it; anew where it has other modules by now."""
    slots: Made | None = root.__dict__.get("_slots")
    if slots is None or not slots.current():
        slots = root.__dict__["_slots"] = made(root)
    return slots


def weights_of(root: nn.Module, made: Callable[[Any], Made]) -> tuple[Made, list[Tensor]] | None:
    """Slots as by `slots_of` and what they read, on the CPU; None where modules have to be called.

    That is where gradients may be wanted, dropout acts, a hook stands on a module, a weight is
    computed in each call, under autocast, transforms and tracers, and on other devices.

    Args:
        root: has a ``config``.
        made: makes slots of it, whose first weight tells the device.
    """
    if _is_unusual(root):
        return None
    try:
        slots = slots_of(root, made)
        weights = slots.read()
    except KeyError:  # pruned or parametrized
        return None
    return None if slots.hooked() or not weights[0].is_cpu else (slots, weights)
