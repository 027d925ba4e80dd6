"""The Python clients of NATS, JetStream, Redis and mosquitto, beside the fastest ones. See ../README.md.

    driver.py SYSTEM ROLE ADDRESS TOPIC MESSAGES BYTES RATE

Runs in an environment of its own with nats-py, redis (with hiredis) and paho-mqtt; Ister is not needed. There is no
role `paced`: timers of an event loop are too coarse for it.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

now = time.monotonic_ns
PIPELINE = 500
PENDING_MAX = 4000


def say(told: Any) -> None:
    """Print one object on one line."""
    print(json.dumps(told), flush=True)


def wait_for_go() -> None:
    """Say that it could begin, and wait until it is told to."""
    say("ready")
    if not sys.stdin.readline():
        sys.exit(1)


# ---- NATS -------------------------------------------------------------------------------------------------------


async def nats_main(
    system: str, role: str, address: str, topic: str, messages: int, size: int, rate: float
) -> None:
    """Do a role with nats-py: core, or JetStream."""
    import nats
    from nats.js.api import AckPolicy, ConsumerConfig

    connection = await nats.connect(address, pending_size=1 << 30)
    stream = connection.jetstream(publish_async_max_pending=PENDING_MAX)
    is_stream = system == "jetstream"
    if role == "remove":
        if is_stream:
            await stream.delete_stream(topic)
        await connection.close()
        return
    if is_stream and (role == "consume" or rate < 0):
        await stream.add_stream(name=topic, subjects=[topic])
    if role == "consume":
        count = size_all = 0
        end = asyncio.Event()

        async def take(message: Any) -> None:
            nonlocal count, size_all
            count += 1
            size_all += len(message.data)
            if is_stream and (count % 100 == 0 or count == messages):
                await message.ack()
            if count == messages:
                end.set()

        if is_stream:
            config = ConsumerConfig(ack_policy=AckPolicy.ALL, max_ack_pending=-1)
            await stream.subscribe(
                topic,
                cb=take,
                manual_ack=True,
                config=config,
                pending_msgs_limit=-1,
                pending_bytes_limit=-1,
            )
        else:
            await connection.subscribe(topic, cb=take, pending_msgs_limit=-1, pending_bytes_limit=-1)
        await connection.flush()
        say("ready")
        await end.wait()
        say({"messages": count, "bytes": size_all, "ended": now(), "took": []})
        await connection.close()
        return
    payload = bytes(size)
    wait_for_go()
    began = last = now()
    took: list[int] = []
    if role == "lone":

        async def once() -> None:
            if is_stream:
                await stream.publish(topic, payload)
            else:
                await connection.publish(topic, payload)
                await connection.flush()

        took, last = await _lone(once, messages, began)
    elif is_stream:
        for _ in range(messages):
            await stream.publish_async(topic, payload)
        await stream.publish_async_completed()
    else:
        for _ in range(messages):
            await connection.publish(topic, payload)
        await connection.flush()
    say({"began": began, "ended": last if took else now(), "took": took})
    await connection.close()


async def _lone(once: Callable[[], Awaitable[None]], messages: int, began: int) -> tuple[list[int], int]:
    took, last = [], began
    for _ in range(messages):
        await once()
        at = now()
        took.append(at - last)
        last = at
    return took, last


# ---- Redis ------------------------------------------------------------------------------------------------------


def redis_main(role: str, address: str, topic: str, messages: int, size: int) -> None:
    """Do a role with redis-py: streams."""
    import redis

    host, _, port = address.rpartition(":")
    client = redis.Redis(host=host, port=int(port))
    payload = bytes(size)
    if role == "consume":
        client.xgroup_create(topic, "g", id="0", mkstream=True)
        say("ready")
        count = size_all = 0
        while count < messages:
            found = client.xreadgroup("g", "c", {topic: ">"}, count=PIPELINE, block=5000)
            for _, entries in found or ():
                size_all += sum(len(fields[b"p"]) for _, fields in entries)
                count += len(entries)
                client.xack(topic, "g", *[name for name, _ in entries])
        say({"messages": count, "bytes": size_all, "ended": now(), "took": []})
        return
    wait_for_go()
    began = last = now()
    took = []
    if role == "lone":
        for _ in range(messages):
            client.xadd(topic, {"p": payload})
            at = now()
            took.append(at - last)
            last = at
    else:
        pipeline = client.pipeline(transaction=False)
        for first in range(0, messages, PIPELINE):
            for _ in range(min(PIPELINE, messages - first)):
                pipeline.xadd(topic, {"p": payload})
            pipeline.execute()
        last = now()
    say({"began": began, "ended": last, "took": took})


# ---- mosquitto --------------------------------------------------------------------------------------------------


def mosquitto_main(qos: int, role: str, address: str, topic: str, messages: int, size: int) -> None:
    """Do a role with paho-mqtt."""
    from paho.mqtt.client import Client
    from paho.mqtt.enums import CallbackAPIVersion

    host, _, port = address.rpartition(":")
    client = Client(CallbackAPIVersion.VERSION2)
    client.max_queued_messages_set(0)
    client.max_inflight_messages_set(1000)
    up, over = threading.Event(), threading.Event()
    counts = {"messages": 0, "bytes": 0}

    def on_message(_client: Any, _data: Any, message: Any) -> None:
        counts["messages"] += 1
        counts["bytes"] += len(message.payload)
        if counts["messages"] == messages:
            over.set()

    client.on_connect = lambda *_: up.set()
    client.on_subscribe = lambda *_: up.set()
    client.on_message = on_message
    client.connect(host, int(port))
    client.loop_start()
    up.wait(30)
    payload = bytes(size)
    if role == "consume":
        up.clear()
        client.subscribe(topic, qos)
        up.wait(30)
        say("ready")
        over.wait()
        say({**counts, "ended": now(), "took": []})
    else:
        wait_for_go()
        began = last = now()
        took = []
        if role == "lone":
            for _ in range(messages):
                client.publish(topic, payload, qos).wait_for_publish(30)
                at = now()
                took.append(at - last)
                last = at
        else:
            sent = [client.publish(topic, payload, qos) for _ in range(messages)]
            sent[-1].wait_for_publish(120)
            last = now()
        say({"began": began, "ended": last, "took": took})
    client.disconnect()
    client.loop_stop()


def main() -> None:
    """Do what the command line says."""
    if len(sys.argv) != 8:
        sys.exit("usage: driver.py SYSTEM ROLE ADDRESS TOPIC MESSAGES BYTES RATE")
    system, role, address, topic, *numbers = sys.argv[1:]
    messages, size, rate = int(numbers[0]), int(numbers[1]), float(numbers[2])
    if role not in ("publish", "lone", "consume", "remove"):
        sys.exit(f"there is no role {role}")
    if system in ("nats", "jetstream"):
        asyncio.run(nats_main(system, role, address, topic, messages, size, rate))
    elif system == "redis":
        redis_main(role, address, topic, messages, size)
    elif system in ("mosquitto-qos0", "mosquitto-qos1"):
        mosquitto_main(int(system[-1]), role, address, topic, messages, size)
    else:
        sys.exit(f"there is no system {system}")


if __name__ == "__main__":
    main()
