"""Kill a training at 20 random moments, resume it each time, and compare with one left alone.

    python benchmarks/kill_and_resume.py --kills 20

Prints the last loss of both runs and whether all weights and all lines of the log are equal in
every bit; the exit status is 0 where they are.
"""

from __future__ import annotations

import argparse
import csv
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from seq2seq_ext.training import load_run

BY_TIME = ("seconds", "source_tokens_per_second", "target_tokens_per_second")


def command(folder: Path, pairs: Path, epochs: int) -> list[str]:
    options = (
        f"--data {pairs} --out {folder} --threads 1 --data.dev 0.1 --training.epochs {epochs} "
        "--training.batch_size 16 --training.log_every 1 --training.checkpoint_seconds 0.05 "
        "--training.validate_every 20 --training.keep_best 3 --training.samples 0 "
        "--training.teacher_forcing_ratio 0.8 --model.dropout 0.2 --model.attention general "
        "--model.encoder_hidden_size 32 --model.decoder_hidden_size 32"
    )
    return [sys.executable, "-m", "seq2seq_ext.cli", "train", *options.split()]


def log(folder: Path) -> list[dict[str, str]]:
    """All lines but for what depends on time."""
    with open(folder / "metrics.csv", newline="") as lines:
        rows = list(csv.DictReader(lines))
    return [{name: v for name, v in row.items() if name not in BY_TIME} for row in rows]


def start(arguments: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(arguments, stdout=subprocess.DEVNULL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=20, metavar="N", help="how often (20)")
    parser.add_argument("--epochs", type=int, default=20, metavar="N", help="of 1,000 pairs (20)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the moments (0)")
    options = parser.parse_args()
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as temporary:
        whole, broken = Path(temporary, "whole"), Path(temporary, "broken")
        pairs = Path(temporary, "pairs.tsv")
        words = ["".join(chance.choices("abcdefgh", k=chance.randint(2, 9))) for _ in range(1000)]
        pairs.write_text("".join(f"{word}\t{word[::-1]}\n" for word in dict.fromkeys(words)))
        begin = time.perf_counter()
        if start(command(whole, pairs, options.epochs)).wait():
            return 1
        seconds = time.perf_counter() - begin
        print(f"undisturbed: {seconds:.1f} s, {len(log(whole))} lines of log")
        kills = ended = 0
        while kills < options.kills:
            process = start([*command(broken, pairs, options.epochs), "--resume"])
            moment = chance.uniform(0.0, seconds / 2)
            try:
                if process.wait(moment):
                    return 1  # it failed by itself
                ended += 1
                print("it came to its end before its time to be killed: once more from the start")
                if ended > options.kills or not same(whole, broken):
                    return 1
                broken = Path(temporary, f"broken-{ended}")
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                kills += 1
                steps = log(broken)[-1:] if (broken / "metrics.csv").exists() else []
                print(f"kill {kills} after {moment:.2f} s, step {steps[0]['step'] if steps else 0}")
        if start([*command(broken, pairs, options.epochs), "--resume"]).wait():
            return 1
        return 0 if same(whole, broken) else 1


def same(whole: Path, broken: Path) -> bool:
    """Whether two runs ended alike, and tell."""
    left, right = (load_run(folder).model.state_dict() for folder in (whole, broken))
    equal = all(value.equal(right[name]) for name, value in left.items())
    lines = log(whole) == log(broken)
    for folder in (whole, broken):
        losses = [row["loss"] for row in log(folder) if row["loss"]]
        print(f"{folder.name}: last loss {losses[-1]}")
    print(f"weights {'equal' if equal else 'DIFFER'}, logs {'equal' if lines else 'DIFFER'}")
    return equal and lines


if __name__ == "__main__":
    sys.exit(main())
