"""`ister consume`: print the messages of a subscription, or of a topic without one.

Invariants
- a message is acknowledged only once it has been written to stdout
- without --follow it ends when all existing messages were printed, and not before
"""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from ister.cli.command import Command
from ister.cli.options import (
    POSITION_SHOWN,
    client_options,
    connected,
    json_option,
    subscription_option,
    topic_or_pattern_argument,
)
from ister.cli.times import Position
from ister.consumer import Consumer
from ister.errors import IsterError, UsageError
from ister.message import Batch, Event, Message
from ister.names import is_pattern
from ister.reader import Reader
from ister.show import progress
from ister.subscriptions import SUBSCRIPTION_TYPES
from ister.words import counted

if TYPE_CHECKING:
    from ister.client import Client
    from ister.consumer import Position as Start
    from ister.subscriptions import SubscriptionType

COUNT_SMALL: Final = 100  # if fewer are wanted, no more are fetched, because others would get those late
IDLE_S: Final = 0.3  # seconds of silence after which the broker is asked whether anything is left
IDLE_NON_RELIABLE_S: Final = 1.0  # for a topic without a log, where the broker cannot say what is left

_HELP_END = """\b
Examples:
  ister consume orders --subscription billing --start earliest
  ister consume orders --subscription billing --count 10 --json | jq -r .payload
  ister consume orders                                  everything the topic holds, acknowledging nothing
  ister consume orders --start -15m --follow            since a quarter of an hour ago, and what comes
  ister consume ticks --start latest --follow            what comes from now on
  ister consume 'orders/*' --subscription billing -f    every topic that matches, those created later too

\b
Without --follow it ends when everything has been handed out and nothing came for a short while.
What is to be delivered later is not waited for.
With a subscription, messages are acknowledged once they are written to stdout; without one, nothing is.

Exit codes: 0 done; 1 refused; 2 wrong usage; 69 no broker there; 75 try again; 130 Ctrl-C; 129 and 143 SIGHUP and
SIGTERM (it leaves in order, as with Ctrl-C); 141 stdout was closed."""


@click.command(cls=Command, epilog=_HELP_END)
@topic_or_pattern_argument
@subscription_option
@click.option(
    "--type",
    "type_",
    type=click.Choice(SUBSCRIPTION_TYPES),
    help="How the subscription's consumers share its messages; shared by default.",
)
@click.option(
    "--start",
    type=Position(),
    metavar=POSITION_SHOWN,
    help="Where a new subscription starts (default: latest), or where reading without one starts (default: earliest); "
    "a time is like 2026-03-01T08:00:00Z, or -15m.",
)
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="End after this many messages.")
@click.option("--follow", "-f", is_flag=True, help="Keep waiting for messages, until Ctrl-C.")
@click.option("--priority", type=click.IntRange(min=0), default=0, help="Failover: lower is preferred.")
@click.option("--force", is_flag=True, help="Exclusive: take it over from its present consumer.")
@client_options
@json_option
def consume(
    topic: str,
    subscription: str | None,
    type_: SubscriptionType | None,
    start: Start | None,
    count: int | None,
    follow: bool,
    priority: int,
    force: bool,
    endpoint: str,
    timeout: float,
    as_json: bool,
) -> None:
    """Print the payloads of messages, a line each: of a subscription, acknowledging them, or of a topic as it is.

    With --json, one object a line: topic, offset, key, attributes, timestamp, attempt, payload (payload_base64 and
    key_base64 where they are no UTF-8 text).
    """
    if subscription is None and (type_ or priority or force):
        raise UsageError(
            "--type, --priority and --force are about a subscription: name one with --subscription"
        )
    if subscription is None and is_pattern(topic):
        raise UsageError("many topics are consumed with a subscription: name one with --subscription")
    if force and type_ not in (None, "exclusive"):
        raise UsageError("--force takes an exclusive subscription over; others have room for one more")
    credit = count if count is not None and count <= COUNT_SMALL else None
    with connected(endpoint, timeout) as client:
        receiver: Consumer | Reader
        if subscription is None:
            begin: Start = "earliest" if start is None else start
            with client.reader(topic, start=begin, credit_messages=credit, on_event=_tell) as receiver:
                _print(client, receiver, count, follow, as_json)
            return
        with client.consumer(
            topic,
            subscription=subscription,
            type=type_,
            start="latest" if start is None else start,
            priority=priority,
            force=force,
            credit_messages=credit,
            on_event=_tell,
            timeout=timeout,
        ) as receiver:
            _print(client, receiver, count, follow, as_json)
            receiver.flush(timeout)


