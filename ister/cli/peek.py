"""`ister peek`: print messages without consuming them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from ister.cli.command import Command
from ister.cli.consume import write
from ister.cli.options import (
    POSITION_SHOWN,
    client_options,
    connected,
    json_option,
    topic_argument,
)
from ister.cli.options import optional_subscription_argument as subscription_argument
from ister.cli.times import Position
from ister.errors import UsageError

if TYPE_CHECKING:
    from ister.client import Client
    from ister.consumer import Position as Start
    from ister.message import Message

_HELP_END = """\b
Examples:
  ister peek orders                      the newest ten messages of the topic
  ister peek orders --start -15m -n 100  the first hundred of the last quarter of an hour
  ister peek orders billing              what subscription billing has not acknowledged"""


@click.command(cls=Command, epilog=_HELP_END)
@topic_argument
@subscription_argument
@click.option(
    "--number", "-n", type=click.IntRange(min=1), default=10, show_default=True, help="At most this many."
)
@click.option(
    "--start",
    type=Position(),
    metavar=POSITION_SHOWN,
    help="Of a topic: start there instead of at the newest; a time is like 2026-03-01T08:00:00Z, or -15m.",
)
@client_options
@json_option
def peek(
    topic: str,
    subscription: str | None,
    number: int,
    start: Start | None,
    endpoint: str,
    timeout: float,
    as_json: bool,
) -> None:
    """Print messages of a reliable topic, or the next ones of a subscription, without consuming any."""
    if subscription is not None and start is not None:
        raise UsageError("a subscription starts at its position: use --start without one")
    with connected(endpoint, timeout) as client:
        if subscription is not None:
            messages = client.peek(topic, subscription, number, timeout=timeout)
        else:
            messages = _newest(client, topic, number, start, timeout)
    if messages:
        write(sys.stdout.fileno(), messages, as_json)


def _newest(client: Client, topic: str, number: int, start: Start | None, timeout: float) -> list[Message]:
    shown = client.topic(topic)
    if shown["strategy"] != "reliable":
        raise UsageError(
            f"topic {topic!r} is non-reliable: it stores nothing; `ister consume` shows new messages"
        )
    end = shown["durable_end"]
    if start is None:
        start = max(shown["start_offset"], end - number)
    found: list[Message] = []
    with client.reader(topic, start=start, credit_messages=number, timeout=timeout) as reader:
        number = min(number, end - reader.position)
        while len(found) < number:
            batch = reader.receive_batch(number - len(found), timeout)
            if batch is None:
                break
            found += batch
    return found
