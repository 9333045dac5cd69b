"""From a `DataConfig` to the three sets, encoded."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from seq2seq_ext.data.config import DataConfig
from seq2seq_ext.data.dataset import EncodedPairs, PairDataset
from seq2seq_ext.data.mapped import open_mapped, write_mapped
from seq2seq_ext.data.reading import BadLines, read_pairs
from seq2seq_ext.data.split import Pair, Split, merge_targets, split_pairs
from seq2seq_ext.data.subwords import SubwordVocabulary
from seq2seq_ext.data.tasks import TASKS, Task
from seq2seq_ext.data.vocabulary import Vocabulary
from seq2seq_ext.data.words import WordVocabulary

_log = logging.getLogger(__name__)
_OTHER = Task(pairs=list)  # what holds for files, where nothing is said

Tell = Callable[[str], None]
Vocabularies = tuple[Vocabulary, Vocabulary]


class Sets(NamedTuple):
    """The pairs of a task; those to validate on and to test may be none."""

    train: EncodedPairs
    dev: PairDataset
    test: PairDataset

    @property
    def sizes(self) -> dict[str, int]:
        """How many pairs each has."""
        return {name: len(part) for name, part in self._asdict().items()}


def load_data(
    config: DataConfig,
    *,
    vocabularies: Vocabularies | None = None,
    copies: bool = False,
    tell: Tell | None = None,
) -> Sets:
    """Read, split and encode.

    Args:
        config: what.
        vocabularies: of the sources and of the targets; None makes them of the training set.
        copies: whether it is for a model that copies; see `PairDataset`.
        tell: is given a line on what was left out, if anything was; None logs it.

    Raises:
        ValueError: if there is nothing to train on, a line is no pair, a share is out of range, or
            a file is damaged.
        OSError: if a file cannot be read.
        ModuleNotFoundError: if the package that ships a task's words is not installed, or that of
            the vocabularies.
    """
    read = partial(_read, config, tell or _log.warning)
    task = _OTHER if config.task is None else TASKS[config.task]
    if config.cache is not None:
        split = Split([], *_files(config, read))
        train, vocabularies = _cached(config, vocabularies, copies, read)
    else:
        split = _split(config, task, read)
        if not split.train:
            raise ValueError(f"{config.name} has no pairs to train on")
        if vocabularies is None:
            vocabularies = vocabularies_of(config, lambda: iter(split.train))
        train = PairDataset(split.train, *vocabularies, error_names=task.error_names, copies=copies)
    several = config.several_references
    if several is None:
        several = task.several_references
    dev, test = (
        evaluation_set(
            pairs, vocabularies, several, task.error_names, config.max_pairs, copies=copies
        )
        for pairs in (split.dev, split.test)
    )
    return Sets(train, dev, test)


def load_set(
    config: DataConfig,
    name: str,
    vocabularies: Vocabularies,
    *,
    copies: bool = False,
    tell: Tell | None = None,
) -> PairDataset:
    """One of the sets to measure a model on, without the training set.

    Args:
        config: what the run was trained on.
        name: ``"dev"`` or ``"test"``.
        vocabularies: of the run.
        copies: whether its model does; see `PairDataset`.
        tell: see `load_data`.

    Raises:
        ValueError: if there is no such set, or it is empty; else see `load_data`.
    """
    if name not in ("dev", "test"):
        raise ValueError(f"name must be 'dev' or 'test', got {name!r}")
    read = partial(_read, config, tell or _log.warning)
    task = _OTHER if config.task is None else TASKS[config.task]
    if config.cache is not None:
        split = Split([], *_files(config, read))
    else:
        split = _split(config, task, read)
    pairs: list[Pair] = getattr(split, name)
    if not pairs:
        raise ValueError(f"{config.name} has no {name} set")
    several = config.several_references
    return evaluation_set(
        pairs,
        vocabularies,
        task.several_references if several is None else several,
        task.error_names,
        config.max_pairs,
        copies=copies,
    )


def load_files(
    config: DataConfig,
    paths: str | list[str],
    vocabularies: Vocabularies,
    *,
    several_references: bool = False,
    copies: bool = False,
    tell: Tell | None = None,
) -> PairDataset:
    """Pairs to measure a model on, from files that its run does not know of.

    Args:
        config: what the run was trained on; says how files are read, and what errors are called.
        paths: a file of pairs, or two files, as `DataConfig` has them.
        vocabularies: of the run.
        several_references: whether a source counts once, and any of its targets is right.
        copies: whether the run's model does; see `PairDataset`.
        tell: see `load_data`.

    Raises:
        ValueError: if a line is no pair, or there is none.
        OSError: if a file cannot be read.
    """
    pairs = list(islice(_read(config, tell or _log.warning, paths), config.max_pairs))
    if not pairs:
        raise ValueError(f"{paths} has no pairs")
    names = None if config.task is None else TASKS[config.task].error_names
    return evaluation_set(pairs, vocabularies, several_references, names, copies=copies)


def evaluation_set(
    pairs: list[Pair],
    vocabularies: Vocabularies,
    several_references: bool,
    error_names: tuple[str, str] | None = None,
    max_pairs: int | None = None,
    *,
    copies: bool = False,
) -> PairDataset:
    """Pairs to measure a model on, the first `max_pairs` of them, by a run's vocabularies."""
    references = None
    if several_references:
        pairs, references = merge_targets(pairs)
        references = references[:max_pairs]
    pairs = pairs[:max_pairs]
    return PairDataset(
        pairs, *vocabularies, references=references, error_names=error_names, copies=copies
    )


