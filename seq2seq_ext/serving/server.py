"""The service as a process: it listens, and on SIGTERM finishes what it has accepted."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from types import FrameType

import uvicorn

from seq2seq_ext.serving.app import Service, create_app
from seq2seq_ext.serving.options import ServingOptions
from seq2seq_ext.training import Run

_GRACE_SECONDS = 10  # for answers that are on their way when nothing else is left to do
# Longer than clients keep idle connections (5 s is common), so that they close first: a
# request that meets the server's closing is lost.
_KEEP_ALIVE_SECONDS = 75


class _Server(uvicorn.Server):
    """Stops in two steps: after the first signal new requests are refused with 503 and those that
    were accepted are finished, and only then nothing listens any more. A second signal hurries."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.service.stopping:
            super().handle_exit(sig, frame)
        self.service.stopping = True

    async def on_tick(self, counter: int) -> bool:
        if self.service.stopping and self.service.in_flight == 0:
            self.should_exit = True
        return await super().on_tick(counter)


def serve(
    runs: Mapping[str, Run],
    options: ServingOptions | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve models until SIGTERM or SIGINT.

    Args:
        runs: models by the names that clients know them by; the first is the default.
        options: the limits; None stands for the defaults.
        host: address to listen on.
        port: of TCP; 0 takes a free one.
        on_ready: called with the URL when clients can connect.

    Raises:
        OSError: if the address cannot be had.
        ValueError: if there is no run.
    """
    app = create_app(runs, options)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family, backlog=2048) as listener:
        if on_ready is not None:
            shown = f"[{host}]" if ":" in host else host
            on_ready(f"http://{shown}:{listener.getsockname()[1]}/")
        config = uvicorn.Config(
            app,
            http="h11",  # bounds the headers, which httptools, if it is there, would not
            log_level="warning",
            timeout_graceful_shutdown=_GRACE_SECONDS,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            server_header=False,
        )
        _Server(config, app.state.service).run(sockets=[listener])
