"""Many clients at once ask a service for texts, each over a connection of its own.

    python benchmarks/serving_load.py runs/plural --clients 200 --requests 20

Starts ``seq2seq-ext serve`` on a free port of the loopback interface, asks, compares every answer
with what the run gives by itself, and stops the service. Prints the 50th, 90th and 99th percentile
of the latencies, the errors, the throughput and the mean batch; ``--json`` writes them to a file.
Clients and service share the machine's cores, so the service alone would be faster. The exit status
is 0 where every request had its own right answer.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import ssl
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from seq2seq_ext.benchmark.machine import description
from seq2seq_ext.cli.numbers import positive_float, positive_int
from seq2seq_ext.data.files import write_json_atomically
from seq2seq_ext.training import Run, load_run

MOST_CLIENTS = 1000
MOST_SECONDS = 600.0


@dataclass
class Load:
    """What the clients saw."""

    latencies: list[float] = field(default_factory=list)  # seconds, of requests with a result
    errors: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def percentile(self, percent: float) -> float:
        """The smallest latency that so many per cent of the requests do not exceed, in seconds."""
        ordered = sorted(self.latencies)
        if not ordered:
            return float("nan")
        rank = -(-len(ordered) * percent // 100)  # the nearest-rank definition
        return ordered[max(0, int(rank) - 1)]


async def put_load(
    url: str,
    words: Sequence[str],
    expected: Sequence[str],
    *,
    clients: int,
    requests: int,
    seconds: float,
    seed: int = 0,
    **asked: Any,
) -> Load:
    """Let clients ask, each for one text after another, until all have or time is up.

    Args:
        url: of the service.
        words: what they ask for, drawn at random.
        expected: the right answer for each of `words`.
        clients: connections.
        requests: of each client.
        seconds: after which no further request is sent.
        seed: of the draws.
        **asked: further fields of each request.
    """
    load = Load()
    # A client for each connection: one pool of many looks through all of them for every request.
    shared: dict[str, Any] = {"base_url": url, "timeout": 60, "trust_env": False}
    shared["verify"] = ssl.create_default_context()  # unused, and else made for each
    async with AsyncExitStack() as stack:
        connections = [
            await stack.enter_async_context(httpx.AsyncClient(**shared)) for _ in range(clients)
        ]
        # Connections come first: what is measured is how requests are answered.
        await asyncio.gather(*(http.get("health") for http in connections))
        begin = time.perf_counter()

        async def client(number: int, http: httpx.AsyncClient) -> None:
            chance = random.Random(seed * MOST_CLIENTS + number)
            for _ in range(requests):
                sent = time.perf_counter()
                if sent - begin > seconds:
                    return
                index = chance.randrange(len(words))
                try:
                    answer = await http.post("translate", json={"text": words[index], **asked})
                except httpx.HTTPError as error:
                    load.errors[type(error).__name__] += 1
                    continue
                took = time.perf_counter() - sent
                if answer.status_code != 200:
                    load.errors[f"status {answer.status_code}"] += 1
                elif answer.json()["results"][0]["n_best"][0]["text"] != expected[index]:
                    load.errors["another answer"] += 1
                else:
                    load.latencies.append(took)

        await asyncio.gather(*(client(i, http) for i, http in enumerate(connections)))
        load.seconds = time.perf_counter() - begin
    return load


def mean_batch(metrics: str) -> float:
    """Texts a batch, of what ``GET /metrics`` tells."""
    total, count = (
        float(re.findall(rf"^seq2seq_batch_texts_{name} (\S+)$", metrics, re.MULTILINE)[0])
        for name in ("sum", "count")
    )
    return total / count if count else float("nan")


def some_words(run: Run, count: int, seed: int) -> list[str]:
    """Texts of 3 to 12 of the characters that the model knows."""
    chance = random.Random(seed)
    known = [token for token in run.source_vocabulary.to_list() if len(token) == 1]
    return ["".join(chance.choices(known, k=chance.randint(3, 12))) for _ in range(count)]


def measured(folder: str, options: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    run = load_run(folder)
    if options.words is None:
        words = some_words(run, 500, options.seed)
    else:
        lines = Path(options.words).read_text(encoding="utf-8").splitlines()
        words = [line for line in lines if line][:10_000]
    if not words:
        raise ValueError(f"--words must name a file with lines, {options.words} has none")
    expected = run.translate(words, num_beams=options.num_beams)
    command = [sys.executable, "-m", "seq2seq_ext.cli", "serve", folder, "--port", "0"]
    if options.threads is not None:
        command += ["--threads", str(options.threads)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as service:
        try:
            line = service.stdout.readline() if service.stdout is not None else ""
            found = re.search(r"http://127\.0\.0\.1:\d+/", line)
            if found is None:
                raise RuntimeError(f"the service did not start, it said {line!r}")
            url = found[0]
            load = asyncio.run(
                put_load(
                    url,
                    words,
                    expected,
                    clients=options.clients,
                    requests=options.requests,
                    seconds=options.seconds,
                    seed=options.seed,
                    num_beams=options.num_beams,
                )
            )
            batch = mean_batch(httpx.get(f"{url}metrics", trust_env=False).text)
            service.terminate()
            service.wait(timeout=60)
        finally:
            service.kill()
    return {
        "clients": options.clients,
        "num_beams": options.num_beams,
        "answers": len(load.latencies),
        "errors": dict(load.errors),
        "seconds": load.seconds,
        "answers_per_second": len(load.latencies) / load.seconds,
        "mean_batch": batch,
        "latency_ms": {f"p{p}": 1000 * load.percentile(p) for p in (50, 90, 99)},
        "service_status": service.returncode,
        "machine": description(),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", metavar="RUN", help="run folder, such as runs/plural")
    parser.add_argument("--clients", type=positive_int, default=200, metavar="N", help="(200)")
    parser.add_argument(
        "--requests", type=positive_int, default=20, metavar="N", help="of each client (20)"
    )
    parser.add_argument(
        "--seconds", type=positive_float, default=60.0, metavar="S",
        help="after which no further request is sent (60)",
    )  # fmt: skip
    parser.add_argument("--num-beams", type=positive_int, default=1, metavar="N", help="(1)")
    parser.add_argument("--words", metavar="FILE", help="one a line (random letters)")
    parser.add_argument("--threads", type=positive_int, metavar="N", help="of the service")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the draws (0)")
    parser.add_argument("--json", metavar="FILE", help="write the figures to it")
    options = parser.parse_args(arguments)
    if options.clients > MOST_CLIENTS:
        parser.error(f"--clients must be at most {MOST_CLIENTS}, got {options.clients}")
    if options.seconds > MOST_SECONDS:
        parser.error(f"--seconds must be at most {MOST_SECONDS:g}, got {options.seconds:g}")
    figures = measured(options.folder, options)
    if options.json is not None:
        write_json_atomically(options.json, figures)
    latency = figures["latency_ms"]
    print(
        f"{figures['clients']} clients, {figures['num_beams']} beams: {figures['answers']} answers "
        f"in {figures['seconds']:.2f} s, {figures['answers_per_second']:.0f}/s, "
        f"mean batch {figures['mean_batch']:.1f}, "
        f"p50 {latency['p50']:.0f} ms, p90 {latency['p90']:.0f} ms, p99 {latency['p99']:.0f} ms, "
        f"errors: {json.dumps(figures['errors'])}"
    )
    return 1 if figures["errors"] or not figures["answers"] else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
