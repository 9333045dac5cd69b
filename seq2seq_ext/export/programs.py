"""The two modules as graphs of `torch.export`, for any batch and length."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from seq2seq_ext.decoder import operator, reference
from seq2seq_ext.export.modules import EncoderModule, StepModule, batch_axis, state_names
from seq2seq_ext.kernels import CELLS
from seq2seq_ext.models import Seq2Seq

__all__ = ["Programs", "in_plain_torch", "traced"]

_B, _T = 3, 5  # of the examples; any others will do but 0 and 1, which torch.export keeps fixed


class Programs(NamedTuple):
    """Both graphs and the names of what goes in and out.

    Args:
        encoder: of `EncoderModule`.
        step: of `StepModule`.
        encoder_inputs, encoder_outputs, step_inputs, step_outputs: names, in order.
    """

    encoder: torch.export.ExportedProgram
    step: torch.export.ExportedProgram
    encoder_inputs: list[str]
    encoder_outputs: list[str]
    step_inputs: list[str]
    step_outputs: list[str]


def traced(model: Seq2Seq) -> Programs:
    """Trace a model's encoder and decoding step.

    Args:
        model: on the CPU, in float32 or float64; it is put into evaluation mode.

    The graphs hold this package's operators as nodes.

    Raises:
        ValueError: if the model copies: how many tokens it can write differs from batch to batch.
    """
    model.eval()
    config = model.config
    if config.copy:
        raise ValueError(
            "model must have copy=False to be traced: how many tokens a model that copies can "
            "write differs from batch to batch, got copy=True"
        )
    B, T = torch.export.Dim("B"), torch.export.Dim("T")
    first = config.unk_token_id
    source = torch.full((_B, _T), first, dtype=torch.int64)
    lengths = torch.tensor([_T, 1, 2])
    encoder, step = EncoderModule(model), StepModule(model)
    with torch.no_grad():
        state = [tensor.clone() for tensor in encoder(source, lengths)]
        encoder_program = torch.export.export(
            encoder,
            (source, lengths),
            dynamic_shapes={"source": {0: B, 1: T}, "lengths": {0: B}},
        )
        names = state_names(config)
        shapes: list[dict[int, Any]] = [{batch_axis(name): B} for name in names]
        for name, shape in zip(names, shapes, strict=True):
            if name in ("keys", "values", "coverage"):
                shape[1] = T
        step_program = torch.export.export(
            step,
            (torch.full((_B,), first, dtype=torch.int64), state),
            dynamic_shapes={"tokens": {0: B}, "state": shapes},
        )
    outputs = ["log_probabilities", *(["alignments"] if config.attention != "none" else [])]
    changing = [f"{name}_next" for name in state_names(config, changing=True)]
    return Programs(
        encoder_program,
        step_program,
        ["source", "source_lengths"],
        names,
        ["tokens", *names],
        [*outputs, *changing],
    )


def in_plain_torch(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """A graph where the operator of decoders that attend is written out by its reference, for
    runtimes that know torch's operators alone."""
    fused = torch.ops.seq2seq_ext.attention_decoder.default
    written_out: torch.export.ExportedProgram = program.run_decompositions(
        {fused: _attention_decoder}
    )
    return written_out


def _attention_decoder(x: Tensor, weights: list[Tensor], *arguments: Any) -> tuple[Tensor, ...]:
    """The operator's results by the reference; what backward would read is left empty."""
    names = operator.Tensors._fields[1:]
    tensors = dict(zip(names, arguments, strict=False))
    options = operator.Options(*arguments[len(names) : -1])._asdict()
    del options["num_layers"]
    options["cell"] = CELLS[options["cell"]]
    found = reference.attention_decoder(x, list(weights), **tensors, **options)
    empty = x.new_empty(0)
    kept = len(torch.ops.seq2seq_ext.attention_decoder.default._schema.returns) - len(found)
    return (*(empty if each is None else each for each in found), *[empty] * kept)
