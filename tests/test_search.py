"""The searches that run in one call, against those that call a step from Python."""

import copy
import pickle
from unittest import mock

import pytest
import torch
from generation_cases import (
    BOS,
    CELL,
    EOS,
    PAD,
    assert_same,
    changed_scale,
    in_one_call,
    in_python,
    small_model,
    sources,
)
from hypothesis import given
from hypothesis import strategies as st

from seq2seq_ext import (
    available_cpu_isas,
    cpu_isa,
    prepack,
    set_cpu_isa,
    set_plan,
    unpack,
)
from seq2seq_ext.generation import GenerationOptions
from seq2seq_ext.kernels import (
    CELLS,
    decoder_search_op,
    decoder_step_op,
    prepack_decoder_op,
)
from seq2seq_ext.models import Seq2Seq, Seq2SeqConfig, decoding
from seq2seq_ext.models.slots import slots_of

MODELS = {
    "none": {},
    "context": {"context_every_step": True},
    "maxout": {"context_every_step": True, "output": "maxout"},
    "rank": {"output_rank": 5, "decoder_num_layers": 2, "encoder_num_layers": 2},
    "dot": {"attention": "dot", "decoder_hidden_size": 12},
    "general": {"attention": "general", "input_feeding": True},
    "heads": {"attention": "multi_head", "attention_heads": 2, "attention_size": 6},
    "previous": {"attention": "additive", "attention_query": "previous"},
    "bahdanau": {"attention": "additive", "attention_query": "previous", "output": "maxout"},
    "fed maxout": {"attention": "additive", "input_feeding": True, "output": "maxout"},
    "coverage": {
        "attention": "normalized_additive",
        "input_feeding": True,
        "coverage": True,
        "decoder_num_layers": 2,
    },
}
OPTIONS = {
    "greedy": {},
    "shortest": {"max_new_tokens": 1},
    "beam": {"num_beams": 3, "num_return_sequences": 2},
    "at once": {"num_beams": 3, "early_stopping": True, "length_penalty": 0.0},
    "never": {
        "num_beams": 4,
        "early_stopping": "never",
        "length_penalty": 1.7,
        "num_return_sequences": 4,
        "min_new_tokens": 3,
    },
    "wu": {"num_beams": 5, "length_penalty_kind": "wu", "length_penalty": 0.6},
    "wide": {"num_beams": 15, "num_return_sequences": 15, "max_new_tokens": 3},
    "worst": {"num_beams": 2, "length_penalty": -1.0, "early_stopping": "never"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("cell", CELL)
def test_finds_what_python_finds(cell, kind, options):
    model = changed_scale(small_model(**MODELS[kind], **CELL[cell]))
    options = {"max_new_tokens": 9, "output_scores": True} | options
    options["return_attention"] = "attention" in MODELS[kind]
    assert_same(in_one_call(model, *sources(), **options), in_python(model, *sources(), **options))


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("cell", CELL)
def test_steps_are_those_of_the_modules(cell, kind):
    model = changed_scale(small_model(**MODELS[kind], **CELL[cell]))
    with torch.no_grad():
        fused = modules = model.start(*sources())
        tokens = torch.full((len(sources()[0]),), BOS)
        for t in range(4):
            made = decoding.step(model.decoder, tokens, fused)
            assert made is not None
            logits, fused = made
            with mock.patch.object(decoding, "step", return_value=None):
                expected, modules = model.step(tokens, modules)
            torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-10)
            for name, mine, theirs in zip(fused._fields, fused, modules, strict=True):
                assert (mine is None) == (theirs is None), name
                if isinstance(mine, torch.Tensor):
                    torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)
            rows = torch.tensor([3, 0, 3, 4, t])  # rows of one source share its memory
            fused, modules = fused.select(rows), modules.select(rows)
            tokens = logits[rows].argmax(-1)


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
        {"no_repeat_ngram_size": 2},
        {"num_beams": 3, "repetition_penalty": 1.2},
        {"num_beams": 3, "coverage_penalty": 0.1},
        {"do_sample": True, "seed": 0, "num_return_sequences": 3},
    ],
    ids=lambda options: next(reversed(options)),
)
def test_searches_in_python_take_the_same_steps(options):
    model = changed_scale(small_model(**MODELS["general"]))
    options = {"max_new_tokens": 9, "output_scores": True, "return_attention": True} | options
    with mock.patch.object(type(model.decoder), "_run", side_effect=AssertionError):
        found = model.generate(*sources(), return_dict_in_generate=True, **options)
    assert_same(found, in_python(model, *sources(), **options), 1e-10)


