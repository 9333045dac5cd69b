"""Bulk translation: formats, the order of lines, windows, kills, resuming, several processes."""

from __future__ import annotations

import gzip
import io
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving_cases import new_run

import seq2seq_ext
from seq2seq_ext.bulk import BadLineError, BulkOptions, convert, translate_file
from seq2seq_ext.bulk.formats import MAX_LINE_BYTES
from seq2seq_ext.bulk.lines import windows
from seq2seq_ext.bulk.shards import Shard
from seq2seq_ext.cli import main
from seq2seq_ext.training import save_run

WORDS = ["fox", "a", "", "goose", "oxen", "be", "", "mouse", "zebra", "yaks", "emu"] * 3
SEARCH = {"num_beams": 3}
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(seq2seq_ext.__file__).parents[1])}


@pytest.fixture(scope="module")
def run():
    return new_run()


@pytest.fixture(scope="module")
def expected(run):
    results = iter(run.translate([word for word in WORDS if word]))
    return [next(results) if word else "" for word in WORDS]


@pytest.fixture
def words(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("".join(f"{word}\n" for word in WORDS))
    return str(path)


def converted(run, content: bytes, **options) -> str:
    options = BulkOptions(**options)
    file = io.BytesIO(content)
    return b"".join(convert(run, w, options) for w in windows(file, options.window)).decode()


# Formats.


@pytest.mark.parametrize("window", [1, 7, 8192])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_results_stand_in_the_order_of_the_lines(run, expected, window, end):
    content = end.join(WORDS).encode()  # the last line has no end
    assert converted(run, content, window=window).split("\n") == [*expected, ""]


@given(st.lists(st.text(st.characters(exclude_characters="\n\r", exclude_categories=["Cs"]))))
@settings(max_examples=25, deadline=None)
def test_every_text_has_one_line(texts):
    """Line separators of Unicode, NUL and a leading byte order mark are no ends of lines."""
    run = new_run()
    content = "".join(f"{text}\n" for text in texts).encode()
    lines = converted(run, content, window=3).split("\n")
    assert len(lines) == len(texts) + 1
    for text, line in zip(texts, lines, strict=False):
        if text and not text.startswith("\ufeff"):
            assert line == run.translate([text])[0]


def test_n_best_have_lines_and_scores_of_their_own(run):
    lines = converted(run, b"fox\n\ngoose\n", n_best=2, search=SEARCH).splitlines()
    assert lines[2:4] == ["", ""]
    for word, pair in (("fox", lines[:2]), ("goose", lines[4:])):
        best = run.n_best([word], 2, **SEARCH)[0]
        assert pair == [f"{each.text}\t{each.score:.4f}" for each in best]


def test_columns_are_kept_and_the_result_is_behind_them(run):
    content = b"1\tfox\tx\n\n2\tgoose\n"
    options = {"input_format": "tsv", "output_format": "tsv", "column": 2}
    fox, goose = run.translate(["fox", "goose"])
    assert converted(run, content, **options) == f"1\tfox\tx\t{fox}\n\t\n2\tgoose\t{goose}\n"
    rows = converted(run, content, **options, n_best=2, search=SEARCH).splitlines()
    best = run.n_best(["fox"], 2, **SEARCH)[0]
    assert rows[:2] == [f"1\tfox\tx\t{each.text}\t{each.score:.4f}" for each in best]
    assert len(rows) == 6


def test_objects_are_kept_and_get_a_field(run):
    content = '{"id": 7, "word": "fox", "é": [1.5]}\n"goose"\n\n'.encode()
    options = {"input_format": "jsonl", "output_format": "jsonl", "field": "word"}
    fox, goose = run.translate(["fox", "goose"])
    assert [json.loads(line) for line in converted(run, content, **options).splitlines()] == [
        {"id": 7, "word": "fox", "é": [1.5], "result": fox},
        {"word": "goose", "result": goose},
        {"word": "", "result": ""},
    ]
    lines = converted(run, content, **options, n_best=2, search=SEARCH).splitlines()
    best = json.loads(lines[0])["n_best"]
    own = run.n_best(["fox"], 2, **SEARCH)[0]
    assert [each["text"] for each in best] == [each.text for each in own]
    assert [each["score"] for each in best] == pytest.approx([each.score for each in own])
    assert json.loads(lines[2])["n_best"] == []


def test_a_tab_of_json_breaks_no_column(run):
    content = b'{"text": "a\\tb\\nc"}\n'
    (line,) = converted(run, content, input_format="jsonl", output_format="tsv").splitlines()
    (result,) = run.translate(["a\tb\nc"])
    assert line == f"a b c\t{result}"


BAD = {
    "is not UTF-8 text": ({}, b"a\xff"),
    f"has more than {MAX_LINE_BYTES} bytes": ({}, b"a" * (3 * MAX_LINE_BYTES)),
    "is not valid JSON": ({"input_format": "jsonl"}, b"{"),
    "must be a string, or an object": ({"input_format": "jsonl"}, b'{"word": "fox"}'),
    "half of a surrogate pair": ({"input_format": "jsonl"}, b'"\\ud800"'),
    "must have a column 2, has 1": ({"input_format": "tsv", "column": 2}, b"fox"),
}


@pytest.mark.parametrize("message", BAD)
def test_a_bad_line_is_named_by_its_number(run, message):
    options, bad = BAD[message]
    good = {"jsonl": b'"fox"', "tsv": b"1\tfox"}.get(options.get("input_format"), b"fox")
    content = b"\n".join([good, bad, good]) + b"\n"
    with pytest.raises(BadLineError, match=r"^line 2 of the input ") as caught:
        converted(run, content, **options)
    assert message in str(caught.value)
    told = []
    how = BulkOptions(**options, window=2, bad_lines="empty")
    parts = [
        convert(run, window, how, on_bad_line=told.append)
        for window in windows(io.BytesIO(content), 2)
    ]
    (fox,) = run.translate(["fox"])
    assert b"".join(parts).decode().splitlines() == [fox, "", fox]
    assert len(told) == 1


def test_no_more_than_a_window_is_read_at_once():
    class Endless(io.RawIOBase):
        lines = 0

        def readline(self, size=-1):
            self.lines += 1
            return b"fox\n"

    file = Endless()
    taken = windows(file, 100)
    for number in range(3):
        window = next(taken)
        assert (window.number, window.first, len(window.lines)) == (number, 100 * number + 1, 100)
        assert file.lines == 100 * (number + 1)
    long = windows(io.BytesIO((b"a" * 1_000_000 + b"\n") * 40), 1000)
    assert [len(window.lines) for window in long] == [17, 17, 6]


# Files, and going on.


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_files_are_read_and_written_whole(run, expected, words, tmp_path, suffix):
    source, output = f"{words}{suffix}", tmp_path / f"out.txt{suffix}"
    content = Path(words).read_bytes()
    Path(source).write_bytes(gzip.compress(content) if suffix else content)
    assert translate_file(run, source, str(output), BulkOptions(window=5)) == len(WORDS)
    written = gzip.decompress(output.read_bytes()) if suffix else output.read_bytes()
    assert written.decode().splitlines() == expected
    assert {path.name for path in tmp_path.iterdir()} == {
        "words.txt",
        *{f"words.txt{suffix}"},
        output.name,
    }


def test_a_damaged_file_is_named(run, words, tmp_path):
    damaged = tmp_path / "words.gz"
    damaged.write_bytes(gzip.compress(os.urandom(1000))[:500])
    with pytest.raises(ValueError, match=r"words\.gz is damaged"):
        translate_file(run, str(damaged), str(tmp_path / "out"), BulkOptions(bad_lines="empty"))


class Stopped(Exception):
    pass


def interrupted(run, source, output, options, windows_done, **more):
    """As a kill behind the given number of windows would leave it, but for torn ends."""
    left = windows_done

    def stop(texts):
        nonlocal left
        if not left:
            raise Stopped
        left -= 1

    with pytest.raises(Stopped):
        translate_file(run, source, output, options, on_texts=stop, **more)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_resumed_file_is_the_undisturbed_one_in_every_byte(run, words, tmp_path, suffix):
    options = BulkOptions(window=4, n_best=2, search=SEARCH)
    whole, output = str(tmp_path / f"whole{suffix}"), str(tmp_path / f"out{suffix}")
    translate_file(run, words, whole, options)
    for windows_done in range(9):
        interrupted(run, words, output, options, windows_done)
        assert not Path(output).exists()
        interrupted(run, words, output, options, 0, resume=True)
        again = []
        done = translate_file(run, words, output, options, resume=True, on_texts=again.append)
        assert (done, len(again)) == (len(WORDS), 9 - windows_done)
        assert Path(output).read_bytes() == Path(whole).read_bytes()
        assert translate_file(run, words, output, options, resume=True) == 0  # it is whole
        os.unlink(output)


def test_torn_ends_are_no_loss(run, words, tmp_path):
    """A power cut may leave any beginning of the last writes."""
    options = BulkOptions(window=4)
    whole, output = tmp_path / "whole", tmp_path / "out"
    translate_file(run, words, str(whole), options)
    part, journal = tmp_path / "out.part", tmp_path / "out.part.journal"
    interrupted(run, words, str(output), options, 2)
    content, said = part.read_bytes(), journal.read_bytes()
    header = said.index(b"\n") + 1
    cases = [(content + b"half a res", said)]
    cases += [(content, said[:cut]) for cut in (0, 5, header, header + 3, len(said) - 1)]
    cases += [(content[:cut], said) for cut in (0, 1, len(content) - 1)]
    cases += [(content, said + b"[9, tor\n")]
    for torn_content, torn_said in cases:
        part.write_bytes(torn_content)
        journal.write_bytes(torn_said)
        translate_file(run, words, str(output), options, resume=True)
        assert output.read_bytes() == whole.read_bytes()
        output.unlink()


def test_what_was_begun_otherwise_is_not_gone_on_with(run, words, tmp_path):
    options, output = BulkOptions(window=4), str(tmp_path / "out")
    interrupted(run, words, output, options, 2)
    with pytest.raises(ValueError, match=r"'window': 4.* and is .*'window': 5"):
        translate_file(run, words, output, BulkOptions(window=5), resume=True)
    with pytest.raises(ValueError, match="was begun otherwise: model was"):
        translate_file(new_run(cell="lstm"), words, output, options, resume=True)
    with pytest.raises(ValueError, match="begun by another number of processes"):
        translate_file(run, words, output, options, resume=True, shard=Shard(0, 2))
    content = Path(words).read_text()
    Path(words).write_text("elk" + content[3:])
    with pytest.raises(ValueError, match="something up to line 4 has changed"):
        translate_file(run, words, output, options, resume=True)
    Path(words).write_text("fox\n")
    with pytest.raises(ValueError, match="has changed"):
        translate_file(run, words, output, options, resume=True)
    Path(words).write_text("")
    with pytest.raises(ValueError, match="is shorter than"):
        translate_file(run, words, output, options, resume=True)
    Path(words).write_text(content)
    translate_file(run, words, output, options)  # anew
    assert len(Path(output).read_text().splitlines()) == len(WORDS)


def test_two_do_not_write_one_output(run, words, tmp_path):
    output = str(tmp_path / "out")

    def another(texts):
        with pytest.raises(BlockingIOError, match=r"out\.part is being written by another process"):
            translate_file(run, words, output)

    translate_file(run, words, output, on_texts=another)


def test_windows_of_several_processes_are_put_in_order(run, words, tmp_path, monkeypatch):
    """Without processes: what each would do, one after the other."""
    options = BulkOptions(window=4)
    whole, output = tmp_path / "whole", tmp_path / "out"
    translate_file(run, words, str(whole), options)
    shards = [Shard(rank, 4) for rank in range(4)]  # windows 0 4 8, 1 5, 2 6, 3 7
    monkeypatch.setattr(Shard, "together", lambda self: nullcontext())
    monkeypatch.setattr(Shard, "wait", lambda self: None)
    done = [translate_file(run, words, str(output), options, shard=each) for each in shards[1:]]
    assert done == [8, 8, 8]
    assert not output.exists()
    assert translate_file(run, words, str(output), options, shard=shards[0]) == 9
    assert output.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole", "words.txt"]


# The command.


def command(*arguments, launcher=()):
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "seq2seq_ext.cli", "translate", *map(str, arguments)],
        env=ENVIRONMENT | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process):
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return errors


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
    pytest.importorskip("safetensors", reason="needs the extra [train]")
    folder = tmp_path_factory.mktemp("runs") / "plain"
    save_run(folder, run)
    return folder


