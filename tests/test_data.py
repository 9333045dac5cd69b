"""Vocabularies, word lists, splits, batches and files."""

import importlib.util
import os
import signal
import stat
import subprocess
import sys
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from seq2seq_ext.data import (
    Batch,
    LengthBuckets,
    PairDataset,
    Vocabulary,
    files,
    split_pairs,
    stable_hash,
    word_pairs,
)
from seq2seq_ext.data.extras import MissingExtraError
from seq2seq_ext.data.files import read_json, write_bytes_atomically, write_json_atomically

needs_lemminflect = pytest.mark.skipif(
    importlib.util.find_spec("lemminflect") is None,
    reason="the word lists need the extra [demo]: lemminflect",
)
words = st.text(alphabet="abcdefgh", min_size=1, max_size=8)


# Vocabulary


@given(st.lists(st.text(), max_size=5), st.text(alphabet="aé水🙂", max_size=9))
def test_encoding_and_decoding_known_text_gives_it_back(texts, text):
    vocabulary = Vocabulary.from_texts([*texts, text])
    ids = vocabulary.encode(text, add_eos=True)
    assert ids[-1] == vocabulary.eos_token_id == 3
    assert vocabulary.decode(ids) == text
    assert not vocabulary.unknown(text)


def test_special_tokens_come_first():
    vocabulary = Vocabulary("ba")
    assert vocabulary.to_list() == ["<pad>", "<unk>", "<s>", "</s>", "b", "a"]
    assert vocabulary.encode("abc") == [5, 4, 1]
    assert vocabulary.unknown("abcdc") == ["c", "d"]
    assert vocabulary.decode([2, 5, 1, 0, 4, 3, 5]) == "a\N{REPLACEMENT CHARACTER}b"
    assert len(vocabulary) == 6
    assert "a" in vocabulary
    assert "c" not in vocabulary


def test_vocabulary_round_trip_through_a_file(tmp_path):
    vocabulary = Vocabulary.from_texts(["zoë", "\n\t\"'", "水"])
    vocabulary.save(tmp_path / "new" / "vocabulary.json")
    assert Vocabulary.load(tmp_path / "new" / "vocabulary.json") == vocabulary


@pytest.mark.parametrize(
    ("characters", "message"),
    [(["ab"], "single characters, got 'ab'"), ("aba", r"must differ, got \['a'\]")],
)
def test_vocabulary_refuses_what_is_no_set_of_characters(characters, message):
    with pytest.raises(ValueError, match=message):
        Vocabulary(characters)


def test_decoding_an_id_outside_the_vocabulary_raises():
    with pytest.raises(ValueError, match=r"ids must be in \[0, 5\), got 5"):
        Vocabulary("a").decode([4, 5])


@pytest.mark.parametrize(
    "content", ["", "{}", '["a", "b"]', '["<pad>", "<unk>", "<s>", "</s>", 3]']
)
def test_a_damaged_vocabulary_file_is_named(tmp_path, content):
    path = tmp_path / "vocabulary.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"vocabulary\.json is not"):
        Vocabulary.load(path)


# Files