@pytest.mark.parametrize("isa", available_cpu_isas())
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_any_instruction_set_and_team(isa, threads):
    before, before_threads = cpu_isa(), torch.get_num_threads()
    model = changed_scale(small_model(**MODELS["coverage"]))
    options = {"max_new_tokens": 9, "num_beams": 3, "output_scores": True}
    expected = in_python(model, *sources(), **options)
    try:
        set_cpu_isa(isa)
        torch.set_num_threads(threads)
        for _ in range(2):  # packed for another instruction set, then for this one
            assert_same(in_one_call(model, *sources(), **options), expected)
    finally:
        set_cpu_isa(before)
        torch.set_num_threads(before_threads)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("kind", [kind for kind in MODELS if kind != "dot"])  # of any size
def test_threads_that_share_every_product_change_no_bit(kind, dtype):
    sizes = {"decoder_hidden_size": 70, "target_vocab_size": 150}
    model = changed_scale(small_model(**(MODELS[kind] | sizes))).float()
    prepack(model, dtype)
    searches = [{"num_beams": 1}, {"num_beams": 3}, {"num_beams": 2, "repetition_penalty": 1.2}]
    before = torch.get_num_threads()

    def found(threads, split):
        torch.set_num_threads(threads)
        set_plan(threads=threads, split=split)
        options = {"max_new_tokens": 9, "output_scores": True, "return_dict_in_generate": True}
        return [model.generate(*sources(), **options, **search) for search in searches]

    try:
        expected = found(1, "rows")
        for threads in (2, 3):
            for one, other in zip(found(threads, "units"), expected, strict=True):
                assert torch.equal(one.sequences, other.sequences)
                assert torch.equal(one.sequences_scores, other.sequences_scores)
    finally:
        set_plan()
        torch.set_num_threads(before)


@given(
    kind=st.sampled_from(list(MODELS)),
    cell=st.sampled_from(list(CELL)),
    batch=st.integers(0, 5),
    time=st.integers(0, 4),
    vocab=st.sampled_from([4, 5, 17, 70]),
    beams=st.integers(1, 6),
    tokens=st.integers(1, 8),
    scale=st.sampled_from([0.1, 1.0, 4.0]),
    early=st.sampled_from([True, False, "never"]),
    data=st.data(),
)
def test_any_size(kind, cell, batch, time, vocab, beams, tokens, scale, early, data):
    torch.manual_seed(data.draw(st.integers(0, 99)))
    sizes = {"source_vocab_size": 9, "target_vocab_size": vocab, "encoder_hidden_size": 12}
    config = Seq2SeqConfig(**(sizes | {"decoder_hidden_size": 10} | MODELS[kind] | CELL[cell]))
    model = Seq2Seq(config).double().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight *= scale
    source = torch.randint(4, 9, (batch, time))
    lengths = torch.randint(0, time + 1, (batch,))
    options = {
        "num_beams": beams,
        "num_return_sequences": data.draw(st.integers(1, beams)),
        "max_new_tokens": tokens,
        "min_new_tokens": data.draw(st.integers(0, tokens)),
        "early_stopping": early,
        "output_scores": True,
    }
    found = in_one_call(model, source, lengths, **options)
    expected = in_python(model, source, lengths, **options)
    assert_same(found, expected, 1e-9)


def test_large_vocabularies_keep_no_table():
    torch.manual_seed(0)
    config = Seq2SeqConfig(
        source_vocab_size=9,
        target_vocab_size=20_000,
        encoder_hidden_size=8,
        decoder_hidden_size=64,
        output="maxout",
        context_every_step=True,
    )
    model = Seq2Seq(config).double().eval()
    options = {"max_new_tokens": 4, "num_beams": 3, "output_scores": True}
    source = torch.tensor([[4, 5], [6, 7]])
    assert_same(in_one_call(model, source, **options), in_python(model, source, **options), 1e-9)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.int8])
