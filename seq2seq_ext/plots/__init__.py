"""Pictures of what a model does, as PNG; they need the extra ``[plot]``."""

from seq2seq_ext.plots.attention import attention_as_png
from seq2seq_ext.plots.beam_tree import beam_tree_as_png
from seq2seq_ext.plots.curves import learning_curves_as_png, read_log
from seq2seq_ext.plots.lengths import accuracy_by_length_as_png

__all__ = [
    "accuracy_by_length_as_png",
    "attention_as_png",
    "beam_tree_as_png",
    "learning_curves_as_png",
    "read_log",
]
