"""Trained encoder-decoders of other packages, as models of this one; see docs/pretrained.md."""

from seq2seq_ext.pretrained.g2p_en import load_g2p_en
from seq2seq_ext.pretrained.loaded import PretrainedModel
from seq2seq_ext.pretrained.tokens import TokenVocabulary

__all__ = ["PretrainedModel", "TokenVocabulary", "load_g2p_en"]
