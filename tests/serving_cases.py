"""Runs that need no training, and the service as a process, for the tests of serving."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

import seq2seq_ext
from seq2seq_ext.data import Vocabulary
from seq2seq_ext.models import Seq2Seq, Seq2SeqConfig
from seq2seq_ext.training import Run

LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = [LETTERS[i : i + 1 + i % 19] for i in range(20)]
ATTENDING = {"attention": "additive", "attention_query": "previous"}


def new_run(**changes) -> Run:
    """Random weights, large enough that every source is written otherwise."""
    torch.manual_seed(0)
    sizes = {"encoder_hidden_size": 12, "decoder_hidden_size": 12}
    sizes |= {"source_vocab_size": 30, "target_vocab_size": 30}
    model = Seq2Seq(Seq2SeqConfig(**(sizes | changes)))
    for parameter in model.parameters():
        parameter.data.mul_(4)
    return Run(model.eval(), Vocabulary(LETTERS), Vocabulary(LETTERS))


class SlowRun(Run):
    """Takes a while for each batch, and remembers which texts shared one."""

    seconds = 0.3

    def n_best(self, texts, n, **options):
        self.settings.setdefault("batches", []).append(list(texts))
        if "poison" in texts:
            raise RuntimeError("bad text")
        time.sleep(self.seconds)
        return super().n_best(texts, n, **options)


@contextmanager
def served(*folders: Path, options: tuple[str, ...] = ()) -> Iterator[subprocess.Popen[str]]:
    """``seq2seq-ext serve`` on a free port; its address is the process's ``url``."""
    with subprocess.Popen(
        [sys.executable, "-m", "seq2seq_ext.cli", "serve", *map(str, folders), "--port", "0",
         "--threads", "1", *options],
        stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(Path(seq2seq_ext.__file__).parents[1])},
    ) as process:  # fmt: skip
        try:
            line = process.stdout.readline()
            process.url = re.search(r"http://\S+", line)[0]
            yield process
        finally:
            process.kill()
