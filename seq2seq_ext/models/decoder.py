"""The decoder: from a state and the previous token to scores of the next one.

``h_t = f(h_{t-1}, e(y_{t-1})[, c])`` and ``p(y_t) = softmax(g(h_t[, y_{t-1}, c]))`` (Cho et al.
2014, arXiv 1406.1078, equations 2 and 5; the bracketed parts by choice). With the right tokens
known beforehand, as in teacher forcing, all steps run in one fused call; so they do where steps
attend to the source and what attention gives is part of the next step's input.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from seq2seq_ext.models.attention import Attention
from seq2seq_ext.models.config import Seq2SeqConfig
from seq2seq_ext.models.context_fed import ContextFedStack
from seq2seq_ext.models.copying import PointerGenerator
from seq2seq_ext.models.layers import RecurrentStack, one_draw
from seq2seq_ext.models.state import DecoderState, Memory, check_tokens, resolve_lengths
from seq2seq_ext.models.stepwise import AttendedSteps, attend_step_by_step


class Maxout(nn.Module):
    """``max(s_{2i}, s_{2i+1})`` of ``s = O_h h_t + O_y e(y_{t-1}) + O_c c``.

    The output layer of Cho et al. 2014 (arXiv 1406.1078, appendix A.1.2).
    """

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        size = 2 * config.resolved_maxout_size
        self.from_state = nn.Linear(config.decoder_hidden_size, size)
        self.from_token = nn.Linear(config.target_embedding_size, size, bias=False)
        context = config.resolved_context_size
        if config.attention != "none":
            context = config.attended_size
        self.from_context = nn.Linear(context, size, bias=False)

    def forward(self, h: Tensor, embedded: Tensor, context: Tensor) -> Tensor:
        """(T, B, hidden), (T, B, embedding), ([T, ]B, context) -> (T, B, units)."""
        s: Tensor = self.from_state(h) + self.from_token(embedded) + self.from_context(context)
        return s.view(*s.shape[:-1], -1, 2).amax(-1)


class Decoder(nn.Module):
    """Embedding, recurrent stack and output layer.

    Args:
        config: reads the ``target_*``, ``decoder_*``, output and shared fields.

    Example:
        >>> config = Seq2SeqConfig(source_vocab_size=9, target_vocab_size=9)
        >>> state = DecoderState(torch.zeros(1, 2, 256), None, torch.zeros(2, 256))
        >>> logits, state = Decoder(config)(torch.tensor([[2, 4, 5], [2, 6, 0]]), state)
        >>> logits.shape
        torch.Size([2, 3, 9])
    """

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(
            config.target_vocab_size,
            config.target_embedding_size,
            padding_idx=config.pad_token_id,
        )
        self.dropout = nn.Dropout(config.dropout)
        context_size = config.resolved_context_size if config.context_every_step else 0
        first = config.attention_query == "first_layer"
        self.stack = RecurrentStack(
            config,
            input_size=config.target_embedding_size + context_size + config.feed_size,
            hidden_size=config.decoder_hidden_size,
            num_layers=1 if first else config.decoder_num_layers,
            residual=config.residual,
        )
        self.upper = ContextFedStack(config) if first else None
        self.attention = Attention(config) if config.attention != "none" else None
        self.combine: nn.Linear | None = None
        if config.has_attentional_vector:
            seen = config.attended_size + config.decoder_hidden_size
            self.combine = nn.Linear(seen, config.decoder_hidden_size)
        self.pointer = PointerGenerator(config) if config.copy else None
        self.maxout = Maxout(config) if config.output == "maxout" else None
        features = config.output_features
        last = nn.Linear(config.output_rank or features, config.target_vocab_size)
        self.output: nn.Module = last
        if config.output_rank is not None:
            self.output = nn.Sequential(nn.Linear(features, config.output_rank, bias=False), last)
        if config.tie_embeddings != "none":
            # Rows of unit variance would make logits as large as the features are many.
            nn.init.normal_(self.embedding.weight, std=config.target_embedding_size**-0.5)
            with torch.no_grad():
                self.embedding.weight[config.pad_token_id].zero_()
            last.weight = self.embedding.weight

    def forward(
        self,
        tokens: Tensor,
        state: DecoderState,
        lengths: Tensor | None = None,
        *,
        keep_alignments: bool = False,
    ) -> tuple[Tensor, DecoderState]:
        """Score every next token, the previous ones being given.

        Args:
            tokens: int64 ``(B, U)``, the previous tokens: ``<s>``, then the target but its last.
            state: the state before the first token.
            lengths: int64 ``(B,)``, how many steps of each row count; None runs all.
            keep_alignments: whether the state that comes back has those of all steps, ``(U, B,
                S)``, and not of the last one alone.

        Returns:
            Logits ``(B, U, target_vocab_size)`` (a transposed view of time-major memory; without
            meaning past a row's end) and the state after each row's last step. A decoder that
            copies gives log-probabilities, ``(B, U, extended_size)`` as the state's memory says.

        Raises:
            TypeError, ValueError: if an argument has another dtype, rank, size or range.
        """
        size = self.config.target_vocab_size
        if self.config.copy and state.memory is not None:
            size = state.memory.extended_size
        check_tokens("tokens", tokens, size)
        if lengths is not None:
            lengths = resolve_lengths("lengths", lengths, tokens, self.config.pad_token_id)
        logits, state, alignments = self._run(tokens.t(), state, lengths)
        if keep_alignments:
            state = state._replace(alignments=alignments)
        return logits.transpose(0, 1), state

    def step(self, tokens: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """One step for every row: int64 ``(B,)`` -> logits ``(B, target_vocab_size)``.

        The tokens are taken as they are: they come from a search over this decoder's own scores.
        """
        logits, state, _ = self._run(tokens[None], state, None)
        return logits[0], state

    def _run(
        self, tokens: Tensor, state: DecoderState, lengths: Tensor | None
    ) -> tuple[Tensor, DecoderState, Tensor | None]:
        """Tokens (U, B) -> logits (U, B, V), and alignments (U, B, S), the heads' mean."""
        if self.pointer is not None:  # a copied token may have no row in the embedding
            unknown = tokens >= self.config.target_vocab_size
            tokens = tokens.masked_fill(unknown, self.config.unk_token_id)
        embedded = self.dropout(self.embedding(tokens))
        x = embedded
        if self.config.context_every_step:
            # [W_y W_c] [e; c] = W_y e + W_c c: one matrix holds both maps.
            context = state.context.expand(tokens.size(0), -1, -1)
            x = torch.cat((embedded, context), dim=-1)
        if self.attention is None:
            features, (h, c) = self.stack(x, (state.h, state.c), lengths)
            return self._scores(features, embedded, state.context), state._replace(h=h, c=c), None
        if state.memory is None:
            raise ValueError("state must hold a memory for attention, got None")
        steps = self._attend(self.attention, x, state, state.memory, lengths)
        logits = self._scores(steps.features, embedded, steps.context)
        if self.pointer is not None:
            logits = self.pointer(
                logits, steps.context, steps.z, embedded, steps.alignments, state.memory
            )
        return logits, steps.state, steps.alignments.mean(2)

    def _scores(self, features: Tensor, embedded: Tensor, context: Tensor) -> Tensor:
        """Logits (U, B, V)."""
        if self.maxout is not None:
            features = self.maxout(features, embedded, context)
        logits: Tensor = self.output(self.dropout(features))
        return logits

    def _attend(
        self,
        attention: Attention,
        x: Tensor,
        state: DecoderState,
        memory: Memory,
        lengths: Tensor | None,
    ) -> AttendedSteps:
        """All steps of a decoder that attends, in the fastest way that its config allows."""
        if self.upper is not None:
            return self._attend_from_first_layer(attention, self.upper, x, state, memory, lengths)
        if not self.config.feeds_back:
            z, (h, c) = self.stack(x, (state.h, state.c), lengths)
            context, alignments = attention(z, memory)
            state = state._replace(h=h, c=c, alignments=alignments[-1].mean(1))
            return AttendedSteps(self._combined(z, context), z, context, alignments, state)
        last = self.config.attention_query == "current"
        if not self.config.steps_are_fused:
            with one_draw(self.stack, x.size(1)):
                return attend_step_by_step(
                    self.stack,
                    attention,
                    self._combined,
                    x,
                    state,
                    memory,
                    query_first=not last,
                    combined_feeds=self.combine is not None,
                    lengths=lengths,
                )
        out = self.combine if last else None
        result = self.stack.attend(
            x,
            memory,
            h_0=state.h,
            c_0=state.c,
            feed_0=state.feed if last else None,
            coverage_0=state.coverage,
            w_out=None if out is None else out.weight,
            b_out=None if out is None else out.bias,
            query_first=not last,
            lengths=lengths,
            **attention.energies(),
        )
        features = result.attentional
        if features is None:
            features = self._combined(result.z, result.context)
        state = state._replace(
            h=result.h_n,
            c=result.c_n,
            feed=result.feed_n,
            coverage=result.coverage_n,
            alignments=result.alignments[-1].mean(1),
        )
        return AttendedSteps(features, result.z, result.context, result.alignments, state)

    def _attend_from_first_layer(
        self,
        attention: Attention,
        upper: ContextFedStack,
        x: Tensor,
        state: DecoderState,
        memory: Memory,
        lengths: Tensor | None,
    ) -> AttendedSteps:
        """Layer by layer, each over all steps: no step waits for what attention gave another."""
        h, c = state.h, state.c
        z, (h_n, c_n) = self.stack(x, (h[:1], None if c is None else c[:1]), lengths)
        context, alignments = attention(z, memory)
        above = (h[1:], None if c is None else c[1:])
        z, (h_above, c_above) = upper(z, context, above, lengths)
        h = torch.cat((h_n, h_above))
        c = None if c_n is None or c_above is None else torch.cat((c_n, c_above))
        state = state._replace(h=h, c=c, alignments=alignments[-1].mean(1))
        return AttendedSteps(z, z, context, alignments, state)

    def _combined(self, z: Tensor, context: Tensor) -> Tensor:
        """The attentional vectors, or z where the output reads both."""
        if self.combine is None:
            return z
        combined: Tensor = self.combine(torch.cat((context, z), dim=-1))
        return torch.tanh(combined) if self.config.attentional_nonlinearity == "tanh" else combined