def _print(
    client: Client, receiver: Consumer | Reader, count: int | None, follow: bool, as_json: bool
) -> None:
    """Print messages, and acknowledge what is printed, until there are no more or enough."""
    out = sys.stdout.fileno()
    done, behind = 0, None
    with progress(f"from {receiver.topic}", count, wanted=not sys.stdout.isatty()) as show:
        while count is None or done < count:
            room = None if count is None else count - done
            batch = receiver.receive_batch(room, None if follow else IDLE_S)
            if batch is None:
                wait = _wait_if_drained(client, receiver, behind)
                if wait is None:
                    continue
                # messages that were in transit while the broker answered
                batch = receiver.receive_batch(room, wait)
                if batch is None:
                    break
            write(out, batch, as_json)
            if isinstance(receiver, Consumer):
                receiver.ack(batch)
            done += len(batch)
            behind = batch[-1].offset + 1
            show(done)


def _tell(event: Event) -> None:
    """Print an event for people."""
    if event.code not in ("active", "standby", "dropped"):
        about = "" if event.offset is None else f" at offset {event.offset}"
        told = event.text or f"{counted(event.count, 'message')} of {event.topic}{about}"
        print(f"ister: {told} ({event.code})", file=sys.stderr)


def write(out: int, messages: Sequence[Message], as_json: bool) -> None:
    """Write messages to a file descriptor, whole; Python's own stdout, where it is unbuffered, may write half of it."""
    if as_json:
        lines = [json.dumps(describe(message), ensure_ascii=False).encode() for message in messages]
    elif isinstance(messages, Batch):
        lines = messages.payloads
    else:
        lines = [message.payload for message in messages]
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


def _wait_if_drained(client: Client, receiver: Consumer | Reader, behind: int | None) -> float | None:
    """Return None while messages are left, else for how many seconds to wait for those in transit.

    `behind` is the offset after the last message that a reader returned.
    """
    if isinstance(receiver, Reader):
        topic = client.topic(receiver.topic)
        if topic["strategy"] != "reliable":
            return IDLE_NON_RELIABLE_S
        reached = receiver.position if behind is None else behind
        return IDLE_S if reached >= topic["durable_end"] else None
    waits = [_wait_if_topic_is_drained(client, topic, receiver.subscription) for topic in receiver.topics]
    return None if None in waits else max(filter(None, waits), default=IDLE_S)


def _wait_if_topic_is_drained(client: Client, topic: str, subscription: str) -> float | None:
    shown = client.topic(topic)
    if shown["strategy"] != "reliable":
        return IDLE_NON_RELIABLE_S
    state = client.subscription(topic, subscription)
    for what in ("paused", "blocked"):
        if state.get(what):
            text = f"subscription {subscription!r} of {topic!r} is {what}"
            raise IsterError(
                f"{text}: `ister explain {topic} {subscription}` says more", code=what, action="retry"
            )
    if state.get("delayed"):
        print(
            f"ister: {counted(state['delayed'], 'message waits for its', 'messages wait for their')} time of delivery",
            file=sys.stderr,
        )
    drained = not state.get("waiting_redelivery") and state["position"] >= shown["durable_end"]
    return IDLE_S if drained else None
