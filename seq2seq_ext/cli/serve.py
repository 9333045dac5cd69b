"""``seq2seq-ext serve``: trained runs over HTTP."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

from seq2seq_ext.cli.devices import add_device
from seq2seq_ext.cli.numbers import (
    non_negative_float,
    non_negative_int,
    positive_float,
    positive_int,
)
from seq2seq_ext.serving import ServingOptions
from seq2seq_ext.training import load_run

_EXAMPLES = """\
examples:
  seq2seq-ext serve runs/plural
  seq2seq-ext serve runs/plural past=runs/past-2 --port 9000 --max-queue 200

  curl -H 'Content-Type: application/json' -d '{"text": "goose", "num_beams": 5, "n_best": 3}' \\
      http://127.0.0.1:8000/translate

The models are at /models, figures for Prometheus at /metrics. SIGTERM and Ctrl-C
stop it when what it has accepted is done.
"""
_HELP = {
    "max_batch": "texts decoded together",
    "max_delay": "seconds that a text waits for others to be decoded with",
    "max_queue": "texts that may wait before requests are refused",
    "max_texts": "texts of a request",
    "max_length": "tokens of a text",
    "max_beams": "beams of a search",
    "max_body": "bytes of a request's body",
    "max_attention": "attention weights of an answer",
    "timeout": "seconds after which a request is given up",
}


def add_parser(subcommands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand ``serve``."""
    parser = subcommands.add_parser(
        "serve",
        help="serve trained runs over HTTP",
        description="Serve models over HTTP: texts of all clients that arrive at about the same "
        "time are decoded together.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "runs",
        metavar="RUN",
        nargs="+",
        help="run folder, known to clients by its last name; NAME=FOLDER gives it another",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    parser.add_argument(
        "--port",
        type=non_negative_int,
        default=8000,
        metavar="N",
        help="port; 0: a free one (8000)",
    )
    parser.add_argument("--threads", type=positive_int, metavar="N", help="threads that compute")
    add_device(parser)
    for field in fields(ServingOptions):
        kind = positive_int if isinstance(field.default, int) else positive_float
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=non_negative_float if field.name == "max_delay" else kind,
            default=field.default,
            metavar="N",
            help=f"{_HELP[field.name]} ({field.default})",
        )
    parser.set_defaults(run=run, parser=parser)


def run(options: argparse.Namespace) -> int:
    """Load the runs and serve them."""
    from seq2seq_ext.serving import serve

    if options.port > 65535:
        options.parser.error(f"--port must be at most 65535, got {options.port}")
    folders: dict[str, str] = {}
    for argument in options.runs:
        name, separator, folder = argument.partition("=")
        if not separator:
            name, folder = Path(argument).resolve().name, argument
        if name in folders:
            options.parser.error(f"two runs are named {name!r}; name one NAME={folder}")
        folders[name] = folder
    if options.threads is not None:
        import torch

        torch.set_num_threads(options.threads)
    limits = ServingOptions(**{f.name: getattr(options, f.name) for f in fields(ServingOptions)})
    runs = {name: load_run(folder, device=options.device) for name, folder in folders.items()}
    serve(
        runs,
        limits,
        host=options.host,
        port=options.port,
        on_ready=lambda url: print(f"serving {', '.join(runs)} on {url}", flush=True),
    )
    return 0
