"""A trained model with its vocabularies, and the folder that keeps them.

==============================  ================================================================
``config.json``                 the model's config and how it was trained
``source_vocabulary.json``      the source's tokens in the order of their ids, or their tokenizer
``target_vocabulary.json``      likewise the target's
``model.safetensors``           the weights; their header holds a fingerprint of the files above
``metrics.json``                figures measured on words not seen in training
==============================  ================================================================

Every file is replaced in one step, the weights last of those that must fit together. Where a run
was killed between two of them, the fingerprint does not fit, and loading says so.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from seq2seq_ext.data import Vocabulary
from seq2seq_ext.data.dataset import encode_source
from seq2seq_ext.data.extras import require
from seq2seq_ext.data.files import read_json, write_bytes_atomically, write_json_atomically
from seq2seq_ext.models import Seq2Seq, Seq2SeqConfig
from seq2seq_ext.models.copying import extended_tokens
from seq2seq_ext.nn import prepack
from seq2seq_ext.training.int8 import narrowed, widened

FORMAT = 1
_CONFIG = "config.json"
_SOURCE = "source_vocabulary.json"
_TARGET = "target_vocabulary.json"
_WEIGHTS = "model.safetensors"
METRICS_FILE = "metrics.json"
LOG_FILE = "metrics.csv"


class Hypothesis(NamedTuple):
    """A converted text.

    Args:
        text: the text.
        score: its log-probability in nats, after a beam search divided by the length penalty; None
            unless asked for.
        tokens: what was written, ``</s>`` included where it came.
        alignments: ``(len(tokens), source tokens)``, what each token was written from; None unless
            asked for by ``return_attention``.
    """

    text: str
    score: float | None
    tokens: list[str]
    alignments: Tensor | None = None


@dataclass
class Run:
    """A model that can be used.

    Args:
        model: the weights and their config.
        source_vocabulary: encodes the sources.
        target_vocabulary: decodes the targets.
        settings: how the model was trained, as JSON can hold it.
        metrics: its figures, as JSON can hold them.
    """

    model: Seq2Seq
    source_vocabulary: Vocabulary
    target_vocabulary: Vocabulary
    settings: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)

    def encode(self, text: str) -> tuple[list[int], list[str]]:
        """A source as the model reads it; see `encode_source`."""
        return encode_source(text, self.source_vocabulary, copies=self.model.config.copy)

    def translate(
        self, texts: Sequence[str], *, batch_size: int = 256, **options: Any
    ) -> list[str]:
        """Convert texts, greedily unless options say otherwise; the model is in eval mode then.

        Args:
            texts: sources; tokens without an id are read as ``<unk>``, and written as they are by
                a model that copies.
            batch_size: texts at once; results do not depend on it.
            **options: of `GenerationOptions`. ``max_new_tokens`` is by default `room_for` of each
                text's length.
        """
        best = {"num_return_sequences": 1}
        return [rows[0].text for rows in self._search(texts, batch_size, options | best)]

    def n_best(
        self, texts: Sequence[str], n: int, *, batch_size: int = 256, **options: Any
    ) -> list[list[Hypothesis]]:
        """For each text the n best results of a beam search, best first; or n samples.

        Args:
            texts: as in `translate`.
            n: results of each text, at most ``num_beams`` unless ``do_sample``.
            batch_size: as in `translate`.
            **options: as in `translate`.
        """
        asked = {"num_return_sequences": n, "output_scores": True}
        return self._search(texts, batch_size, options | asked)

    def _search(
        self, texts: Sequence[str], batch_size: int, options: Mapping[str, Any]
    ) -> list[list[Hypothesis]]:
        self.model.eval()
        read = [self.encode(text) for text in texts]
        encoded = [torch.tensor(ids, dtype=torch.int64) for ids, _ in read]
        device = next(self.model.parameters()).device
        written = self.target_vocabulary.to_list()
        results: list[list[Hypothesis]] = [[] for _ in texts]
        for rows in _even_batches([len(ids) for ids in encoded], batch_size):
            source = torch.nn.utils.rnn.pad_sequence(
                [encoded[i] for i in rows],
                batch_first=True,
                padding_value=Vocabulary.pad_token_id,
            )
            lengths = torch.tensor([len(encoded[i]) for i in rows], dtype=torch.int64)
            output = self.model.generate(
                source.to(device),
                lengths.to(device),
                return_dict_in_generate=True,
                **({"max_new_tokens": room_for(source.size(1))} | dict(options)),
            )
            scores = output.sequences_scores
            known = [None] * len(output.sequences) if scores is None else scores.tolist()
            each = len(output.sequences) // len(rows)
            for k, (ids, length) in enumerate(
                zip(output.sequences.tolist(), output.lengths.tolist(), strict=True)
            ):
                row = rows[k // each]
                alignments, unknown = output.alignments, read[row][1]
                results[row].append(
                    Hypothesis(
                        self.target_vocabulary.decode(ids, unknown),
                        known[k],
                        extended_tokens(ids[:length], written, unknown),
                        None if alignments is None else alignments[k, :length, : len(encoded[row])],
                    )
                )
        return results


def room_for(length: int) -> int:
    """How many tokens may be written for a source of so many: twice as many, and 16 to 30 more.

    It grows in steps, so that sources of about equal length have equal room and may share a batch,
    whose company then changes no result.

    >>> [room_for(length) for length in (0, 1, 8, 9)]
    [16, 32, 32, 48]
    """
    return 16 * (1 + -(-length // 8))


def _even_batches(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Indices of texts of about equal length and equal room, so that few steps go to padding."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    for _, equals in itertools.groupby(order, lambda i: room_for(lengths[i])):
        group = list(equals)
        for first in range(0, len(group), batch_size):
            yield group[first : first + batch_size]


def save_run(folder: str | os.PathLike[str], run: Run, *, dtype: torch.dtype | None = None) -> None:
    """Write a run folder, over an older one if there is one.

    Args:
        folder: made if there is none.
        run: what is written.
        dtype: ``torch.int8`` keeps the recurrent matrices in 8 bits, and `load_run` gives a model
            that is prepacked in them; None keeps all weights as they are.

    Raises:
        ModuleNotFoundError: if safetensors is not installed.
        OSError: if the folder cannot be written.
        ValueError: if `dtype` is another one, or no weight can be kept in it.
    """
    if dtype not in (None, torch.int8):
        raise ValueError(f"dtype must be None or torch.int8, got {dtype}")
    safetensors = require("safetensors.torch", extra="train", purpose="saving a run")
    folder = Path(folder)
    config: dict[str, Any] = {
        "format": FORMAT,
        "model": run.model.config.to_dict(),
        "settings": dict(run.settings),
    }
    tied = run.model.tied_weights
    weights = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in run.model.state_dict().items()
        if name not in tied  # a file holds each tensor once
    }
    if dtype is torch.int8:
        weights = narrowed(run.model, weights)
    fingerprint = _fingerprint(
        config["model"], run.source_vocabulary.to_json(), run.target_vocabulary.to_json()
    )
    content: bytes = safetensors.save(weights, {"fingerprint": fingerprint})
    write_json_atomically(folder / _CONFIG, config)
    save_vocabularies(folder, run.source_vocabulary, run.target_vocabulary)
    write_bytes_atomically(folder / _WEIGHTS, content)
    write_json_atomically(folder / METRICS_FILE, dict(run.metrics))


def save_vocabularies(folder: Path, source: Vocabulary, target: Vocabulary) -> None:
    """Write those of a run folder."""
    source.save(folder / _SOURCE)
    target.save(folder / _TARGET)


def load_vocabularies(folder: Path) -> tuple[Vocabulary, Vocabulary] | None:
    """Those of the sources and of the targets of a run folder, None where it lacks one.

    Raises:
        ValueError: if a file is damaged.
        ModuleNotFoundError: if one is of subwords, and tokenizers is not installed.
    """
    if not all((folder / name).is_file() for name in (_SOURCE, _TARGET)):
        return None
    return Vocabulary.load(folder / _SOURCE), Vocabulary.load(folder / _TARGET)


def load_run(folder: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> Run:
    """Read what `save_run` wrote; the model is in eval mode.

    Args:
        folder: the run's.
        device: where the model goes. On the CPU it is prepacked where its weights were kept in 8
            bits; elsewhere they are float32 again.

    Raises:
        FileNotFoundError: if there is no such folder or it lacks a file.
        ValueError: if a file is damaged, or files of two runs are mixed.
        ModuleNotFoundError: if safetensors is not installed.
    """
    safetensors = require("safetensors", extra="train", purpose="loading a run")
    folder = Path(folder)
    missing = [
        name
        for name in (_CONFIG, _SOURCE, _TARGET, _WEIGHTS, METRICS_FILE)
        if not (folder / name).is_file()
    ]
    if missing:
        state = f"lacks {', '.join(missing)}" if folder.is_dir() else "does not exist"
        raise FileNotFoundError(f"{folder} is no run folder: it {state}")

    description = read_json(folder / _CONFIG)
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise ValueError(f"{folder / _CONFIG} must be a run's config of format {FORMAT}")
    try:
        config = Seq2SeqConfig.from_dict(description["model"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / _CONFIG} holds no valid model config: {error}") from error
    vocabularies = load_vocabularies(folder)
    assert vocabularies is not None  # the files are there
    source_vocabulary, target_vocabulary = vocabularies

    try:
        with safetensors.safe_open(folder / _WEIGHTS, framework="pt") as file:
            fingerprint = (file.metadata() or {}).get("fingerprint")
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"{folder / _WEIGHTS} is damaged: {error}") from error
    vocabulary_files = [read_json(folder / name) for name in (_SOURCE, _TARGET)]
    if fingerprint != _fingerprint(description["model"], *vocabulary_files):
        raise ValueError(
            f"{folder} mixes files of two runs: {_WEIGHTS} was not saved with this {_CONFIG}, "
            f"{_SOURCE} and {_TARGET}; train again"
        )
    model = Seq2Seq(config)
    weights, is_narrow = widened(weights)
    for name, kept in model.tied_weights.items():
        weights[name] = weights[kept]
    model.load_state_dict(weights)
    model.to(device)
    if is_narrow and torch.device(device).type == "cpu":
        prepack(model, torch.int8)
    return Run(
        model.eval(),
        source_vocabulary,
        target_vocabulary,
        settings=description.get("settings", {}),
        metrics=read_json(folder / METRICS_FILE),
    )


def _fingerprint(model: object, source: object, target: object) -> str:
    """SHA-256 of all that the weights depend on, as the files hold it.

    Not of what is made of it: later versions have fields that an older file lacks, with defaults
    under which the weights mean the same.

    Args:
        model: ``config.json``'s part of that name.
        source: what ``source_vocabulary.json`` holds.
        target: what ``target_vocabulary.json`` holds.
    """
    described = json.dumps([model, source, target], sort_keys=True)
    return hashlib.sha256(described.encode()).hexdigest()
