"""Noise from a counter, the same numbers as the kernels draw.

Philox 4x32 with ten rounds (Salmon, Moraes, Dror & Shaw 2011, *Parallel random numbers: as easy as
1, 2, 3*) turns a key, here the seed, and a counter, here four units of a sequence at a step, into
four words of 32 random bits.  No state is carried, so that any thread draws any number, and
backward draws those of forward again instead of keeping them.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["draw", "philox"]

_MASK = 0xFFFFFFFF
_FACTORS = 0xD2511F53, 0xCD9E8D57
_STEPS = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], seed: Tensor) -> tuple[Tensor, ...]:
    """Four words for every counter.

    Args:
        counter: four int64 tensors of 32-bit values, which broadcast.
        seed: int64, one number: the key.

    Returns:
        Four int64 tensors of values from 0 to 2^32 - 1.

    The known answer for a counter and a key of zeros:

    >>> zero = torch.zeros((), dtype=torch.int64)
    >>> [hex(int(word)) for word in philox((zero, zero, zero, zero), zero)]
    ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    a, b, c, d = torch.broadcast_tensors(*counter)  # type: ignore[no-untyped-call]
    key0, key1 = seed & _MASK, (seed >> 32) & _MASK
    for _ in range(_ROUNDS):
        # Products of 32-bit numbers wrap around in int64, with the same 64 bits.
        p, q = a * _FACTORS[0], c * _FACTORS[1]
        a, b, c, d = (
            ((q >> 32) & _MASK) ^ b ^ key0,
            q & _MASK,
            ((p >> 32) & _MASK) ^ d ^ key1,
            p & _MASK,
        )
        key0, key1 = (key0 + _STEPS[0]) & _MASK, (key1 + _STEPS[1]) & _MASK
    return a, b, c, d


def draw(seed: Tensor, stream: int, T: int, B: int, units: int) -> tuple[Tensor, Tensor, Tensor]:
    """Bits that decide about each unit: of zoneout of h, zoneout of c, and of dropping a candidate.

    Args:
        seed: int64, one number.
        stream: a number of its own for every layer and direction.
        T, B, units: time steps, sequences and hidden units.

    Returns:
        Three int64 tensors (T, B, units) of values from 0 to 2^32 - 1; what has the probability p
        happens where they are below ``int(p * 2**32)``.
    """

    def count(size: int) -> Tensor:
        return torch.arange(size, dtype=torch.int64, device=seed.device)

    kinds = count(3)[:, None, None, None]
    counter = (
        4 * count((units + 3) // 4) + kinds,
        count(B)[:, None],
        count(T)[:, None, None],
        torch.tensor(stream, dtype=torch.int64, device=seed.device),
    )
    words = torch.stack(philox(counter, seed.reshape(())), dim=-1).flatten(-2)
    h, c, candidate = words[..., :units].unbind()
    return h, c, candidate
