"""What to learn from, as plain names and numbers, checked when they are given."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from seq2seq_ext.data.reading import FORMATS, ON_BAD_LINE
from seq2seq_ext.data.subwords import SUBWORD_UNITS
from seq2seq_ext.data.tasks import TASKS

UNITS = ("char", "word", *SUBWORD_UNITS)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What to learn from, and which tokens it is made of.

    Args:
        task: a built-in set: ``"plural"``, ``"past"``, ``"g2p"``, ``"names"``, ``"copy"``,
            ``"reverse"`` or ``"sort"``; or
        pairs: a file of pairs to learn from, ``"-"`` for the standard input, or a list of two
            files, of sources and of targets, line by line; gzipped or not. A file whose name ends
            in ``.jsonl`` holds JSON objects, any other two columns with a tab between.
        dev: what to validate on: a file, or two, as `pairs`; or a share of `pairs`, chosen by a
            hash of the texts; None takes the task's own share, or 0.05, with `cache` none.
        test: what to measure the trained model on, likewise; None takes 0.1 of files.
        max_pairs: use the first pairs of each set alone.
        format: of files of pairs, ``"tsv"`` or ``"jsonl"``; None goes by their names.
        source_key: of a JSON object the source.
        target_key: the target, a text or a list of several.
        on_bad_line: ``"stop"`` at a line that is no pair, or ``"skip"`` it and tell at the end.
        source_unit: tokens of the sources: ``"char"``, ``"word"`` (between blanks), ``"bpe"`` or
            ``"unigram"``; None takes the task's own, or characters.
        target_unit: likewise of the targets.
        source_vocab_size: ids at most, the four special tokens counted; None takes all characters
            or words, and 8000 subwords.
        target_vocab_size: likewise of the targets.
        share_vocabulary: whether sources and targets have one vocabulary, of the tokens of both,
            as models with ``copy`` or ``tie_embeddings="all"`` need it. Its unit and its size are
            those of one side, or of both alike.
        several_references: whether a source of the dev and test sets counts once, and any of its
            targets is right; None takes the task's own, or false.
        cache: a folder to keep the encoded training pairs in. With it they are not held in memory,
            and may be more than fit; a later run finds them there.

    Raises:
        ValueError: if a field is out of range, or not just one of `task` and `pairs` is given.
    """

    task: str | None = None
    pairs: list[str] | str | None = None
    dev: float | list[str] | str | None = None
    test: float | list[str] | str | None = None
    max_pairs: int | None = None
    format: str | None = None
    source_key: str = "source"
    target_key: str = "target"
    on_bad_line: str = "stop"
    source_unit: str | None = None
    target_unit: str | None = None
    source_vocab_size: int | None = None
    target_vocab_size: int | None = None
    share_vocabulary: bool = False
    several_references: bool | None = None
    cache: str | None = None

    def __post_init__(self) -> None:
        if (self.task is None) == (self.pairs is None):
            raise ValueError(
                "data.task or data.pairs must be given, and not both, "
                f"got {self.task!r} and {self.pairs!r}"
            )
        for name, choices in (
            ("task", TASKS),
            ("format", FORMATS),
            ("on_bad_line", ON_BAD_LINE),
            ("source_unit", UNITS),
            ("target_unit", UNITS),
        ):
            value = getattr(self, name)
            if value not in choices and (value is not None or name == "on_bad_line"):
                raise ValueError(f"data.{name} must be one of {', '.join(choices)}, got {value!r}")
        for name, least in (("max_pairs", 1), ("source_vocab_size", 5), ("target_vocab_size", 5)):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or value < least):
                raise ValueError(f"data.{name} must be at least {least}, got {value!r}")
        if self.share_vocabulary:
            for name in ("unit", "vocab_size"):
                ours = {getattr(self, f"{side}_{name}") for side in ("source", "target")}
                if len(ours - {None}) > 1:
                    raise ValueError(
                        f"data.source_{name} and data.target_{name} must be equal with "
                        "data.share_vocabulary, got "
                        f"{getattr(self, f'source_{name}')!r} and "
                        f"{getattr(self, f'target_{name}')!r}"
                    )
        if self.cache is not None:
            self._check_cache()

    def _check_cache(self) -> None:
        if self.pairs is None or self.pairs == "-":
            raise ValueError(
                "data.cache needs data.pairs that can be read twice, "
                f"got {self.task if self.pairs is None else self.pairs!r}"
            )
        for name in ("dev", "test"):
            share = getattr(self, name)
            if isinstance(share, float) and share:
                raise ValueError(f"data.{name} must be a file beside data.cache, got {share}")

    @property
    def name(self) -> str:
        """What the data is called: the task, or the first file."""
        if self.task is not None:
            return self.task
        return self.pairs if isinstance(self.pairs, str) else (self.pairs or [""])[0]

    def to_dict(self) -> dict[str, Any]:
        """All fields as a dict that JSON can hold."""
        return asdict(self)
