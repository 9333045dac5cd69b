"""Encoder, decoder and the model that joins them."""

from seq2seq_ext.models.attention import Attention
from seq2seq_ext.models.bridge import Bridge
from seq2seq_ext.models.config import Seq2SeqConfig
from seq2seq_ext.models.decoder import Decoder
from seq2seq_ext.models.embeddings import TokenVectors, read_token_vectors, set_embeddings
from seq2seq_ext.models.encoder import Encoder, EncoderOutput
from seq2seq_ext.models.seq2seq import Seq2Seq, Seq2SeqOutput
from seq2seq_ext.models.state import DecoderState, Memory

__all__ = [
    "Attention",
    "Bridge",
    "Decoder",
    "DecoderState",
    "Encoder",
    "EncoderOutput",
    "Memory",
    "Seq2Seq",
    "Seq2SeqConfig",
    "Seq2SeqOutput",
    "TokenVectors",
    "read_token_vectors",
    "set_embeddings",
]