def test_writing_replaces_whole_files_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "value.json"
    for value in ({"a": 1}, ["ä"]):
        write_json_atomically(path, value)
        assert read_json(path) == value
    assert os.listdir(tmp_path) == ["value.json"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_a_failed_write_leaves_the_old_file_alone(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_bytes_atomically(path, b"old")

    def full(descriptor):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_bytes_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_killed_writer_leaves_a_whole_file(tmp_path):
    path = tmp_path / "file"
    program = (
        "import runpy, sys\n"
        "write = runpy.run_path(sys.argv[1])['write_bytes_atomically']\n"
        "i = 0\n"
        "while True:\n"
        "    i = (i + 1) % 256\n"
        "    write(sys.argv[2], bytes([i]) * 3_000_000)\n"
    )
    for pause in (0.0, 0.003, 0.007):
        writer = subprocess.Popen([sys.executable, "-c", program, files.__file__, str(path)])
        deadline = time.monotonic() + 60
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(pause)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        content = path.read_bytes()
        assert len(content) == 3_000_000
        assert len(set(content)) == 1
        path.unlink()


# Words


@needs_lemminflect
def test_word_lists_have_the_known_sizes():
    plural, past = word_pairs("plural"), word_pairs("past")
    assert len(plural) == 13_668
    assert len(past) == 6_414
    assert {("goose", "geese"), ("fox", "foxes")} <= set(plural)
    assert {("teach", "taught"), ("walk", "walked")} <= set(past)
    for source, target in plural + past:
        assert source != target
        assert (source + target).isascii()
        assert (source + target).islower()


@needs_lemminflect
@pytest.mark.parametrize(
    ("task", "sizes"), [("plural", (11_625, 697, 1_346)), ("past", (5_435, 316, 663))]
)
def test_no_word_is_in_two_sets(task, sizes):
    split = split_pairs(word_pairs(task))
    assert tuple(map(len, split)) == sizes
    train, dev, test = ({word for pair in part for word in pair} for part in split)
    assert not test & train
    assert not test & dev
    assert not dev & train


def test_unknown_tasks_are_refused():
    with pytest.raises(ValueError, match=r"task must be one of \['plural', 'past'\], got 'future'"):
        word_pairs("future")


def test_a_missing_lexicon_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'seq2seq_ext\[demo\]'"):
        word_pairs("plural")


# Splits


def test_the_hash_is_sha256s_and_stays_so():
    # The first 8 bytes of SHA-256("abc") are ba7816bf 8f01cfea (FIPS 180-4's example).
    assert stable_hash("abc") == (0xBA7816BF8F01CFEA >> 11) / 2**53


@given(st.lists(st.tuples(words, words), max_size=60))
def test_pairs_with_a_common_word_stay_together(pairs):
    split = split_pairs(pairs, dev=0.3, test=0.3)
    assert sorted(split.train + split.dev + split.test) == sorted(pairs)
    train, dev, test = ({word for pair in part for word in pair} for part in split)
    assert not train & dev
    assert not train & test
    assert not dev & test


@given(st.permutations([("a", "b"), ("c", "d"), ("b", "e"), ("f", "g"), ("h", "i")]))
def test_the_split_does_not_depend_on_the_order(pairs):
    expected = split_pairs(sorted(pairs), dev=0.3, test=0.3)
    assert [sorted(part) for part in split_pairs(pairs, dev=0.3, test=0.3)] == list(expected)


def test_a_pair_keeps_its_set_when_others_come_and_go():
    pairs = [(f"w{i}", f"w{i}s") for i in range(300)]
    whole = split_pairs(pairs, dev=0.2, test=0.3)
    half = split_pairs(pairs[::2], dev=0.2, test=0.3)
    assert all(set(few) <= set(many) for few, many in zip(half, whole, strict=True))
    # Binomial shares: six standard deviations either side.
    assert 90 - 48 < len(whole.test) < 90 + 48
    assert 60 - 42 < len(whole.dev) < 60 + 42


@pytest.mark.parametrize("shares", [(-0.1, 0.2), (0.5, 0.5)])
def test_impossible_shares_are_refused(shares):
    with pytest.raises(ValueError, match="sum to less than 1"):
        split_pairs([], dev=shares[0], test=shares[1])


# Batches


def dataset_of(pairs):
    vocabulary = Vocabulary("abcdefgh")
    return PairDataset(pairs, vocabulary, vocabulary)


@given(st.lists(st.tuples(st.just("") | words, words), min_size=1, max_size=30), st.data())
def test_a_batch_holds_the_rows_asked_for(pairs, data):
    dataset = dataset_of(pairs)
    rows = data.draw(st.lists(st.integers(0, len(pairs) - 1), min_size=1, max_size=8))
    batch = dataset[rows]
    for i, row in enumerate(rows):
        source, target = pairs[row]
        vocabulary = dataset.source_vocabulary
        assert batch.source_lengths[i] == len(source)
        assert batch.target_lengths[i] == len(target) + 1
        assert batch.source[i, : len(source)].tolist() == vocabulary.encode(source)
        assert (batch.source[i, len(source) :] == 0).all()
        assert batch.target[i, : len(target) + 1].tolist() == vocabulary.encode(
            target, add_eos=True
        )
        assert (batch.target[i, len(target) + 1 :] == 0).all()
    assert batch.source.size(1) == max(len(pairs[row][0]) for row in rows)
    assert batch.target.size(1) == max(len(pairs[row][1]) for row in rows) + 1


def many_pairs(n=500):
    return [("abcdefgh"[: i % 7 + 1] * (i % 3 + 1), "ab" * (i % 5)) for i in range(n)]


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("n", [1, 64, 500])
def test_buckets_hold_every_row_once(n, shuffle):
    buckets = LengthBuckets(dataset_of(many_pairs(n)), 16, shuffle=shuffle, pool_size=4)
    for _ in range(2):
        batches = list(buckets)
        assert sorted(row for batch in batches for row in batch) == list(range(n))
        assert len(batches) == len(buckets)
        assert max(map(len, batches)) <= 16


def test_buckets_keep_lengths_together():
    dataset = dataset_of(many_pairs())
    padding = {
        pool_size: sum(
            int((dataset[batch].source == 0).sum())
            for batch in LengthBuckets(dataset, 16, pool_size=pool_size)
        )
        for pool_size in (1, 100)
    }
    assert padding[100] < 0.1 * padding[1]


def test_epochs_differ_and_seeds_repeat_them():
    dataset = dataset_of(many_pairs())
    first, again, other = (LengthBuckets(dataset, 16, seed=seed) for seed in (1, 1, 2))
    epochs = [list(first), list(first)]
    assert epochs == [list(again), list(again)]
    assert epochs[0] != epochs[1]
    assert epochs[0] != list(other)


def test_a_data_loader_hands_over_whole_batches():
    dataset = dataset_of(many_pairs(40))
    loader = DataLoader(dataset, batch_size=None, sampler=LengthBuckets(dataset, 8))
    batches = list(loader)
    assert all(isinstance(batch, Batch) for batch in batches)
    assert sum(len(batch.source) for batch in batches) == 40
    assert all(torch.equal(b.source_lengths, (b.source != 0).sum(1)) for b in batches)


@pytest.mark.parametrize("name", ["batch_size", "pool_size"])
def test_buckets_refuse_sizes_below_one(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        LengthBuckets(dataset_of([("a", "b")]), **({"batch_size": 2} | {name: 0}))
