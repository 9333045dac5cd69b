"""The service over bare sockets: what no client of good will sends, and clients that go away."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
from urllib.parse import urlsplit

import pytest
from serving_cases import WORDS, SlowRun, new_run, served

from seq2seq_ext import serving
from seq2seq_ext.serving import ServingOptions
from seq2seq_ext.training import save_run

pytest.importorskip("fastapi", reason="needs the extra [serve]")
httpx = pytest.importorskip("httpx", reason="needs the extra [test]")

MAX_BODY = 4000
JSON_HEADERS = "Host: a\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "plain"
    save_run(folder, new_run())
    limits = ("--timeout", "1.5", "--max-body", str(MAX_BODY))
    with served(folder, options=limits) as process:
        yield process


def connected(url):
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname, parts.port), timeout=20)


def answer_to(url, sent: bytes) -> bytes:
    """All that comes back until the service closes the connection."""
    with connected(url) as connection:
        connection.sendall(sent)
        received = b""
        while piece := connection.recv(65536):
            received += piece
        return received


def status_of(answer: bytes) -> int:
    return int(re.match(rb"HTTP/1\.1 (\d{3}) ", answer)[1])


def metric(url, name) -> float:
    text = httpx.get(f"{url}metrics", trust_env=False).text
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about in time"
        time.sleep(0.02)


def post(headers: str, body: bytes = b"") -> bytes:
    return f"POST /translate HTTP/1.1\r\n{headers}\r\n".encode() + body


HOSTILE = {
    "no HTTP at all": (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20 + b"\r\n\r\n"),
    "another protocol": (400, b"EHLO example\r\n\r\n"),
    "a NUL in a header": (400, post(JSON_HEADERS + "X: a\0b\r\n")),
    "a header without a colon": (400, post(JSON_HEADERS + "nonsense\r\n")),
    "endless headers": (400, post(JSON_HEADERS + f"X: {'a' * 66_000}")[:-2]),
    "a negative length": (400, post(JSON_HEADERS + "Content-Length: -1\r\n")),
    "two lengths": (
        400,
        post(JSON_HEADERS + "Content-Length: 3\r\nContent-Length: 4\r\n", b"{}  "),
    ),
    "a chunk of no size": (
        400,
        post(JSON_HEADERS + "Transfer-Encoding: chunked\r\n", b"zz\r\n{}\r\n0\r\n\r\n"),
    ),
    "a length beyond the limit": (413, post(JSON_HEADERS + f"Content-Length: {MAX_BODY + 1}\r\n")),
    "a length beyond all limits": (413, post(JSON_HEADERS + f"Content-Length: {'9' * 19}\r\n")),
    "chunks beyond the limit": (
        413,
        post(
            JSON_HEADERS + "Transfer-Encoding: chunked\r\n",
            (b"3e8\r\n" + b" " * 1000 + b"\r\n") * (MAX_BODY // 1000 + 1),
        ),
    ),
    "a compressed body": (
        422,
        post(
            JSON_HEADERS + "Content-Encoding: gzip\r\nConnection: close\r\nContent-Length: 10\r\n",
            b"\x1f\x8b" + b"\0" * 8,
        ),
    ),
    "a path upwards": (
        404,
        b"GET /../../etc/passwd HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    ),
    "another method": (
        405,
        b"DELETE /translate HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_malformed_gets_a_4xx_and_hurts_nobody(service, name):
    status, sent = HOSTILE[name]
    assert status_of(answer_to(service.url, sent)) == status
    good = httpx.post(f"{service.url}translate", json={"text": "ox"}, trust_env=False)
    assert good.status_code == 200


def test_a_body_that_does_not_come_gets_408(service):
    before = metric(service.url, 'seq2seq_errors_total{kind="slow_body"}')
    began = time.monotonic()
    answer = answer_to(service.url, post(JSON_HEADERS + "Content-Length: 20\r\n", b'{"text'))
    assert status_of(answer) == 408
    assert 1.4 < time.monotonic() - began < 10
    assert b"connection: close" in answer.lower()
    detail = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert detail == {"error": "slow_body", "detail": "the body did not arrive within 1.5 s"}
    assert metric(service.url, 'seq2seq_errors_total{kind="slow_body"}') == before + 1


def test_a_client_that_goes_amid_its_body_is_counted(service):
    name = 'seq2seq_errors_total{kind="client_gone"}'
    before = metric(service.url, name)
    with connected(service.url) as connection:
        connection.sendall(post(JSON_HEADERS + "Content-Length: 20\r\n", b'{"text'))
    until(lambda: metric(service.url, name) == before + 1)
    assert metric(service.url, "seq2seq_requests_in_flight") == 0


def test_clients_that_go_amid_their_decoding_leave_the_queue(service):
    name = 'seq2seq_errors_total{kind="client_gone"}'
    before = metric(service.url, name)
    body = json.dumps({"text": WORDS, "num_beams": 16, "max_new_tokens": 500}).encode()
    sent = post(JSON_HEADERS + f"Content-Length: {len(body)}\r\n", body)
    waiting = [connected(service.url) for _ in range(8)]
    for connection in waiting:
        connection.sendall(sent)
    until(lambda: metric(service.url, "seq2seq_requests_in_flight") >= 4)
    for connection in waiting:
        connection.close()
    until(lambda: metric(service.url, "seq2seq_requests_in_flight") == 0)
    assert metric(service.url, "seq2seq_queue_texts") == 0
    gone = metric(service.url, name) - before
    late = metric(service.url, 'seq2seq_errors_total{kind="timeout"}')
    done = metric(service.url, 'seq2seq_requests_total{status="200"}')
    assert gone >= 4, (gone, late, done)


def test_what_nobody_waits_for_is_not_decoded():
    """By the application itself, whose client sends its body and is gone."""
    run = new_run()
    run = SlowRun(run.model, run.source_vocabulary, run.target_vocabulary, settings={})
    app = serving.create_app({"slow": run}, ServingOptions(max_batch=1, max_delay=0.0))
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/translate",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }

    async def client(text, leaves):
        messages = [{"type": "http.request", "body": json.dumps({"text": text}).encode()}]
        sent = []

        async def receive():
            if messages:
                return messages.pop()
            if not leaves:
                await asyncio.Event().wait()
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        await app(scope, receive, send)
        return sent[0]["status"]

    async def all_clients():
        async with app.router.lifespan_context(app):
            first = asyncio.create_task(client("first", leaves=False))
            while not run.settings.get("batches"):  # until it is being decoded
                await asyncio.sleep(0.01)
            rest = [client(f"gone{i}", leaves=True) for i in range(5)]
            return await asyncio.gather(first, *rest, client("last", leaves=False))

    assert asyncio.run(all_clients()) == [200, *[499] * 5, 200]
    assert run.settings["batches"] == [["first"], ["last"]]
