"""Models whose cells have more than the plain equations."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from test_models import SMALL
from torch import Tensor

from seq2seq_ext import GRU, LSTM, RNN, Seq2Seq, Seq2SeqConfig, prepack
from seq2seq_ext.models.layers import RecurrentStack, one_draw

BOS, EOS = 2, 3
CELLS: dict[str, dict[str, Any]] = {
    "lstm_norm": {"cell": "lstm", "layer_norm": True, "zoneout": 0.1, "cell_zoneout": 0.2},
    "lstm_peephole": {
        "cell": "lstm",
        "peephole": True,
        "cell_clip": 0.5,
        "recurrent_dropout": 0.3,
        "forget_bias": 1.0,
        "bidirectional": True,
    },
    "lstm_coupled": {
        "cell": "lstm",
        "coupled": True,
        "weight_drop": 0.2,
        "encoder_num_layers": 2,
        "decoder_num_layers": 2,
        "residual": 1,
    },
    "gru": {"layer_norm": True, "hard_sigmoid": True, "learn_initial_state": True},
    "gru_candidate": {"recurrent_dropout": 0.3, "recurrent_dropout_kind": "candidate"},
    "gru_before": {"reset_after": False, "zoneout": 0.2, "recurrent_dropout": 0.2},
    "rnn": {"cell": "rnn", "layer_norm": True, "weight_drop": 0.3, "learn_initial_state": True},
}
DECODERS: dict[str, dict[str, Any]] = {
    "none": {},
    "context": {"context_every_step": True, "output": "maxout"},
    "after": {"attention": "general"},
    "feeding": {"attention": "additive", "input_feeding": True, "coverage": True},
    "previous": {"attention": "additive", "attention_query": "previous", "residual": 0},
    "first_layer": {
        "attention": "general",
        "attention_query": "first_layer",
        "decoder_num_layers": 2,
        "bridge": "zeros",
    },
    "copying": {
        "attention": "general",
        "input_feeding": True,
        "copy": True,
        "target_vocab_size": 11,
    },
}
each_cell = pytest.mark.parametrize("cell", CELLS)
each_decoder = pytest.mark.parametrize("decoder", DECODERS)


def make(cell: str, decoder: str = "none", **changes: Any) -> Seq2Seq:
    torch.manual_seed(0)
    fields = SMALL | CELLS[cell] | DECODERS[decoder] | changes
    model = Seq2Seq(Seq2SeqConfig(**fields)).double()
    with torch.no_grad():
        for parameter in model.parameters():  # gains and initial states have equal numbers at first
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def batch() -> tuple[Tensor, Tensor]:
    source = torch.tensor([[4, 5, 6, 0, 0], [7, 8, 9, 10, 4], [5, 0, 0, 0, 0]])
    return source, torch.tensor([[4, 5, 3, 0], [6, 7, 8, 3], [3, 0, 0, 0]])


@each_decoder
@each_cell
def test_all_steps_at_once_are_steps_one_by_one(cell: str, decoder: str) -> None:
    model = make(cell, decoder)
    source, target = batch()
    together = model(source, target).logits
    with torch.no_grad():
        state, tokens = model.start(source), torch.full((3,), BOS)
        for t in range(target.size(1)):
            logits, state = model.step(tokens, state)
            inside = (target[:, :t] != EOS).all(1) if t else torch.ones(3, dtype=torch.bool)
            torch.testing.assert_close(logits[inside], together[inside, t])
            tokens = target[:, t]


@each_decoder
@each_cell
def test_every_parameter_learns_while_noise_acts(cell: str, decoder: str) -> None:
    model = make(cell, decoder).train()
    torch.manual_seed(1)
    loss = model(*batch()).loss
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    torch.manual_seed(2)
    noisy = set(CELLS[cell]) & {"zoneout", "recurrent_dropout", "weight_drop"}
    assert (model(*batch()).loss != loss) == bool(noisy)


@each_decoder
@each_cell
def test_searches_score_as_the_model_does(cell: str, decoder: str) -> None:
    model = make(cell, decoder)
    source, _ = batch()
    options: dict[str, Any] = {"max_new_tokens": 6, "output_scores": True}
    found = model.generate(source, num_beams=3, return_dict_in_generate=True, **options)
    scores = model(source, found.sequences, target_lengths=found.lengths).logits.log_softmax(-1)
    chosen = scores.gather(2, found.sequences[..., None])[..., 0]
    inside = torch.arange(chosen.size(1)) < found.lengths[:, None]
    expected = (chosen * inside).sum(1) / found.lengths
    torch.testing.assert_close(found.sequences_scores, expected.float(), atol=1e-5, rtol=1e-5)


@each_cell
def test_the_layers_are_those_of_the_arguments(cell: str) -> None:
    model = make(cell)
    config, rnn = model.config, model.encoder.stack.rnn
    kinds: dict[str, Any] = {"lstm": LSTM, "gru": GRU, "rnn": RNN}
    arguments = dict(config.variants)
    if config.cell == "gru":
        arguments["reset_after"] = config.reset_after
    if config.residual:
        arguments["residual"] = config.residual
    layer = kinds[config.cell](
        5,
        7,
        config.encoder_num_layers,
        bidirectional=config.bidirectional,
        learn_initial_state=config.learn_initial_state,
        **arguments,
    ).double()
    layer.load_state_dict(rnn.state_dict())
    x = torch.randn(4, 3, 5, dtype=torch.float64)
    torch.testing.assert_close(layer.eval()(x)[0], rnn(x)[0])
    assert torch.equal(model.encoder.stack(x)[0], rnn(x)[0])


@pytest.mark.parametrize("coupled", [False, True])
def test_where_forgetting_begins(coupled: bool) -> None:
    fields = {"cell": "lstm", "coupled": coupled, "forget_bias": 1.5, "encoder_num_layers": 2}
    rnn = Seq2Seq(Seq2SeqConfig(**SMALL | fields, bidirectional=True)).encoder.stack.rnn
    first = 0 if coupled else 7
    for layer in ("l0", "l0_reverse", "l1", "l1_reverse"):
        total = getattr(rnn, f"bias_ih_{layer}") + getattr(rnn, f"bias_hh_{layer}")
        assert (total[first : first + 7] == 1.5).all()
        assert (total[first + 7 :] != 1.5).all()
    # Alone it leaves the layers plain, with all that is fast about them.
    assert (rnn._variant is None) == (not coupled)


@pytest.mark.parametrize("noise", ["recurrent_dropout", "weight_drop"])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_noise_of_a_sequence_is_drawn_once_for_its_steps(cell: str, noise: str) -> None:
    torch.manual_seed(0)
    config = Seq2SeqConfig(**SMALL, cell=cell, **{noise: 0.5})
    stack = RecurrentStack(config, input_size=5, hidden_size=7, num_layers=2).double()
    x = torch.randn(6, 3, 5, dtype=torch.float64)

    def steps() -> Tensor:
        state, outputs = None, []
        for step in x:
            y, state = stack(step[None], state)
            outputs.append(y)
        return torch.cat(outputs)

    with one_draw(stack, 3):
        together, _ = stack(x)
        torch.testing.assert_close(steps(), together)
        with one_draw(stack, 3):  # a part of the same sequence
            torch.testing.assert_close(steps(), together)
    assert not torch.allclose(steps(), together)
    together.sum().backward()
    assert all(parameter.grad is not None for parameter in stack.parameters())
    stack.eval()
    with one_draw(stack, 3):
        torch.testing.assert_close(steps(), stack(x)[0])


def test_what_differs_from_step_to_step_does_so_in_steps_one_by_one() -> None:
    torch.manual_seed(0)
    config = Seq2SeqConfig(**SMALL, zoneout=0.5, weight_drop=0.5)
    stack = RecurrentStack(config, input_size=5, hidden_size=7, num_layers=1)
    x, h = torch.randn(1, 300, 5), torch.zeros(1, 300, 7)
    with one_draw(stack, 300):
        kept = [stack(x, (h, None))[0] == 0 for _ in range(2)]
    assert 0.2 < float((kept[0] & kept[1]).float().mean()) < 0.3


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"peephole": True}, ValueError, "peephole is for an LSTM"),
        ({"cell": "rnn", "cell_zoneout": 0.1}, ValueError, "zoneout of c is for an LSTM"),
        ({"zoneout": 1.0}, ValueError, "zoneout must be a probability of at least 0 and below 1"),
        ({"cell": "lstm", "cell_zoneout": -1}, ValueError, "cell_zoneout must be a probability"),
        ({"layer_norm": 1}, TypeError, "layer_norm must be a bool, got 1"),
        ({"forget_bias": "1"}, TypeError, "forget_bias must be a number, got '1'"),
        ({"weight_drop": None}, TypeError, "weight_drop must be a number, got None"),
        ({"forget_bias": 1.0}, ValueError, "forget_bias is for an LSTM"),
        ({"recurrent_dropout_kind": "h"}, ValueError, "must be 'state' or 'candidate', got 'h'"),
    ],
)
def test_wrong_fields_are_named(
    fields: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Seq2SeqConfig(**SMALL | fields)


@each_cell
def test_a_config_and_weights_are_all_that_a_model_is(cell: str) -> None:
    model = make(cell, "feeding")
    again = Seq2Seq(Seq2SeqConfig.from_dict(model.config.to_dict())).double().eval()
    again.load_state_dict(model.state_dict())
    assert again.config == model.config
    source, target = batch()
    torch.testing.assert_close(again(source, target).logits, model(source, target).logits)
    packed = prepack(copy.deepcopy(model))
    torch.testing.assert_close(packed(source, target).logits, model(source, target).logits)
    assert torch.equal(packed.generate(source), model.generate(source))
