"""`ister produce`: send lines to a topic.

Invariants
- a line is sent as soon as it is read, also when the input is slow; lines that are read together are sent together
- exit code 0 means that every line has its receipt
"""

from __future__ import annotations

import io
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

import click

from ister.cli.command import Command
from ister.cli.options import client_options, connected, json_option, topic_argument
from ister.cli.times import Duration, Moment
from ister.errors import RemoteError, UsageError
from ister.show import print_json, progress
from ister.words import counted

if TYPE_CHECKING:
    from datetime import datetime

    from ister.client import Client
    from ister.producer import Producer
    from ister.receipts import BatchReceipt

READ_BYTES: Final = 64 * 1024
LINE_BYTES_MAX: Final = 7 << 20  # no broker can be told to take larger messages
RECEIPTS_KEPT_MAX: Final = 10_000  # above this the oldest is waited for: memory stays bounded

_HELP_END = """\b
Examples:
  echo "10 kg of flour" | ister produce orders --create
  ister produce logs --file /var/log/syslog --attribute host=web1
  tail -f access.log | ister produce access --key web1
  echo "water the plants" | ister produce reminders --delay 8h

Exit codes: 0 every line has its receipt; 1 refused; 2 wrong usage; 69 no broker there; 75 try again; 130 Ctrl-C."""


@click.command(cls=Command, epilog=_HELP_END)
@topic_argument
@click.option(
    "--file",
    "path",
    type=click.Path(exists=True, dir_okay=False),
    metavar="FILE",
    help="Read lines from a file instead of stdin.",
)
@click.option("--key", metavar="TEXT", help="The key of every message.")
@click.option(
    "--attribute", "attributes", multiple=True, metavar="NAME=VALUE", help="An attribute of every message."
)
@click.option(
    "--delay", type=Duration(), metavar="DURATION", help="Deliver them after this time: 90, 15m, 2h."
)
@click.option(
    "--deliver-at",
    type=Moment(),
    metavar="TIME",
    help="Deliver them at this time: 2026-03-01T08:00:00Z, or +15m.",
)
@click.option("--create", is_flag=True, help="Create the topic (reliable) if it does not exist.")
@client_options
@json_option
def produce(
    topic: str,
    path: str | None,
    key: str | None,
    attributes: tuple[str, ...],
    delay: float | None,
    deliver_at: datetime | None,
    create: bool,
    endpoint: str,
    timeout: float,
    as_json: bool,
) -> None:
    """Send lines to a topic, a message a line (without its newline, any bytes)."""
    carried = dict(map(_attribute, attributes))
    if delay is not None and deliver_at is not None:
        raise UsageError("--delay or --deliver-at, not both")
    began = time.monotonic()
    with _opened(path) as source, connected(endpoint, timeout) as client:
        if create:
            _create_if_missing(client, topic)
        with client.producer(topic) as producer:
            sending = _Sending(
                producer, None if key is None else key.encode(), carried or None, delay, deliver_at
            )
            total = os.stat(path).st_size if path is not None else None
            quiet = path is None and sys.stdin.isatty()
            if quiet:
                _send_all(source, sending, lambda _done: None)
            else:
                with progress(f"to {topic}", total, unit="bytes") as show:
                    _send_all(source, sending, show)
            producer.flush()
    sending.settle()
    seconds = time.monotonic() - began
    if as_json:
        print_json(
            {
                "topic": topic,
                "messages": sending.messages,
                "bytes": sending.bytes,
                "first_offset": sending.first_offset,
                "last_offset": sending.last_offset,
                "seconds": round(seconds, 3),
            }
        )
    else:
        where = (
            ""
            if sending.first_offset is None
            else f", offsets {sending.first_offset} to {sending.last_offset}"
        )
        print(f"{counted(sending.messages, 'message')} to {topic}{where}", file=sys.stderr)


def _attribute(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UsageError(f"--attribute {text!r} is not NAME=VALUE")
    return name, value


def _opened(path: str | None) -> io.BufferedReader:
    if path is not None:
        return open(path, "rb")
    return open(sys.stdin.fileno(), "rb", closefd=False)


def _create_if_missing(client: Client, topic: str) -> None:
    try:
        client.topic(topic)
    except RemoteError as error:
        if error.code != "unknown-topic":
            raise
        client.create_topic(topic, exist_ok=True)


class _Sending:
    """The lines sent so far, and their receipts."""

    def __init__(
        self,
        producer: Producer,
        key: bytes | None,
        attributes: dict[str, str] | None,
        delay: float | None,
        deliver_at: datetime | None,
    ) -> None:
        self._producer = producer
        self._delay = delay
        self._deliver_at = deliver_at
        self._key = key
        self._attributes = attributes
        self._receipts: deque[BatchReceipt] = deque()
        self.messages = 0
        self.bytes = 0
        self.first_offset: int | None = None
        self.last_offset: int | None = None

    def send(self, lines: list[bytes]) -> None:
        """Send some lines; raises the error with which an earlier one was refused."""
        count = len(lines)
        receipt = self._producer.send_batch(
            lines,
            keys=None if self._key is None else [self._key] * count,
            attributes=None if self._attributes is None else [self._attributes] * count,
            delay=self._delay,
            deliver_at=self._deliver_at,
        )
        self._receipts.append(receipt)
        self.messages += count
        self.bytes += sum(map(len, lines))
        while self._receipts and (self._receipts[0].done() or len(self._receipts) > RECEIPTS_KEPT_MAX):
            self._settle_one()

    def settle(self) -> None:
        """Wait for all remaining receipts."""
        while self._receipts:
            self._settle_one()

    def _settle_one(self) -> None:
        published = self._receipts.popleft().result()
        if published.offset is not None:
            if self.first_offset is None:
                self.first_offset = published.offset
            self.last_offset = published.offset + published.count - 1


def _send_all(source: io.BufferedReader, sending: _Sending, show: Callable[[int], None]) -> None:
    done = 0
    for lines in _lines(source):
        sending.send(lines)
        done += sum(map(len, lines)) + len(lines)
        show(done)


def _lines(source: io.BufferedReader) -> Iterator[list[bytes]]:
    """Yield the lines that are available together, as soon as they are."""
    parts: list[bytes] = []  # of a line whose end was not read yet
    pending = 0
    number = 1
    while chunk := source.read1(READ_BYTES):
        lines = chunk.split(b"\n")
        if len(lines) > 1:
            lines[0] = b"".join([*parts, lines[0]])
            parts, pending = [], 0
            number += len(lines) - 1
            tail = lines.pop()
            yield lines
        else:
            tail = chunk
        parts.append(tail)
        pending += len(tail)
        if pending > LINE_BYTES_MAX:
            raise UsageError(
                f"line {number} is over {LINE_BYTES_MAX} bytes, more than any broker accepts",
                code="message-too-large",
            )
    rest = b"".join(parts)
    if rest:
        yield [rest]
