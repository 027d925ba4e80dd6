"""The replay: a late consumer begins at the earliest message, and reads from the store, then from the log.

By then most of the log has been uploaded and dropped locally. The consumer reads from the store first, then from the
log, and at last gets, live, a message that is sent when everything else has been read.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

import ister
from ister.demo.spool import Piece

SUBSCRIPTION: Final = "replay"
LAST_WORD: Final = b"one more, to be read live"
TRIMMED_WITHIN_S: Final = 20.0
READ_WITHIN_S: Final = 30.0
BATCH: Final = 5_000
LET_GO_WITHIN_S: Final = (
    20.0  # seconds; a worker serves what it has mapped for some seconds after the file was dropped
)
READ_AGAIN_S: Final = 1.0


@dataclass(slots=True)
class Replay:
    """What was read, and where it came from; `local_start` is where the local log begins."""

    pieces: list[Piece]
    seconds: float
    local_start: int
    from_store: int
    from_log: int
    from_live: int
    problem: str = ""


def replay(client: ister.Client, topic: str, lines: int) -> Replay:
    """Wait until the log's beginning is in the store alone, and read everything back."""
    local_start = _trimmed(client, topic)
    deadline = time.monotonic() + LET_GO_WITHIN_S
    while True:
        with client.consumer(
            topic, subscription=SUBSCRIPTION, type="exclusive", start="earliest"
        ) as consumer:
            pieces, seconds = _read_back(consumer, lines)
            if client.subscription(topic, SUBSCRIPTION)["from_store"] or time.monotonic() > deadline:
                problem = _last_word(client, consumer, topic, lines)
                shown = client.subscription(topic, SUBSCRIPTION)
                return Replay(
                    pieces,
                    seconds,
                    local_start,
                    shown["from_store"],
                    shown["from_log"],
                    shown["from_live"],
                    problem,
                )
        client.delete_subscription(topic, SUBSCRIPTION)
        time.sleep(READ_AGAIN_S)


def _read_back(consumer: ister.Consumer, lines: int) -> tuple[list[Piece], float]:
    """Return everything that was sent, and how many seconds the reading took."""
    pieces: list[Piece] = []
    began, got = time.monotonic(), 0
    while got < lines and time.monotonic() - began < READ_WITHIN_S:
        batch = consumer.receive_batch(max_messages=BATCH, timeout=1.0)
        if batch is None:
            continue
        keys = [message.key or b"" for message in batch]
        pieces.append(Piece(time.monotonic_ns(), batch.offsets[0], batch.attempt, batch.payloads, keys))
        got += len(batch)
        consumer.ack(batch)
    return pieces, time.monotonic() - began


def _last_word(client: ister.Client, consumer: ister.Consumer, topic: str, lines: int) -> str:
    """Send one more message, and return what is wrong if it does not arrive live."""
    with client.producer(topic) as producer:
        offset = producer.send(LAST_WORD).result(timeout=10).offset
    last = consumer.receive(timeout=10)
    if last is None or last.payload != LAST_WORD or offset != lines:
        return f"the message sent at the end (offset {offset}) did not arrive live"
    return ""


def _trimmed(client: ister.Client, topic: str) -> int:
    """Return where the local log begins, once its beginning was uploaded and dropped."""
    deadline = time.monotonic() + TRIMMED_WITHIN_S
    while True:
        local_start: int = client.topic(topic)["local_start"]
        if local_start > 0 or time.monotonic() > deadline:
            return local_start
        time.sleep(0.1)
