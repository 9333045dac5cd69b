"""Greedy and beam search in plain torch, over `nn.GRUCell` or `nn.LSTMCell`, batched.

What a careful user of torch writes, by the same rules as `seq2seq_ext.generation`, so that both
write the same: all beams of all sources are one batch; the encoder's memory is kept once a source
and its keys are mapped once; beams that end leave for the finished ones; sources that are done
leave the batch. Weights are those of the model it is made of, the very same tensors in all but the
recurrent layers, whose values are copied.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from seq2seq_ext.models import Seq2Seq
from seq2seq_ext.models.encoder import EncoderOutput

_LAYERS = {"gru": nn.GRU, "lstm": nn.LSTM}
_CELLS = {"gru": nn.GRUCell, "lstm": nn.LSTMCell}


class Written(NamedTuple):
    """What a search found.

    Args:
        sequences: int64 (B, U), the best of each source, ``<pad>`` behind its end.
        scores: (B,), its log-probability divided by its length.
    """

    sequences: Tensor
    scores: Tensor


class _State(NamedTuple):
    """What goes from step to step: rows (n, w, ...) of n sources and w beams."""

    h: Tensor
    c: Tensor | None
    feed: Tensor | None

    def take(self, sources: Tensor, beams: Tensor) -> _State:
        """Of sources (m,) the beams (m, w)."""
        at = (sources[:, None], beams)
        return _State(
            self.h[at],
            None if self.c is None else self.c[at],
            None if self.feed is None else self.feed[at],
        )


class _Memory(NamedTuple):
    """A source in each row: keys (n, S, A), values (n, S, C), where there is none (n, 1, S)."""

    keys: Tensor
    values: Tensor
    behind: Tensor

    def take(self, sources: Tensor) -> _Memory:
        return _Memory(self.keys[sources], self.values[sources], self.behind[sources])


class TorchDecoder(nn.Module):
    """A model of `seq2seq_ext` computed by `torch.nn`.

    Args:
        model: a GRU (``reset_after``) or LSTM, one decoder layer, linear output, attention none,
            dot, general or additive without coverage.

    Raises:
        ValueError: if the model is another.
    """

    def __init__(self, model: Seq2Seq) -> None:
        super().__init__()
        config = model.config
        lacks = {
            "cell": config.cell in _CELLS and config.reset_after,
            "decoder_num_layers": config.decoder_num_layers == 1,
            "attention": config.attention in ("none", "dot", "general", "additive"),
            "coverage": not config.coverage,
            "output": config.output == "linear",
            "context_every_step": not config.context_every_step,
            "reverse_source": not config.reverse_source,
        }
        for name, fits in lacks.items():
            if not fits:
                raise ValueError(f"the search in plain torch has no {name}={getattr(config, name)}")
        self.config = config
        self.model = model.eval()
        ours = model.encoder.stack.rnn
        self.encoder = _LAYERS[config.cell](
            ours.input_size, ours.hidden_size, ours.num_layers, bidirectional=ours.bidirectional
        )
        self.encoder.load_state_dict(ours.state_dict())
        layer = model.decoder.stack.rnn
        self.cell = _CELLS[config.cell](layer.input_size, layer.hidden_size)
        self.cell.load_state_dict(
            {name.removesuffix("_l0"): weight for name, weight in layer.state_dict().items()}
        )
        self.requires_grad_(False)

    def start(self, source: Tensor, lengths: Tensor) -> tuple[_State, _Memory | None]:
        """Read the sources: int64 (B, T) and (B,), of at least one token each."""
        config, model = self.config, self.model
        embedded = model.encoder.embedding(source)
        packed = pack_padded_sequence(embedded, lengths, batch_first=True, enforce_sorted=False)
        y, hidden = self.encoder(packed)
        outputs, _ = pad_packed_sequence(y, batch_first=True, total_length=source.size(1))
        h, c = hidden if config.cell == "lstm" else (hidden, None)
        h, c = _joined(h, config.bidirectional), _joined(c, config.bidirectional)
        assert h is not None
        context = h[-1]
        if model.encoder.context is not None:
            context = torch.tanh(model.encoder.context(context))
        first = model.bridge(EncoderOutput(outputs, h, c, context, lengths))
        feed = None
        if config.input_feeding:
            feed = outputs.new_zeros(len(source), 1, config.feed_size)
        cell_state = None if first.c is None else first.c[0][:, None]
        state = _State(first.h[0][:, None], cell_state, feed)
        attention = model.decoder.attention
        if attention is None:
            return state, None
        keys = outputs if attention.key is None else attention.key(outputs)
        behind = torch.arange(source.size(1)) >= lengths[:, None]
        return state, _Memory(keys, outputs, behind[:, None])

    def step(self, tokens: Tensor, state: _State, memory: _Memory | None) -> tuple[Tensor, _State]:
        """int64 (n, w) -> log-probabilities (n, w, V)."""
        decoder, config = self.model.decoder, self.config
        n, w = tokens.shape
        x = decoder.embedding(tokens)
        context: Tensor | None = None
        if memory is not None and config.attention_query == "previous":
            context = self.attend(state.h, memory)
            x = torch.cat((x, context), -1)
        elif state.feed is not None:
            x = torch.cat((x, state.feed), -1)
        h, c = state.h.reshape(n * w, -1), state.c
        if c is None:
            h = self.cell(x.flatten(0, 1), h)
        else:
            h, c = self.cell(x.flatten(0, 1), (h, c.reshape(n * w, -1)))
            c = c.view(n, w, -1)
        h = h.view(n, w, -1)
        features = h
        if memory is not None:
            if context is None:
                context = self.attend(h, memory)
            assert decoder.combine is not None
            features = torch.tanh(decoder.combine(torch.cat((context, h), -1)))
        scores = torch.log_softmax(decoder.output(features), -1)
        scores[..., [config.pad_token_id, config.bos_token_id]] = -torch.inf  # never written
        return scores, _State(h, c, None if state.feed is None else features)

    def attend(self, z: Tensor, memory: _Memory) -> Tensor:
        """Contexts (n, w, C) of queries (n, w, H)."""
        attention = self.model.decoder.attention
        assert attention is not None
        if attention.v is None:
            energies = torch.bmm(z, memory.keys.transpose(1, 2))
        else:
            assert attention.query is not None
            query = attention.query(z)
            energies = torch.tanh(query[:, :, None] + memory.keys[:, None]) @ attention.v
        weights = energies.masked_fill(memory.behind, -torch.inf).softmax(-1)
        return torch.bmm(weights, memory.values)

    @torch.inference_mode()
    def search(self, source: Tensor, lengths: Tensor, beams: int, max_new_tokens: int) -> Written:
        """Greedy with one beam, else beam search with the length penalty 1.

        Args:
            source: int64 (B, T).
            lengths: int64 (B,).
            beams: of each source.
            max_new_tokens: of each row, the end counted.
        """
        state, memory = self.start(source, lengths)
        if beams == 1:
            return self._greedy(state, memory, max_new_tokens)
        return self._beam(state, memory, beams, max_new_tokens)

    def _greedy(self, state: _State, memory: _Memory | None, limit: int) -> Written:
        B, end = len(state.h), self.config.eos_token_id
        sequences = torch.full((B, limit), self.config.pad_token_id)
        sums, counts = torch.zeros(B), torch.zeros(B)
        rows = torch.arange(B)
        tokens = torch.full((B, 1), self.config.bos_token_id)
        for t in range(limit):
            scores, state = self.step(tokens, state, memory)
            best, tokens = scores[:, 0].max(-1, keepdim=True)
            sequences[rows, t] = tokens[:, 0]
            sums[rows] += best[:, 0]
            counts[rows] += 1
            left = (tokens[:, 0] != end).nonzero()[:, 0]
            if len(left) < len(rows):
                if not len(left):
                    break
                rows, tokens = rows[left], tokens[left]
                state = state.take(left, torch.zeros(len(left), 1, dtype=torch.int64))
                memory = None if memory is None else memory.take(left)
        return Written(sequences, sums)

    def _beam(self, state: _State, memory: _Memory | None, k: int, limit: int) -> Written:
        B, end = len(state.h), self.config.eos_token_id
        best = torch.full((B, limit), self.config.pad_token_id)
        best_scores = torch.full((B,), -torch.inf)
        sources = torch.arange(B)
        tokens = torch.full((B, 1), self.config.bos_token_id)
        totals = torch.zeros(B, 1)
        history = torch.empty(B, 1, 0, dtype=torch.int64)
        done_scores = torch.full((B, k), -torch.inf)
        done = torch.full((B, k, limit), self.config.pad_token_id)
        for t in range(limit):
            scores, state = self.step(tokens, state, memory)
            n, w, V = scores.shape
            flat = (totals[..., None] + scores).flatten(1)
            found, index = flat.topk(min(2 * k, w * V))
            beams, following = index // V, index % V
            ends = following == end
            # Of the k best those that end are finished.
            candidates = (found / (t + 1)).masked_fill(~ends, -torch.inf)[:, :k]
            written = torch.cat(
                (history.take_along_dim(beams[..., None], 1), following[..., None]), 2
            )
            padded = nn.functional.pad(
                written[:, :k], (0, limit - t - 1), value=self.config.pad_token_id
            )
            done_scores, done = _merged(done_scores, done, candidates, padded, k)
            # The k best of the others go on.
            order = ends.long().argsort(dim=1, stable=True)[:, :k]
            totals = found.masked_fill(ends, -torch.inf).gather(1, order)
            beams, tokens = beams.gather(1, order), following.gather(1, order)
            history = written.take_along_dim(order[..., None], 1)
            if t + 1 == limit:
                done_scores, done = _merged(done_scores, done, totals / limit, history, k)
                stays = torch.zeros(n, dtype=torch.bool)
            else:
                worst, attainable = done_scores[:, -1], totals.amax(1) / (t + 1)
                stays = (worst == -torch.inf) | (worst < attainable)
            if not bool(stays.all()):
                gone, left = (~stays).nonzero()[:, 0], stays.nonzero()[:, 0]
                best[sources[gone]], best_scores[sources[gone]] = (
                    done[gone, 0],
                    done_scores[gone, 0],
                )
                if not len(left):
                    break
                sources, totals, tokens = sources[left], totals[left], tokens[left]
                history, done_scores, done = history[left], done_scores[left], done[left]
                memory = None if memory is None else memory.take(left)
                state = state.take(left, beams[left])
            else:
                state = state.take(torch.arange(n), beams)
        return Written(best, best_scores)


def _merged(
    scores: Tensor, sequences: Tensor, more_scores: Tensor, more: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """The k best of both, best first."""
    found, order = torch.cat((scores, more_scores), 1).sort(dim=1, descending=True, stable=True)
    joined = torch.cat((sequences, more), 1)
    return found[:, :k], joined.take_along_dim(order[:, :k, None], 1)


def _joined(state: Tensor | None, bidirectional: bool) -> Tensor | None:
    """(layers * directions, B, H) -> (layers, B, directions * H)."""
    if state is None or not bidirectional:
        return state
    return torch.cat((state[0::2], state[1::2]), -1)
