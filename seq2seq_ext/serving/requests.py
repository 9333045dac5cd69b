"""What clients may send: the body of ``POST /translate``, read and checked within its limits.

The body is read in pieces and refused as soon as it is too long, whether its length was announced
or not; it is parsed by pydantic, which bounds the depth, and what it says of a wrong body is told
without the body's own content.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from seq2seq_ext.serving.options import ServingOptions


class Refusal(Exception):
    """A request that gets no result.

    Args:
        status: of HTTP.
        kind: one word, for the metrics and the client.
        detail: a sentence.
        headers: further ones.
    """

    def __init__(
        self, status: int, kind: str, detail: str, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.status, self.kind, self.detail, self.headers = status, kind, detail, headers

    def response(self) -> JSONResponse:
        """The answer."""
        return JSONResponse(
            {"error": self.kind, "detail": self.detail}, self.status, headers=self.headers
        )


class TranslateRequest(BaseModel):
    """What to convert, and how; the options are those of `GenerationOptions`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    text: Annotated[str | list[str], Field(description="one text, or several")]
    model: Annotated[str | None, Field(description="one of GET /models; default: the first")] = None
    num_beams: Annotated[int, Field(ge=1, description="1: greedy search")] = 1
    n_best: Annotated[int, Field(ge=1, description="results of each text, best first")] = 1
    length_penalty: Annotated[float, Field(allow_inf_nan=False)] = 1.0
    max_new_tokens: Annotated[int | None, Field(ge=1, description="default: by length")] = None
    attention: Annotated[bool, Field(description="whether to return attention weights")] = False

    @property
    def texts(self) -> list[str]:
        """All texts."""
        return [self.text] if isinstance(self.text, str) else self.text


async def read_request(request: Request, options: ServingOptions) -> TranslateRequest:
    """The request of a body.

    Raises:
        Refusal: with 408, 413, 415 or 422, if the body is slow, long, no JSON or not as wanted.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise Refusal(415, "content_type", "Content-Type must be application/json")
    try:
        body = await asyncio.wait_for(_read_body(request, options.max_body), options.timeout)
    except asyncio.TimeoutError:
        raise Refusal(
            408,
            "slow_body",
            f"the body did not arrive within {options.timeout:g} s",
            {"Connection": "close"},
        ) from None
    try:
        asked = TranslateRequest.model_validate_json(body)
    except ValidationError as error:
        raise Refusal(422, "invalid", _described(error)) from None
    if not 1 <= len(asked.texts) <= options.max_texts:
        raise Refusal(
            422, "texts", f"text must hold 1 to {options.max_texts} texts, got {len(asked.texts)}"
        )
    if asked.num_beams > options.max_beams:
        raise Refusal(
            422, "beams", f"num_beams must be at most {options.max_beams}, got {asked.num_beams}"
        )
    return asked


async def _read_body(request: Request, limit: int) -> bytes:
    announced = request.headers.get("content-length", "0")
    # Huge numbers are told by their digits: int() itself refuses thousands of them.
    too_long = len(announced) > 18 or (announced.isdecimal() and int(announced) > limit)
    body = bytearray()
    if not too_long:
        async for piece in request.stream():
            body += piece
            if too_long := len(body) > limit:
                break
    if too_long:
        # The rest of the body stands before the next request: this connection has none.
        raise Refusal(
            413, "body", f"the body must be at most {limit} bytes", {"Connection": "close"}
        )
    return bytes(body)


def _described(error: ValidationError) -> str:
    """What is wrong, without what was given: it may be of any size, or no Unicode."""
    found: list[Any] = error.errors(include_url=False, include_context=False, include_input=False)
    lines = [
        ": ".join(filter(None, [".".join(str(part) for part in each["loc"])[:100], each["msg"]]))
        for each in found
    ]
    shown = "; ".join(lines[:5])
    return shown if len(lines) <= 5 else f"{shown}; and {len(lines) - 5} more"
