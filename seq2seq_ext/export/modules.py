"""An encoder-decoder as two modules of plain tensors: one reads the source, one makes a step.

What a decoder carries from step to step is a `DecoderState` in Python; other runtimes know tensors
alone. Which of them a model has follows from its config, by name:

===================  =====================================  =======================================
name                 shape                                  where
===================  =====================================  =======================================
``h``                (decoder_num_layers, B, H)             always
``c``                (decoder_num_layers, B, H)             the cell is an LSTM
``context``          (B, context_size)                      the decoder reads the context vector
``keys``, ``values`` (B, T, .)                              attention
``lengths``          int64 (B,)                             attention
``feed``             (B, feed_size)                         input feeding
``coverage``         (B, T)                                 coverage
===================  =====================================  =======================================

``h``, ``c``, ``feed`` and ``coverage`` change with every step, the others stay.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from seq2seq_ext.models import Seq2Seq, Seq2SeqConfig
from seq2seq_ext.models.state import DecoderState, Memory

__all__ = ["EncoderModule", "StepModule", "batch_axis", "state_names"]

_CHANGING = ("h", "c", "feed", "coverage")


def state_names(config: Seq2SeqConfig, *, changing: bool = False) -> list[str]:
    """The tensors of a state, in order; with `changing` those alone that a step changes.

    >>> state_names(Seq2SeqConfig(source_vocab_size=9, target_vocab_size=9, cell="lstm"))
    ['h', 'c']
    """
    attends = config.attention != "none"
    reads_context = config.output == "maxout" and not attends
    present = {
        "h": True,
        "c": config.cell == "lstm",
        "context": config.context_every_step or reads_context,
        "keys": attends,
        "values": attends,
        "lengths": attends,
        "feed": config.input_feeding,
        "coverage": config.coverage,
    }
    return [
        name for name, there in present.items() if there and (not changing or name in _CHANGING)
    ]


def batch_axis(name: str) -> int:
    """The axis of a state's tensor along which rows are chosen."""
    return 1 if name in ("h", "c") else 0


class EncoderModule(nn.Module):
    """Source tokens -> the state before the first step.

    Args:
        model: in evaluation mode.
    """

    def __init__(self, model: Seq2Seq) -> None:
        super().__init__()
        self.model = model

    def forward(self, source: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        """int64 (B, T) and (B,) -> the tensors of `state_names`."""
        config = self.model.config
        state = self.model.start(source, lengths)
        memory = state.memory
        found: dict[str, Tensor | None] = {"h": state.h, "c": state.c, "context": state.context}
        if memory is not None:
            found |= {"keys": memory.keys, "values": memory.values, "lengths": memory.lengths}
            B, T = source.shape
            found["feed"] = state.h.new_zeros(B, config.feed_size)
            found["coverage"] = state.h.new_zeros(B, T)
        return _chosen(found, state_names(config))


class StepModule(nn.Module):
    """Previous tokens and a state -> log-probabilities, alignments where there is attention, and
    what changes of the state.

    Args:
        model: in evaluation mode.
    """

    def __init__(self, model: Seq2Seq) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, state: list[Tensor]) -> tuple[Tensor, ...]:
        """int64 (B,) and the tensors of `state_names` -> (B, V), with attention (B, T), and those
        of ``state_names(changing=True)``."""
        config = self.model.config
        given = dict(zip(state_names(config), state, strict=True))
        logits, after = self.model.step(tokens, _state_of(config, given))
        found = {"h": after.h, "c": after.c, "feed": after.feed, "coverage": after.coverage}
        changed = _chosen(found, state_names(config, changing=True))
        scores = torch.log_softmax(logits, -1)
        if config.attention == "none":
            return scores, *changed
        assert after.alignments is not None
        return scores, after.alignments, *changed


def _state_of(config: Seq2SeqConfig, given: Mapping[str, Tensor]) -> DecoderState:
    h = given["h"]
    context = given.get("context")
    if context is None:  # which nothing reads
        context = h.new_zeros(h.size(1), config.resolved_context_size)
    memory = None
    if "keys" in given:
        memory = Memory(given["keys"], given["values"], given["lengths"])
    return DecoderState(
        h, given.get("c"), context, memory, given.get("feed"), given.get("coverage")
    )


def _chosen(found: Mapping[str, Tensor | None], names: list[str]) -> tuple[Tensor, ...]:
    chosen = []
    for name in names:
        tensor = found[name]
        assert tensor is not None
        chosen.append(tensor)
    return tuple(chosen)
