"""Vocabularies, word lists, splits and batches."""

from seq2seq_ext.data.config import DataConfig
from seq2seq_ext.data.dataset import Batch, LengthBuckets, PairDataset
from seq2seq_ext.data.lexicon import word_pairs
from seq2seq_ext.data.loading import Sets, load_data
from seq2seq_ext.data.split import Split, merge_targets, split_pairs, stable_hash
from seq2seq_ext.data.tasks import TASKS
from seq2seq_ext.data.vocabulary import Vocabulary
from seq2seq_ext.data.words import WordVocabulary

__all__ = [
    "TASKS",
    "Batch",
    "DataConfig",
    "LengthBuckets",
    "PairDataset",
    "Sets",
    "Split",
    "Vocabulary",
    "WordVocabulary",
    "load_data",
    "merge_targets",
    "split_pairs",
    "stable_hash",
    "word_pairs",
]
