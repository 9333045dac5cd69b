"""A decoder that attends while its cells run, all steps of it in one call.

Where attention reads the state of the step before, or its result is fed to the next step, a
sequence cannot be laid into one product over all steps: this is the recurrence of such decoders,
as one operator with its gradient.
"""

from seq2seq_ext.decoder.operator import DecoderResult, attention_decoder

__all__ = ["DecoderResult", "attention_decoder"]
