"""Launch plans of the CUDA engine: within the limits of real devices, and every weight, unit and
sequence in its place. No GPU is needed: the model is plain C++."""

from __future__ import annotations

import dataclasses
import itertools
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import seq2seq_ext as s2s
from seq2seq_ext import cuda_planning
from seq2seq_ext.cli import main
from seq2seq_ext.cuda_planning import DTYPES, cuda_devices, plan_of_shape
from seq2seq_ext.kernels import CELLS, GATES

DEVICES = cuda_devices()
PERSISTENT_CELLS = [cell for cell in CELLS if cell != "gru_reset_before"]
HIDDEN = (1, 7, 8, 9, 63, 64, 100, 256, 500, 512, 768, 1000, 1024, 1055, 1056, 1536, 2048, 2112)
BATCH = (1, 2, 15, 16, 17, 48, 64, 100, 128, 250, 256, 1000)
FASTER = "a library's products are expected to be faster"
TOO_BIG = "the weights do not fit into the device's registers and shared memory"


def ceil_div(a, b):
    return -(-a // b)


def check_plan(
    plan, device, *, cell, dtype, hidden_size, batch_size, num_directions, backward, **_
):
    """What holds for every plan."""
    if not plan.persistent:
        assert plan.why
        assert dataclasses.astuple(plan)[3:] == (0,) * 11
        return
    assert plan.why == ""
    H, B, D, G = hidden_size, batch_size, num_directions, GATES[CELLS.index(cell)]

    # A cooperative launch: one block on each multiprocessor, which takes all that it needs there.
    assert 1 <= plan.blocks <= device.multiprocessors
    assert plan.blocks == plan.parts * plan.groups * D
    assert plan.threads == 32 * plan.tiles * plan.slices
    assert plan.threads <= 1024
    assert plan.threads <= device.threads_per_multiprocessor
    assert plan.threads * 256 <= device.registers_per_multiprocessor  # 255, allocated in eights
    assert 0 < plan.shared_bytes <= device.shared_per_block
    assert plan.shared_bytes <= device.shared_per_multiprocessor

    # Every unit has its block, and no block is without units.
    units = 8 * plan.tiles
    assert plan.parts * units >= H > (plan.parts - 1) * units

    # Every sequence has its group and its launch, and neither is without sequences.
    rows = plan.groups * plan.group_rows
    assert rows * plan.launches >= B > rows * (plan.launches - 1)
    assert (plan.groups - 1) * plan.group_rows < B

    # The threads carry the states of their block: of whole passes of 16 sequences, one after
    # another, none of which may be broken by the end of the threads; 4 states a thread.
    assert plan.group_rows >= 1
    passes, pairs = ceil_div(plan.group_rows, 16), 16 * units
    starts = [p * pairs for p in range(passes)]
    assert all(start % plan.threads + pairs <= plan.threads for start in starts)
    assert starts[-1] // plan.threads < 4

    # All weights are on the device, and where they are there is room for them.
    size = dtype.itemsize
    held = plan.weights_in_registers + plan.weights_in_shared
    assert held * plan.parts >= G * H * H * size
    padded = 16 // size * ceil_div(H, 16 // size)
    features = G * padded if backward else padded
    chunk = (1 if backward else G) * 8 * 64
    assert held == plan.tiles * ceil_div(features * size, 64) * chunk
    assert plan.weights_in_registers <= plan.threads * 255 * 4 * 3 / 4  # the rest to compute with
    assert plan.weights_in_shared < plan.shared_bytes


def shapes():
    for cell, dtype, H, B, D, backward in itertools.product(
        CELLS, DTYPES, HIDDEN, BATCH, (1, 2), (False, True)
    ):
        yield {
            "cell": cell,
            "dtype": dtype,
            "hidden_size": H,
            "batch_size": B,
            "num_directions": D,
            "backward": backward,
        }


@pytest.mark.parametrize("name", DEVICES)
@pytest.mark.parametrize("text", ["", "persistent"])
def test_plans_keep_to_the_limits_of_devices(name, text):
    device = DEVICES[name]
    ways = set()
    for shape in shapes():
        for tf32 in {False, shape["dtype"] == torch.float32}:
            plan = plan_of_shape(**shape, device=device, allow_tf32=tf32, plan=text)
            check_plan(plan, device, **shape)
            ways.add((plan.persistent, plan.why))
    reasons = {(True, ""), (False, TOO_BIG), (False, "a second product in every step")}
    assert ways == (reasons if text else reasons | {(False, FASTER)})


@settings(max_examples=500)
@given(
    shape=st.fixed_dictionaries(
        {
            "cell": st.sampled_from(PERSISTENT_CELLS),
            "dtype": st.sampled_from(DTYPES),
            "hidden_size": st.integers(1, 3000),
            "batch_size": st.integers(1, 5000),
            "time_steps": st.integers(1, 10000),
            "num_directions": st.sampled_from([1, 2]),
            "backward": st.booleans(),
            "allow_tf32": st.booleans(),
        }
    ),
    device=st.builds(
        s2s.CudaDevice,
        capability=st.sampled_from([75, 80, 86, 90, 100, 120]),
        multiprocessors=st.integers(1, 200),
        registers_per_multiprocessor=st.sampled_from([32768, 65536, 131072]),
        shared_per_multiprocessor=st.integers(48, 256).map(lambda kb: 1024 * kb),
        shared_per_block=st.integers(48, 227).map(lambda kb: 1024 * kb),
        threads_per_multiprocessor=st.sampled_from([192, 1024, 1536, 2048]),
        cooperative=st.booleans(),
    ),
    forced=st.tuples(
        st.sampled_from(["", "persistent,"]),
        st.sampled_from(["", "tiles=1,", "tiles=2,", "slices=4,", "slices=5,", "slices=7,"]),
        st.sampled_from(["", "groups=1,", "groups=3,", "groups=1000,"]),
        st.sampled_from(["", "rows=1,", "rows=20,", "rows=40,", "rows=1000,"]),
    ).map(lambda parts: "".join(parts).rstrip(",")),
)
def test_any_device_and_any_forced_plan(shape, device, forced):
    if "tiles=2" in forced and "slices" in forced:
        return
    plan = plan_of_shape(**shape, device=device, plan=forced)
    check_plan(plan, device, **shape)
    if not device.cooperative:
        assert not plan.persistent
    if forced:
        assert plan.why != FASTER
    if plan.persistent:
        wanted = dict(item.split("=") for item in forced.split(",") if "=" in item)
        for name in ("tiles", "slices"):
            assert getattr(plan, name) == int(wanted.get(name, getattr(plan, name)))
        assert plan.groups <= int(wanted.get("groups", plan.groups))
        assert plan.group_rows <= int(wanted.get("rows", plan.group_rows))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("backward", [False, True])
def test_what_persistent_kernels_do_not_do_takes_the_general_way(cell, backward):
    def why(device=DEVICES["h100"], dtype=torch.float16, **options):
        plan = plan_of_shape(
            cell, dtype, 256, batch_size=16, backward=backward, device=device, **options
        )
        assert not plan.persistent
        return plan.why

    if cell == "gru_reset_before":
        assert why(plan="persistent") == "a second product in every step"
        return
    assert plan_of_shape(cell, torch.float16, 256, device="h100").persistent
    assert why(output_size=128, plan="persistent") == "projection"
    alone = dataclasses.replace(DEVICES["h100"], cooperative=False)
    assert why(alone, plan="persistent") == "the device launches no cooperative grids"
    volta = dataclasses.replace(DEVICES["a100"], capability=70)
    for dtype in DTYPES:
        assert why(volta, dtype, plan="persistent") == "compute capability below 7.5"
    turing = dataclasses.replace(DEVICES["a100"], capability=75)
    assert why(turing, torch.bfloat16) == "no tensor cores for bfloat16"
    assert plan_of_shape(cell, torch.float16, 256, device=turing).persistent
    assert why(plan="general") == "forced"


def test_tensor_cores_multiply_what_they_can():
    def tensor(dtype, device="a100", **options):
        return plan_of_shape("lstm", dtype, 256, device=device, **options).tensor

    turing = dataclasses.replace(DEVICES["a100"], capability=75)
    assert tensor(torch.float16)
    assert tensor(torch.float16, turing)
    assert tensor(torch.bfloat16)
    assert tensor(torch.float32, allow_tf32=True)
    assert not tensor(torch.float32, allow_tf32=False)
    assert not tensor(torch.float32, turing, allow_tf32=True)
    assert not tensor(torch.float64, allow_tf32=True)


@pytest.mark.parametrize("backward", [False, True])
def test_the_reference_shapes_are_persistent(backward):
    for name, H, B, D in (
        ("h100", 768, 16, 1),
        ("h100", 512, 64, 1),
        ("h100", 1024, 16, 1),
        ("h100", 512, 16, 2),
        ("a100", 768, 16, 1),
        ("rtx4090", 768, 16, 1),
    ):
        plan = plan_of_shape(
            "lstm",
            torch.float16,
            H,
            batch_size=B,
            num_directions=D,
            backward=backward,
            device=name,
        )
        assert plan.persistent, (name, H, B, D, plan.why)
        assert plan.tensor
        assert plan.launches == 1


@pytest.mark.parametrize("name", DEVICES)
@pytest.mark.parametrize("cell", PERSISTENT_CELLS)
def test_weights_that_do_not_fit_take_the_general_way_and_so_do_all_larger_ones(name, cell):
    for dtype, D, backward in itertools.product(DTYPES, (1, 2), (False, True)):

        def plan(H, D=D, dtype=dtype, backward=backward):
            return plan_of_shape(
                cell,
                dtype,
                H,
                num_directions=D,
                backward=backward,
                device=name,
                plan="persistent",
            )

        assert plan(64).persistent
        fits = [plan(H).persistent for H in range(64, 4097, 32)]
        assert fits == sorted(fits, reverse=True)
        assert plan(8192).why == TOO_BIG


def test_a_device_with_less_room_holds_less():
    def plan(**limits):
        device = dataclasses.replace(DEVICES["h100"], **limits)
        return plan_of_shape("lstm", torch.float16, 1536, device=device)

    assert plan().persistent
    for limits in (
        {"multiprocessors": 95},
        {"shared_per_block": 100 * 1024},
        {"shared_per_multiprocessor": 100 * 1024},
        {"registers_per_multiprocessor": 65535},
        {"threads_per_multiprocessor": 255},
    ):
        assert plan(**limits).why == TOO_BIG, limits


def test_passes_are_not_broken_by_the_end_of_the_threads():
    # 160 threads do the gates of one pass of 128 pairs; a second pass would find 32 of them.
    plan = plan_of_shape(
        "lstm", torch.float16, 256, batch_size=64, device="h100", plan="slices=5,groups=1"
    )
    assert (plan.threads, plan.group_rows, plan.launches) == (160, 16, 4)


# ---- layers -------------------------------------------------------------------------------------


def test_a_layer_is_explained_as_its_shape():
    layer = s2s.GRU(8, 96, num_layers=2, bidirectional=True, dtype=torch.bfloat16, device="meta")
    plan = s2s.explain_cuda_plan(layer, 30, 20, backward=True, device="a100")
    assert plan == plan_of_shape(
        "gru",
        torch.bfloat16,
        96,
        time_steps=30,
        batch_size=20,
        num_directions=2,
        backward=True,
        device="a100",
    )
    for cls in (s2s.LSTM, s2s.GRU, s2s.RNN):
        projected = cls(8, 96, proj_size=32)
        assert s2s.explain_cuda_plan(projected, 5, 2, device="a100").why == "projection"


def test_tf32_is_torchs_setting():
    before = torch.backends.cudnn.rnn.fp32_precision
    try:
        for precision in ("ieee", "tf32"):
            torch.backends.cudnn.rnn.fp32_precision = precision
            plan = s2s.explain_cuda_plan(s2s.LSTM(8, 8), 5, 2, device="h100")
            assert plan.tensor == (precision == "tf32")
    finally:
        torch.backends.cudnn.rnn.fp32_precision = before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"time_steps": 0}, "time_steps must be 1 to"),
        ({"batch_size": -1}, "batch_size must be 1 to"),
        ({"batch_size": 2**40}, "batch_size must be 1 to"),
        ({"device": "voodoo"}, "device must be one of a100, h100, rtx4090"),
        ({"plan": "fast"}, "got 'fast'"),
    ],
)
def test_what_cannot_be_explained_is_named(options, message):
    arguments = {"time_steps": 5, "batch_size": 2, "device": "h100"} | options
    with pytest.raises(ValueError, match=message):
        s2s.explain_cuda_plan(s2s.LSTM(4, 4), **arguments)


