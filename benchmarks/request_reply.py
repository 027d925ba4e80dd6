"""How many requests per second are answered, and how long does each take?

    python benchmarks/request_reply.py [--bytes 100] [--seconds 5] [--data DIR] [--json]

A broker of its own with two workers, a server in a process of its own (one consumer that replies with the request's
payload), and a client here: first one request at a time, then from eight threads, then a hundred at a time from one
event loop. A round trip is four hops through the broker's workers: request, receipt, delivery, reply.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import threading
import time
from multiprocessing.connection import Connection
from typing import Any, Final

from arguments import above_zero, made_folder

import ister
import ister.aio
from ister.clientprocess import ClientProcess
from ister.ownbroker import OwnBroker
from ister.show import print_table

TOPIC: Final = "requests"
THREADS: Final = 8
TASKS: Final = 100
WARM_UP: Final = 100


def serve(control: Connection, endpoint: str) -> None:
    """Answer requests until the parent closes the pipe."""
    with ister.connect(endpoint) as client, client.consumer(TOPIC, "servers", type="shared") as consumer:
        control.send("ready")
        for message in consumer:
            message.reply(message.payload)


def one_by_one(client: ister.Client, payload: bytes, seconds: float) -> list[float]:
    """Return how long each request took, one after the other."""
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        client.request(TOPIC, payload)
        taken.append(time.perf_counter() - began)
    return taken


def from_threads(client: ister.Client, payload: bytes, seconds: float) -> list[float]:
    """Return how long each request took, from several threads."""
    taken: list[float] = []
    threads = [
        threading.Thread(target=lambda: taken.extend(one_by_one(client, payload, seconds)))
        for _ in range(THREADS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return taken


async def from_tasks(endpoint: str, payload: bytes, seconds: float) -> list[float]:
    """Return how long each request took, from many tasks in one loop."""
    taken: list[float] = []
    end = time.perf_counter() + seconds

    async def ask(client: ister.aio.Client) -> None:
        while (began := time.perf_counter()) < end:
            await client.request(TOPIC, payload)
            taken.append(time.perf_counter() - began)

    async with ister.aio.connect(endpoint) as client:
        await asyncio.gather(*(ask(client) for _ in range(TASKS)))
    return taken


def row(name: str, taken: list[float], seconds: float) -> dict[str, Any]:
    """Return a row of the table."""
    taken.sort()
    return {
        "how": name,
        "requests/s": round(len(taken) / seconds),
        "p50 ms": round(taken[len(taken) // 2] * 1000, 3),
        "p99 ms": round(taken[len(taken) * 99 // 100] * 1000, 3),
    }


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bytes", type=int, default=100)
    parser.add_argument("--seconds", type=above_zero, default=5.0)
    parser.add_argument("--data", type=made_folder)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    payload = b"x" * given.bytes
    with tempfile.TemporaryDirectory(dir=given.data) as folder:
        with (
            OwnBroker(f"{folder}/data", f"{folder}/log", workers=2) as broker,
            ister.connect(broker.endpoint) as client,
        ):
            client.create_topic(TOPIC, dispatch="non-reliable")
            with ClientProcess("server", serve, broker.endpoint) as server:
                server.answer(10)
                for _ in range(WARM_UP):
                    client.request(TOPIC, payload)
                seconds = given.seconds
                rows = [
                    row("one at a time", one_by_one(client, payload, seconds), seconds),
                    row(f"{THREADS} threads", from_threads(client, payload, seconds), seconds),
                    row(
                        f"{TASKS} tasks (asyncio)",
                        asyncio.run(from_tasks(broker.endpoint, payload, seconds)),
                        seconds,
                    ),
                ]
    if given.json:
        print(json.dumps(rows))
    else:
        print_table(list(rows[0]), [list(each.values()) for each in rows])


if __name__ == "__main__":
    main()
