"""The recurrent stack of an encoder or decoder, with one form of state for every cell."""

from __future__ import annotations

from torch import Tensor, nn

from seq2seq_ext.models.config import Seq2SeqConfig
from seq2seq_ext.nn import GRU, LSTM, RNN


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
    ) -> None:
        super().__init__()
        # torch.nn warns about dropout in a single layer, where it has no place to act.
        dropout = float(config.dropout) if num_layers > 1 else 0.0
        self.rnn: nn.RNNBase
        if config.cell == "lstm":
            self.rnn = LSTM(
                input_size, hidden_size, num_layers, dropout=dropout, bidirectional=bidirectional
            )
        elif config.cell == "gru":
            self.rnn = GRU(
                input_size,
                hidden_size,
                num_layers,
                dropout=dropout,
                bidirectional=bidirectional,
                reset_after=config.reset_after,
            )
        else:
            self.rnn = RNN(
                input_size,
                hidden_size,
                num_layers,
                nonlinearity=config.nonlinearity,
                dropout=dropout,
                bidirectional=bidirectional,
            )
        self.has_cell_state = config.cell == "lstm"

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
