"""Searches by CUDA graphs: on a GPU where there is one, and with recorded calls in their place."""

import copy
import pickle
from unittest import mock

import pytest
import recorded_graphs
import torch
from generation_cases import (
    BOS,
    CELL,
    EOS,
    PAD,
    TableModel,
    TableState,
    assert_same,
    changed_scale,
    in_python,
    small_model,
    sources,
)
from test_search import MODELS, OPTIONS
from torch.utils._pytree import tree_map_only

from seq2seq_ext.generation import Ensemble, GenerationOptions, graphs
from seq2seq_ext.generation.beam import BeamSearch
from seq2seq_ext.generation.processors import ForcedPrefix, SpecialTokens
from seq2seq_ext.models import Seq2Seq, Seq2SeqConfig, decoding

SPECIAL = SpecialTokens(PAD, BOS, EOS)
EVERY_MODEL = MODELS | {
    "local": {"attention": "local_p"},
    "first layer": {
        "attention": "additive",
        "attention_query": "first_layer",
        "decoder_num_layers": 3,
        "residual": 1,
    },
    "copying": {"attention": "general", "copy": True, "coverage": False},
    "variants": {"attention": "additive", "input_feeding": True, "layer_norm": True},
    "by steps": {"attention": "local_p", "input_feeding": True},
}


def by_graphs(model, source, lengths=None, **options):
    """What the search by graphs finds, and how often it captured one."""
    options = GenerationOptions(**options)
    with (
        torch.no_grad(),
        mock.patch.object(decoding, "step", return_value=None),  # as on a GPU
        mock.patch.object(graphs, "capture", side_effect=recorded_graphs.capture) as capture,
    ):
        found = graphs.search_by_graphs(model, source, lengths, options, SPECIAL)
    return found, capture.call_count


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("kind", EVERY_MODEL)
def test_finds_what_python_finds(kind, options):
    model = changed_scale(small_model(**EVERY_MODEL[kind]))
    options = {"max_new_tokens": 9, "output_scores": True} | options
    options["return_attention"] = "attention" in EVERY_MODEL[kind]
    found, captured = by_graphs(model, *sources(), **options)
    assert_same(found, in_python(model, *sources(), **options))
    assert captured == 0 if options["max_new_tokens"] == 1 else captured >= 1


@pytest.mark.parametrize("cell", CELL)
def test_every_cell(cell):
    model = changed_scale(small_model(**MODELS["coverage"], **CELL[cell]))
    options = {"max_new_tokens": 9, "output_scores": True, "num_beams": 3}
    assert_same(by_graphs(model, *sources(), **options)[0], in_python(model, *sources(), **options))


@pytest.mark.parametrize("kind", EVERY_MODEL)
@pytest.mark.parametrize("cell", CELL)
def test_a_step_waits_for_nothing_and_moves_nothing_to_the_device(kind, cell):
    sizes = {"source_vocab_size": 11, "target_vocab_size": 11, "decoder_hidden_size": 10}
    sizes |= {"encoder_hidden_size": 12, **EVERY_MODEL[kind], **CELL[cell]}
    model = Seq2Seq(Seq2SeqConfig(**sizes)).eval()
    attends = "attention" in EVERY_MODEL[kind]
    options = GenerationOptions(
        num_beams=3, max_new_tokens=8, min_new_tokens=2, return_attention=attends
    )
    made = []

    def capture(call, warm_calls):
        made.append(call.__self__)
        return recorded_graphs.capture(call, warm_calls=warm_calls)

    with torch.no_grad(), mock.patch.object(graphs, "capture", capture):
        graphs.search_by_graphs(model, *sources(), options, SPECIAL)
    standing = tree_map_only(torch.Tensor, lambda x: x.to("meta"), made[0].standing)
    prefix = ForcedPrefix.read(None, 32, SPECIAL, "meta")
    search = BeamSearch(options, SPECIAL, prefix, None, "meta")
    model.__dict__.pop("_graphs")
    steps = graphs.Steps(model.to("meta"), search, standing, 1)
    with torch.no_grad(), recorded_graphs.OnDevice():
        steps.advance()


def test_what_a_graph_must_not_hold_is_noticed():
    on_device, here = torch.zeros(3, device="meta"), torch.zeros(3)
    for call in (
        lambda: here.to("meta"),
        lambda: torch.tensor(1.0).to("meta"),
        lambda: on_device[torch.tensor([0, 1])],
        lambda: on_device.nonzero(),
    ):
        with pytest.raises((AssertionError, NotImplementedError)), recorded_graphs.OnDevice():
            call()
    for call in (lambda: bool(here.any()), lambda: here.nonzero(), lambda: torch.tensor([1.0])):
        with pytest.raises(AssertionError, match="waits"), recorded_graphs.Recorder():
            call()
    with recorded_graphs.OnDevice():
        assert (on_device * 2 + torch.ones_like(on_device)).shape == (3,)


def test_graphs_serve_the_next_call():
    model = changed_scale(small_model(**MODELS["general"]))
    source, lengths = sources()
    options = {"max_new_tokens": 9, "output_scores": True, "num_beams": 2}
    assert by_graphs(model, source, lengths, **options)[1] >= 2  # of fewer and fewer sources
    for rows in (torch.arange(24), torch.arange(23, -1, -1)):
        batch = source[rows], lengths[rows]
        found, captured = by_graphs(model, *batch, **options)
        assert captured == 0
        assert_same(found, in_python(model, *batch, **options))
    for size in (17, 1):
        batch = source[:size], lengths[:size]
        by_graphs(model, *batch, **options)
        found, captured = by_graphs(model, *batch, **options)
        assert captured == 0
        assert_same(found, in_python(model, *batch, **options))
    assert by_graphs(model, source, lengths, **options | {"num_beams": 3})[1] >= 1
    wider = torch.nn.functional.pad(source, (0, 20))
    found, captured = by_graphs(model, wider, lengths, **options)
    assert captured >= 1
    assert_same(found, in_python(model, wider, lengths, **options))
    assert_same(by_graphs(model, wider, **options)[0], in_python(model, wider, **options))