def test_other_layers_and_dtypes_have_no_plan():
    with pytest.raises(TypeError, match="layer must be"):
        s2s.explain_cuda_plan(torch.nn.LSTM(4, 4), 5, 2, device="h100")
    with pytest.raises(ValueError, match="dtype must be"):
        plan_of_shape("lstm", torch.int8, 4, device="h100")
    with pytest.raises(ValueError, match="cell must be"):
        plan_of_shape("transformer", torch.float16, 4, device="h100")


@pytest.mark.cuda
def test_the_gpu_that_is_here_has_its_properties_read():
    device = s2s.CudaDevice.of()
    assert device == s2s.CudaDevice.of(torch.cuda.current_device())
    properties = torch.cuda.get_device_properties()
    assert device.capability == 10 * properties.major + properties.minor
    assert device.multiprocessors == properties.multi_processor_count
    if "H100" in properties.name and "HBM3" in properties.name:
        assert device == DEVICES["h100"]
    layer = s2s.LSTM(64, 64)
    assert s2s.explain_cuda_plan(layer, 5, 2) == s2s.explain_cuda_plan(layer, 5, 2, device=device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_a_device_has_to_be_named():
    with pytest.raises(ValueError, match="one of a100, h100, rtx4090 where torch sees no GPU"):
        s2s.explain_cuda_plan(s2s.LSTM(4, 4), 5, 2)


# ---- forcing ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "forced"),
    [
        ("", (0, 0, 0, 0, 0)),
        ("general", (1, 0, 0, 0, 0)),
        ("persistent", (2, 0, 0, 0, 0)),
        ("tiles=2,slices=4,groups=2,rows=16", (0, 2, 4, 2, 16)),
        ("rows=16, persistent", (2, 0, 0, 0, 16)),
        ("slices=8", (0, 0, 8, 0, 0)),
    ],
)
def test_plans_are_read(text, forced):
    assert cuda_planning.parse(text) == forced


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fast", "got 'fast'"),
        ("tiles", "got 'tiles'"),
        ("tiles=", "got 'tiles='"),
        ("tiles=two", "got 'tiles=two'"),
        ("tiles=0", "got 'tiles=0'"),
        ("tiles=-1", "got 'tiles=-1'"),
        ("rows=99999999999", "got 'rows=99999999999'"),
        ("rows=4294967297", "got 'rows=4294967297'"),
        ("tiles=1,tiles=2", "got 'tiles=2' in 'tiles=1,tiles=2'"),
        ("general,persistent", "got 'persistent'"),
        ("general=1", "got 'general=1'"),
        ("tiles=1,", "got ''"),
        ("general,rows=16", "nothing beside general"),
        ("slices=3", "at least 4 slices"),
        ("tiles=3", "at most 8"),
        ("tiles=2,slices=8", "at most 8"),
        ("tiles=65536,slices=65536", "at most 8"),  # 2**32 is 0 to an int
    ],
)
def test_what_is_no_plan_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        s2s.set_cuda_plan(text)


