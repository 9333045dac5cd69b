"""How right a model is: measures over texts and tokens."""

from seq2seq_ext.metrics.accuracy import count_correct_tokens, exact_match
from seq2seq_ext.metrics.lengths import LengthBucket, by_length

__all__ = ["LengthBucket", "by_length", "count_correct_tokens", "exact_match"]
