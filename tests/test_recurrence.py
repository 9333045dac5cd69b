"""The operator ``recurrence``: every cell with every variant and each pair, against the reference.

On the CPU on every instruction set; through the CUDA kernels with ``--cuda-on-cpu``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from variant_cases import (
    FORMS,
    call,
    has,
    has_cell,
    in_float64,
    leaves_of,
    outputs_of,
    singles_and_pairs,
)

import seq2seq_ext
from seq2seq_ext.variants import noise, operator, reference

CELLS = list(reference.GATES)
CASES = [(cell, variants) for cell in CELLS for variants in singles_and_pairs(cell)]


def _name(value: Any) -> str:
    return ("+".join(value) or "plain") if isinstance(value, tuple) else str(value)


def _isas() -> list[str]:
    known = []
    for name in ("baseline", "avx2", "avx512", "neon"):
        before = seq2seq_ext.cpu_isa()
        try:
            seq2seq_ext.set_cpu_isa(name)
        except ValueError:
            continue
        seq2seq_ext.set_cpu_isa(before)
        known.append(name)
    return known


@pytest.fixture(params=_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.config.getoption("--cuda-on-cpu") and request.param != seq2seq_ext.cpu_isa():
        pytest.skip("the CUDA kernels have no instruction sets")
    before = seq2seq_ext.cpu_isa()
    seq2seq_ext.set_cpu_isa(request.param)
    yield request.param
    seq2seq_ext.set_cpu_isa(before)


def compare(arguments: dict[str, Any], tolerance: float) -> None:
    """Outputs and gradients against the reference in float64."""
    exact = in_float64(arguments)
    got, want = outputs_of(operator.recurrence, arguments), outputs_of(reference.recurrence, exact)
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=tolerance)
    cotangents = [torch.randn_like(output) for output in want]
    names = list(leaves_of(arguments))
    gradients = torch.autograd.grad(
        got, list(leaves_of(arguments).values()), [d.to(got[0].dtype) for d in cotangents]
    )
    expected = torch.autograd.grad(want, list(leaves_of(exact).values()), cotangents)
    for name, a, b in zip(names, gradients, expected, strict=True):
        scale = max(1.0, float(b.abs().max()))
        error = float((a.double() - b).abs().max())
        assert error <= 10 * tolerance * scale, f"gradient of {name} is off by {error}"


@pytest.mark.parametrize(("cell", "variants"), CASES, ids=_name)
def test_equals_the_reference(cell: str, variants: tuple[str, ...], isa: str) -> None:
    for form in FORMS:
        compare(call(cell, variants, form), 1e-11)


@pytest.mark.parametrize("H", [1, 8, 33])
@pytest.mark.parametrize("cell", CELLS)
def test_in_float32_with_all_variants_at_once(cell: str, H: int, isa: str) -> None:
    variants = tuple(
        v
        for v in ("norm", "noise", "candidate", "state_mask", "peephole", "projected")
        if has(cell, v) and (v != "norm" or H > 1)
    )
    for form in FORMS:
        compare(call(cell, variants, form, B=9, H=H, dtype=torch.float32), 3e-4)


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_by_differences(cell: str) -> None:
    """gradcheck and gradgradcheck, everything smooth at once."""
    variants = tuple(
        v for v in ("norm", "noise", "state_mask", "peephole", "projected") if has(cell, v)
    )
    arguments = call(cell, variants, "lengths", T=3, B=2, H=3)
    names = list(leaves_of(arguments))

    def run(*leaves: Tensor) -> tuple[Tensor, ...]:
        return tuple(
            outputs_of(operator.recurrence, arguments | dict(zip(names, leaves, strict=True)))
        )

    leaves = tuple(leaves_of(arguments).values())
    assert torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradgradcheck(run, leaves, atol=1e-4)


@pytest.mark.parametrize("cell", CELLS)
def test_operator_keeps_the_rules_of_torch(cell: str) -> None:
    variants = tuple(
        v for v in ("norm", "noise", "state_mask", "peephole", "projected") if has(cell, v)
    )
    for form in ("dense", "packed"):
        arguments = call(cell, variants, form, T=3, B=2, H=3)
        options = operator.Options(
            operator.CELLS.index(cell),
            **{k: v for k, v in arguments.items() if k in operator.Options._fields and k != "cell"},
        )
        tensors = operator.Tensors(
            **{k: v for k, v in arguments.items() if k in operator.Tensors._fields}
        )
        full = (*tensors, *options, True, has_cell(cell, "projected" in variants))
        torch.library.opcheck(torch.ops.seq2seq_ext.recurrence.default, full)


def test_noise_is_the_generator_of_the_paper() -> None:
    """Known answers of Philox 4x32-10 (Salmon et al. 2011), from its authors' distribution."""
    ones = torch.tensor(0xFFFFFFFF)
    words = noise.philox((ones, ones, ones, ones), torch.tensor(-1))
    assert [int(word) for word in words] == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