def test_prepacked_weights_are_used(dtype):
    model = copy.deepcopy(small_model(**MODELS["general"])).float()
    options = {"max_new_tokens": 9, "output_scores": True, "num_beams": 2}
    expected = in_python(model, *sources(), **options)
    prepack(model, dtype)
    found = in_one_call(model, *sources(), **options)
    assert slots_of(model.decoder, decoding.DecoderSlots).packed.dtype is dtype
    error = {None: 1e-5, torch.bfloat16: 0.05, torch.int8: 0.1}[dtype]
    close = (found.sequences_scores - expected.sequences_scores).abs() < error
    assert close.float().mean() > 0.9  # rounded weights may write another text here and there
    assert (dtype is None) == torch.allclose(
        found.sequences_scores, expected.sequences_scores, atol=1e-6
    )
    unpack(model)
    assert_same(in_one_call(model, *sources(), **options), expected, 1e-5)


@pytest.mark.parametrize("name", ["weight", "data", "parameter", "numpy"])
def test_changed_weights_are_noticed(name):
    model = copy.deepcopy(small_model(**MODELS["general"]))
    options = {"max_new_tokens": 9, "output_scores": True}
    in_one_call(model, *sources(), **options)
    for owner in (model.decoder.output, model.decoder.stack.rnn, model.decoder.embedding):
        which = "weight_hh_l0" if owner is model.decoder.stack.rnn else "weight"
        weight = getattr(owner, which)
        with torch.no_grad():
            if name == "weight":
                weight.mul_(1.25)
            elif name == "data":
                weight.data.view(-1)[-1] += 1.0
            elif name == "numpy":
                weight.detach().numpy()[0, 0] -= 1.0
            else:
                setattr(owner, which, torch.nn.Parameter(weight * 0.75))
        expected = in_python(model, *sources(), **options)
        assert_same(in_one_call(model, *sources(), **options), expected)


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 2, "num_beam_groups": 2, "diversity_penalty": 0.5},
        {"no_repeat_ngram_size": 2},
        {"repetition_penalty": 1.2},
        {"num_beams": 2, "coverage_penalty": 0.1},
        {"prefix_allowed_tokens_fn": lambda source, tokens: [EOS, 5]},
        {"do_sample": True, "seed": 0},
    ],
    ids=lambda options: next(reversed(options)),
)
def test_other_options_stay_with_python(options):
    model = small_model(**MODELS["general"])
    plain = GenerationOptions(max_new_tokens=3)
    with torch.no_grad():
        assert model.search(model.start(*sources()), plain) is not None
        assert model.search(model.start(*sources()), GenerationOptions(**options)) is None


def test_what_is_out_of_the_ordinary_stays_with_python():
    options = GenerationOptions(max_new_tokens=3)

    def runs(model):
        with torch.no_grad():
            return model.search(model.start(*sources()), options) is not None

    plain = small_model()
    model = copy.deepcopy(small_model(dropout=0.5))
    assert runs(plain)
    assert runs(model)
    assert not runs(model.train())
    handle = model.eval().decoder.output.register_forward_hook(lambda *_: None)
    assert not runs(model)
    handle.remove()
    assert runs(model)
    torch.nn.utils.parametrizations.weight_norm(model.decoder.output)
    assert not runs(model)
    with torch.autocast("cpu"):
        assert not runs(plain)
    assert plain.search(plain.start(*sources()), options) is None  # it may be differentiated

    class Other(Seq2Seq):
        def step(self, tokens, state):
            return super().step(tokens, state)

    assert not runs(Other(plain.config).double().eval())


def test_copies_and_pickles_pack_their_own():
    model = copy.deepcopy(small_model())
    expected = in_one_call(model, *sources(), max_new_tokens=9, output_scores=True)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with torch.no_grad():
            other.decoder.output.bias[EOS] += 20.0
        assert in_one_call(other, *sources(), max_new_tokens=9).sequences.eq(EOS).all()
    assert list(model.state_dict()) == list(small_model().state_dict())
    assert_same(in_one_call(model, *sources(), max_new_tokens=9, output_scores=True), expected)


def test_numbers_that_are_none_end():
    model = copy.deepcopy(small_model(**MODELS["general"]))
    with torch.no_grad():
        model.decoder.output.weight.fill_(float("nan"))
    for beams in (1, 3):
        found = in_one_call(model, *sources(), max_new_tokens=5, num_beams=beams)
        assert all(PAD <= token < 11 for token in found.sequences.flatten().tolist())


