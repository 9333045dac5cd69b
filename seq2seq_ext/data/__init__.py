"""Vocabularies, word lists, splits and batches."""

from seq2seq_ext.data.dataset import Batch, LengthBuckets, PairDataset
from seq2seq_ext.data.lexicon import TASKS, word_pairs
from seq2seq_ext.data.split import Split, split_pairs, stable_hash
from seq2seq_ext.data.vocabulary import Vocabulary

__all__ = [
    "TASKS",
    "Batch",
    "LengthBuckets",
    "PairDataset",
    "Split",
    "Vocabulary",
    "split_pairs",
    "stable_hash",
    "word_pairs",
]
