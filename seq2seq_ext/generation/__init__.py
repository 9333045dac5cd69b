"""Searches over a decoder's scores."""

from seq2seq_ext.generation.greedy import GenerationOutput, SearchState, greedy_search
from seq2seq_ext.generation.mixin import GenerationMixin

__all__ = ["GenerationMixin", "GenerationOutput", "SearchState", "greedy_search"]