# ---- the operators themselves -------------------------------------------------------------------

SIZES = {"V": 7, "E": 3, "H": 4, "S": 5, "M": 2}


def weights():
    """Of an LSTM of one layer that attends by products and feeds the attentional vector."""
    V, E, H = (SIZES[name] for name in "VEH")
    nothing = torch.empty(0)
    layer = [torch.randn(4 * H, E + H), torch.randn(4 * H, H), torch.randn(4 * H), nothing]
    attention = [nothing, nothing, nothing, nothing, torch.randn(H, 2 * H), nothing]
    return [torch.randn(V, E), *layer, *attention, *[nothing] * 5, torch.randn(V, H), nothing]


def search(tensors, block=None, **changes):
    M, S, H = SIZES["M"], SIZES["S"], SIZES["H"]
    layout = {"cell": CELLS.index("lstm"), "num_layers": 1, "source_features": 0}
    layout |= {name: changes.pop(name) for name in list(changes) if name in layout}
    if block is None:
        block = prepack_decoder_op(tensors, **layout)
    arguments = {
        "turn": 0, "checked": 1024, "h_0": torch.zeros(1, M, H), "c_0": torch.zeros(1, M, H),
        "gates": None, "pieces": None, "keys": torch.randn(M, S, H),
        "values": torch.randn(M, S, H), "source_lengths": torch.tensor([5, 3]), **layout,
        "heads": 1, "residual": 0, "query_first": False, "scale": 1.0, "num_beams": 2,
        "num_return_sequences": 1, "max_new_tokens": 4, "min_new_tokens": 0, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 3, "length_penalty": 1.0, "wu": False,
        "early_stopping": 1, "output_scores": True, "return_attention": True,
    }  # fmt: skip
    return decoder_search_op(tensors, block, **(arguments | changes))


def step(tensors, block=None, **changes):
    N, S, H = 3, SIZES["S"], SIZES["H"]
    layout = (CELLS.index("lstm"), 1, 0)
    arguments = {
        "keys": torch.randn(2, S, H), "values": torch.randn(2, S, H),
        "source_lengths": torch.tensor([5, 3]), "tokens": torch.tensor([1, 4, 6]),
        "h": torch.zeros(1, N, H), "c": torch.zeros(1, N, H), "feed": None, "coverage": None,
        "memory": torch.tensor([0, 1, 1]),
    } | changes  # fmt: skip
    block = prepack_decoder_op(tensors, *layout) if block is None else block
    attention = [arguments.pop(name) for name in ("keys", "values", "source_lengths")]
    return decoder_step_op(
        tensors, block, 0, 1024, None, None, *attention, *layout, 1, 0, False, 1.0, **arguments
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": torch.tensor([1, 4, 7])}, "tokens: expected values from 0 to 6"),
        ({"tokens": torch.tensor([1, -1, 2])}, "tokens: expected values from 0 to 6"),
        ({"tokens": torch.tensor([[1]])}, r"tokens: expected shape \(N\)"),
        ({"tokens": torch.tensor([1.0, 1.0, 1.0])}, "tokens: expected a CPU tensor"),
        ({"h": torch.zeros(1, 2, 4)}, "h: expected shape"),
        ({"c": None}, "c: expected a tensor"),
        ({"feed": torch.zeros(3, 5)}, "feed: expected shape"),
        ({"coverage": torch.zeros(3, 5)}, "coverage: expected None without w_coverage"),
        ({"memory": torch.tensor([0, 1, 2])}, "memory: expected values from 0 to 1"),
        ({"memory": None}, "keys: expected 3 sources"),
        ({"source_lengths": torch.tensor([5])}, "source_lengths: expected shape"),
    ],
)
def test_what_is_wrong_with_a_step_is_named(changes, message):
    with pytest.raises(RuntimeError, match=message):
        step(weights(), **changes)


def test_a_step_of_no_rows():
    empty = {"tokens": torch.empty(0, dtype=torch.int64), "memory": torch.empty(0).long()}
    states = {name: torch.zeros(1, 0, 4) for name in "hc"}
    logits, h, *_ = step(weights(), **empty, **states)
    assert logits.shape == (0, 7)
    assert h.shape == (1, 0, 4)


