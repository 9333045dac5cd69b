"""How right a model is: measures over texts and tokens."""

from seq2seq_ext.metrics.accuracy import count_correct_tokens, exact_match, hits
from seq2seq_ext.metrics.corpus import CorpusScore, bleu, chrf
from seq2seq_ext.metrics.edit_distance import edit_distances, error_rate, nearest
from seq2seq_ext.metrics.lengths import LengthBucket, by_length
from seq2seq_ext.metrics.scores import Oracle, Scores, score

__all__ = [
    "CorpusScore",
    "LengthBucket",
    "Oracle",
    "Scores",
    "bleu",
    "by_length",
    "chrf",
    "count_correct_tokens",
    "edit_distances",
    "error_rate",
    "exact_match",
    "hits",
    "nearest",
    "score",
]
