"""The parameters of a measurement. Pure values: they are sent to the client processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from ister.errors import UsageError
from ister.publication import BATCH_BYTES
from ister.subscriptions import SubscriptionType

STAMP_BYTES: Final = 8  # the time of sending, at the front of a payload
MESSAGES_LOW: Final = 20_000
MESSAGES_HIGH: Final = 2_000_000
BYTES_AIM: Final = (
    200_000_000  # bytes of payload in a run of default length: some seconds of work, and little memory
)
SECONDS_AIM: Final = 5.0  # of a run with a given rate


@dataclass(frozen=True, slots=True)
class Load:
    """What is sent, how, and to which consumers; sizes in bytes, `rate` in messages per second (None: unlimited)."""

    strategy: Literal["reliable", "non-reliable"] = "reliable"
    durability: Literal["fsync", "os", "cloud"] = "fsync"
    message_bytes: int = 1024
    messages: int = 200_000
    batch_bytes: int | None = None  # None: as the client chooses; with the API for batches 64 KiB
    linger_ms: float = 1.0
    subscriptions: int = 1
    type: SubscriptionType = "exclusive"  # not by key: messages have none
    api: Literal["message", "batch"] = "message"
    rate: float | None = None

    def __post_init__(self) -> None:
        if self.rate is not None and self.message_bytes < STAMP_BYTES:
            raise UsageError(
                f"--rate measures latency by a stamp of {STAMP_BYTES} bytes in each message, "
                f"which does not fit {self.message_bytes}"
            )

    @property
    def messages_per_batch(self) -> int:
        """How many messages fill a batch, the smallest that the client chooses."""
        return max(1, (self.batch_bytes or BATCH_BYTES) // max(1, self.message_bytes))

    @property
    def stamp_every(self) -> int:
        """The interval, in messages, between two with a time stamp; 0: they are too small for one."""
        if self.message_bytes < STAMP_BYTES:
            return 0
        return 1 if self.rate is not None else self.messages_per_batch


def messages_by_default(message_bytes: int, rate: float | None) -> int:
    """Return a number of messages that makes a run long enough to be reliable, and short enough to wait for."""
    if rate is not None:
        return max(1, round(rate * SECONDS_AIM))
    return min(MESSAGES_HIGH, max(MESSAGES_LOW, BYTES_AIM // max(1, message_bytes)))
