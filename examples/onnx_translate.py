"""Convert words with what `seq2seq-ext export --format onnx` wrote: numpy and onnxruntime alone.

    seq2seq-ext export runs/plural --format onnx
    python examples/onnx_translate.py runs/plural-onnx goose fox

A greedy search, to be copied and changed. A beam search keeps a row for every beam, and after each
step takes the rows of the state that go on, along the axis that `batch_axis` names.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime


class Translator:
    """An exported model of characters.

    Args:
        folder: what the export wrote.
    """

    def __init__(self, folder: Path) -> None:
        self.about: dict[str, Any] = json.loads((folder / "export.json").read_text())
        self.encoder = onnxruntime.InferenceSession(folder / self.about["encoder"]["file"])
        self.step = onnxruntime.InferenceSession(folder / self.about["step"]["file"])
        self.source = json.loads((folder / "source_vocabulary.json").read_text())
        self.target = json.loads((folder / "target_vocabulary.json").read_text())
        self.ids = {token: i for i, token in enumerate(self.source)}

    def translate(self, texts: list[str], max_new_tokens: int = 64) -> list[str]:
        """The most probable character after the other, for all texts together."""
        about, unknown = self.about, self.about["unk_token_id"]
        lengths = np.array([len(text) for text in texts], dtype=np.int64)
        source = np.full((len(texts), max(1, *lengths)), about["pad_token_id"], dtype=np.int64)
        for row, text in zip(source, texts, strict=True):
            row[: len(text)] = [self.ids.get(character, unknown) for character in text]
        names = about["encoder"]["outputs"]
        found = self.encoder.run(names, {"source": source, "source_lengths": lengths})
        state = dict(zip(names, found, strict=True))
        tokens = np.full(len(texts), about["bos_token_id"], dtype=np.int64)
        ended = np.zeros(len(texts), dtype=bool)
        written: list[list[str]] = [[] for _ in texts]
        outputs = about["step"]["outputs"]
        for _ in range(max_new_tokens):
            made = dict(
                zip(outputs, self.step.run(outputs, {"tokens": tokens, **state}), strict=True)
            )
            scores = made["log_probabilities"]
            scores[:, [about["pad_token_id"], about["bos_token_id"]]] = -np.inf  # never written
            tokens = scores.argmax(1)
            ended |= tokens == about["eos_token_id"]
            if ended.all():
                break
            for row in np.flatnonzero(~ended):
                token = tokens[row]
                written[row].append(
                    "\N{REPLACEMENT CHARACTER}" if token == unknown else self.target[token]
                )
            state |= {name: made[f"{name}_next"] for name in state if f"{name}_next" in made}
        return ["".join(characters) for characters in written]


def main() -> None:
    """Convert the words of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="what the export wrote")
    parser.add_argument("words", nargs="+", metavar="WORD")
    options = parser.parse_args()
    print(*Translator(options.folder).translate(options.words), sep="\n")


if __name__ == "__main__":
    main()