def test_finished_sources_leave():
    model = changed_scale(small_model(**MODELS["general"]))
    model.__dict__.pop("_graphs", None)
    sizes = []
    advance = graphs.Steps.advance

    def counted(steps):
        sizes.append(len(steps.standing.sources))
        advance(steps)

    with mock.patch.object(graphs.Steps, "advance", counted):
        by_graphs(model, *sources(), max_new_tokens=40, num_beams=2)
    assert len(set(sizes)) >= 3
    assert sizes == sorted(sizes, reverse=True)


def test_few_graphs_are_kept(monkeypatch):
    monkeypatch.setattr(graphs, "GRAPHS_KEPT", 2)
    model = copy.deepcopy(small_model())
    for beams in (2, 3, 4):
        by_graphs(model, *sources(), max_new_tokens=2, num_beams=beams)
    assert by_graphs(model, *sources(), max_new_tokens=2, num_beams=4)[1] == 0
    assert by_graphs(model, *sources(), max_new_tokens=2, num_beams=2)[1] == 1


def test_changed_weights_are_noticed():
    model = copy.deepcopy(small_model(**MODELS["general"]))
    options = {"max_new_tokens": 9, "output_scores": True}
    by_graphs(model, *sources(), **options)
    with torch.no_grad():
        model.decoder.output.weight.mul_(1.5)
    found, captured = by_graphs(model, *sources(), **options)
    assert_same(found, in_python(model, *sources(), **options))
    model.decoder.output.weight = torch.nn.Parameter(-model.decoder.output.weight.detach())
    found, captured = by_graphs(model, *sources(), **options)
    assert captured >= 1
    assert_same(found, in_python(model, *sources(), **options))


def test_copies_make_their_own():
    model = copy.deepcopy(small_model())
    by_graphs(model, *sources(), max_new_tokens=3)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        found, captured = by_graphs(other, *sources(), max_new_tokens=3)
        assert captured >= 1
        assert torch.equal(found.sequences, model.generate(*sources(), max_new_tokens=3))
    assert not any("_graphs" in name for name in model.state_dict())


def test_an_ensemble():
    models = [changed_scale(small_model(**MODELS[kind])) for kind in ("general", "coverage")]
    ensemble = Ensemble(models).eval()
    options = {"max_new_tokens": 9, "num_beams": 3, "output_scores": True, "return_attention": True}
    expected = ensemble.generate(*sources(), return_dict_in_generate=True, **options)
    found, _ = by_graphs(ensemble, *sources(), **options)
    assert_same(found, expected, 1e-10)


def test_states_that_no_graph_can_hold_are_named():
    table = TableModel()
    with pytest.raises(TypeError, match=r"made of tensors.*got object"):
        by_graphs(table, torch.tensor([[1, 1]]), max_new_tokens=3)
    table.memory = 1
    with pytest.raises(
        ValueError, match=r"structure as it is for cuda_graph=True, got \d+ tensors"
    ):
        by_graphs(table, torch.tensor([[1, 1]]), max_new_tokens=3)
    table.log = 0
    with (
        mock.patch.object(
            TableState,
            "select",
            lambda state, rows: TableState(*(x[rows] for x in state[:4]), *state[4:]),
        ),
        pytest.raises(ValueError, match=r"as they are for cuda_graph=True, got 2 behind 1"),
    ):
        by_graphs(table, torch.tensor([[1, 1]]), max_new_tokens=3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"cuda_graph": 1}, TypeError, "cuda_graph must be a bool, got 1"),
        ({"cuda_graph": True}, ValueError, "cuda_graph=True needs source on a GPU, got cpu"),
        (
            {"cuda_graph": True, "no_repeat_ngram_size": 2, "repetition_penalty": 1.5},
            ValueError,
            "further options, got no_repeat_ngram_size=2, repetition_penalty=1.5",
        ),
        (
            {"cuda_graph": True, "do_sample": True},
            ValueError,
            "further options, got do_sample=True",
        ),
    ],
)
def test_what_is_wrong_is_named(arguments, error, message):
    with pytest.raises(error, match=message):
        small_model().generate(*sources(), **arguments)


def test_streams_have_no_graphs():
    with pytest.raises(ValueError, match="cuda_graph must be False to stream tokens"):
        small_model().stream(*sources(), cuda_graph=True)


@pytest.mark.cuda
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("kind", EVERY_MODEL)
def test_on_a_gpu(kind, options):
    model = changed_scale(small_model(**EVERY_MODEL[kind])).to("cuda")
    batch = [x.to("cuda") for x in sources()]
    options = {"max_new_tokens": 9, "output_scores": True} | options
    options["return_attention"] = "attention" in EVERY_MODEL[kind]
    options["return_dict_in_generate"] = True
    expected = model.generate(*batch, **options)
    for _ in range(2):
        assert_same(model.generate(*batch, cuda_graph=True, **options), expected, 1e-10)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu_in_lower_precision(dtype):
    model = changed_scale(small_model(**MODELS["general"])).to("cuda", dtype)
    batch = [x.to("cuda") for x in sources()]
    options = {"max_new_tokens": 9, "num_beams": 3, "return_dict_in_generate": True}
    expected = model.generate(*batch, **options)
    found = model.generate(*batch, cuda_graph=True, **options)
    same = (found.lengths == expected.lengths).float().mean()
    assert same > 0.9  # sums are taken in another order in products of other sizes