def vocabularies_of(config: DataConfig, pairs: Callable[[], Iterator[Pair]]) -> Vocabularies:
    """The vocabularies of sources and targets.

    Args:
        config: says of which units, how large, and whether they are one.
        pairs: gives all pairs of texts, as often as it is asked.
    """
    if config.share_vocabulary:
        both = _vocabulary_of(config, ("source", "target"), chain.from_iterable(pairs()))
        return both, both
    source = _vocabulary_of(config, ("source",), (source for source, _ in pairs()))
    return source, _vocabulary_of(config, ("target",), (target for _, target in pairs()))


def _vocabulary_of(config: DataConfig, sides: Sequence[str], texts: Iterator[str]) -> Vocabulary:
    """The vocabulary of one side or of both, ``"source"`` and ``"target"``, from their texts."""
    unit, max_size = _first(config, sides, "unit"), _first(config, sides, "vocab_size")
    if unit is None:
        task = _OTHER if config.task is None else TASKS[config.task]
        units = {"source": "char", "target": task.target_unit}
        unit = units[sides[0]]
        if any(units[side] != unit for side in sides):
            raise ValueError(
                f"data.share_vocabulary needs data.source_unit for {config.name}, whose sources "
                f"are of {units['source']} and whose targets of {units['target']}"
            )
    if unit == "char":
        return Vocabulary.from_texts(texts, max_size=max_size)
    if unit == "word":
        return WordVocabulary.from_texts(texts, max_size=max_size)
    return SubwordVocabulary.from_texts(texts, max_size=max_size, unit=unit)


def _first(config: DataConfig, sides: Sequence[str], name: str) -> Any:
    """What the config says of one of the sides; None where it says nothing."""
    found = (getattr(config, f"{side}_{name}") for side in sides)
    return next((value for value in found if value is not None), None)


def _read(config: DataConfig, tell: Tell, paths: str | list[str]) -> Iterator[Pair]:
    bad_lines = BadLines(skip=config.on_bad_line == "skip")
    try:
        yield from read_pairs(
            paths,
            format=config.format,
            source_key=config.source_key,
            target_key=config.target_key,
            bad_lines=bad_lines,
        )
    finally:  # where only the first pairs are wanted too
        summary = bad_lines.summary()
        if summary is not None:
            tell(summary)


def _split(config: DataConfig, task: Task, read: Callable[[Any], Iterator[Pair]]) -> Split:
    pairs = task.pairs() if config.pairs is None else list(read(config.pairs))
    shares = {
        name: getattr(task, name) if value is None else value
        for name, value in (("dev", config.dev), ("test", config.test))
    }
    by_hash = {name: share for name, share in shares.items() if isinstance(share, (float, int))}
    split = split_pairs(pairs, join_targets=task.join_targets, **{"dev": 0, "test": 0} | by_hash)
    # Before the files are read: they may be large.
    split = split._replace(train=split.train[: config.max_pairs])
    return split._replace(
        **{name: list(read(share)) for name, share in shares.items() if name not in by_hash}
    )


def _files(config: DataConfig, read: Callable[[Any], Iterator[Pair]]) -> list[list[Pair]]:
    """The pairs of the dev and test sets where those are files."""
    return [list(read(paths)) if paths else [] for paths in (config.dev, config.test)]


def _cached(
    config: DataConfig,
    vocabularies: Vocabularies | None,
    copies: bool,
    read: Callable[[Any], Iterator[Pair]],
) -> tuple[EncodedPairs, Vocabularies]:
    """The training pairs in the cache, and their vocabularies; written where they are not there."""
    paths = [config.pairs] if isinstance(config.pairs, str) else list(config.pairs or [])
    about: dict[str, Any] = {
        "files": [[str(Path(p).resolve()), *_version(Path(p))] for p in paths],
        **{
            name: getattr(config, name)
            for name in ("format", "source_key", "target_key", "on_bad_line", "max_pairs")
        },
        "sides": [
            [getattr(config, f"{side}_unit"), getattr(config, f"{side}_vocab_size")]
            for side in ("source", "target")
        ],
    }
    # What an older version has not known is left out where it says nothing: its caches stay.
    about |= {"share_vocabulary": True} if config.share_vocabulary else {}
    folder = Path(str(config.cache)) / _digest(about)[:16]
    if vocabularies is None:
        vocabularies = _cached_vocabularies(folder, config)
    about |= {"copies": True} if copies else {}
    about["vocabularies"] = _digest([vocabulary.to_json() for vocabulary in vocabularies])
    found = open_mapped(folder, *vocabularies, about)
    if found is None:
        pairs = islice(read(config.pairs), config.max_pairs)
        write_mapped(folder, pairs, *vocabularies, about, copies=copies)
        found = open_mapped(folder, *vocabularies, about)
        assert found is not None
    if not len(found):
        raise ValueError(f"{config.name} has no pairs to train on")
    return found, vocabularies


def _cached_vocabularies(folder: Path, config: DataConfig) -> Vocabularies:
    """Those in the folder, or those of the training pairs, which are then kept there."""
    paths = [folder / f"{side}_vocabulary.json" for side in ("source", "target")]
    if not all(path.is_file() for path in paths):

        def pairs() -> Iterator[Pair]:
            # Bad lines are told of when the pairs are encoded.
            return islice(_read(config, lambda told: None, config.pairs or ""), config.max_pairs)

        for path, vocabulary in zip(paths, vocabularies_of(config, pairs), strict=True):
            vocabulary.save(path)
    source, target = map(Vocabulary.load, paths)
    return source, target


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _version(path: Path) -> tuple[int, int]:
    """By which a changed file is known."""
    state = path.stat()
    return state.st_size, state.st_mtime_ns
