"""A model's figures on pairs it has not seen: teacher-forced and free-running."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.nn import functional

from seq2seq_ext.data import Batch, EncodedPairs, LengthBuckets, PairDataset
from seq2seq_ext.metrics import count_correct_tokens, error_rate, exact_match
from seq2seq_ext.models import Seq2Seq

# Tokens that may be written beyond the longest reference, the end among them.
_SPARE = 9


@dataclass(frozen=True)
class Accuracy:
    """Shares in [0, 1].

    Args:
        exact_match: of the pairs whose every token is right, ``</s>`` included; free-running, of
            those whose text is one of the references.
        token_accuracy: of the target's tokens that stand at their place, ``</s>`` included.
    """

    exact_match: float
    token_accuracy: float


@dataclass(frozen=True)
class Evaluation:
    """Figures of a model on a dataset.

    Teacher-forced, the decoder reads the right token before every guess; free-running, its own.
    For greedy search and one reference the two exact matches agree but for ties: as long as every
    guess is right, both decoders read the same tokens. Their token accuracies differ after a first
    mistake.

    Args:
        loss: mean cross entropy, in nats a token.
        teacher_forced: accuracy when fed the target.
        free_running: accuracy when fed its own output.
        token_error_rate: free-running, `error_rate` over the target's tokens: of characters the
            CER, of words the WER, of phonemes the PER.
        predictions: free-running texts, in the dataset's order.
    """

    loss: float
    teacher_forced: Accuracy
    free_running: Accuracy
    token_error_rate: float
    predictions: list[str]

    @property
    def sequence_error_rate(self) -> float:
        """Share of the sources whose free-running text is none of the references."""
        return 1.0 - self.free_running.exact_match

    def figures(self) -> dict[str, Any]:
        """Everything but the predictions, as a dict that JSON can hold."""
        return {name: value for name, value in asdict(self).items() if name != "predictions"}


def evaluate(model: Seq2Seq, dataset: PairDataset, *, batch_size: int = 256) -> Evaluation:
    """Measure a model, in eval mode; the mode it was in returns afterwards.

    Args:
        model: what is measured.
        dataset: pairs, at least one.
        batch_size: pairs at once; figures do not depend on it.

    Raises:
        ValueError: if the dataset is empty.
    """
    loss, teacher_forced = evaluate_teacher_forced(model, dataset, batch_size=batch_size)
    tokenize = dataset.target_vocabulary.tokenize
    tokenized = [[tokenize(text) for text in texts] for texts in dataset.references]
    predictions = [""] * len(dataset)
    right = 0
    with _evaluating(model):
        for rows in LengthBuckets(dataset, batch_size, shuffle=False):
            source, target, source_lengths, target_lengths = _on_device(model, dataset[rows])
            # A decoder that runs on is cut behind any right answer, in whatever company it is.
            room = [_SPARE + max(map(len, tokenized[row])) for row in rows]
            free = model.generate(source, source_lengths, max_new_tokens=max(room))
            right += int(count_correct_tokens(free, target, target_lengths))
            for row, ids, limit in zip(rows, free.tolist(), room, strict=True):
                predictions[row] = dataset.decode(row, ids[:limit])
    tokens = int(dataset.target.lengths.sum())
    return Evaluation(
        loss=loss,
        teacher_forced=teacher_forced,
        free_running=Accuracy(exact_match(predictions, dataset.references), right / tokens),
        token_error_rate=error_rate([tokenize(text) for text in predictions], tokenized),
        predictions=predictions,
    )


def evaluate_teacher_forced(
    model: Seq2Seq, dataset: EncodedPairs, *, batch_size: int = 256
) -> tuple[float, Accuracy]:
    """The mean cross entropy in nats a token, and the accuracy when fed the target.

    Arguments and errors are those of `evaluate`.
    """
    if len(dataset) == 0:
        raise ValueError("dataset must hold at least one pair, got none")
    pad = model.config.pad_token_id
    nats = 0.0
    right = right_rows = 0
    with _evaluating(model):
        for rows in LengthBuckets(dataset, batch_size, shuffle=False):
            batch = _on_device(model, dataset[rows])
            target = batch.target
            logits = model(*batch).logits
            # Summed in float64: the mean over a large set should not depend on its batches.
            nats += float(
                functional.cross_entropy(
                    logits.flatten(0, 1).double(),
                    target.flatten(),
                    ignore_index=pad,
                    reduction="sum",
                )
            )
            guesses = logits.argmax(-1)
            right += int(count_correct_tokens(guesses, target, batch.target_lengths))
            right_rows += int(((guesses == target) | (target == pad)).all(1).sum())
    tokens = int(dataset.target.lengths.sum())
    return nats / tokens, Accuracy(right_rows / len(dataset), right / tokens)


def _on_device(model: Seq2Seq, batch: Batch) -> Batch:
    device = next(model.parameters()).device
    return Batch(*(side.to(device) for side in batch))


@contextmanager
def _evaluating(model: Seq2Seq) -> Iterator[None]:
    """Eval mode without gradients, while it lasts."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