def test_minus_is_the_standard_input_and_output(folder, words, expected, tmp_path, capsys):
    assert main(["translate", str(folder), words, "-o", "-", "--window", "4"]) == 0
    assert capsys.readouterr().out.splitlines() == expected
    with open(words) as file, command_in(file, folder, "-o", tmp_path / "out.jsonl") as process:
        finished(process)
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert [json.loads(line)["result"] for line in lines] == expected


def command_in(file, *arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "seq2seq_ext.cli", "translate", *map(str, arguments)],
        env=ENVIRONMENT, stdin=file, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["a", "b", "-o", "out"], 2, "with -o one file is read, got 2"),
        (["a", "--resume"], 2, "--resume needs -o with a file"),
        (["nothing", "-o", "out"], 1, "No such file or directory: 'nothing'"),
        (["{words}", "-o", "out", "--input-format", "jsonl"], 1, "line 1 of "),
        (["a", "--device", "tpu"], 2, "--device: expected cpu, cuda or cuda:N, got 'tpu'"),
        (["a", "--device", "cuda:x"], 2, "--device: expected cpu, cuda or cuda:N, got 'cuda:x'"),
        (["a", "--device", "cuda:99"], 2, "--device: torch sees "),
        (["a", "--cuda-graph"], 2, "--cuda-graph needs --device cuda, got cpu"),
    ],
)
def test_wrong_use_is_one_line(
    folder, words, tmp_path, monkeypatch, capsys, arguments, status, message
):
    monkeypatch.chdir(tmp_path)
    arguments = [argument.format(words=words) for argument in arguments]
    if status == 2:
        with pytest.raises(SystemExit, match="2"):
            main(["translate", str(folder), *arguments])
    else:
        assert main(["translate", str(folder), *arguments]) == status
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not Path("out").exists()


