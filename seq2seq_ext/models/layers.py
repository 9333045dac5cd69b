"""The recurrent stack of an encoder or decoder, with one form of state for every cell."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from seq2seq_ext.decoder import DecoderResult, attention_decoder
from seq2seq_ext.functional import dropout_mask
from seq2seq_ext.models.config import Seq2SeqConfig
from seq2seq_ext.models.state import Memory
from seq2seq_ext.nn import GRU, LSTM, RNN
from seq2seq_ext.nn.variant_layers import set_forget_bias, stack_of
from seq2seq_ext.variants.stack import biases_of


class RecurrentStack(nn.Module):
    """A time-major stack of `seq2seq_ext.nn` layers whose state is ``(h, c)``; c may be None.

    Only an LSTM has a cell state. Callers that pass it through untouched need not know which cell
    they drive.
    """

    def __init__(
        self,
        config: Seq2SeqConfig,
        *,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bidirectional: bool = False,
        residual: int = 0,
        learn_initial_state: bool = False,
    ) -> None:
        """A stack.

        Args:
            config: reads the cell's fields and ``dropout``.
            input_size: features of the inputs.
            hidden_size: units of each layer and direction.
            num_layers: depth.
            bidirectional: whether it also reads from the end to the start.
            residual: the first layer whose input is added to its output; 0: none.
            learn_initial_state: whether the state that it begins with where none is given is a
                parameter.
        """
        super().__init__()
        self.residual = residual if residual < num_layers else 0
        variants: Any = config.variants
        variants |= {"residual": self.residual} if self.residual else {}
        variants |= {"learn_initial_state": True} if learn_initial_state else {}
        # torch.nn warns about dropout in a single layer, where it has no place to act.
        dropout = float(config.dropout) if num_layers > 1 else 0.0
        self.rnn: LSTM | GRU | RNN
        if config.cell == "lstm":
            self.rnn = LSTM(
                input_size,
                hidden_size,
                num_layers,
                dropout=dropout,
                bidirectional=bidirectional,
                **variants,
            )
        elif config.cell == "gru":
            self.rnn = GRU(
                input_size,
                hidden_size,
                num_layers,
                dropout=dropout,
                bidirectional=bidirectional,
                reset_after=config.reset_after,
                **variants,
            )
        else:
            self.rnn = RNN(
                input_size,
                hidden_size,
                num_layers,
                nonlinearity=config.nonlinearity,
                dropout=dropout,
                bidirectional=bidirectional,
                **variants,
            )
        self.has_cell_state = config.cell == "lstm"
        if config.forget_bias is not None:  # as an argument it would make a variant of the layers
            set_forget_bias(self.rnn, config.forget_bias)

    def forward(
        self,
        x: Tensor,
        state: tuple[Tensor, Tensor | None] | None = None,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor | None]]:
        """Run the stack over ``x`` of shape ``(T, B, input_size)``.

        Args:
            x: the inputs.
            state: initial ``(h, c)``, each ``(num_layers * directions, B, hidden_size)``; zeros
                where None.
            lengths: int64 ``(B,)``; None where every row is full.

        Returns:
            Outputs ``(T, B, directions * hidden_size)``, zero past a row's end, and the state
            after each row's last step.
        """
        if not self.has_cell_state:
            y, h = self.rnn(x, None if state is None else state[0], lengths=lengths)
            return y, (h, None)
        y, (h, c) = self.rnn(x, state, lengths=lengths)
        return y, (h, c)

    def attend(
        self, x: Tensor, memory: Memory, *, lengths: Tensor | None = None, **attention: Any
    ) -> DecoderResult:
        """Run the stack where its first layer also reads what attention gives each step.

        Args:
            x: (T, B, .), what the first layer reads beside that.
            memory: what is attended to.
            lengths: as for `forward`.
            **attention: states, and how to attend; see `seq2seq_ext.decoder.attention_decoder`.
        """
        rnn, cell = self.rnn, self.rnn._cell
        weights = [rnn._current_weights()[4 * i : 4 * i + 4] for i in range(rnn.num_layers)]
        w_ih, read = weights[0][0], x.size(-1)
        # Not slices: their gradients would be two matrices of zeros, filled in part, and their sum.
        of_x, of_feed = torch.split(w_ih, [read, w_ih.size(1) - read], dim=1)
        biases = [biases_of(b_ih, b_hh, cell) for _, _, b_ih, b_hh in weights]
        b_hn = [b for _, b in biases if b is not None]
        mask = None
        if self.training and rnn.dropout and rnn.num_layers > 1:
            mask = dropout_mask(rnn.dropout, rnn.num_layers, x, rnn.hidden_size)
        return attention_decoder(
            linear(x, of_x),
            [
                w
                for i, pair in enumerate(weights)
                for w in (of_feed if i == 0 else pair[0], pair[1])
            ],
            memory.keys,
            memory.values,
            cell=cell,
            bias=torch.stack([b for b, _ in biases if b is not None]),
            b_hn=torch.stack(b_hn) if b_hn else None,
            dropout_mask=mask,
            lengths=lengths,
            source_lengths=memory.lengths,
            memory=memory.rows,
            residual=self.residual,
            **attention,
        )


@contextmanager
def one_draw(module: nn.Module, batch_size: int) -> Iterator[None]:
    """Within, all calls of the stacks in `module` have the noise of one sequence.

    Of recurrent dropout of states and of dropped weights, which are drawn once for a sequence: its
    steps may be a call each. What differs from step to step is drawn in every call.

    Args:
        module: in training mode; in evaluation mode nothing is drawn.
        batch_size: rows of all calls.
    """
    stacks = [m.rnn for m in module.modules() if isinstance(m, RecurrentStack) and m.training]
    drawn = [rnn for rnn in stacks if rnn._variant is not None and "_drawn" not in rnn.__dict__]
    for rnn in drawn:
        rnn.__dict__["_drawn"] = stack_of(rnn).drawn(batch_size)
    try:
        yield
    finally:
        for rnn in drawn:
            del rnn.__dict__["_drawn"]
