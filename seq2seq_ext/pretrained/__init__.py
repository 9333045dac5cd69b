"""Trained encoder-decoders of other packages, as models of this one; see docs/pretrained.md."""

from seq2seq_ext.pretrained.fairseq import load_fairseq
from seq2seq_ext.pretrained.g2p_en import load_g2p_en
from seq2seq_ext.pretrained.loaded import PretrainedModel
from seq2seq_ext.pretrained.opennmt import load_opennmt

__all__ = ["PretrainedModel", "load_fairseq", "load_g2p_en", "load_opennmt"]
