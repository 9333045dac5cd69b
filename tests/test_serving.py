"""The service: its answers are the model's own, and whatever comes in gets a clear status."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import ssl

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from serving_cases import ATTENDING, WORDS, SlowRun, new_run, served

from seq2seq_ext import serving
from seq2seq_ext.serving import ServingOptions
from seq2seq_ext.training import save_run

pytest.importorskip("fastapi", reason="needs the extra [serve]")
httpx = pytest.importorskip("httpx", reason="needs the extra [test]")
TestClient = pytest.importorskip("fastapi.testclient").TestClient

LIMITS = {"max_length": 40, "max_texts": 30, "max_body": 4000, "max_attention": 40_000}


@pytest.fixture(scope="module")
def runs():
    return {"plain": new_run(), "attending": new_run(**ATTENDING)}


@pytest.fixture(scope="module")
def client(runs):
    torch.set_num_threads(1)
    app = serving.create_app(runs, ServingOptions(**LIMITS))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def texts_of(results):
    return [[each["text"] for each in result["n_best"]] for result in results]


@pytest.mark.parametrize("model", ["plain", "attending"])
@pytest.mark.parametrize("beams", [1, 3])
def test_answers_are_the_models_own(client, runs, model, beams):
    body = {"text": WORDS, "model": model, "num_beams": beams, "n_best": beams}
    answer = client.post("/translate", json=body).json()
    assert answer["model"] == model
    for word, result in zip(WORDS, answer["results"], strict=True):
        (own,) = runs[model].n_best([word], beams, num_beams=beams)
        assert [each["text"] for each in result["n_best"]] == [each.text for each in own]
        scores = [each["score"] for each in result["n_best"]]
        assert scores == pytest.approx([each.score for each in own], abs=1e-4)
    assert len({texts[0] for texts in texts_of(answer["results"])}) > 10


def test_attention_has_a_row_for_every_token(client):
    body = {"text": "fo!", "model": "attending", "attention": True, "max_new_tokens": 7}
    (result,) = client.post("/translate", json=body).json()["results"]
    assert result["source_tokens"] == ["f", "o", "<unk>"]
    (best,) = result["n_best"]
    assert len(best["attention"]) == len(best["tokens"]) <= 7
    for row in best["attention"]:
        assert len(row) == 3
        assert sum(row) == pytest.approx(1, abs=1e-3)


def test_a_model_that_copies_answers_with_what_it_copied():
    runs = {"copying": new_run(attention="general", input_feeding=True, copy=True)}
    with torch.no_grad():
        runs["copying"].model.decoder.pointer.from_context.bias.fill_(-50)  # it always copies
    body = {"text": "\u00e9!\u00e9", "attention": True, "max_new_tokens": 4}
    with TestClient(serving.create_app(runs, ServingOptions(**LIMITS))) as client:
        (result,) = client.post("/translate", json=body).json()["results"]
    assert result["source_tokens"] == ["\u00e9", "!", "\u00e9"]
    (best,) = result["n_best"]
    assert set(best["tokens"]) <= {"\u00e9", "!"}
    assert best["text"] == "".join(best["tokens"])


def test_models_and_health_and_metrics(client):
    assert client.get("/health").json() == {"status": "ok"}
    about = client.get("/models").json()
    assert [each["name"] for each in about["models"]] == ["plain", "attending"]
    assert about["limits"]["max_length"] == LIMITS["max_length"]
    client.post("/translate", json={"text": "a"})
    client.post("/translate", json={"text": 1})
    text = client.get("/metrics").text
    for name in ("requests_total", "errors_total", "request_seconds_bucket", "batch_texts_bucket"):
        assert re.search(rf"^seq2seq_{name}\{{.*\}} [1-9]", text, re.MULTILINE), name
    assert "seq2seq_queue_texts 0.0" in text


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (422, b""),
        (422, b"{"),
        (422, b"[" * 2000),
        (422, b'{"text":' * 400 + b"1" + b"}" * 400),
        (422, b"\xff\xfe"),
        (422, b'{"text": "\\ud800"}'),
        (422, b'{"text": "a", "num_beams": 1e400}'),
        (422, b'{"text": "a", "num_beams": %s}' % (b"9" * 3000)),
        (422, b'{"text": "a", "length_penalty": NaN}'),
        (422, b'{"text": "a", "num_beams": true}'),
        (422, b'{"text": "a", "num_beams": 17}'),
        (422, b'{"text": "a", "n_best": 2}'),
        (422, b'{"text": "a", "n_best": 0}'),
        (422, b'{"text": "a", "max_new_tokens": 100000}'),
        (422, b'{"text": "a", "max_new_tokens": 0}'),
        (422, b'{"text": "a", "attention": true}'),
        (422, b'{"text": "a", "beams": 2}'),
        (422, b'{"text": []}'),
        (422, b'{"text": ["a", 1]}'),
        (422, json.dumps({"text": ["a"] * 31}).encode()),
        (404, b'{"text": "a", "model": "other"}'),
        (413, json.dumps({"text": "a" * 41}).encode()),
        (413, json.dumps({"text": "a" * 4000}).encode()),
        (
            413,
            json.dumps({"text": ["a" * 40] * 20, "model": "attending", "attention": True}).encode(),
        ),
        (200, b'{"text": "\\u0000\\n\\u202e"}'),
        (200, b'{"text": ""}'),
    ],
)
def test_every_body_gets_its_status(client, status, body):
    answer = client.post("/translate", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    if status != 200:
        assert answer.json()["detail"]


def test_a_long_body_without_a_length_is_not_read_to_its_end(client):
    """By the application itself: a client of the tests would gather the pieces beforehand."""
    app, sent, read = client.app, [], 0

    async def receive():
        nonlocal read
        read += 1000
        return {"type": "http.request", "body": b" " * 1000, "more_body": True}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/translate",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }
    asyncio.run(app(scope, receive, send))
    assert sent[0]["status"] == 413
    assert (b"connection", b"close") in sent[0]["headers"]
    assert read == LIMITS["max_body"] + 1000


def test_only_json_is_read(client):
    for media_type in ("text/plain", "application/x-www-form-urlencoded", ""):
        answer = client.post(
            "/translate", content=b'{"text": "a"}', headers={"Content-Type": media_type}
        )
        assert answer.status_code == 415
    assert client.get("/translate").status_code == 405
    assert client.get("/nothing").status_code == 404


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=8,
)
FIELDS = ["text", "model", "num_beams", "n_best", "length_penalty", "max_new_tokens", "attention"]


@given(st.dictionaries(st.sampled_from(FIELDS), JSON_VALUES) | JSON_VALUES | st.binary())
def test_no_body_is_the_servers_fault(client, body):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = client.post(
        "/translate", content=content, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code < 500, (body, answer.text)


# Queue, time-out, batches: the model is replaced by one that waits to be told.


def slow_app(**limits):
    run = new_run()
    run = SlowRun(run.model, run.source_vocabulary, run.target_vocabulary, settings={})
    return run, serving.create_app({"slow": run}, ServingOptions(**limits))


async def post_all(app, bodies, *, behind=None):
    """All at once; `behind` is a run of which one text is being decoded when they arrive."""
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
    ):
        first = []
        if behind is not None:
            first.append(asyncio.create_task(client.post("/translate", json={"text": "zz"})))
            while not behind.settings.get("batches"):
                await asyncio.sleep(0.01)
        rest = await asyncio.gather(*(client.post("/translate", json=body) for body in bodies))
        await asyncio.gather(*first)
        return rest


def test_texts_of_many_requests_share_a_batch_by_length():
    run, app = slow_app(max_batch=4, max_delay=0.01)
    words = ["aaaaaaa", "b", "ccccccc", "d", "eeeeeee", "f", "ggggggg", "h"]
    answers = asyncio.run(post_all(app, [{"text": word} for word in words], behind=run))
    assert [answer.status_code for answer in answers] == [200] * 8
    batches = [sorted(map(len, batch)) for batch in run.settings["batches"]]
    assert batches == [[2], [7] * 4, [1] * 4]


def test_a_full_queue_and_a_late_result_are_told():
    run, app = slow_app(max_queue=3, max_batch=1, max_delay=0.0, timeout=0.45)
    answers = asyncio.run(post_all(app, [{"text": "a"}] * 8))
    counts = dict.fromkeys((200, 503, 504), 0)
    for answer in answers:
        counts[answer.status_code] += 1
        if answer.status_code == 503:
            assert int(answer.headers["Retry-After"]) >= 1
    assert counts[200] >= 1
    assert counts[503] >= 4
    assert counts[504] >= 1
    assert len(run.settings["batches"]) < 4  # who was told 504 is not decoded after it


def test_one_bad_text_fails_alone():
    _, app = slow_app(max_delay=0.1)
    answers = asyncio.run(post_all(app, [{"text": w} for w in ("fine", "poison", "good")]))
    assert [answer.status_code for answer in answers] == [200, 500, 200]


# The server as a process.


@pytest.fixture
def server(runs, tmp_path):
    save_run(tmp_path / "plain", runs["plain"])
    with served(tmp_path / "plain") as process:
        yield process


async def load(url, clients, each):
    """What every client got for its own words, over a connection of its own."""
    shared = {"base_url": url, "timeout": 60, "trust_env": False}
    shared["verify"] = ssl.create_default_context()  # unused, and else made for each

    async def one(i):
        words = [WORDS[(i * 7 + k) % len(WORDS)] for k in range(each)]
        async with httpx.AsyncClient(**shared) as http:
            answers = [await http.post("/translate", json={"text": word}) for word in words]
        return words, answers

    return await asyncio.gather(*(one(i) for i in range(clients)))


def test_200_clients_get_each_its_own_answer(server, runs):
    expected = dict(zip(WORDS, runs["plain"].translate(WORDS), strict=True))
    for words, answers in asyncio.run(load(server.url, clients=200, each=2)):
        for word, answer in zip(words, answers, strict=True):
            assert answer.status_code == 200, answer.text
            (result,) = answer.json()["results"]
            assert (result["source"], result["n_best"][0]["text"]) == (word, expected[word])


def test_sigterm_finishes_what_was_accepted(server):
    async def stop_amid_load():
        async with httpx.AsyncClient(base_url=server.url, timeout=60, trust_env=False) as http:
            assert (await http.get("/health")).status_code == 200
            body = {"text": WORDS, "num_beams": 16, "max_new_tokens": 500}
            accepted = [asyncio.create_task(http.post("/translate", json=body)) for _ in range(4)]
            while "seq2seq_requests_in_flight 4.0" not in (await http.get("/metrics")).text:
                assert not any(task.done() for task in accepted)
            server.send_signal(signal.SIGTERM)
            while (await http.get("/health")).status_code == 200:
                pass
            late = await http.post("/translate", json={"text": "a"})
            return await asyncio.gather(*accepted), late

    accepted, late = asyncio.run(stop_amid_load())
    assert [answer.status_code for answer in accepted] == [200] * 4
    assert late.status_code == 503
    assert int(late.headers["Retry-After"]) >= 1
    assert server.wait(timeout=30) == 0
