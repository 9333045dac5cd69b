"""The service as an ASGI application: ``POST /translate``, ``GET / /health /models /metrics``.

The event loop reads, checks and answers; one thread decodes. What a request may cost is bounded
before it enters the queue, and a client that went away leaves it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import ClientDisconnect

from seq2seq_ext.generation import GenerationOptions
from seq2seq_ext.models.copying import extended_tokens
from seq2seq_ext.serving.batching import Batcher, QueueFullError
from seq2seq_ext.serving.metrics import Metrics
from seq2seq_ext.serving.options import ServingOptions
from seq2seq_ext.serving.requests import Refusal, TranslateRequest, read_request
from seq2seq_ext.serving.web import add_page
from seq2seq_ext.training import Hypothesis, Run
from seq2seq_ext.training.run import room_for

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Group:
    """Texts that may be decoded together."""

    model: str
    options: GenerationOptions


class Service:
    """The models, the queue before them, and how a request becomes an answer.

    Args:
        runs: by name; the first is the default.
        options: the limits.

    Raises:
        ValueError: if there is no run.
    """

    def __init__(self, runs: Mapping[str, Run], options: ServingOptions) -> None:
        if not runs:
            raise ValueError("runs must hold at least one run, got none")
        self.runs = dict(runs)
        self.options = options
        self.stopping = False
        self.in_flight = 0
        self._source_tokens = {
            name: run.source_vocabulary.to_list() for name, run in self.runs.items()
        }
        self.batcher: Batcher[_Group, list[Hypothesis]] = Batcher(
            self._decode,
            max_batch=options.max_batch,
            max_delay=options.max_delay,
            max_queue=options.max_queue,
        )
        self.metrics = Metrics(lambda: len(self.batcher))

    async def translate(self, request: Request) -> Response:
        """The answer to a request, whatever becomes of it; counted and timed."""
        started = time.perf_counter()
        self.in_flight += 1
        self.metrics.in_flight.inc()
        try:
            response = await self._answer(request, started)
        except Refusal as refusal:
            self.metrics.errors.labels(refusal.kind).inc()
            response = refusal.response()
        except ClientDisconnect:
            self.metrics.errors.labels("client_gone").inc()
            response = Response(status_code=499)  # nobody reads it
        except Exception:
            _log.exception("a request failed")
            self.metrics.errors.labels("internal").inc()
            response = Refusal(500, "internal", "the request failed").response()
        finally:
            self.in_flight -= 1
            self.metrics.in_flight.dec()
        self.metrics.requests.labels(response.status_code).inc()
        self.metrics.seconds.observe(time.perf_counter() - started)
        return response

    async def _answer(self, request: Request, started: float) -> Response:
        if self.stopping:
            raise _unavailable("stopping", "the service is stopping", after=5)
        asked = await read_request(request, self.options)
        name = next(iter(self.runs)) if asked.model is None else asked.model
        if name not in self.runs:
            raise Refusal(404, "model", f"model must be one of {list(self.runs)}")
        sources = [self.runs[name].encode(text) for text in asked.texts]
        queued = self._queue(name, asked, [len(ids) for ids, _ in sources])
        best = await self._results(request, queued, started)
        self.metrics.texts.labels(name).inc(len(sources))
        tokens = self._source_tokens[name]
        content = {
            "model": name,
            "results": [
                {
                    "source": text,
                    **(
                        {"source_tokens": extended_tokens(ids, tokens, unknown)}
                        if asked.attention
                        else {}
                    ),
                    "n_best": [_described(each) for each in hypotheses if each.tokens],
                }
                for text, (ids, unknown), hypotheses in zip(asked.texts, sources, best, strict=True)
            ],
            "seconds": round(time.perf_counter() - started, 6),
        }
        if asked.attention:  # may be megabytes, which the event loop should not write
            return await asyncio.to_thread(_json, content)
        return _json(content)

    def _queue(
        self, name: str, asked: TranslateRequest, lengths: Sequence[int]
    ) -> list[asyncio.Future[list[Hypothesis]]]:
        """Check what the texts would cost, and queue them."""
        limits = self.options
        for i, length in enumerate(lengths):
            if length > limits.max_length:
                raise Refusal(
                    413,
                    "length",
                    f"text {i} must have at most {limits.max_length} tokens, got {length}",
                )
        most = room_for(limits.max_length)
        if asked.max_new_tokens is not None and asked.max_new_tokens > most:
            raise Refusal(422, "max_new_tokens", f"max_new_tokens must be at most {most}")
        rooms = [asked.max_new_tokens or room_for(length) for length in lengths]
        if asked.attention:
            if self.runs[name].model.config.attention == "none":
                raise Refusal(422, "attention", f"model {name!r} has no attention")
            weights = asked.n_best * sum(n * room for n, room in zip(lengths, rooms, strict=True))
            if weights > limits.max_attention:
                raise Refusal(
                    413,
                    "attention",
                    f"the attention must have at most {limits.max_attention} weights, could have "
                    f"{weights}; ask for fewer texts, n_best or max_new_tokens",
                )
        try:
            options = [
                GenerationOptions(
                    num_beams=asked.num_beams,
                    num_return_sequences=asked.n_best,
                    length_penalty=asked.length_penalty,
                    max_new_tokens=room,
                    output_scores=True,
                    return_attention=asked.attention,
                )
                for room in rooms
            ]
        except ValueError as error:
            raise Refusal(422, "options", str(error)) from None
        texts: dict[_Group, list[int]] = {}
        for i, each in enumerate(options):
            texts.setdefault(_Group(name, each), []).append(i)
        futures: dict[int, asyncio.Future[list[Hypothesis]]] = {}
        try:
            for group, members in texts.items():
                items = [(asked.texts[i], lengths[i]) for i in members]
                futures.update(zip(members, self.batcher.submit(group, items), strict=True))
        except QueueFullError:
            for future in futures.values():
                future.cancel()
            raise _unavailable("queue", "too many texts wait; try again", after=1) from None
        return [futures[i] for i in range(len(options))]

    async def _results(
        self, request: Request, queued: list[asyncio.Future[list[Hypothesis]]], started: float
    ) -> list[list[Hypothesis]]:
        """The results, unless time is up or the client goes first."""
        results: asyncio.Future[list[list[Hypothesis]]] = asyncio.gather(*queued)
        # What nobody waits for any more may fail unheard.
        results.add_done_callback(lambda future: future.cancelled() or future.exception())
        gone = asyncio.ensure_future(_disconnected(request))
        both: set[asyncio.Future[Any]] = {results, gone}
        left = self.options.timeout - (time.perf_counter() - started)
        try:
            done, _ = await asyncio.wait(
                both, timeout=max(0.0, left), return_when=asyncio.FIRST_COMPLETED
            )
            if results in done:
                return results.result()
            if gone in done:
                raise ClientDisconnect
            raise Refusal(504, "timeout", f"no result within {self.options.timeout:g} s")
        finally:
            gone.cancel()
            results.cancel()

    def _decode(self, group: _Group, texts: Sequence[str]) -> list[list[Hypothesis]]:
        """What the thread does."""
        started = time.perf_counter()
        run, options = self.runs[group.model], group.options
        n = options.num_return_sequences
        results = run.n_best(
            texts,
            n,
            batch_size=len(texts),
            options=options,
            max_new_tokens=options.max_new_tokens,  # else the texts' lengths would tell it
        )
        self.metrics.batch_texts.observe(len(texts))
        self.metrics.batch_seconds.observe(time.perf_counter() - started)
        return results

    def models(self) -> list[dict[str, Any]]:
        """What there is to ask for, the default first."""
        return [
            {
                "name": name,
                "cell": run.model.config.cell,
                "attention": run.model.config.attention,
                "source_vocab_size": run.model.config.source_vocab_size,
                "target_vocab_size": run.model.config.target_vocab_size,
                "parameters": sum(p.numel() for p in run.model.parameters()),
            }
            for name, run in self.runs.items()
        ]

    def limits(self) -> dict[str, int]:
        """What a request may ask for."""
        names = ("max_texts", "max_length", "max_beams", "max_body", "max_attention")
        return {name: getattr(self.options, name) for name in names}


def create_app(runs: Mapping[str, Run], options: ServingOptions | None = None) -> FastAPI:
    """The application, for any ASGI server; its `Service` is ``app.state.service``.

    Args:
        runs: models by the names that clients know them by; the first is the default.
        options: the limits; None stands for the defaults.

    Raises:
        ValueError: if there is no run.
    """
    service = Service(runs, ServingOptions() if options is None else options)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.batcher.start()
        yield
        await service.batcher.close()

    # The pages of /docs load scripts of other hosts; /openapi.json says the same without.
    app = FastAPI(title="seq2seq_ext", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service = service
    body = {"application/json": {"schema": TranslateRequest.model_json_schema()}}

    @app.post("/translate", openapi_extra={"requestBody": {"content": body, "required": True}})
    async def translate(request: Request) -> Response:
        return await service.translate(request)

    @app.get("/health")
    async def health() -> JSONResponse:
        running = service.batcher.is_running and not service.stopping
        status = "ok" if running else "stopping" if service.stopping else "failed"
        return JSONResponse({"status": status}, 200 if running else 503)

    @app.get("/models")
    async def models() -> JSONResponse:
        return JSONResponse({"models": service.models(), "limits": service.limits()})

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.exposition(), media_type=CONTENT_TYPE_LATEST)

    add_page(app)
    return app


def _described(hypothesis: Hypothesis) -> dict[str, Any]:
    described: dict[str, Any] = {"text": hypothesis.text, "score": hypothesis.score}
    if hypothesis.alignments is not None:
        rounded = (hypothesis.alignments.double() * 1e4).round() / 1e4
        described |= {"tokens": hypothesis.tokens, "attention": rounded.tolist()}
    return described


def _json(content: Any) -> Response:
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Response(text, media_type="application/json")


def _unavailable(kind: str, detail: str, *, after: int) -> Refusal:
    return Refusal(503, kind, detail, {"Retry-After": str(after)})


async def _disconnected(request: Request) -> None:
    """Return when the client has gone; its body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
