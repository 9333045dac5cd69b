"""From a `DataConfig` to encoded sets: vocabularies, files to validate on, the cache, batches."""

from __future__ import annotations

import importlib.util
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from seq2seq_ext.data import (
    DataConfig,
    EncodedPairs,
    LengthBuckets,
    PairDataset,
    SubwordVocabulary,
    Vocabulary,
    WordVocabulary,
    load_data,
    mapped,
)
from seq2seq_ext.data.extras import MissingExtraError
from seq2seq_ext.data.files import read_json

needs_tokenizers = pytest.mark.skipif(
    importlib.util.find_spec("tokenizers") is None, reason="needs the extra [train]: tokenizers"
)
WORDS = ["low", "lower", "lowest", "new", "newer", "newest", "wide", "wider", "widest"]
LINES = [
    (f"{a} {b}", f"{b} x{i % 7}") for i, (a, b) in enumerate((a, b) for a in WORDS for b in WORDS)
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.tsv"
    path.write_text("".join(f"{source}\t{target}\n" for source, target in LINES))
    return path


# Vocabularies


def test_words_stand_between_blanks(tmp_path: Path) -> None:
    vocabulary = WordVocabulary.from_texts(["the  fox", "</s> fox"])
    assert vocabulary.to_list()[4:] == ["</s>", "fox", "the"]
    assert vocabulary.encode(" fox\tthe cat </s>", add_eos=True) == [5, 6, 1, 4, 3]
    assert vocabulary.decode([5, 6, 1, 4, 3, 5]) == "fox the \N{REPLACEMENT CHARACTER} </s>"
    assert vocabulary.unknown("cat fox cat dog") == ["cat", "dog"]
    assert vocabulary.normalise(" fox \t the") == "fox the"
    vocabulary.save(tmp_path / "v.json")
    assert Vocabulary.load(tmp_path / "v.json") == vocabulary
    assert vocabulary != Vocabulary("ab")
    with pytest.raises(ValueError, match="strings without blanks, got 'a b'"):
        WordVocabulary(["a b"])


def test_a_vocabulary_keeps_the_most_frequent() -> None:
    texts = ["c b b a a a", "d d"]
    assert WordVocabulary.from_texts(texts, max_size=7).to_list()[4:] == ["a", "b", "d"]
    assert WordVocabulary.from_texts(texts, max_size=6).to_list()[4:] == ["a", "b"]
    assert len(WordVocabulary.from_texts(texts, max_size=99)) == 8
    with pytest.raises(ValueError, match="max_size must be at least 5, got 4"):
        Vocabulary.from_texts(texts, max_size=4)


@needs_tokenizers
@pytest.mark.parametrize("unit", ["bpe", "unigram"])
@given(st.text(alphabet="ab é水<>/s", max_size=12))
def test_subwords_make_the_text_again(unit: str, text: str) -> None:
    vocabulary = SubwordVocabulary.from_texts(["ab é水 <s> </s> aab"] * 20, unit=unit, max_size=60)
    ids = vocabulary.encode(text)
    assert not {0, 2, 3} & set(ids), "what looks like a special token is none"
    assert len(vocabulary.tokenize(text)) == len(ids)
    if not vocabulary.unknown(text):
        assert vocabulary.decode([*ids, 3, 5]) == vocabulary.normalise(text)
        assert vocabulary.normalise(text).strip() == text.strip()
    else:
        assert 1 in ids


@needs_tokenizers
@pytest.mark.parametrize("unit", ["bpe", "unigram"])
def test_subwords_are_saved_and_learnt_alike(unit: str, tmp_path: Path) -> None:
    texts = [f"{a} {b}" for a, b in LINES] * 3
    vocabulary = SubwordVocabulary.from_texts(texts, unit=unit, max_size=40)
    assert vocabulary == SubwordVocabulary.from_texts(texts, unit=unit, max_size=40)
    assert 20 < len(vocabulary) <= 40
    assert max(map(len, vocabulary.to_list()[4:])) >= 4
    vocabulary.save(tmp_path / "v.json")
    loaded = Vocabulary.load(tmp_path / "v.json")
    assert isinstance(loaded, SubwordVocabulary)
    assert loaded == vocabulary == pickle.loads(pickle.dumps(vocabulary))
    assert loaded.encode("</s> lowest") == vocabulary.encode("</s> lowest")
    assert loaded.unit == unit
    text = (tmp_path / "v.json").read_text()
    for wrong in (text.replace('"<pad>"', '"<dap>"'), text.replace(f'"{unit}"', '"wordpiece"')):
        (tmp_path / "v.json").write_text(wrong)
        with pytest.raises(ValueError, match=r"v\.json is not a vocabulary"):
            Vocabulary.load(tmp_path / "v.json")


def test_subwords_without_tokenizers_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"'tokenizers'.*seq2seq_ext\[train\]"):
        SubwordVocabulary.from_texts(["a"])