def test_results_have_the_shapes_that_ops_cpp_tells():
    sequences, lengths, scores, alignments = search(weights(), num_return_sequences=2)
    assert sequences.shape == (4, lengths.max())
    assert scores.dtype == torch.float64
    torch.testing.assert_close(alignments.sum(-1)[:, 0], torch.ones(4))
    assert (alignments[2:, :, 3:] == 0).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"h_0": torch.zeros(2, 4)}, r"h_0: expected shape \(1, M, 4\)"),
        ({"h_0": torch.zeros(1, 2, 5)}, "h_0: expected shape"),
        ({"h_0": torch.zeros(1, 2, 4, dtype=torch.float64)}, "h_0: expected"),
        ({"c_0": None}, "c_0: expected a tensor"),
        ({"c_0": torch.zeros(1, 3, 4)}, "c_0: expected shape"),
        ({"gates": torch.zeros(2, 16)}, "gates: expected a tensor where source_features"),
        ({"pieces": torch.zeros(2, 4)}, "pieces: expected None"),
        ({"keys": None}, "keys, values, source_lengths: expected all three or none"),
        ({"keys": None, "values": None, "source_lengths": None}, "keys: expected a tensor"),
        ({"keys": torch.zeros(2, 5, 3)}, "keys: expected shape"),
        ({"values": torch.zeros(2, 6, 4)}, "values: expected shape"),
        ({"source_lengths": torch.tensor([5, 6])}, "source_lengths: expected values from 0 to 5"),
        ({"source_lengths": torch.tensor([5.0, 3.0])}, "source_lengths: expected a CPU tensor"),
        ({"scale": float("inf")}, "scale: expected a finite number"),
        ({"heads": 3}, "heads: expected a divisor of 4"),
        ({"heads": 0}, "heads: expected a number from 1"),
        ({"residual": 1}, "residual: expected a number from 0 to 0"),
        ({"num_beams": 0}, "num_beams: expected a number from 1"),
        ({"num_return_sequences": 3}, "num_return_sequences: expected a number from 1 to 2"),
        ({"max_new_tokens": 0}, "max_new_tokens: expected"),
        ({"min_new_tokens": 5}, "min_new_tokens: expected a number from 0 to 4"),
        ({"eos_token_id": 7}, "eos_token_id: expected a number from 0 to 6"),
        ({"early_stopping": 3}, "early_stopping: expected a number from 0 to 2"),
        ({"length_penalty": float("nan")}, "length_penalty: expected a finite number"),
        ({"max_new_tokens": 1 << 30, "num_beams": 1 << 16}, "not enough memory|memory"),
        ({"num_layers": 2}, "weights: expected 22 tensors"),
        ({"source_features": 9}, r"w_ih\[0\]: expected at least 12 columns"),
        ({"cell": CELLS.index("gru")}, r"w_ih\[0\]: expected shape"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(changes, message):
    with pytest.raises(RuntimeError, match=message):
        search(weights(), **changes)


def test_wrong_weights_are_named():
    for i, name in ((2, r"w_hh\[0\]"), (9, "w_out"), (16, "w_vocab"), (5, "w_query")):
        tensors = weights()
        tensors[i] = torch.randn(5)
        with pytest.raises(RuntimeError, match=f"{name}: expected"):
            prepack_decoder_op(tensors, CELLS.index("lstm"), 1, 0)
    with pytest.raises(RuntimeError, match="embedding: expected"):
        prepack_decoder_op([torch.randn(7, 3).half(), *weights()[1:]], CELLS.index("lstm"), 1, 0)
    tensors = weights()
    tensors[1] = tensors[1].t().contiguous().t()
    with pytest.raises(RuntimeError, match=r"w_ih\[0\]: expected a contiguous tensor"):
        prepack_decoder_op(tensors, CELLS.index("lstm"), 1, 0)


def test_a_block_serves_no_other_weights():
    tensors = weights()
    block = prepack_decoder_op(tensors, CELLS.index("lstm"), 1, 0)
    search(tensors, block)
    with pytest.raises(RuntimeError, match="packed: the weights are other tensors"):
        search([weight.clone() for weight in tensors], block)
    with pytest.raises(RuntimeError, match="packed: expected"):
        search(tensors, torch.zeros(4096, dtype=torch.uint8))
    tensors[1].data[0, 0] += 1.0
    with pytest.raises(RuntimeError, match=r"packed: w_ih\[0\] has changed"):
        search(tensors, block)
