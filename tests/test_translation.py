"""The encoder in one call, and whole translations, against the modules that they stand for."""

import copy
import pickle
from unittest import mock

import pytest
import torch
from generation_cases import (
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

from seq2seq_ext import available_cpu_isas, cpu_isa, prepack, set_cpu_isa, unpack
from seq2seq_ext.generation import GenerationOptions
from seq2seq_ext.kernels import encoder_read_op, prepack_op, prepack_tokens_op, translate_op
from seq2seq_ext.models import Seq2Seq, Seq2SeqConfig, encoding, translation
from seq2seq_ext.models.slots import slots_of

READING = {
    "plain": {},
    "eos": {"source_eos": True},
    "reversed": {"reverse_source": True},
    "both": {"source_eos": True, "reverse_source": True},
}
STACK = {
    "one layer": {},
    "deep": {"encoder_num_layers": 2, "decoder_num_layers": 2},
    "bidirectional": {"bidirectional": True, "decoder_hidden_size": 24},
    "gnmt": {"bidirectional": True, "encoder_num_layers": 2, "bidirectional_layers": 1},
}


def without_operator(encoder, *arguments):
    with torch.no_grad(), mock.patch.object(encoding, "read", return_value=None):
        return encoder(*arguments)


def with_operator(encoder, *arguments):
    with torch.no_grad(), mock.patch.object(type(encoder), "_read", side_effect=AssertionError):
        return encoder(*arguments)


def assert_equal(found, expected):
    for name, mine, theirs in zip(found._fields, found, expected, strict=True):
        assert (mine is None) == (theirs is None), name
        if mine is not None:
            assert torch.equal(mine, theirs), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("packed", [False, True], ids=["", "packed"])
@pytest.mark.parametrize("stack", STACK)
@pytest.mark.parametrize("reading", READING)
@pytest.mark.parametrize("cell", CELL)
def test_the_encoder_reads_as_its_modules_do(cell, reading, stack, packed, dtype):
    """To the last bit: the table of tokens is made by the products that it stands for."""
    model = small_model(**CELL[cell], **READING[reading], **STACK[stack])
    encoder = copy.deepcopy(model.encoder).to(dtype)
    if packed:
        prepack(encoder)
    source, lengths = sources()
    for arguments in ((source, lengths), (source,), (source[:1, :3],), (source[:0],)):
        expected = without_operator(encoder, *arguments)
        assert_equal(with_operator(encoder, *arguments), expected)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.int8], ids=str)
@pytest.mark.parametrize("stack", ["one layer", "bidirectional"])
@pytest.mark.parametrize("cell", CELL)
def test_narrow_weights_are_rounded_once(cell, stack, dtype):
    model = copy.deepcopy(small_model(**CELL[cell], **STACK[stack])).float()
    prepack(model, dtype)
    expected = without_operator(model.encoder, *sources())
    assert_equal(with_operator(model.encoder, *sources()), expected)
    packed = model.encoder.__dict__["_slots"]._packed._made.block
    assert packed[1].numel() > 0  # there is a table


@pytest.mark.parametrize("isa", available_cpu_isas())
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_any_instruction_set_and_team(isa, threads):
    before, before_threads = cpu_isa(), torch.get_num_threads()
    model = prepack(copy.deepcopy(small_model(**STACK["bidirectional"])))
    try:
        set_cpu_isa(isa)
        torch.set_num_threads(threads)
        expected = without_operator(model.encoder, *sources())
        for _ in range(2):  # packed for another instruction set, then for this one
            assert_equal(with_operator(model.encoder, *sources()), expected)
    finally:
        set_cpu_isa(before)
        torch.set_num_threads(before_threads)


def test_a_large_vocabulary_has_no_table():
    config = Seq2SeqConfig(
        source_vocab_size=20_000, target_vocab_size=9, encoder_hidden_size=64, cell="lstm"
    )
    encoder = prepack(Seq2Seq(config).eval().encoder)
    source = torch.tensor([[19_999, 4], [5, PAD]])
    assert_equal(with_operator(encoder, source), without_operator(encoder, source))
    assert encoder.__dict__["_slots"]._packed._made.block[1].numel() == 0


