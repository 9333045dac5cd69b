"""Trained models as a service over HTTP.

`batching` brings texts of many clients together, `app` answers requests, `server` runs it as a
process. They need the extra ``[serve]`` and are imported when they are first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from seq2seq_ext.data.extras import check
from seq2seq_ext.serving.options import ServingOptions

if TYPE_CHECKING:
    from seq2seq_ext.serving.app import create_app
    from seq2seq_ext.serving.server import serve

__all__ = ["ServingOptions", "create_app", "serve"]


def __getattr__(name: str) -> Any:
    if name not in ("create_app", "serve"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    for module in ("fastapi", "uvicorn", "prometheus_client"):
        check(module, extra="serve", purpose="serving")
    from seq2seq_ext.serving import app, server

    return app.create_app if name == "create_app" else server.serve
