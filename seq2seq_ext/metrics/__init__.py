"""How right a model is: measures over texts and tokens."""

from seq2seq_ext.metrics.accuracy import count_correct_tokens, exact_match

__all__ = ["count_correct_tokens", "exact_match"]