@pytest.mark.parametrize("options", [{}, {"num_beams": 3, "num_return_sequences": 2}], ids=str)
@pytest.mark.parametrize("packed", [False, True], ids=["", "packed"])
@pytest.mark.parametrize("stack", ["one layer", "deep", "bidirectional"])
@pytest.mark.parametrize("reading", READING)
@pytest.mark.parametrize("cell", CELL)
def test_translations_are_what_modules_find(cell, reading, stack, packed, options):
    sizes = {"decoder_hidden_size": 12}  # that of the encoder: nothing stands between them
    model = changed_scale(small_model(**CELL[cell], **READING[reading], **(sizes | STACK[stack])))
    if packed:
        prepack(model)
    options = {"max_new_tokens": 9, "output_scores": True} | options
    for arguments in (sources(), sources()[:1], (sources()[0][:1],)):
        expected = in_python(model, *arguments, **options)
        with mock.patch.object(type(model.encoder), "forward", side_effect=AssertionError):
            assert_same(in_one_call(model, *arguments, **options), expected)


@given(
    cell=st.sampled_from(list(CELL)),
    reading=st.sampled_from(list(READING)),
    bidirectional=st.booleans(),
    layers=st.integers(1, 3),
    hidden=st.integers(1, 20),
    embedding=st.integers(1, 9),
    vocab=st.integers(4, 40),
    batch=st.integers(0, 5),
    time=st.integers(0, 6),
    packed=st.booleans(),
    lengths=st.booleans(),
    data=st.data(),
)
def test_any_size(
    cell,
    reading,
    bidirectional,
    layers,
    hidden,
    embedding,
    vocab,
    batch,
    time,
    packed,
    lengths,
    data,
):
    torch.manual_seed(data.draw(st.integers(0, 99)))
    config = Seq2SeqConfig(
        source_vocab_size=vocab,
        target_vocab_size=7,
        source_embedding_size=embedding,
        encoder_hidden_size=hidden,
        decoder_hidden_size=hidden * (1 + bidirectional),
        bidirectional=bidirectional,
        encoder_num_layers=layers,
        decoder_num_layers=layers,
        **CELL[cell],
        **READING[reading],
    )
    model = changed_scale(Seq2Seq(config).double().eval(), 3.0)
    if packed:
        prepack(model)
    source = torch.randint(0, vocab, (batch, time))
    given_lengths = torch.randint(0, time + 1, (batch,)) if lengths else None
    options = {"max_new_tokens": 5, "num_beams": 2, "output_scores": True}
    encoder = model.encoder
    expected = without_operator(encoder, source, given_lengths)
    assert_equal(with_operator(encoder, source, given_lengths), expected)
    expected = in_python(model, source, given_lengths, **options)
    assert_same(in_one_call(model, source, given_lengths, **options), expected, 1e-9)


def words_of(error):
    return type(error.value), str(error.value)


@pytest.mark.parametrize(
    ("source", "lengths"),
    [
        (torch.tensor([[4, 11]]), None),
        (torch.tensor([[-1, 4]]), None),
        (torch.tensor([4, 5]), None),
        (torch.tensor(4), None),
        (torch.tensor([[4.0]]), None),
        (torch.tensor([[4]], dtype=torch.int32), None),
        (torch.tensor([[4]]), torch.tensor([2])),
        (torch.tensor([[4]]), torch.tensor([-1])),
        (torch.tensor([[4]]), torch.tensor([1, 1])),
        (torch.tensor([[4]]), torch.tensor([1.0])),
    ],
)
@pytest.mark.parametrize("packed", [False, True], ids=["", "packed"])
def test_what_is_wrong_with_a_source_is_told_as_by_modules(source, lengths, packed):
    model = copy.deepcopy(small_model(decoder_hidden_size=12))
    if packed:
        prepack(model)
    with pytest.raises((TypeError, ValueError)) as expected:
        in_python(model, source, lengths, max_new_tokens=3)
    with pytest.raises((TypeError, ValueError)) as found:
        model.generate(source, lengths, max_new_tokens=3)
    assert words_of(found) == words_of(expected)


def test_lengths_of_other_integers_are_taken():
    model = small_model(decoder_hidden_size=12)
    source, lengths = sources()
    expected = model.generate(source, lengths, max_new_tokens=5)
    assert torch.equal(model.generate(source, lengths.int(), max_new_tokens=5), expected)


