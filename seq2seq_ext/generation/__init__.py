"""Searches over a decoder's scores: greedy, beam search, sampling; of one model or several.

`options` lists what can be asked for, `mixin` is where a search begins; `processors` holds what
changes scores, for all searches alike.
"""

from seq2seq_ext.generation.beam import beam_search
from seq2seq_ext.generation.ensemble import Ensemble
from seq2seq_ext.generation.greedy import greedy_search
from seq2seq_ext.generation.mixin import GenerationMixin
from seq2seq_ext.generation.options import GenerationOptions
from seq2seq_ext.generation.output import GenerationOutput
from seq2seq_ext.generation.sampling import sample
from seq2seq_ext.generation.state import SearchState
from seq2seq_ext.generation.tree import BeamNode, BeamTree, beam_tree

__all__ = [
    "BeamNode",
    "BeamTree",
    "Ensemble",
    "GenerationMixin",
    "GenerationOptions",
    "GenerationOutput",
    "SearchState",
    "beam_search",
    "beam_tree",
    "greedy_search",
    "sample",
]
