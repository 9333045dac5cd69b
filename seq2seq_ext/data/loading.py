"""From a `DataConfig` to the three sets, encoded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from seq2seq_ext.data.config import DataConfig
from seq2seq_ext.data.dataset import PairDataset
from seq2seq_ext.data.split import Pair, Split, merge_targets, split_pairs
from seq2seq_ext.data.tasks import TASKS, Task
from seq2seq_ext.data.vocabulary import Vocabulary
from seq2seq_ext.data.words import WordVocabulary

_OTHER = Task(pairs=list)  # what holds for files, where nothing is said
_UNITS: dict[str, type[Vocabulary]] = {"char": Vocabulary, "word": WordVocabulary}


class Sets(NamedTuple):
    """The pairs of a task, no word in two sets; those to validate on and to test may be none."""

    train: PairDataset
    dev: PairDataset
    test: PairDataset

    @property
    def sizes(self) -> dict[str, int]:
        """How many pairs each has."""
        return {name: len(part) for name, part in self._asdict().items()}


def load_data(config: DataConfig) -> Sets:
    """Read, split and encode; the vocabularies are those of the training set.

    Raises:
        ValueError: if there is nothing to train on, a line has not two columns, or a share is out
            of range.
        OSError: if a file cannot be read.
        ModuleNotFoundError: if the package that ships a task's words is not installed.
    """
    task = _OTHER if config.task is None else TASKS[config.task]
    split = split_pairs(
        task.pairs() if config.pairs is None else _read_tsv(config.pairs),
        dev=task.dev if config.dev is None else config.dev,
        test=task.test if config.test is None else config.test,
        join_targets=task.join_targets,
    )
    several = config.several_references
    if several is None:
        several = task.several_references
    references: list[list[tuple[str, ...]] | None] = [None, None]
    if several:
        dev, references[0] = merge_targets(split.dev)
        test, references[1] = merge_targets(split.test)
        split = Split(split.train, dev, test)
    split = Split(*(part[: config.max_pairs] for part in split))
    if not split.train:
        raise ValueError(f"{config.pairs or config.task} has no pairs to train on")
    vocabularies = (
        _UNITS[config.source_unit or "char"].from_texts(source for source, _ in split.train),
        _UNITS[config.target_unit or task.target_unit].from_texts(t for _, t in split.train),
    )

    def encoded(pairs: list[Pair], right: Sequence[Sequence[str]] | None = None) -> PairDataset:
        return PairDataset(
            pairs,
            *vocabularies,
            references=None if right is None else right[: len(pairs)],
            error_names=task.error_names,
        )

    return Sets(
        encoded(split.train), encoded(split.dev, references[0]), encoded(split.test, references[1])
    )


def _read_tsv(path: str) -> list[Pair]:
    pairs: list[Pair] = []
    try:
        with open(path, encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                columns = line.rstrip("\r\n").split("\t")
                if len(columns) != 2:
                    raise ValueError(
                        f"{path}, line {number} must have two columns with a tab between, "
                        f"got {len(columns)}"
                    )
                pairs.append((columns[0], columns[1]))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error
    return pairs
