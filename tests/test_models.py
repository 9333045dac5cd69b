"""Encoder, bridge, decoder and `Seq2Seq`, against loops written out from the equations."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from seq2seq_ext.models import Bridge, Decoder, DecoderState, Encoder, Seq2Seq, Seq2SeqConfig
from seq2seq_ext.models.state import reverse_rows

PAD, UNK, BOS, EOS = range(4)
SMALL = {
    "source_vocab_size": 11,
    "target_vocab_size": 9,
    "source_embedding_size": 5,
    "target_embedding_size": 6,
    "encoder_hidden_size": 7,
    "decoder_hidden_size": 8,
}
# Every cell, depth, direction, bridge and output at least once.
CONFIGS = {
    "gru": {},
    "gru_copy": {"decoder_hidden_size": 7},
    "gru_two_layers": {"encoder_num_layers": 2, "decoder_num_layers": 2},
    "lstm_bidirectional": {"cell": "lstm", "bidirectional": True, "decoder_num_layers": 2},
    "lstm_copy": {"cell": "lstm", "bidirectional": True, "decoder_hidden_size": 14},
    "lstm_context": {"cell": "lstm", "bridge": "context", "context_size": 4, "output": "maxout"},
    "rnn_reversed": {"cell": "rnn", "reverse_source": True, "encoder_num_layers": 3},
    "rnn_relu": {"cell": "rnn", "nonlinearity": "relu", "context_every_step": True},
    "dot": {"attention": "dot", "decoder_hidden_size": 7, "cell": "lstm"},
    "general_feeding": {
        "attention": "general",
        "input_feeding": True,
        "decoder_num_layers": 2,
        "reverse_source": True,
    },
    "additive": {"attention": "additive", "attention_size": 5, "bidirectional": True},
    "normalized_feeding": {
        "attention": "normalized_additive",
        "input_feeding": True,
        "cell": "lstm",
        "context_every_step": True,
    },
    "multi_head_feeding": {
        "attention": "multi_head",
        "attention_size": 6,
        "attention_heads": 3,
        "input_feeding": True,
        "cell": "rnn",
    },
    "maxout_feeding": {"attention": "general", "input_feeding": True, "output": "maxout"},
    "previous_linear": {"attention": "multi_head", "attention_query": "previous"},
    "coverage": {"attention": "additive", "input_feeding": True, "coverage": True},
    "bahdanau2015": {
        "attention": "additive",
        "attention_query": "previous",
        "bidirectional": True,
        "reset_after": False,
        "bridge": "dense",
        "output": "maxout",
        "maxout_size": 3,
        "coverage": True,
        "reverse_source": True,
    },
    "tied": {"tie_embeddings": "decoder", "decoder_hidden_size": 6, "attention": "additive"},
    "tied_all": {
        "tie_embeddings": "all",
        "source_vocab_size": 11,
        "target_vocab_size": 11,
        "source_embedding_size": 6,
        "output_rank": 6,
    },
    "residual": {"residual": 1, "encoder_num_layers": 3, "decoder_num_layers": 2},
    "residual_feeding": {
        "residual": 1,
        "cell": "lstm",
        "bidirectional": True,
        "encoder_num_layers": 2,
        "decoder_num_layers": 3,
        "attention": "general",
        "input_feeding": True,
    },
    "bidirectional_below": {
        "bidirectional": True,
        "bidirectional_layers": 2,
        "encoder_num_layers": 4,
        "residual": 1,
        "attention": "general",
    },
    "relu_bridge": {"cell": "lstm", "bridge": "dense", "bridge_nonlinearity": "relu"},
    "linear_bridge": {"bridge": "dense", "bridge_nonlinearity": "none", "bidirectional": True},
    "zeros": {"bridge": "zeros", "attention": "dot", "decoder_hidden_size": 7},
    "first_layer_gru": {
        "attention": "multi_head",
        "attention_heads": 2,
        "attention_query": "first_layer",
        "decoder_num_layers": 2,
        "output": "maxout",
        "context_every_step": True,
    },
    "gnmt": {
        "cell": "lstm",
        "bidirectional": True,
        "bidirectional_layers": 1,
        "encoder_num_layers": 4,
        "decoder_num_layers": 4,
        "residual": 2,
        "bridge": "zeros",
        "attention": "normalized_additive",
        "attention_query": "first_layer",
    },
    "local_p": {"attention": "local_p", "attention_window": 2},
    "local_p_feeding": {
        "attention": "local_p",
        "attention_window": 1,
        "input_feeding": True,
        "cell": "lstm",
        "decoder_num_layers": 3,
        "residual": 1,
        "bidirectional": True,
    },
    "local_p_previous": {
        "attention": "local_p",
        "attention_query": "previous",
        "output": "maxout",
        "reset_after": False,
        "reverse_source": True,
    },
    "linear_attentional": {
        "attention": "normalized_additive",
        "attentional_nonlinearity": "none",
        "input_feeding": True,
        "coverage": True,
    },
    "linear_attentional_previous": {
        "attention": "multi_head",
        "attention_heads": 2,
        "attentional_nonlinearity": "none",
        "attention_query": "previous",
        "cell": "lstm",
        "context_every_step": True,
    },
    # Ids 9 and 10 of the source are then unknown tokens.
    "copy": {"copy": True, "source_vocab_size": 9, "attention": "general"},
    "copy_feeding": {
        "copy": True,
        "source_vocab_size": 9,
        "attention": "additive",
        "input_feeding": True,
        "coverage": True,
        "reverse_source": True,
    },
    "source_eos": {"source_eos": True, "cell": "lstm"},
    "source_eos_copy": {
        "source_eos": True,
        "copy": True,
        "source_vocab_size": 9,
        "attention": "general",
        "input_feeding": True,
    },
    "copy_first_layer": {
        "copy": True,
        "source_vocab_size": 9,
        "attention": "multi_head",
        "attention_heads": 2,
        "attention_query": "first_layer",
        "decoder_num_layers": 2,
        "output": "maxout",
    },
    "cho2014": {
        "reset_after": False,
        "context_size": 4,
        "context_every_step": True,
        "bridge": "context",
        "output": "maxout",
        "maxout_size": 3,
        "output_rank": 2,
    },
}
each_config = pytest.mark.parametrize("name", CONFIGS)


def make(name, **changes):
    torch.manual_seed(0)
    return Seq2Seq(Seq2SeqConfig(**(SMALL | CONFIGS[name] | changes))).double()


def batch():
    """Sources and targets of unequal, unsorted lengths."""
    source = torch.tensor([[4, 5, 6, 0, 0], [7, 8, 9, 10, 4], [5, 0, 0, 0, 0], [6, 6, 0, 0, 0]])
    target = torch.tensor([[4, 5, 3, 0], [6, 3, 0, 0], [7, 8, 8, 3], [3, 0, 0, 0]])
    return source, target, torch.tensor([3, 5, 1, 2]), torch.tensor([3, 2, 4, 1])


def cell_step(config, x, h, c, w_ih, w_hh, b_ih, b_hh):
    """One step of one cell, from the equations."""
    if config.cell == "rnn":
        activation = torch.tanh if config.nonlinearity == "tanh" else torch.relu
        return activation(x @ w_ih.T + b_ih + h @ w_hh.T + b_hh), None
    if config.cell == "lstm":
        i, f, g, o = (x @ w_ih.T + b_ih + h @ w_hh.T + b_hh).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c
    x_r, x_z, x_n = (x @ w_ih.T + b_ih).chunk(3, -1)
    u_r, u_z, u_n = w_hh.chunk(3)
    b_r, b_z, b_n = b_hh.chunk(3)
    r = (x_r + h @ u_r.T + b_r).sigmoid()
    z = (x_z + h @ u_z.T + b_z).sigmoid()
    if config.reset_after:
        n = (x_n + r * (h @ u_n.T + b_n)).tanh()
    else:
        n = (x_n + (r * h) @ u_n.T + b_n).tanh()
    return (1 - z) * n + z * h, None


def weights_of(stack, layer, suffix=""):
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    return [getattr(stack.rnn, f"{name}_l{layer}{suffix}") for name in names]


def encode_one(encoder, tokens):
    """One sequence: final states (layers, size), context (size,), outputs (time, size)."""
    config = encoder.config
    if config.reverse_source:
        tokens = tokens[::-1]
    tokens = [token if token < config.source_vocab_size else UNK for token in tokens]
    if config.source_eos:
        tokens = [*tokens, EOS]
    sequence = [encoder.embedding.weight[token] for token in tokens]
    h_n, c_n = [], []
    both = config.bidirectional_layers or config.encoder_num_layers
    for layer in range(config.encoder_num_layers):
        outputs, finals, cells = [], [], []
        stack, place = (encoder.stack, layer) if layer < both else (encoder.upper, layer - both)
        for suffix in ("", "_reverse") if config.bidirectional and layer < both else ("",):
            h = c = sequence[0].new_zeros(config.encoder_hidden_size)
            steps = sequence[::-1] if suffix else sequence
            states = []
            for x in steps:
                h, c = cell_step(config, x, h, c, *weights_of(stack, place, suffix))
                states.append(h)
            outputs.append(states[::-1] if suffix else states)
            finals.append(h)
            cells.append(c)
        below, sequence = sequence, [torch.cat(parts) for parts in zip(*outputs, strict=True)]
        if config.residual and layer >= config.residual and below[0].shape == sequence[0].shape:
            sequence = [x + y for x, y in zip(below, sequence, strict=True)]
        h_n.append(torch.cat(finals))
        c_n.append(torch.cat(cells) if config.cell == "lstm" else None)
    if both < config.encoder_num_layers:
        h_n, c_n = h_n[both:], c_n[both:]
    context = h_n[-1]
    if config.context_size is not None:
        context = torch.tanh(encoder.context.weight @ context)
    outputs = torch.stack(sequence)
    return h_n, c_n, context, outputs.flip(0) if config.reverse_source else outputs


def attend_one(attention, z, outputs, covered):
    """Context and alignments of one query, from the equations; ``covered`` (time,) or None."""
    if attention.kind == "dot":
        energies = [z @ m for m in outputs]
    elif attention.kind in ("general", "local_p"):
        energies = [z @ attention.key.weight @ m for m in outputs]
    elif attention.kind == "multi_head":
        contexts, all_alignments = [], []
        width = attention.key.out_features // attention.heads
        for head in range(attention.heads):
            part = slice(head * width, head * width + width)
            u, w, v = (getattr(attention, n).weight[part] for n in ("query", "key", "value"))
            energies = torch.stack([(u @ z) @ (w @ m) / width**0.5 for m in outputs])
            all_alignments.append(energies.softmax(0))
            contexts.append(
                sum(a * (v @ m) for a, m in zip(energies.softmax(0), outputs, strict=True))
            )
        return torch.cat(contexts), torch.stack(all_alignments).mean(0)
    else:
        v, bias = attention.v, 0
        if attention.kind == "normalized_additive":
            v, bias = attention.gain * v / v.square().sum().sqrt(), attention.key.bias
        sums = [attention.query.weight @ z + attention.key.weight @ m + bias for m in outputs]
        if covered is not None:
            sums = [s + attention.coverage * u for s, u in zip(sums, covered, strict=True)]
        energies = [v @ torch.tanh(s) for s in sums]
    if attention.kind == "local_p":
        p_t = torch.sigmoid(attention.v_position @ torch.tanh(attention.position.weight @ z))
        p_t = len(outputs) * p_t
        D, inside = attention.window, []
        for position in range(len(outputs)):
            if p_t - D <= position <= p_t + D:
                inside.append(position)
        total = sum(energies[s].exp() for s in inside)
        zero = outputs.new_zeros(())
        alignments = torch.stack(
            [
                e.exp() / total * torch.exp(-((s - p_t) ** 2) / (2 * (D / 2) ** 2))
                if s in inside
                else zero
                for s, e in enumerate(energies)
            ]
        )
    else:
        alignments = torch.stack(energies).softmax(0)
    return sum(a * m for a, m in zip(alignments, outputs, strict=True)), alignments


def decode_one(model, encoded, inputs, source=(), size=None):
    """Logits (len(inputs), V) of one sequence, token by token.

    Of a model that copies, log-probabilities of so many tokens of the sequence `source`.
    """
    config, decoder, bridge = model.config, model.decoder, model.bridge
    h_n, c_n, context, outputs = encoded
    attention, current = decoder.attention, config.attention_query == "current"
    from_first = config.attention_query == "first_layer"
    covered = outputs.new_zeros(len(outputs)) if config.coverage else None
    fed = outputs.new_zeros(config.feed_size)
    if config.bridge == "zeros":
        zero = outputs.new_zeros(config.decoder_hidden_size)
        h = [zero] * config.decoder_num_layers
        c = h.copy()
    elif bridge.hidden is None:
        h, c = list(h_n), list(c_n)
    else:
        from_context = config.bridge == "context"
        bend = {"tanh": torch.tanh, "relu": torch.relu, "none": lambda x: x}
        h = bridge.hidden(context if from_context else torch.cat(h_n))
        h = bend[config.bridge_nonlinearity](h)
        h = list(h.split(config.decoder_hidden_size))
        c = [None] * len(h)
        if config.cell == "lstm":
            c = bridge.cell(context if from_context else torch.cat(c_n))
            c = c.relu() if config.bridge_nonlinearity == "relu" else c
            c = list(c.split(config.decoder_hidden_size))
    logits = []
    for token in inputs:
        known = token if token < config.target_vocab_size else UNK
        embedded = x = decoder.embedding.weight[known]
        if config.context_every_step:
            x = torch.cat((x, context))
        if attention is not None and config.attention_query == "previous":
            read, alignments = attend_one(attention, h[-1], outputs, covered)
            covered = None if covered is None else covered + alignments
            fed = read
        if config.feed_size:
            x = torch.cat((x, fed))
        for layer in range(config.decoder_num_layers):
            below, stack, place = x, decoder.stack, layer
            if from_first and layer > 0:
                x, stack, place = torch.cat((x, read)), decoder.upper.layers[layer - 1], 0
            h[layer], c[layer] = cell_step(config, x, h[layer], c[layer], *weights_of(stack, place))
            x = h[layer]
            if config.residual and layer >= config.residual:
                x = x + below
            if from_first and layer == 0:
                read, alignments = attend_one(attention, x, outputs, covered)
        if attention is not None and current:
            read, alignments = attend_one(attention, x, outputs, covered)
            covered = None if covered is None else covered + alignments
            fed = read
        z = x
        if decoder.combine is not None:
            x = decoder.combine(torch.cat((read, x)))
            x = torch.tanh(x) if config.attentional_nonlinearity == "tanh" else x
            fed = x if current else fed
        if decoder.maxout is not None:
            s = (
                decoder.maxout.from_state.weight @ x
                + decoder.maxout.from_state.bias
                + decoder.maxout.from_token.weight @ embedded
                + decoder.maxout.from_context.weight @ (context if attention is None else read)
            )
            x = torch.maximum(s[0::2], s[1::2])
        scores = decoder.output(x)
        if config.copy:
            pointer = decoder.pointer
            p_gen = torch.sigmoid(
                pointer.from_context.weight[0] @ read
                + pointer.from_context.bias[0]
                + pointer.from_state.weight[0] @ z
                + pointer.from_token.weight[0] @ embedded
            )
            written, smallest = scores.softmax(-1), torch.finfo(scores.dtype).tiny
            scores = []
            source = [*source, EOS][: len(alignments)]
            for word in range(size):
                copied = sum(
                    a for a, token in zip(alignments, source, strict=True) if token == word
                )
                p = (1 - p_gen) * (copied if torch.is_tensor(copied) else smallest)
                scores.append(p + p_gen * written[word] if word < len(written) else p)
            scores = torch.stack(scores).log()
        logits.append(scores)
    return torch.stack(logits)


@each_config
def test_forward_equals_the_equations_written_out(name):
    model = make(name)
    source, target, source_lengths, target_lengths = batch()
    logits = model(source, target, source_lengths, target_lengths).logits
    for row in range(len(source)):
        tokens = source[row, : source_lengths[row]].tolist()
        inputs = [BOS, *target[row, : target_lengths[row] - 1].tolist()]
        encoded = encode_one(model.encoder, tokens)
        expected = decode_one(model, encoded, inputs, tokens, logits.size(-1))
        torch.testing.assert_close(logits[row, : len(inputs)], expected)


@pytest.mark.parametrize(
    "name",
    [
        "residual_feeding",
        "gnmt",
        "local_p",
        "local_p_feeding",
        "local_p_previous",
        "linear_attentional",
        "linear_attentional_previous",
        "copy",
        "copy_feeding",
        "copy_first_layer",
    ],
)
def test_gradients_equal_those_of_the_equations_written_out(name):
    model = make(name)
    source, target, source_lengths, target_lengths = batch()
    output = model(source, target, source_lengths, target_lengths)
    output.loss.backward()
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    losses = []
    for row in range(len(source)):
        tokens = source[row, : source_lengths[row]].tolist()
        labels = target[row, : target_lengths[row]]
        encoded = encode_one(model.encoder, tokens)
        inputs = [BOS, *labels[:-1].tolist()]
        logits = decode_one(model, encoded, inputs, tokens, output.logits.size(-1))
        losses += [-logits[t].log_softmax(-1)[label] for t, label in enumerate(labels)]
    torch.stack(losses).mean().backward()
    for parameter, gradient in zip(model.parameters(), found, strict=True):
        torch.testing.assert_close(gradient, parameter.grad)


@each_config
def test_teacher_forcing_equals_the_loop_over_tokens(name, monkeypatch):
    model = make(name)
    fused = model(*batch())
    # A ratio just under 1 takes the loop; draws of 0 keep every token the target's.
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.zeros(shape))
    looped = model(*batch(), teacher_forcing_ratio=0.99)
    valid = fused.labels != PAD
    torch.testing.assert_close(looped.logits[valid], fused.logits[valid])
    torch.testing.assert_close(looped.loss, fused.loss)


def test_free_running_feeds_the_best_guess():
    model = make("gru")
    source, target, *lengths = batch()
    logits = model(source, target, *lengths, teacher_forcing_ratio=0.0).logits
    state = model.start(source, lengths[0])
    tokens = torch.full((len(source),), BOS)
    for t in range(target.size(1)):
        expected, state = model.step(tokens, state)
        torch.testing.assert_close(logits[:, t], expected)
        tokens = expected.argmax(-1)


def test_teacher_forcing_is_drawn_for_every_token_of_every_row(monkeypatch):
    model = make("gru")
    source, target, *lengths = batch()
    draws = torch.rand(target.shape)
    monkeypatch.setattr(torch, "rand", lambda shape, **_: draws.reshape(shape))
    fed = []
    step = model.decoder.step

    def record(tokens, state):
        fed.append(tokens)
        return step(tokens, state)

    monkeypatch.setattr(model.decoder, "step", record)
    output = model(source, target, *lengths, teacher_forcing_ratio=0.5)
    guesses = output.logits.argmax(-1)
    for t in range(1, target.size(1)):
        for row in range(len(source)):
            right = output.labels[row, t - 1] if draws[row, t] < 0.5 else guesses[row, t - 1]
            assert fed[t][row] == right
    assert (draws[:, 1:] < 0.5).any()
    assert (draws[:, 1:] >= 0.5).any()


@each_config
def test_batch_one_equals_batch_n(name):
    model = make(name)
    source, target, source_lengths, target_lengths = batch()
    together = model(source, target, source_lengths, target_lengths).logits
    for row in range(len(source)):
        t, u = source_lengths[row], target_lengths[row]
        alone = model(source[row : row + 1, :t], target[row : row + 1, :u]).logits
        # A model that copies has no scores for tokens of other sources.
        torch.testing.assert_close(together[row, :u, : alone.size(-1)], alone[0])


@each_config
def test_padding_changes_nothing(name):
    model = make(name)
    source, target, source_lengths, target_lengths = batch()
    tight = model(source, target)
    tight.loss.backward()
    gradients = [p.grad.clone() for p in model.parameters()]

    model.zero_grad()
    # Three more columns, and any tokens at all past the ends.
    generator = torch.Generator().manual_seed(1)

    def pad_with_anything(tokens, lengths, vocab_size):
        rows, time = len(tokens), tokens.size(1) + 3
        noise = torch.randint(vocab_size, (rows, time), generator=generator)
        inside = torch.arange(time) < lengths[:, None]
        return torch.where(inside, nn.functional.pad(tokens, (0, 3)), noise)

    loose = model(
        pad_with_anything(source, source_lengths, 11),
        pad_with_anything(target, target_lengths, 9),
        source_lengths,
        target_lengths,
    )
    loose.loss.backward()
    torch.testing.assert_close(loose.loss, tight.loss)
    for u, loose_row, tight_row in zip(target_lengths, loose.logits, tight.logits, strict=True):
        torch.testing.assert_close(loose_row[:u], tight_row[:u])
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


@each_config
def test_gradients_reach_every_parameter(name):
    model = make(name)
    model(*batch()).loss.backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.abs().max() > 0, parameter_name


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_loss_is_the_mean_over_tokens_that_are_no_padding(label_smoothing):
    model = make("lstm_bidirectional")
    output = model(*batch(), label_smoothing=label_smoothing)
    _, target, _, target_lengths = batch()
    terms = []
    for row, length in enumerate(target_lengths.tolist()):
        for t in range(length):
            log_probabilities = output.logits[row, t].log_softmax(-1)
            right = -log_probabilities[target[row, t]]
            terms.append((1 - label_smoothing) * right - label_smoothing * log_probabilities.mean())
    torch.testing.assert_close(output.loss, torch.stack(terms).mean())


ATTENDING = [name for name, fields in CONFIGS.items() if "attention" in fields]


@pytest.mark.parametrize("ratio", [1.0, 0.0])
@pytest.mark.parametrize("name", ATTENDING)
def test_the_coverage_loss_is_what_is_attended_to_again(name, ratio):
    model = make(name)
    source, target, source_lengths, target_lengths = batch()
    options = {"teacher_forcing_ratio": ratio}
    plain = model(*batch(), **options)
    covered = model(*batch(), coverage_loss=0.7, **options)
    torch.testing.assert_close(covered.logits, plain.logits)
    terms = []
    with torch.no_grad():
        for row, length in enumerate(target_lengths.tolist()):
            state = model.start(source[row : row + 1, : source_lengths[row]])
            before, token = torch.zeros(()), torch.tensor([BOS])
            for t in range(length):
                logits, state = model.decoder.step(token, state)
                alignments = state.alignments[0]
                terms.append(torch.minimum(alignments, before.to(alignments)).sum())
                before = before + alignments
                token = target[row, t : t + 1] if ratio else logits.argmax(-1)
    expected = plain.loss + 0.7 * torch.stack(terms).mean()
    torch.testing.assert_close(covered.loss, expected.to(covered.loss))
    (gradient,) = torch.autograd.grad(covered.loss - plain.loss, [model.encoder.embedding.weight])
    assert gradient.abs().max() > 1e-9


def test_there_is_no_coverage_loss_without_attention():
    with pytest.raises(ValueError, match=r"coverage_loss must be 0 without attention, got 0\.5"):
        make("gru")(*batch(), coverage_loss=0.5)


def test_rows_of_length_zero():
    model = make("gru")
    source, target, *_ = batch()
    output = model(source, target, torch.tensor([0, 5, 1, 0]), torch.tensor([3, 0, 4, 1]))
    assert torch.isfinite(output.loss)
    encoded = model.encoder(source, torch.zeros(4, dtype=torch.int64))
    assert (encoded.context == 0).all()


def test_dropout_acts_in_training_alone():
    model = make("gru_two_layers", dropout=0.5)
    model.train()
    assert model(*batch()).loss != model(*batch()).loss
    model.eval()
    assert model(*batch()).loss == model(*batch()).loss


@pytest.mark.parametrize("encoder_layers", [1, 3])
@pytest.mark.parametrize("decoder_layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_the_bridge_fits_any_two_stacks(cell, bidirectional, decoder_layers, encoder_layers):
    config = Seq2SeqConfig(
        **SMALL,
        cell=cell,
        bidirectional=bidirectional,
        encoder_num_layers=encoder_layers,
        decoder_num_layers=decoder_layers,
    )
    source, *_ = batch()
    state = Bridge(config)(Encoder(config)(source))
    assert state.h.shape == (decoder_layers, 4, 8)
    assert (state.c is None) == (cell == "gru")
    if state.c is not None:
        assert state.c.shape == state.h.shape


def test_copying_hands_the_state_over_untouched():
    model = make("lstm_copy")
    source, *_ = batch()
    encoded = model.encoder(source)
    state = model.bridge(encoded)
    assert state.h is encoded.h
    assert state.c is encoded.c
    assert not list(model.bridge.parameters())


def test_state_selects_rows_in_any_order():
    state = DecoderState(torch.randn(2, 3, 4), torch.randn(2, 3, 4), torch.randn(3, 5))
    rows = torch.tensor([2, 0, 2])
    chosen = state.select(rows)
    assert torch.equal(chosen.h, state.h[:, rows])
    assert torch.equal(chosen.c, state.c[:, rows])
    assert torch.equal(chosen.context, state.context[rows])


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(st.integers(1, 9), max_size=6), min_size=1, max_size=5))
def test_reversing_turns_each_row_around_within_its_length(rows):
    time = max(map(len, rows))
    tokens = torch.tensor([row + [0] * (time - len(row)) for row in rows], dtype=torch.int64)
    tokens = tokens.reshape(len(rows), time)
    lengths = torch.tensor([len(row) for row in rows])
    expected = [row[::-1] + [0] * (time - len(row)) for row in rows]
    assert reverse_rows(tokens, lengths).tolist() == expected


def test_encoder_and_decoder_serve_alone():
    config = Seq2SeqConfig(**SMALL)
    source, target, *_ = batch()
    encoded = Encoder(config)(source)
    assert encoded.outputs.shape == (4, 5, 7)
    assert encoded.h.shape == (1, 4, 7)
    logits, state = Decoder(config)(target, Bridge(config)(encoded))
    assert logits.shape == (4, 4, 9)
    assert state.h.shape == (1, 4, 8)


# The config


@each_config
def test_config_round_trip_through_json(name):
    config = Seq2SeqConfig(**(SMALL | CONFIGS[name]))
    assert Seq2SeqConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_config_names_every_field_in_its_docstring():
    for field in dataclasses.fields(Seq2SeqConfig):
        assert f"        {field.name}:" in Seq2SeqConfig.__doc__, field.name


def test_cho2014_is_the_papers_model():
    config = Seq2SeqConfig.cho2014(30, 40)
    assert (config.encoder_hidden_size, config.target_embedding_size) == (1000, 100)
    assert (config.output, config.maxout_size, config.output_rank) == ("maxout", 500, 100)
    assert not config.reset_after
    assert config.context_every_step
    assert Seq2SeqConfig.cho2014(30, 40, maxout_size=50).maxout_size == 50


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"cell": "transformer"}, ValueError, "cell must be one of .*'gru'.*, got 'transformer'"),
        ({"encoder_hidden_size": 0}, ValueError, "encoder_hidden_size must be at least 1, got 0"),
        ({"decoder_num_layers": 1.0}, TypeError, "decoder_num_layers must be an int, got 1.0"),
        ({"bidirectional": 1}, TypeError, "bidirectional must be a bool, got 1"),
        ({"dropout": 1.0}, ValueError, r"dropout must be in \[0, 1\), got 1.0"),
        ({"dropout": "0"}, TypeError, "dropout must be a number, got '0'"),
        ({"bridge": "copy"}, ValueError, r"bridge='copy' needs .* \(1, 7\) .* \(1, 8\)"),
        ({"maxout_size": 5}, ValueError, "maxout_size=5 needs output='maxout'"),
        (
            {"bidirectional_layers": 1},
            ValueError,
            "bidirectional_layers=1 needs bidirectional=True",
        ),
        (
            {"bidirectional": True, "bidirectional_layers": 2},
            ValueError,
            "bidirectional_layers must be at most encoder_num_layers=1, got 2",
        ),
        (
            {"bridge": "zeros", "bridge_nonlinearity": "relu"},
            ValueError,
            "bridge_nonlinearity='relu' needs bridge='dense' or 'context', got 'zeros'",
        ),
        ({"residual": -1}, ValueError, "residual must be at least 0, got -1"),
        ({"residual": True}, TypeError, "residual must be an int, got True"),
        ({"tie_embeddings": "both"}, ValueError, "tie_embeddings must be one of .*'all'"),
        (
            {"tie_embeddings": "decoder"},
            ValueError,
            "tie_embeddings='decoder' needs target_embedding_size=8, .* got 6; output_rank",
        ),
        (
            {"tie_embeddings": "all", "output_rank": 6},
            ValueError,
            r"tie_embeddings='all' needs one vocabulary .* got \(11, 5\) and \(9, 6\)",
        ),
        ({"eos_token_id": 9}, ValueError, r"eos_token_id must be in \[0, 9\).*, got 9"),
        ({"eos_token_id": 2}, ValueError, r"must differ, got \[0, 1, 2, 2\]"),
    ],
)
def test_config_refuses_what_makes_no_model(changes, error, message):
    with pytest.raises(error, match=message):
        Seq2SeqConfig(**(SMALL | changes))


def test_config_from_dict_names_unknown_and_missing_fields():
    with pytest.raises(ValueError, match=r"unknown Seq2SeqConfig fields \['hidden'\]"):
        Seq2SeqConfig.from_dict(SMALL | {"hidden": 3})
    with pytest.raises(ValueError, match=r"\['target_vocab_size'\] are missing"):
        Seq2SeqConfig.from_dict({"source_vocab_size": 9})


# Wrong calls

FOUR = torch.full((4,), 2)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"source": torch.zeros(4, dtype=torch.int64)}, ValueError, "source must be 2-D"),
        ({"source": torch.zeros(4, 3)}, TypeError, "source must be int64, got torch.float32"),
        ({"source": torch.full((4, 3), 11)}, ValueError, r"source must hold ids in \[0, 11\)"),
        ({"target": torch.full((4, 3), -1)}, ValueError, r"target must hold .*, got -1"),
        ({"target": torch.zeros(3, 3, dtype=torch.int64)}, ValueError, "batch size 4, got 3"),
        ({"source_lengths": FOUR + 4}, ValueError, r"source_lengths must be in \[0, 5\], got 6"),
        ({"source_lengths": FOUR[:3]}, ValueError, r"must have shape \(4,\), got \(3,\)"),
        ({"target_lengths": -FOUR}, ValueError, r"target_lengths must be in \[0, 4\], got -2"),
        ({"target_lengths": FOUR * 0.5}, TypeError, "target_lengths must hold integers"),
        ({"teacher_forcing_ratio": 1.5}, ValueError, r"teacher_forcing_ratio .*, got 1.5"),
    ],
)
def test_wrong_calls_name_the_argument(arguments, error, message):
    source, target, *_ = batch()
    with pytest.raises(error, match=message):
        make("gru")(**({"source": source, "target": target} | arguments))


@pytest.mark.parametrize(
    "preset", ["cho2014", "sutskever2014", "bahdanau2015", "luong2015", "gnmt"]
)
def test_presets_are_models_whose_fields_can_be_changed(preset):
    make_config = getattr(Seq2SeqConfig, preset)
    assert make_config(30, 40).decoder_hidden_size == (1024 if preset == "gnmt" else 1000)
    small = make_config(
        11,
        9,
        encoder_hidden_size=8,
        decoder_hidden_size=8,
        encoder_num_layers=2,
        decoder_num_layers=2,
        dropout=0.3,
    )
    assert Seq2SeqConfig.from_dict(small.to_dict()) == small
    model = Seq2Seq(small)
    model(*batch()).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert len(model.eval().generate(batch()[0], max_new_tokens=3, num_beams=2)) == 4


PAGE = Path(__file__).parent.parent / "docs" / "attention.md"


@pytest.mark.skipif(not PAGE.exists(), reason="the docs are not beside the tests")
def test_the_examples_of_the_page_on_attention_run():
    (example,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    exec(example, {})


def test_hypotheses_share_the_memory_of_their_source():
    model = make("general_feeding")
    state = model.start(batch()[0], batch()[2])
    rows = torch.tensor([2, 0, 0, 1])
    chosen = state.select(rows).select(torch.tensor([3, 1]))
    assert chosen.memory.keys is state.memory.keys
    assert chosen.memory.rows.tolist() == [1, 0]
    tokens = torch.tensor([BOS, BOS])
    alone = model.start(batch()[0][[1, 0]], batch()[2][[1, 0]])
    torch.testing.assert_close(model.step(tokens, chosen)[0], model.step(tokens, alone)[0])


@pytest.mark.parametrize(
    "name",
    [
        "dot",
        "coverage",
        "bahdanau2015",
        "tied",
        "residual_feeding",
        "bidirectional_below",
        "first_layer_gru",
        "gnmt",
        "local_p_feeding",
        "local_p_previous",
        "linear_attentional",
        "copy",
        "copy_feeding",
    ],
)
def test_beams_of_attending_models_score_what_the_model_says(name):
    model = make(name).eval()
    source, _, lengths, _ = batch()
    found = model.generate(
        source,
        lengths,
        max_new_tokens=5,
        num_beams=3,
        num_return_sequences=2,
        length_penalty=0.0,
        return_dict_in_generate=True,
        output_scores=True,
        return_attention=True,
    )
    rows = torch.arange(4).repeat_interleave(2)
    logits = model(source[rows], found.sequences, lengths[rows], found.lengths).logits
    chosen = logits.log_softmax(-1).gather(2, found.sequences[..., None])[..., 0]
    inside = torch.arange(found.sequences.size(1)) < found.lengths[:, None]
    sums = (chosen * inside).sum(1)
    torch.testing.assert_close(found.sequences_scores.double(), sums, rtol=1e-4, atol=1e-4)
    there = found.alignments.sum(2)[inside]
    if name.startswith("local_p"):
        assert ((there > 0) & (there <= 1)).all()
        return
    torch.testing.assert_close(there, torch.ones_like(there))


WRONG_ATTENTION = {
    "copy=True needs attention whose alignments sum up to 1, got attention='none'": {"copy": True},
    "copy=True needs attention whose alignments sum up to 1, got attention='local_p'": {
        "copy": True,
        "attention": "local_p",
    },
    "copy=True needs one vocabulary for source and target, got sizes 11 and 9": {
        "copy": True,
        "attention": "general",
    },
    "attentional_nonlinearity='none' needs attention, output='linear'": {
        "attention": "general",
        "output": "maxout",
        "attentional_nonlinearity": "none",
    },
    "attention_window must be at least 1, got 0": {"attention_window": 0},
    "attention_query='first_layer' needs attention, got": {
        "attention_query": "first_layer",
        "decoder_num_layers": 2,
    },
    "attention_query='first_layer' needs decoder_num_layers of at least 2, got 1": {
        "attention": "general",
        "attention_query": "first_layer",
    },
    "residual=1 needs attention_query='current' or 'first_layer' in a decoder of 2": {
        "attention": "general",
        "attention_query": "previous",
        "decoder_num_layers": 2,
        "residual": 1,
    },
    "attention must be one of": {"attention": "soft"},
    "attention_query must be one of": {"attention_query": "next"},
    "attention_query='previous' needs attention": {"attention_query": "previous"},
    "input_feeding=True needs attention with": {"input_feeding": True},
    "coverage=True needs additive energies": {"attention": "general", "coverage": True},
    "attention_heads=2 needs attention='multi_head'": {
        "attention": "general",
        "attention_heads": 2,
    },
    "attention_size=4 needs additive or multi_head": {"attention": "dot", "attention_size": 4},
    "attention='dot' needs encoder outputs of the decoder's size 8, got 7": {"attention": "dot"},
    "attention_heads must divide the attention's size 8, got 3": {
        "attention": "multi_head",
        "attention_heads": 3,
    },
}


@pytest.mark.parametrize("message", WRONG_ATTENTION)
def test_contradictions_of_attention_are_named(message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Seq2SeqConfig(**(SMALL | WRONG_ATTENTION[message]))