def loaded():
    return hasattr(torch.ops.seq2seq_ext, "force_cuda_plan")


@pytest.mark.skipif(loaded(), reason="the CUDA kernels are loaded")
def test_without_the_kernels_no_plan_is_forced(monkeypatch):
    with pytest.raises(RuntimeError, match="CUDA kernels of seq2seq_ext are not loaded"):
        s2s.set_cuda_plan("general")
    monkeypatch.setenv(cuda_planning.VARIABLE, "")
    cuda_planning.apply_environment()


# A process of its own, with the operator of the CUDA library, or one that stands for it.
STAND_IN = """
import torch
import seq2seq_ext as s2s
from seq2seq_ext.cuda_planning import apply_environment, plan_of_shape
given = []
if not hasattr(torch.ops.seq2seq_ext, "force_cuda_plan"):
    schema = "force_cuda_plan(int way, int tiles, int slices, int groups, int rows) -> ()"
    library = torch.library.Library("seq2seq_ext", "FRAGMENT")
    library.define(schema)
    library.impl("force_cuda_plan", lambda *a: given.append(a), "CompositeExplicitAutograd")
    apply_environment()
def rows():
    return plan_of_shape("lstm", torch.float16, 64, batch_size=64, device="h100").group_rows
"""


def run_python(code: str, plan: str = "") -> subprocess.CompletedProcess[str]:
    environment = os.environ | {cuda_planning.VARIABLE: plan}
    command = [sys.executable, "-c", STAND_IN + code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_forced_plan_reaches_the_kernels_and_explanations():
    done = run_python(
        """
print(rows())
s2s.set_cuda_plan("tiles=1,rows=32")
print(rows(), given in ([], [(0, 1, 0, 0, 32)]))
s2s.set_cuda_plan("")
print(rows(), given in ([], [(0, 1, 0, 0, 32), (0, 0, 0, 0, 0)]))
"""
    )
    assert done.stdout.split() == ["16", "32", "True", "16", "True"], done.stderr


def test_the_environment_forces_a_plan():
    done = run_python("print(rows())", "rows=48")
    assert done.stdout.strip() == "48", done.stderr


def test_a_bad_environment_is_named():
    done = run_python("", "tiles=many")
    assert done.returncode != 0
    assert "ValueError: SEQ2SEQ_EXT_CUDA_PLAN: expected general" in done.stderr
    assert "got 'tiles=many'" in done.stderr


# ---- the command --------------------------------------------------------------------------------


def test_the_command_prints_a_row_a_shape(capsys):
    pytest.importorskip("rich")
    arguments = ["--devices", "h100,a100", "--cells", "LSTM,GRU", "--dtypes", "float16,tf32"]
    arguments += ["--hidden-sizes", "256,8192", "--batch-sizes", "1,16", "--directions", "1"]
    assert main(["plan", *arguments]) == 0
    text = capsys.readouterr().out
    assert "h100: compute capability 9.0, 132 SMs of 65536 registers, 227 KB" in text
    assert "a100: compute capability 8.0, 108 SMs of 65536 registers, 163 KB" in text
    assert text.count("LSTM, tf32, 1 direction") == 2
    lines = text.splitlines()
    rows = [line for line in lines if line.split()[2:3] in (["forward"], ["backward"])]
    assert len(rows) == 2 * 2 * 2 * 2 * 2 * 2
    wide = [row for row in rows if row.split()[0] == "8192"]
    assert len(wide) == len(rows) / 2
    assert all("general" in row and TOO_BIG in row for row in wide)
    for row in rows:
        if row not in wide:
            assert "persistent" in row
            assert "256" in row.split()[6:7]  # threads


def test_the_command_shows_a_forced_plan_and_refuses_what_is_none(capsys):
    pytest.importorskip("rich")
    one = ["plan", "--devices", "h100", "--cells", "LSTM", "--dtypes", "float16"]
    one += ["--hidden-sizes", "64", "--batch-sizes", "64", "--directions", "1", "--plan"]
    assert main([*one, "general"]) == 0
    assert "forced" in capsys.readouterr().out
    assert main([*one, "tiles=9"]) == 1
    assert "at most 8" in capsys.readouterr().err


def test_the_commands_default_covers_all_devices(capsys):
    pytest.importorskip("rich")
    assert main(["plan", "--hidden-sizes", "512", "--batch-sizes", "16"]) == 0
    text = capsys.readouterr().out
    for name in DEVICES:
        assert f"{name}: compute capability" in text