@pytest.mark.parametrize("packed", [False, True], ids=["", "packed"])
@pytest.mark.parametrize("change", ["in place", "data", "parameter", "module"])
def test_changed_weights_are_noticed(change, packed):
    model = copy.deepcopy(small_model(decoder_hidden_size=12))
    if packed:
        prepack(model)
    options = {"max_new_tokens": 9, "output_scores": True}
    in_one_call(model, *sources(), **options)
    encoder, decoder = model.encoder, model.decoder
    for owner, name in (
        (encoder.embedding, "weight"),
        (encoder.stack.rnn, "weight_ih_l0"),
        (encoder.stack.rnn, "weight_hh_l0"),
        (encoder.stack.rnn, "bias_hh_l0"),
        (decoder.output, "weight"),
    ):
        weight = getattr(owner, name)
        with torch.no_grad():
            if change == "in place":
                weight.mul_(1.25)
            elif change == "data":
                weight.data = weight.data * 0.75
            elif change == "parameter":
                setattr(owner, name, torch.nn.Parameter(weight * 0.75))
            elif owner is encoder.embedding:
                encoder.embedding = torch.nn.Embedding(*weight.shape).double()
            elif owner is decoder.output:
                decoder.output = torch.nn.Linear(*reversed(weight.shape)).double()
        expected = in_python(model, *sources(), **options)
        assert_same(in_one_call(model, *sources(), **options), expected)


@torch.no_grad()
def reads(model):
    return encoding.read(model.encoder, *sources()) is not None


@torch.no_grad()
def translates(model):
    options = GenerationOptions(max_new_tokens=3)
    return translation.translate(model, *sources(), options) is not None


def test_what_is_out_of_the_ordinary_stays_with_modules():
    plain = small_model(decoder_hidden_size=12)
    assert reads(plain)
    assert translates(plain)
    assert encoding.read(plain.encoder, *sources()) is None  # it may be differentiated
    model = copy.deepcopy(small_model(decoder_hidden_size=12, dropout=0.5))
    assert not reads(model.train())
    assert not translates(model)
    model.eval()
    for module in (
        model.encoder.embedding,
        model.encoder.stack,
        model.encoder.stack.rnn,
        model.encoder.dropout,
    ):
        handle = module.register_forward_hook(lambda *_: None)
        assert not reads(model)
        assert not translates(model)
        handle.remove()
        assert reads(model)
    for module in (model.bridge, model.encoder, model.decoder, model.decoder.output):
        handle = module.register_forward_pre_hook(lambda *_: None)
        assert not translates(model)
        handle.remove()
        assert translates(model)
    torch.nn.utils.parametrizations.weight_norm(model.encoder.stack.rnn, "weight_hh_l0")
    assert not reads(model)
    assert not translates(model)
    with torch.autocast("cpu"):
        assert not reads(plain)
        assert not translates(plain)
    for other in (
        small_model(),  # whose bridge has weights
        small_model(attention="dot", decoder_hidden_size=12),
        small_model(context_every_step=True, decoder_hidden_size=12),
        small_model(output="maxout", decoder_hidden_size=12),
    ):
        assert reads(other)
        assert not translates(other)
    sampled = GenerationOptions(do_sample=True)
    with torch.no_grad():
        assert translation.translate(plain, *sources(), sampled) is None


class Scaled(torch.nn.Embedding):
    def forward(self, tokens):
        return 2 * super().forward(tokens)


class Negative(torch.nn.Linear):
    def forward(self, x):
        return -super().forward(x)


class Noisy(torch.nn.Dropout):
    def forward(self, x):
        return x + 1


class Inverted(torch.nn.Module):
    """A stack with another around it."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.has_cell_state = inner.has_cell_state

    def forward(self, x, state=None, lengths=None):
        return self.inner(-x, state, lengths)


class Reader(torch.nn.Module):
    """An encoder that is none of the package's."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, source, lengths=None):
        return self.inner(source, lengths)


