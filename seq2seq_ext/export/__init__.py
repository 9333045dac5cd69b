"""Trained encoder-decoders for other runtimes: ONNX, AOTInductor, and run folders in 8 bits.

`modules` splits a model into an encoder and a step, `programs` traces them, `folders` writes what
`seq2seq-ext export` makes, and `checking` lets it run and compares.
"""

from seq2seq_ext.export.checking import Check
from seq2seq_ext.export.folders import FORMATS, export_run
from seq2seq_ext.export.modules import EncoderModule, StepModule, batch_axis, state_names
from seq2seq_ext.export.programs import Programs, in_plain_torch, traced

__all__ = [
    "FORMATS",
    "Check",
    "EncoderModule",
    "Programs",
    "StepModule",
    "batch_axis",
    "export_run",
    "in_plain_torch",
    "state_names",
    "traced",
]
