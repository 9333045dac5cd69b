"""Plans: what the cost model offers and chooses, and that choosing otherwise changes no bit."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

import seq2seq_ext as s2s


@pytest.fixture(autouse=True)
def _free_plan():
    yield
    s2s.set_plan()


@pytest.fixture
def _four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def test_exactly_one_plan_is_chosen_and_it_is_the_fastest():
    for layer in (s2s.LSTM(256, 256), s2s.GRU(40, 64, num_layers=3), s2s.RNN(8, 8)):
        for batch_size in (1, 8, 64):
            for backward in (False, True):
                plans = s2s.explain_plan(layer, 50, batch_size, backward=backward, threads=4)
                assert [plan.chosen for plan in plans] == [True] + [False] * (len(plans) - 1)
                assert all(plan.seconds > 0 for plan in plans)


def test_small_work_stays_on_one_thread_and_large_work_does_not():
    small = s2s.explain_plan(s2s.LSTM(4, 4), 2, 1, threads=8)
    large = s2s.explain_plan(s2s.LSTM(512, 512), 50, 64, threads=8)
    assert small[0].threads == 1
    assert large[0].threads == 8


def test_few_rows_of_a_wide_layer_split_its_units():
    assert s2s.explain_plan(s2s.LSTM(512, 512), 50, 1, threads=2)[0].split == "units"


def test_plans_know_of_packed_weights():
    layer = s2s.LSTM(512, 512)
    times = [s2s.explain_plan(layer, 50, 1, threads=1)[0].seconds]
    for dtype in (None, torch.bfloat16, torch.int8):
        s2s.prepack(layer, dtype)
        times.append(s2s.explain_plan(layer, 50, 1, threads=1)[0].seconds)
    assert times == sorted(times, reverse=True)
    assert len(set(times)) == 4
    backward = s2s.explain_plan(layer, 50, 1, threads=1, backward=True)
    assert backward == s2s.explain_plan(s2s.unpack(layer), 50, 1, threads=1, backward=True)


def test_layers_are_a_choice_only_where_there_are_enough_of_them_in_one_direction():
    def splits(**options):
        layer = s2s.LSTM(8, 8, **options)
        return {plan.split for plan in s2s.explain_plan(layer, 9, 1, threads=2)}

    assert "layers" in splits(num_layers=2)
    assert "layers" not in splits()
    assert "layers" not in splits(num_layers=2, bidirectional=True)


@pytest.mark.usefixtures("_four_threads")
@pytest.mark.parametrize("cell", [s2s.LSTM, s2s.GRU, s2s.RNN])
@pytest.mark.parametrize("batch_size", [1, 5, 9])
def test_no_plan_changes_a_bit(cell, batch_size):
    torch.manual_seed(0)
    layer = cell(19, 70, num_layers=4)
    x = torch.randn(11, batch_size, 19, requires_grad=True)
    lengths = torch.randint(1, 12, (batch_size,))

    def results():
        y = layer(x, lengths=lengths)[0]
        return [y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])]

    s2s.set_plan(threads=1)
    expected = results()
    for threads in (2, 3, 4):
        for split in ("rows", "units", "layers"):
            s2s.set_plan(threads=threads, split=split)
            chosen = s2s.explain_plan(layer, 11, batch_size)
            assert [(p.threads, p.split) for p in chosen if p.chosen] == [(threads, split)]
            for got, wanted in zip(results(), expected, strict=True):
                assert torch.equal(got, wanted)


def test_more_threads_than_torch_has_are_not_used():
    s2s.set_plan(threads=64)
    plans = s2s.explain_plan(s2s.LSTM(8, 8), 5, 2, threads=2)
    assert max(plan.threads for plan in plans if plan.chosen) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": 0}, "threads=0"),
        ({"threads": -1}, "threads=-1"),
        ({"split": "columns"}, "split=columns"),
    ],
)
def test_bad_plans_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        s2s.set_plan(**options)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"time_steps": 0}, "time_steps"),
        ({"batch_size": 0}, "batch_size"),
        ({"steps": 11}, "steps"),
        ({"threads": 0}, "threads"),
    ],
)
def test_bad_sizes_are_named(options, name):
    sizes = {"time_steps": 5, "batch_size": 2} | options
    with pytest.raises(ValueError, match=name):
        s2s.explain_plan(s2s.LSTM(4, 4), **sizes)


def test_other_layers_have_no_plan():
    with pytest.raises(TypeError, match="layer must be"):
        s2s.explain_plan(torch.nn.LSTM(4, 4), 5, 2)


def run_python(code: str, plan: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"SEQ2SEQ_EXT_PLAN": plan}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )


def test_the_environment_forces_a_plan():
    code = (
        "import seq2seq_ext as s2s; plans = s2s.explain_plan(s2s.LSTM(8, 8), 5, 2, threads=4);"
        "print([(p.threads, p.split) for p in plans if p.chosen])"
    )
    done = run_python(code, "threads=2,split=units")
    assert done.stdout.strip() == "[(2, 'units')]", done.stderr


def test_a_bad_environment_is_an_error_of_the_first_call():
    code = "import torch, seq2seq_ext as s2s; s2s.LSTM(4, 4)(torch.zeros(2, 1, 4))"
    done = run_python(code, "threads=many")
    assert done.returncode != 0
    assert "SEQ2SEQ_EXT_PLAN" in done.stderr
    assert "threads=many" in done.stderr


def test_denormal_states_cost_nothing_and_the_callers_mode_comes_back():
    # A state that decays to zero passes through the denormal numbers for many steps.
    layer = s2s.RNN(1, 64, nonlinearity="relu", bias=False)
    with torch.no_grad():
        layer.weight_hh_l0.copy_(0.5 * torch.eye(64))
        layer.weight_ih_l0.zero_()
        y, _ = layer(torch.zeros(400, 1, 1), torch.ones(1, 1, 64))
    assert float(y[100].max()) > 0
    assert float(y[-1].max()) == 0
    tiny = torch.tensor(1e-40)
    assert float(tiny * 0.5) > 0  # outside of the kernels denormals are numbers as before


@pytest.mark.parametrize("threads", range(1, 9))
def test_any_number_of_threads_on_any_number_of_cores(threads):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        layer = s2s.LSTM(64, 64, num_layers=2, bidirectional=True)
        x = torch.randn(20, 8, 64, requires_grad=True)
        y = layer(x)[0]
        y.sum().backward()
        torch.set_num_threads(1)
        assert torch.equal(layer(x)[0], y)
    finally:
        torch.set_num_threads(before)