def test_modules_of_others_are_called():
    def changed_model(change):
        model = copy.deepcopy(small_model(decoder_hidden_size=12))
        change(model)
        return model.double()

    def embed(model):
        model.encoder.embedding = Scaled(11, model.encoder.embedding.embedding_dim)

    def bound(model):
        model.encoder.embedding.max_norm = 0.1

    def drop(model):
        model.encoder.dropout = Noisy(0.0)

    def invert(model):
        model.encoder.stack = Inverted(model.encoder.stack)

    def negate(model):
        model.decoder.output = Negative(12, 11)

    def replace(model):
        model.encoder = Reader(model.encoder)

    for change in (embed, bound, drop, invert, negate, replace):
        model = changed_model(change)
        assert not translates(model), change
        if change is replace:
            model.generate(*sources(), max_new_tokens=3)
            continue
        assert reads(model) == (change is negate), change
        options = {"max_new_tokens": 5, "return_dict_in_generate": True}
        found = model.generate(*sources(), **options, output_scores=True)
        assert_same(found, in_python(model, *sources(), max_new_tokens=5, output_scores=True))


@pytest.mark.parametrize("name", ["start", "step", "search"])
def test_what_a_subclass_does_otherwise_is_called(name):
    calls = []

    class Other(Seq2Seq):
        pass

    def method(self, *arguments):
        calls.append(name)
        return getattr(Seq2Seq, name)(self, *arguments)

    setattr(Other, name, method)
    Other(small_model(decoder_hidden_size=12).config).eval().generate(sources()[0])
    assert calls


def test_copies_and_pickles_look_for_their_own_weights():
    model = prepack(copy.deepcopy(small_model(decoder_hidden_size=12)))
    expected = in_one_call(model, *sources(), max_new_tokens=9, output_scores=True)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with torch.no_grad():
            other.decoder.output.bias[EOS] += 20.0
        assert in_one_call(other, *sources(), max_new_tokens=9).sequences.eq(EOS).all()
    assert_same(in_one_call(model, *sources(), max_new_tokens=9, output_scores=True), expected)
    prepack(model)  # anew
    assert_same(in_one_call(model, *sources(), max_new_tokens=9, output_scores=True), expected)
    unpack(model)
    assert_same(in_one_call(model, *sources(), max_new_tokens=9, output_scores=True), expected)


def test_calls_of_the_layers_share_what_is_packed():
    model = prepack(copy.deepcopy(small_model(decoder_hidden_size=12)))
    rnn = model.encoder.stack.rnn
    with_operator(model.encoder, *sources())
    slots = slots_of(model.encoder, encoding.EncoderSlots)
    assert slots._packed._made.block[0] is rnn._packed._made.block


# ---- the operators themselves -------------------------------------------------------------------

V, E, H = 7, 3, 4
LAYOUT = (1, 1, False)  # of a GRU


def layer():
    return [torch.randn(3 * H, E), torch.randn(3 * H, H), torch.randn(3 * H), torch.randn(3 * H)]


def read(weights=None, **changes):
    arguments = {
        "tokens": torch.tensor([[4, 5, 0], [6, 0, 0]]), "lengths": None,
        "embedding": torch.randn(V, E), "weights": layer() if weights is None else weights,
        "cell": 1, "num_layers": 1, "bidirectional": False, "pad_token_id": 0,
        "eos_token_id": None, "reverse": False,
    }  # fmt: skip
    return encoder_read_op(**(arguments | changes))


def test_results_have_the_shapes_that_ops_cpp_tells():
    y, h_n, c_n, lengths = read(eos_token_id=3)
    assert y.shape == (4, 2, H)
    assert h_n.shape == (1, 2, H)
    assert c_n.shape == (0,)
    assert lengths.tolist() == [3, 2]
    y, _, _, lengths = read(tokens=torch.zeros(2, 0, dtype=torch.int64))
    assert y.shape == (1, 2, H)
    assert (y == 0).all()
    assert lengths.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": torch.tensor([4])}, r"tokens: expected shape \(B, T\), got \(1\)"),
        ({"tokens": torch.tensor([[7]])}, "tokens: expected values from 0 to 6, got 7"),
        ({"tokens": torch.tensor([[1.0]])}, "tokens: expected a CPU tensor of dtype Long"),
        ({"lengths": torch.tensor([4, 0])}, "lengths: expected values from 0 to 3"),
        ({"lengths": torch.tensor([1])}, r"lengths: expected shape \(2\)"),
        ({"embedding": torch.randn(V)}, "embedding: expected shape"),
        ({"embedding": torch.randn(0, E)}, "embedding: expected shape"),
        ({"embedding": torch.randn(V, E).double()}, "expected dtype Double"),
        ({"embedding": torch.randn(V, E + 1)}, r"weights\[0\]: expected shape"),
        ({"eos_token_id": 7}, "eos: expected a token from 0 to 6"),
        ({"cell": 9}, "cell: expected a number"),
        ({"weights": []}, "weights: expected"),
        ({"turn": -1, "packed": torch.empty(3)}, "turn: expected"),
        ({"packed": torch.empty(3)}, "packed: expected a tensor that prepack made"),
    ],
)
def test_what_is_wrong_is_named(changes, message):
    with pytest.raises(RuntimeError, match=message):
        read(**changes)


