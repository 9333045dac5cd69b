"""Decode a window: its lines by length, their results in the lines' order."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from seq2seq_ext.bulk.formats import BadLineError, BulkOptions, Record, empty, read, written
from seq2seq_ext.bulk.lines import Window
from seq2seq_ext.training.run import Hypothesis, Run


def convert(
    run: Run,
    window: Window,
    options: BulkOptions,
    *,
    name: str = "the input",
    on_bad_line: Callable[[str], None] | None = None,
    on_texts: Callable[[list[str]], None] | None = None,
) -> bytes:
    """What a window becomes, as UTF-8.

    Args:
        run: the model.
        window: the lines.
        options: how they are read, searched and written.
        name: of the file, for messages.
        on_bad_line: with ``bad_lines="empty"`` told of each of them.
        on_texts: told of the texts before they are converted.

    Raises:
        BadLineError: with ``bad_lines="stop"``, naming file and line.
    """
    records: list[Record] = []
    for number, line in enumerate(window.lines, window.first):
        try:
            records.append(read(line, options))
        except BadLineError as error:
            message = f"line {number} of {name} {error}"
            if options.bad_lines == "stop":
                raise BadLineError(message) from None
            if on_bad_line is not None:
                on_bad_line(message)
            records.append(empty(options))
    texts = [record.text for record in records if record.text]
    if on_texts is not None:
        on_texts(texts)
    # Which texts share a batch, and with that the last bit of a score, follows from the window.
    search = {"batch_size": options.batch_size, **options.search}
    results: Iterator[list[Hypothesis]]
    if options.n_best is None:
        results = iter([Hypothesis(text, None, [])] for text in run.translate(texts, **search))
    else:
        results = iter(run.n_best(texts, options.n_best, **search))
    return "".join(
        written(record, next(results) if record.text else [], options) for record in records
    ).encode()
