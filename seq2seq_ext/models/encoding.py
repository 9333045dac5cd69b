"""The encoder in one call, from tokens to the states of its layers, and what it reads of the model.

`Encoder` reads a source by a dozen small operators and a stack of layers. Where its layers are the
plain ones, it is on the CPU, and nothing follows the call, they are one operator
(``csrc/cpu/encoder.cpp``), with the same results.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

from torch import Tensor

from seq2seq_ext.kernels import CELLS, encoder_read_op
from seq2seq_ext.models.slots import Slots, slots_of, unusual
from seq2seq_ext.nn import GRU, LSTM, RNN

if TYPE_CHECKING:
    from seq2seq_ext.models.encoder import Encoder

__all__ = ["EncoderSlots", "arguments_of", "names_of", "read", "run_packed"]

Result = TypeVar("Result")


def read(encoder: Encoder, source: Tensor, lengths: Tensor | None) -> tuple[Tensor, ...] | None:
    """What the first layers make of the sources; None where modules have to be called.

    It is also None where an argument is wrong: those who check it have better words.

    Args:
        encoder: whose embedding and ``stack`` are run.
        source, lengths: as `Encoder.forward` takes them.

    Returns:
        Outputs (T, B, D*H), h and c (L*D, B, H), c empty but for an LSTM, and how many steps each
        row took: int64 (B,).
    """
    if unusual(encoder) or type(source) is not Tensor:
        return None
    try:
        slots = slots_of(encoder, EncoderSlots)
        embedding, *weights = slots.read()
    except KeyError:  # pruned or parametrized
        return None
    rnn = slots.rnn
    if slots.hooked() or rnn._variant is not None or not embedding.is_cpu:
        return None

    def call(block: Tensor | None, turn: int) -> tuple[Tensor, ...]:
        arguments = arguments_of(encoder, rnn, source, lengths, embedding, weights, block, turn)
        return cast("tuple[Tensor, ...]", encoder_read_op(*arguments))

    try:
        return run_packed(rnn, weights, source, call)
    except (RuntimeError, TypeError):
        return None


def arguments_of(
    encoder: Encoder,
    rnn: LSTM | GRU | RNN,
    source: Tensor,
    lengths: Tensor | None,
    embedding: Tensor,
    weights: list[Tensor],
    packed: Tensor | None,
    turn: int,
) -> tuple[Any, ...]:
    """The arguments of ``encoder_read``."""
    config = encoder.config
    return (
        source,
        lengths,
        embedding,
        weights,
        CELLS.index(rnn._cell),
        rnn.num_layers,
        rnn.bidirectional,
        config.pad_token_id,
        config.eos_token_id if config.source_eos else None,
        config.reverse_source,
        packed,
        turn,
    )


def run_packed(
    rnn: LSTM | GRU | RNN,
    weights: list[Tensor],
    source: Tensor,
    call: Callable[[Tensor | None, int], Result],
) -> Result:
    """What `call` answers with what is packed of a prepacked layer's weights, else None."""
    packed = rnn._packed
    if packed is None:
        return call(None, 0)
    options = (CELLS.index(rnn._cell), rnn.num_layers, rnn.bidirectional)
    return packed.run(weights, options, source.size(-1), call)


class EncoderSlots(Slots):
    """The weights of an encoder's embedding and first layers."""

    def __init__(self, encoder: Encoder) -> None:
        self.rnn = encoder.stack.rnn
        super().__init__(encoder, names_of(encoder), modules=["dropout"])


def names_of(encoder: Encoder) -> list[str]:
    """Names of these weights, the embedding's first."""
    layers = encoder.stack.rnn._flat_weights_names
    return ["embedding.weight", *(f"stack.rnn.{name}" for name in layers)]