# Sets


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "data.task or data.pairs must be given"),
        ({"task": "plural", "pairs": "x"}, "data.task or data.pairs must be given, and not both"),
        ({"task": "speech"}, "data.task must be one of plural, past, g2p, .*, got 'speech'"),
        ({"pairs": "x", "format": "csv"}, "data.format must be one of tsv, jsonl, got 'csv'"),
        ({"pairs": "x", "on_bad_line": "ask"}, "data.on_bad_line must be one of stop, skip"),
        ({"pairs": "x", "target_unit": "byte"}, "data.target_unit must be one of char, word, bpe"),
        ({"pairs": "x", "max_pairs": 0}, "data.max_pairs must be at least 1, got 0"),
        ({"pairs": "x", "source_vocab_size": 4}, "source_vocab_size must be at least 5, got 4"),
        ({"pairs": "-", "cache": "c"}, "data.cache needs data.pairs that can be read twice"),
        ({"task": "copy", "cache": "c"}, "data.cache needs data.pairs that can be read twice"),
        ({"pairs": "x", "cache": "c", "dev": 0.1}, "data.dev must be a file beside data.cache"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataConfig(**options)


def test_files_to_validate_and_test_on(data: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.tsv"
    other.write_text("low\tx1\nlow\tx2\nnew\tx1\n")
    config = DataConfig(pairs=str(data), dev=str(other), test=0.2, several_references=True)
    sets = load_data(config)
    assert sets.dev.pairs == [("low", "x1"), ("new", "x1")]
    assert sets.dev.references == [("x1", "x2"), ("x1",)]
    assert len(sets.train) + len(sets.test) == len(LINES)
    assert len(sets.test) > 0
    all_of_it = load_data(DataConfig(pairs=str(data), dev=str(other), test=str(other)))
    assert len(all_of_it.train) == len(LINES)
    assert len(all_of_it.test) == 3


def test_each_side_has_its_own_tokens(data: Path) -> None:
    config = DataConfig(pairs=str(data), target_unit="word", target_vocab_size=9)
    train = load_data(config).train
    assert type(train.source_vocabulary) is Vocabulary
    assert isinstance(train.target_vocabulary, WordVocabulary)
    assert len(train.target_vocabulary) == 9


def test_bad_lines_are_told_of(data: Path) -> None:
    with open(data, "a") as file:
        file.write("no tab\n")
    told: list[str] = []
    with pytest.raises(ValueError, match=f"line {len(LINES) + 1} must have two columns"):
        load_data(DataConfig(pairs=str(data)))
    load_data(DataConfig(pairs=str(data), on_bad_line="skip"), tell=told.append)
    assert len(told) == 1
    assert f"skipped 1 bad line: {data}, line {len(LINES) + 1}" in told[0]


@pytest.mark.parametrize("bad", [1, 3])
def test_bad_lines_before_the_last_pair_wanted_are_told_of(tmp_path: Path, bad: int) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text("a\tb\n" + "bad\n" * bad + "c\td\n" * 9)
    told: list[str] = []
    config = DataConfig(
        pairs=str(path), on_bad_line="skip", max_pairs=2, cache=str(tmp_path / "cache")
    )
    assert len(load_data(config, tell=told.append).train) == 2
    assert len(told) == 1, "once, however often the file is read"
    assert told[0].startswith(f"skipped {bad} bad line")


# The cache


def batches(dataset: EncodedPairs) -> list[list[list[int]]]:
    sampler = LengthBuckets(dataset, 8, seed=3, pool_size=2)
    return [[side.tolist() for side in dataset[rows]] for rows in sampler]


@pytest.mark.parametrize("unit", ["char", "word", pytest.param("bpe", marks=needs_tokenizers)])
def test_a_cache_gives_the_batches_that_memory_gives(data: Path, tmp_path: Path, unit: str) -> None:
    common: dict[str, Any] = {"pairs": str(data), "source_unit": unit, "source_vocab_size": 30}
    cached = DataConfig(**common, cache=str(tmp_path / "cache"))
    in_memory = load_data(DataConfig(**common, dev=0.0, test=0.0)).train
    first, again = load_data(cached).train, load_data(cached).train
    assert not isinstance(first, PairDataset)
    assert batches(first) == batches(again) == batches(in_memory)
    assert first.fingerprint == again.fingerprint == in_memory.fingerprint
    assert first.source_vocabulary == in_memory.source_vocabulary


def test_a_cache_is_written_once_and_anew_for_other_data(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = DataConfig(pairs=str(data), cache=str(tmp_path / "cache"))
    written: list[Path] = []
    write = mapped.write_mapped

    def counted(folder: Path, *arguments: Any, **options: Any) -> None:
        written.append(folder)
        write(folder, *arguments, **options)

    monkeypatch.setattr("seq2seq_ext.data.loading.write_mapped", counted)
    vocabularies = Vocabulary("lower"), Vocabulary("x")
    assert len(load_data(cached).train) == len(LINES)
    assert len(load_data(cached).train) == len(LINES)
    assert len(written) == 1
    ours = load_data(cached, vocabularies=vocabularies).train
    assert len(written) == 2
    assert ours.source_vocabulary == vocabularies[0]
    with open(data, "a") as file:
        file.write("a\tb\n")
    assert len(load_data(cached).train) == len(LINES) + 1
    assert len(set(written)) == 2


def test_a_cache_that_was_broken_off_is_written_anew(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    cached = DataConfig(pairs=str(data), cache=str(cache))

    def killed(*arguments: object) -> None:
        raise OSError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(mapped, "write_json_atomically", killed)
        with pytest.raises(OSError, match="killed"):
            load_data(cached)
    assert len(load_data(cached).train) == len(LINES)
    (tokens,) = cache.glob("*/source.tokens")
    tokens.write_bytes(tokens.read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"source\.tokens must have \d+ bytes, got \d+; delete"):
        load_data(cached)
    (index,) = cache.glob("*/pairs.json")
    assert read_json(index)["pairs"] == len(LINES)


def test_an_empty_file_has_nothing_to_learn(tmp_path: Path) -> None:
    (tmp_path / "empty.tsv").write_text("")
    for options in ({}, {"cache": str(tmp_path / "cache")}):
        with pytest.raises(ValueError, match=r"empty\.tsv has no pairs to train on"):
            load_data(DataConfig(pairs=str(tmp_path / "empty.tsv"), **options))


def test_tokens_of_a_cache_are_not_held_in_memory(tmp_path: Path) -> None:
    path, line = tmp_path / "large.tsv", "abcdefghij" * 40
    with open(path, "w") as file:
        for i in range(20_000):
            file.write(f"{i} {line}\t{line}\n")  # 16 MB of text, 64 MB of tokens
    program = (
        "import resource, sys\n"
        "from seq2seq_ext.data import DataConfig, load_data\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "train = load_data(DataConfig(pairs=sys.argv[1], cache=sys.argv[2])).train\n"
        "train[list(range(0, len(train), 1000))]\n"
        "print(len(train), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", program, str(path), str(tmp_path / "cache")],
        check=True, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    pairs, kilobytes = map(int, found.stdout.split())
    assert pairs == 20_000
    assert kilobytes < 32_000


# Batches by tokens


def dataset_of(lengths: list[tuple[int, int]]) -> PairDataset:
    pairs = [("a" * source, "b" * target) for source, target in lengths]
    return PairDataset(pairs, Vocabulary("a"), Vocabulary("b"))


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=60),
    st.integers(1, 40),
    st.booleans(),
)
def test_batches_by_tokens_hold_every_row_once_and_no_more_tokens(
    lengths: list[tuple[int, int]], batch_tokens: int, shuffle: bool
) -> None:
    dataset = dataset_of(lengths)
    buckets = LengthBuckets(dataset, 1, batch_tokens=batch_tokens, shuffle=shuffle, pool_size=3)
    for _ in range(2):
        expected = len(buckets)
        found = list(buckets)
        assert len(found) == expected
        assert sorted(row for rows in found for row in rows) == list(range(len(lengths)))
        for rows in found:
            batch = dataset[rows]
            size = max(batch.source.numel(), batch.target.numel())
            assert size <= batch_tokens or len(rows) == 1


def test_batches_by_tokens_are_full_and_drawn_anew() -> None:
    chance = torch.Generator().manual_seed(0)
    sizes = torch.randint(1, 30, (2000, 2), generator=chance).tolist()
    dataset = dataset_of([(a, b) for a, b in sizes])
    buckets = LengthBuckets(dataset, 1, batch_tokens=600)
    first, second = list(buckets), list(buckets)
    assert first != second
    assert first == list(LengthBuckets(dataset, 1, batch_tokens=600))
    batches = [dataset[rows] for rows in first]
    full = sum(max(b.source.numel(), b.target.numel()) for b in batches) / len(batches)
    assert full > 0.85 * 600
    with pytest.raises(ValueError, match="batch_tokens must be at least 1, got 0"):
        LengthBuckets(dataset, 1, batch_tokens=0)
