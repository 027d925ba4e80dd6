"""What does a message cost a client in which a thousand other tasks wait for theirs?

    python benchmarks/waking.py [--waiting 1,100,1000] [--messages 500] [--json]

One process with one client, against a broker of its own with one worker. `--waiting` tasks (or threads) wait for a
message, each at a consumer of its own, or for a reply that never comes; one at a time gets what it waits for. The
figure is the CPU time of the client's process per such message, including sending it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import threading
import time
from collections.abc import Callable

from arguments import whole, wholes

import ister
import ister.aio
from ister.ownbroker import OwnBroker

PATIENCE_S = 60


def tasks_with_consumers(endpoint: str, waiting: int, messages: int) -> float:
    """Measure tasks that wait at consumers."""

    async def scene() -> float:
        async with ister.aio.connect(endpoint, timeout=PATIENCE_S) as client:
            await client.create_topic("ticks", dispatch="non-reliable", exist_ok=True)
            names = [f"ticks/{number}" for number in range(waiting)]
            for name in names:
                await client.create_topic(name, dispatch="non-reliable", exist_ok=True)
            consumers = [await client.consumer(name, "s") for name in names]
            producers = [await client.producer(name) for name in names[:: max(1, waiting // 50)]]
            step = max(1, waiting // 50)
            tasks = [asyncio.create_task(consumer.receive()) for consumer in consumers]
            await asyncio.sleep(0.2)
            begun = time.process_time()
            for number in range(messages):
                place = number % len(producers)
                await producers[place].send(b"x")
                await tasks[place * step]
                tasks[place * step] = asyncio.create_task(consumers[place * step].receive())
            spent = time.process_time() - begun
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            return spent / messages

    return asyncio.run(scene())


def tasks_with_requests(endpoint: str, waiting: int, messages: int) -> float:
    """Measure tasks that wait for replies."""

    async def scene() -> float:
        async with ister.aio.connect(endpoint, timeout=PATIENCE_S) as client:
            for name in ("silence", "echo"):
                await client.create_topic(name, dispatch="non-reliable", exist_ok=True)
            async with client.consumer("echo", "s", type="shared") as consumer:

                async def serve() -> None:
                    async for message in consumer:
                        await message.reply(message.payload)

                server = asyncio.create_task(serve())
                others = [
                    asyncio.create_task(client.request("silence", b"?", timeout=3600))
                    for _ in range(waiting - 1)
                ]
                await client.request("echo", b"x")
                await asyncio.sleep(0.2)
                begun = time.process_time()
                for _ in range(messages):
                    await client.request("echo", b"x")
                spent = time.process_time() - begun
                for task in [server, *others]:
                    task.cancel()
                await asyncio.gather(server, *others, return_exceptions=True)
            return spent / messages

    return asyncio.run(scene())


def threads_with_requests(endpoint: str, waiting: int, messages: int) -> float:
    """Measure threads that wait for replies."""
    with ister.connect(endpoint, timeout=PATIENCE_S) as client, ister.connect(endpoint) as other:
        for name in ("silence", "echo"):
            client.create_topic(name, dispatch="non-reliable", exist_ok=True)
        with other.consumer("echo", "t", type="shared") as consumer:

            def serve() -> None:
                for message in consumer:
                    message.reply(message.payload)

            def wait() -> None:
                try:
                    client.request("silence", b"?", timeout=3600)
                except ister.IsterError:
                    pass

            server = threading.Thread(target=serve)
            server.start()
            others = [threading.Thread(target=wait) for _ in range(waiting - 1)]
            for thread in others:
                thread.start()
            client.request("echo", b"x")
            time.sleep(0.5)
            begun = time.process_time()
            for _ in range(messages):
                client.request("echo", b"x")
            spent = time.process_time() - begun
            client.close()
            for thread in others:
                thread.join()
            consumer.close()
            server.join()
        return spent / messages


KINDS: dict[str, Callable[[str, int, int], float]] = {
    "tasks, each at a consumer": tasks_with_consumers,
    "tasks, each for a reply": tasks_with_requests,
    "threads, each for a reply": threads_with_requests,
}


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--waiting", type=wholes, default=[1, 100, 1000])
    parser.add_argument("--messages", type=whole, default=500)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    counts = given.waiting
    found: dict[str, dict[int, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind, measure in KINDS.items():
            with OwnBroker(f"{folder}/{len(found)}", f"{folder}/log", workers=1) as broker:
                found[kind] = {
                    count: round(1000 * measure(broker.endpoint, count, given.messages), 3)
                    for count in counts
                }
    if given.json:
        print(json.dumps(found))
        return
    print(f"{'ms of processor time a message; waiting:':42}" + "".join(f"{count:>10,}" for count in counts))
    for kind, row in found.items():
        print(f"{kind:42}" + "".join(f"{row[count]:10.3f}" for count in counts))


if __name__ == "__main__":
    main()