LAUNCHERS = {
    1: (),
    2: ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
}


@pytest.mark.parametrize("processes", LAUNCHERS)
def test_killed_and_resumed(folder, run, tmp_path, processes):
    """kill -9 amid the work; then to its end."""
    source, whole, output = tmp_path / "in.txt", tmp_path / "whole", tmp_path / "out"
    source.write_text("".join(f"{WORDS[i % 11]}{'abc'[i % 3] * (i % 9)}\n" for i in range(1200)))
    options = ("--num-beams", "4", "--n-best", "2", "--window", "20")
    assert main(["translate", str(folder), str(source), "-o", str(whole), *options]) == 0
    parts = Shard(0, processes).parts(output)
    journals = [part.with_name(part.name + ".journal") for part in parts]

    def entries():
        said = [path.read_bytes().count(b"\n") - 1 for path in journals if path.exists()]
        return sum(said) if len(said) == len(journals) else 0

    process = command(folder, source, "-o", output, *options, launcher=LAUNCHERS[processes])
    end = time.monotonic() + 60
    while entries() < 7:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.01)
    kill_all(process)
    assert entries() < 60, "it was too fast to be interrupted"
    assert not output.exists()
    finished(
        command(folder, source, "-o", output, *options, "--resume", launcher=LAUNCHERS[processes])
    )
    assert output.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.txt", "out", "whole"]


def kill_all(process):
    """SIGKILL for a launcher's workers as well, and until their locks are free."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for pid in [process.pid, *map(int, children)]:
        os.kill(pid, signal.SIGKILL)
    process.wait(timeout=20)
    process.stderr.close()
    for pid in map(int, children):
        while Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():
            time.sleep(0.01)
