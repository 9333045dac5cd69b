"""The encoder: tokens in, one context vector and the stack's final states out.

The encoder reads ``x_1 .. x_n`` into a state of fixed size, ``h_t = f(h_{t-1}, e(x_t))``; what it
knows of the whole sequence after the last token is the context vector ``c`` (Cho et al. 2014,
arXiv 1406.1078, equations 1 and 3).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from seq2seq_ext.models import encoding
from seq2seq_ext.models.config import Seq2SeqConfig
from seq2seq_ext.models.layers import RecurrentStack
from seq2seq_ext.models.state import check_tokens, resolve_lengths, reverse_rows, with_eos


class EncoderOutput(NamedTuple):
    """What an encoder made of a batch.

    Args:
        outputs: the last layer's states, ``(B, T, directions * hidden_size)``, in the order of
            reading (``reverse_source`` turns it around), zero past a row's end.
        h: final hidden states, ``(num_layers, B, directions * hidden_size)``; with layers above the
            bidirectional ones theirs alone.
        c: final cell states of an LSTM, shaped like ``h``, None for the other cells.
        context: the context vectors, ``(B, context_size)``.
        lengths: int64 ``(B,)``, with ``source_eos`` one more than there are tokens.
    """

    outputs: Tensor
    h: Tensor
    c: Tensor | None
    context: Tensor
    lengths: Tensor


class Encoder(nn.Module):
    """Embedding and recurrent stack; the final state is the context vector.

    Args:
        config: reads the ``source_*``, ``encoder_*`` and shared fields.

    Example:
        >>> encoder = Encoder(Seq2SeqConfig(source_vocab_size=9, target_vocab_size=9))
        >>> encoder(torch.tensor([[4, 5, 6], [7, 8, 0]])).context.shape
        torch.Size([2, 256])
    """

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(
            config.source_vocab_size,
            config.source_embedding_size,
            padding_idx=config.pad_token_id,
        )
        self.dropout = nn.Dropout(config.dropout)
        lower = config.resolved_bidirectional_layers or config.encoder_num_layers
        self.stack = RecurrentStack(
            config,
            input_size=config.source_embedding_size,
            hidden_size=config.encoder_hidden_size,
            num_layers=lower,
            bidirectional=config.bidirectional,
            residual=config.residual,
            learn_initial_state=config.learn_initial_state,
        )
        self.upper: RecurrentStack | None = None
        if lower < config.encoder_num_layers:
            # Its first layer's input is twice as wide as its output: nothing can be added to it.
            self.upper = RecurrentStack(
                config,
                input_size=2 * config.encoder_hidden_size,
                hidden_size=config.encoder_hidden_size,
                num_layers=config.encoder_num_layers - lower,
                residual=config.residual and max(config.residual - lower, 1),
                learn_initial_state=config.learn_initial_state,
            )
        self.context = (
            None
            if config.context_size is None
            else nn.Linear(config.encoder_state_size, config.context_size, bias=False)
        )

    def forward(self, source: Tensor, source_lengths: Tensor | None = None) -> EncoderOutput:
        """Read a batch of token sequences.

        Args:
            source: int64 ``(B, T)``; what stands past a row's end is not read.
            source_lengths: int64 ``(B,)``, in any order, zero allowed; None takes every row up to
                its last token that is not ``<pad>``.

        Raises:
            TypeError, ValueError: if an argument has another dtype, rank, size or range.
        """
        read = encoding.read(self, source, source_lengths)
        if read is None:
            outputs, h, c, lengths = self._read(source, source_lengths)
        else:
            outputs, h, c, lengths = read
        if not self.stack.has_cell_state:
            c = None
        if self.upper is not None:
            outputs, (h, c) = self.upper(self.dropout(outputs), lengths=lengths)
        else:
            h = self._join_directions(h)
            c = None if c is None else self._join_directions(c)
        context = h[-1] if self.context is None else torch.tanh(self.context(h[-1]))
        return EncoderOutput(outputs.transpose(0, 1), h, c, context, lengths)

    def _read(
        self, source: Tensor, source_lengths: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """What `encoding.read` answers, module by module."""
        config = self.config
        check_tokens("source", source, config.source_vocab_size)
        lengths = resolve_lengths("source_lengths", source_lengths, source, config.pad_token_id)
        if config.source_eos:
            source, lengths = with_eos(source, lengths, config)
        if source.size(1) == 0:
            # Recurrent layers refuse a time axis of size 0; a step that no row takes is the same.
            source = source.new_full((source.size(0), 1), config.pad_token_id)
        if config.reverse_source:
            source = reverse_rows(source, lengths)
        embedded = self.dropout(self.embedding(source.t()))
        outputs, (h, c) = self.stack(embedded, lengths=lengths)
        return outputs, h, c, lengths

    def _join_directions(self, state: Tensor) -> Tensor:
        """(layers * directions, B, H) -> (layers, B, directions * H)."""
        if not self.config.bidirectional:
            return state
        forward, backward = state[0::2], state[1::2]
        return torch.cat((forward, backward), dim=-1)