@pytest.mark.cpu_kernels
def test_noise_is_the_same_on_any_number_of_threads() -> None:
    arguments = call("lstm", ("noise", "candidate"), T=20, B=32, H=64, dtype=torch.float32)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        outputs = outputs_of(operator.recurrence, arguments)
        results.append([*outputs, *torch.autograd.grad(outputs[0].sum(), [arguments["x"]])])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


def test_zoneout_keeps_as_many_units_as_its_rate_says() -> None:
    T, B, H = 40, 8, 32
    arguments = {
        "cell": "rnn_tanh",
        "x": torch.randn(T, B, H),
        "w_hh": torch.zeros(H, H),
        "h_0": torch.zeros(B, H),
        "zoneout_h": 0.25,
        "seed": torch.tensor([7]),
    }
    y = operator.recurrence(**arguments)[0]
    kept = (y[1:] == y[:-1]).double().mean()
    assert abs(float(kept) - 0.25) < 4 * (0.25 * 0.75 / (T * B * H)) ** 0.5
    assert not torch.equal(y, operator.recurrence(**arguments | {"stream": 1})[0])
    assert not torch.equal(y, operator.recurrence(**arguments | {"seed": torch.tensor([8])})[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"w_hh": torch.zeros(20, 4)}, r"w_hh: expected shape \(20, 5\), got \(20, 4\)"),
        ({"x": torch.zeros(5, 3, 19)}, r"x: expected shape \(T, B, 4 \* H\), got \(5, 3, 19\)"),
        ({"peephole": torch.zeros(2, 5)}, r"peephole: expected shape \(3, 5\)"),
        ({"h_mask": torch.zeros(2, 5)}, r"h_mask: expected shape \(3, 5\), got \(2, 5\)"),
        ({"norm_c": torch.zeros(4)}, r"norm_c: expected shape \(5\), got \(4\)"),
        ({"bias_c": torch.zeros(5)}, "bias_c: expected None without norm_c"),
        ({"b_hn": torch.zeros(5)}, "b_hn: expected None for the cell lstm"),
        ({"zoneout_h": 1.0}, "zoneout_h: expected a probability"),
        ({"zoneout_c": float("nan")}, "zoneout_c: expected a probability"),
        ({"candidate_dropout": -0.1}, "candidate_dropout: expected a probability"),
        ({"cell_clip": float("inf")}, "cell_clip: expected a positive limit"),
        ({"seed": torch.zeros(2, dtype=torch.int64)}, "seed: expected one number"),
        ({"seed": torch.zeros(1)}, "seed: expected one number"),
        ({"lengths": torch.tensor([1, 2, 6])}, "lengths: expected values from 0 to 5"),
        ({"h_0": torch.zeros(3, 5, dtype=torch.float64)}, "h_0: expected dtype Float, got Double"),
        ({"stream": -1}, "stream: expected a number of 32 bits"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], message: str) -> None:
    good = {"cell": "lstm", "x": torch.zeros(5, 3, 20), "w_hh": torch.zeros(20, 5)}
    operator.recurrence(**good)
    with pytest.raises(RuntimeError, match=message):
        operator.recurrence(**good | change)
