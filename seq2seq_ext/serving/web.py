"""The web page at ``/``: a few files of this package, and the headers that fence it in.

The page's policy lets it load and ask nothing but its own service, run no script but its own files
and be framed by nobody, so that a text that slipped into its HTML could do nothing.
"""

from __future__ import annotations

from hashlib import sha256
from importlib.resources import files

from fastapi import FastAPI, Request
from fastapi.responses import Response

_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/attention.js": ("attention.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",  # asked again each time, which the ETag makes cheap
}


def add_page(app: FastAPI) -> None:
    """Let an application answer ``GET /`` with the page, and its files beside it."""
    folder = files("seq2seq_ext.serving") / "static"
    for path, (name, media_type) in _FILES.items():
        content = (folder / name).read_bytes()
        headers = _HEADERS | {"ETag": f'"{sha256(content).hexdigest()[:32]}"'}
        app.add_api_route(
            path,
            _File(content, media_type, headers).respond,
            methods=["GET", "HEAD"],
            include_in_schema=False,
        )


class _File:
    """A file of the page, in memory."""

    def __init__(self, content: bytes, media_type: str, headers: dict[str, str]) -> None:
        self.content, self.media_type, self.headers = content, media_type, headers

    async def respond(self, request: Request) -> Response:
        if self.headers["ETag"] in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=self.headers)
        return Response(self.content, headers=self.headers, media_type=self.media_type)