def test_any_layout_of_an_embedding_is_read():
    embedding = torch.randn(V, 2 * E)
    weights = layer()
    for view in (embedding[:, ::2], embedding[:, :E], torch.randn(E, V).t(), torch.randn(1, E)):
        tokens = torch.tensor([[0, min(3, len(view) - 1)]])
        given = read(weights, tokens=tokens, embedding=view, lengths=torch.tensor([2]))
        expected = read(
            weights, tokens=tokens, embedding=view.contiguous(), lengths=torch.tensor([2])
        )
        assert torch.equal(given[0], expected[0])


def test_a_table_serves_the_weights_that_it_was_made_of():
    embedding, weights = torch.randn(V, E), layer()
    packed = prepack_op(weights, *LAYOUT)
    table = prepack_tokens_op(embedding, weights, packed, *LAYOUT)
    expected = read(weights, embedding=embedding, packed=packed)[0]
    given = {"embedding": embedding, "packed": packed, "table": table}
    assert torch.equal(read(weights, **given)[0], expected)
    # Without packed layers it is not looked at.
    assert torch.allclose(read(weights, **(given | {"packed": None}))[0], expected, atol=1e-6)
    with pytest.raises(RuntimeError, match="packed: the weights are other tensors"):
        read(weights, **(given | {"embedding": embedding.clone()}))
    with pytest.raises(RuntimeError, match="packed: expected a tensor that prepack made"):
        read(weights, **(given | {"table": torch.zeros(3)}))
    with pytest.raises(RuntimeError, match="packed: expected what prepack makes"):
        read(weights, **(given | {"table": packed}))
    with pytest.raises(RuntimeError, match="packed: expected what prepack makes"):
        read(weights, **(given | {"packed": table}))
    embedding.mul_(2.0)
    with pytest.raises(RuntimeError, match="packed: embedding has changed since"):
        read(weights, **given)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embedding": torch.randn(E, V).t()}, "embedding: expected a contiguous tensor"),
        ({"embedding": torch.randn(V)}, "embedding: expected shape"),
        ({"embedding": torch.randn(V, E).double()}, "expected dtype Double"),
        ({"packed": torch.empty(3)}, "packed: expected a tensor that prepack made"),
        ({"num_layers": 0}, "num_layers: expected at least 1"),
    ],
)
def test_what_is_wrong_with_a_table_is_named(changes, message):
    weights = layer()
    arguments = {
        "embedding": torch.randn(V, E),
        "weights": weights,
        "packed": prepack_op(weights, *LAYOUT),
        "cell": 1,
    }
    with pytest.raises(RuntimeError, match=message):
        prepack_tokens_op(**(arguments | changes))


def test_half_floats_have_no_table():
    weights = [weight.bfloat16() for weight in layer()]
    packed = prepack_op(weights, *LAYOUT)
    with pytest.raises(RuntimeError, match="embedding: expected dtype Float or Double"):
        prepack_tokens_op(torch.randn(V, E).bfloat16(), weights, packed, *LAYOUT)


def test_a_decoder_of_another_size_is_refused():
    model = copy.deepcopy(small_model(decoder_hidden_size=12))
    taken = []
    with mock.patch("seq2seq_ext.models.translation.translate_op", lambda *a: taken.append(a)):
        model.generate(*sources(), max_new_tokens=3)
    arguments = list(taken[0])
    of_encoder = arguments[3]
    arguments[3] = [weight[: len(weight) // 2].contiguous() for weight in of_encoder]
    arguments[3][1] = of_encoder[1][: len(of_encoder[1]) // 2, :6].contiguous()
    with pytest.raises(RuntimeError, match="h_0: expected shape"):
        translate_op(*arguments)
