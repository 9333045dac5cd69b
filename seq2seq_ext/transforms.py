"""Which of torch's function transforms and forward-mode levels a call is made under."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._C import _functorch
from torch.autograd import forward_ad

__all__ = ["active", "derivatives", "requires_grad", "watched"]

# Looked up once: small calls would notice.
_functorch_active = torch._C._are_functorch_transforms_active
_is_compiling = torch.compiler.is_compiling
_is_tracing = torch._C._is_tracing


def watched() -> bool:
    """Whether a compiler, a tracer, a function transform or forward mode is at work."""
    return _is_compiling() or _is_tracing() or active()


def active() -> bool:
    """Whether there is a ``torch.func`` transform, or a level of ``forward_ad``, to be seen.

    A compiler that looks at the program takes care of those itself.
    """
    return not _is_compiling() and (forward_ad._current_level >= 0 or _functorch_active())


def derivatives() -> tuple[int, bool]:
    """How many derivatives are being taken, ``torch.autograd``'s apart; whether one is forward.

    ``torch.func.jvp`` makes a level of ``forward_ad``, which counts once.
    """
    kinds = []
    if _functorch_active():
        kinds = [level.key() for level in _functorch.get_interpreter_stack() or []]
    forward = kinds.count(_functorch.TransformType.Jvp)
    if not forward and forward_ad._current_level >= 0:
        forward = 1
    return kinds.count(_functorch.TransformType.Grad) + forward, forward > 0


def requires_grad(tensor: Tensor) -> bool:
    """Whether ``torch.autograd`` follows the tensor, or one that transforms have wrapped in it."""
    while True:
        if tensor.requires_grad:
            return True
        if not _functorch.is_functorch_wrapped_tensor(tensor):
            return False
        tensor = _functorch.get_unwrapped(tensor)
