"""The console script ``seq2seq-ext``.

Each subcommand is a module with ``add_parser`` and ``run``. The libraries of an extra are imported
where they are used, so that ``--help`` and ``info`` work without any.
"""

from seq2seq_ext.cli.main import main

__all__ = ["main"]
