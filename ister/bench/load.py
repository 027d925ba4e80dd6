"""What one measurement is made of. Pure values: they travel to the client processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from ister.errors import UsageError
from ister.subscriptions import SubscriptionType

STAMP_BYTES: Final = 8  # the time of sending, at the front of a payload
MESSAGES_LOW: Final = 20_000
MESSAGES_HIGH: Final = 2_000_000
BYTES_AIM: Final = (
    200_000_000  # of payload in a run of default length: some seconds of work, and it fits any memory
)
SECONDS_AIM: Final = 5.0  # of a run at a given rate


@dataclass(frozen=True, slots=True)
class Load:
    """What is sent, how, and to whom; sizes in bytes, `rate` in messages a second (None: as fast as it goes)."""

    strategy: Literal["reliable", "non-reliable"] = "reliable"
    durability: Literal["fsync", "os", "cloud"] = "fsync"
    message_bytes: int = 1024
    messages: int = 200_000
    batch_bytes: int = 64 * 1024
    linger_ms: float = 1.0
    subscriptions: int = 1
    type: SubscriptionType = "exclusive"  # by no keys: what is sent has none
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
        """How many messages fill a batch."""
        return max(1, self.batch_bytes // max(1, self.message_bytes))

    @property
    def stamp_every(self) -> int:
        """Every how many messages one carries the time of its sending; 0: none does, they are too small."""
        if self.message_bytes < STAMP_BYTES:
            return 0
        return 1 if self.rate is not None else self.messages_per_batch


def messages_by_default(message_bytes: int, rate: float | None) -> int:
    """Return how many messages make a run long enough to trust, and short enough to wait for."""
    if rate is not None:
        return max(1, round(rate * SECONDS_AIM))
    return min(MESSAGES_HIGH, max(MESSAGES_LOW, BYTES_AIM // max(1, message_bytes)))
