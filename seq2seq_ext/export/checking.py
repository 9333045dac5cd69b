"""Whether what was exported computes what the model computes: both write some texts greedily."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from seq2seq_ext.export.modules import EncoderModule, StepModule, state_names
from seq2seq_ext.models import Seq2Seq, Seq2SeqConfig

Runner = Callable[[Sequence[Tensor]], Sequence[Tensor]]
"""Inputs in the order of an exported graph -> its outputs."""


class Check(NamedTuple):
    """What a comparison found.

    Args:
        steps: how many were compared, of `texts` each.
        texts: sources.
        error: the largest difference of two log-probabilities, in nats.
        same_tokens: whether the most probable tokens were the same at every step.
    """

    steps: int
    texts: int
    error: float
    same_tokens: bool


@torch.no_grad()
def compare(model: Seq2Seq, encoder: Runner, step: Runner, *, steps: int = 20) -> Check:
    """Run an exported pair beside the model it was made of, on sources of all lengths up to 9.

    Both are given the same tokens, the model's best, so that one difference is counted once.

    Args:
        model: the original.
        encoder: the exported encoder.
        step: the exported step.
        steps: tokens of each text.
    """
    config = model.eval().config
    lengths = torch.arange(1, 10)
    chance = torch.Generator().manual_seed(0)
    source = torch.randint(config.source_vocab_size, (9, 9), generator=chance)
    source[torch.arange(9) >= lengths[:, None]] = config.pad_token_id
    own_state = list(EncoderModule(model)(source, lengths))
    state = [tensor.clone() for tensor in encoder([source, lengths])]
    own_step = StepModule(model)
    tokens = torch.full((9,), config.bos_token_id)
    error, same = 0.0, True
    for _ in range(steps):
        own_scores, *own_rest = own_step(tokens, own_state)
        scores, *rest = step([tokens, *state])
        error = max(error, float((scores - own_scores).abs().max()))
        same &= bool((scores.argmax(-1) == own_scores.argmax(-1)).all())
        tokens = own_scores.argmax(-1)
        own_state = _after(config, own_state, own_rest)
        state = _after(config, state, rest)
    return Check(steps, len(source), error, same)


def _after(
    config: Seq2SeqConfig, state: Sequence[Tensor], outputs: Sequence[Tensor]
) -> list[Tensor]:
    """The state behind a step, of the one before it and the step's outputs behind its scores."""
    changing = state_names(config, changing=True)
    new = dict(zip(changing, outputs[len(outputs) - len(changing) :], strict=True))
    names = state_names(config)
    return [new.get(name, old) for name, old in zip(names, state, strict=True)]


def onnx_runner(path: Path) -> Runner | None:
    """What runs a file of ONNX; None where onnxruntime is not installed."""
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    onnxruntime = importlib.import_module("onnxruntime")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        given = {name: each.numpy() for name, each in zip(names, inputs, strict=True)}
        return [torch.from_numpy(array) for array in session.run(None, given)]

    return run


def aoti_runner(path: Path, *, is_step: bool) -> Runner:
    """What runs a package of AOTInductor."""
    package = torch._inductor.aoti_load_package(str(path))

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        first, *rest = inputs
        found = package(first, rest) if is_step else package(first, *rest)
        return [found] if isinstance(found, Tensor) else list(found)

    return run
