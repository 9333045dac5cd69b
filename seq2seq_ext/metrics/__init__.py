"""How right a model is: measures over texts and tokens."""

from seq2seq_ext.metrics.accuracy import count_correct_tokens, exact_match, hits
from seq2seq_ext.metrics.edit_distance import edit_distances, error_rate, nearest
from seq2seq_ext.metrics.lengths import LengthBucket, by_length

__all__ = [
    "LengthBucket",
    "by_length",
    "count_correct_tokens",
    "edit_distances",
    "error_rate",
    "exact_match",
    "hits",
    "nearest",
]
