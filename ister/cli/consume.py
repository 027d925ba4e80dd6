"""`ister consume`: print the messages of a subscription.

Invariants
- a message is acknowledged only once it has been written to stdout
- without --follow it ends when the subscription is drained, never before
"""

from __future__ import annotations

import base64
import json
import os
import sys
from typing import TYPE_CHECKING, Any, Final, Literal, cast

import click

from ister.cli.command import Command
from ister.cli.options import (
    client_options,
    connected,
    json_option,
    start_option,
    subscription_option,
    topic_argument,
    type_option,
)
from ister.cli.show import progress

if TYPE_CHECKING:
    from ister.client import Client
    from ister.message import Batch, Message

IDLE_S: Final = 0.3  # silence after which the broker is asked whether anything is left
IDLE_NON_RELIABLE_S: Final = 1.0  # nobody can be asked what is left of a topic that keeps nothing
CREDIT_MESSAGES: Final = 65_536

_HELP_END = """\b
Examples:
  ister consume orders --subscription billing --start earliest
  ister consume orders --subscription billing --count 10 --json | jq -r .payload
  ister consume ticks --subscription screen --follow

\b
Without --follow it ends when the subscription is drained: nothing came for a short while, and everything
the topic holds has been handed out. Messages are acknowledged once they are written to stdout.

Exit codes: 0 done; 1 refused; 2 wrong usage; 69 no broker there; 75 try again; 130 Ctrl-C; 141 stdout was closed."""


@click.command(cls=Command, epilog=_HELP_END)
@topic_argument
@subscription_option
@type_option
@start_option
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="End after this many messages.")
@click.option("--follow", "-f", is_flag=True, help="Go on waiting for messages, until Ctrl-C.")
@click.option("--priority", type=click.IntRange(min=0), default=0, help="Failover: lower is preferred.")
@client_options
@json_option
def consume(
    topic: str,
    subscription: str,
    type_: str,
    start: str | int,
    count: int | None,
    follow: bool,
    priority: int,
    endpoint: str,
    timeout: float,
    as_json: bool,
) -> None:
    """Print the payloads of a subscription's messages, a line each, and acknowledge them.

    With --json, one object a line: topic, offset, key, attributes, timestamp, attempt, payload (payload_base64 and
    key_base64 where they are no UTF-8 text).
    """
    out = sys.stdout.fileno()
    done = 0
    with (
        connected(endpoint, timeout) as client,
        client.consumer(
            topic,
            subscription=subscription,
            type=cast("Literal['exclusive', 'shared', 'failover']", type_),
            start=cast("Literal['earliest', 'latest'] | int", start),
            priority=priority,
            credit_messages=CREDIT_MESSAGES if count is None else min(count, CREDIT_MESSAGES),
        ) as consumer,
    ):
        with progress(f"from {topic}", count, wanted=not sys.stdout.isatty()) as show:
            while count is None or done < count:
                room = None if count is None else count - done
                batch = consumer.receive_batch(room, None if follow else IDLE_S)
                if batch is None:
                    wait = _wait_if_drained(client, topic, subscription)
                    if wait is None:
                        continue
                    batch = consumer.receive_batch(
                        room, wait
                    )  # what was on its way while the broker answered
                    if batch is None:
                        break
                _write(out, batch, as_json)
                consumer.ack(batch)
                done += len(batch)
                show(done)
        consumer.flush(timeout)


def _write(out: int, batch: Batch, as_json: bool) -> None:
    """Write a batch to a file descriptor, whole; Python's own stdout, where it is unbuffered, may write half of it."""
    if as_json:
        lines = [json.dumps(describe(message), ensure_ascii=False).encode() for message in batch]
    else:
        lines = batch.payloads
    left = memoryview(b"\n".join(lines) + b"\n")
    while left:
        left = left[os.write(out, left) :]


def describe(message: Message) -> dict[str, Any]:
    """Return a message as a plain map for JSON."""
    body: dict[str, Any] = {"topic": message.topic, "offset": message.offset}
    if message.key is not None:
        body |= text_or_base64("key", message.key)
    if message.attributes:
        body["attributes"] = message.attributes
    body |= {"timestamp": message.timestamp, "attempt": message.attempt}
    return body | text_or_base64("payload", message.payload)


def text_or_base64(name: str, data: bytes) -> dict[str, str]:
    """Return bytes for JSON, under a name that says how."""
    try:
        return {name: data.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(data).decode()}


def _wait_if_drained(client: Client, topic: str, subscription: str) -> float | None:
    """Return None while something is left to hand out, else how long to wait for what may be on its way, in seconds."""
    state = client.subscription(topic, subscription)
    if "position" not in state:
        return IDLE_NON_RELIABLE_S
    drained = not state.get("waiting_redelivery") and state["position"] >= client.topic(topic)["durable_end"]
    return IDLE_S if drained else None
