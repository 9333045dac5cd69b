"""Recurrent layers with the parameters, arguments and errors of ``torch.nn``, computed fused."""

from seq2seq_ext.nn.cells import GRUCell, LSTMCell, RNNCell
from seq2seq_ext.nn.layers import GRU, LSTM, RNN
from seq2seq_ext.nn.prepack import prepack, unpack
from seq2seq_ext.nn.replace import NotReplaced, replace_modules, restore_modules

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "GRUCell",
    "LSTMCell",
    "NotReplaced",
    "RNNCell",
    "prepack",
    "replace_modules",
    "restore_modules",
    "unpack",
]
