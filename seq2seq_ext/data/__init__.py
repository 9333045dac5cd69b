"""Vocabularies, word lists, splits and batches."""

from seq2seq_ext.data.buckets import LengthBuckets
from seq2seq_ext.data.config import DataConfig
from seq2seq_ext.data.dataset import Batch, EncodedPairs, PairDataset
from seq2seq_ext.data.lexicon import word_pairs
from seq2seq_ext.data.loading import Sets, load_data, load_files, load_set
from seq2seq_ext.data.reading import BadLines, read_pairs
from seq2seq_ext.data.split import Split, merge_targets, split_pairs, stable_hash
from seq2seq_ext.data.subwords import SubwordVocabulary
from seq2seq_ext.data.tasks import TASKS
from seq2seq_ext.data.vocabulary import Vocabulary
from seq2seq_ext.data.words import WordVocabulary

__all__ = [
    "TASKS",
    "BadLines",
    "Batch",
    "DataConfig",
    "EncodedPairs",
    "LengthBuckets",
    "PairDataset",
    "Sets",
    "Split",
    "SubwordVocabulary",
    "Vocabulary",
    "WordVocabulary",
    "load_data",
    "load_files",
    "load_set",
    "merge_targets",
    "read_pairs",
    "split_pairs",
    "stable_hash",
    "word_pairs",
]
