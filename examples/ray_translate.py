"""A trained run inside Ray Data: texts of any number of files, on any number of machines.

    pip install 'seq2seq_ext[ray]'
    python examples/ray_translate.py runs/plural words.txt results --workers 2

Reads lines, converts them with ``map_batches`` in workers that load the run once each, and writes
JSON Lines into a folder. Ray keeps no order of lines: each object has its source beside the result.
For one file in its order, `seq2seq-ext translate RUN FILE -o OUT` is enough.
"""

from __future__ import annotations

import argparse
from typing import Any

import ray
import torch

from seq2seq_ext.training import load_run


class Translator:
    """What a worker keeps between batches.

    Args:
        folder: of the run, which all workers see.
        **search: options of `GenerationOptions`.
    """

    def __init__(self, folder: str, **search: Any) -> None:
        torch.set_num_threads(1)  # Ray gives a worker one core
        self.run = load_run(folder)
        self.search = search

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A batch of Ray Data, columns by name, with one column more."""
        texts = [str(text) for text in batch["text"]]
        return batch | {"result": self.run.translate(texts, **self.search)}


def translated(
    dataset: ray.data.Dataset,
    folder: str,
    *,
    workers: int = 1,
    batch_size: int = 1024,
    **search: Any,
) -> ray.data.Dataset:
    """A dataset with a column ``text`` -> the same with a column ``result``."""
    return dataset.map_batches(
        Translator,
        fn_constructor_args=(folder,),
        fn_constructor_kwargs=search,
        batch_size=batch_size,
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=1,
    )


def main() -> None:
    """Read, convert, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", metavar="RUN", help="run folder, such as runs/plural")
    parser.add_argument("source", metavar="TEXTS", help="a file or folder, one text a line")
    parser.add_argument("output", metavar="FOLDER", help="for JSON Lines")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="(1)")
    parser.add_argument("--num-beams", type=int, default=1, metavar="N", help="(1)")
    options = parser.parse_args()
    results = translated(
        ray.data.read_text(options.source),
        options.folder,
        workers=options.workers,
        num_beams=options.num_beams,
    )
    results.write_json(options.output)


if __name__ == "__main__":
    main()
