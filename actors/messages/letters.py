"""Dead letters: a subscription hands them to DeadLetters, which publishes them to the dead-letter topic.

Subscription --Bury--> DeadLetters --Deposit--> Topic
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ister.actors.mail import Frames, message
from ister.actors.runtime import Address
from ister.bodies import Buffer
from ister.storage.meta import TopicMeta


@dataclass(frozen=True, slots=True)
class Letter:
    """A message that cannot be processed; `attributes` are its own and those that say where it comes from."""

    offset: int
    payload: Buffer
    key: bytes
    attributes: dict[str, str]


@dataclass(frozen=True, slots=True)
class Bury:
    """Publish these letters to the dead-letter topic (Subscription -> DeadLetters; answered by `Buried`).

    It may be sent again: letters that DeadLetters has already are ignored. Letters beyond its limit are ignored too, so
    they must be sent again.
    """

    letters: Sequence[Letter]
    topic: str = ""  # the dead-letter topic, if it has changed since DeadLetters was started


@dataclass(frozen=True, slots=True)
class Buried:
    """The letters of these offsets are durable in the dead-letter topic (DeadLetters -> Subscription)."""

    offsets: Sequence[int]


@dataclass(frozen=True, slots=True)
class BuryDelayed:
    """Publishing fails at present, and is tried again (DeadLetters -> Subscription, shown to operators)."""

    text: str


@dataclass(frozen=True, slots=True)
class Unburied:
    """The dead-letter topic refuses this letter, and why; others continue (DeadLetters -> Subscription)."""

    offset: int
    text: str


@dataclass(frozen=True, slots=True)
class StopBurying:
    """Stop publishing dead letters (Subscription -> DeadLetters)."""


@message
@dataclass(frozen=True, slots=True)
class Deposit:
    """A batch from inside the broker (DeadLetters -> Topic; answered by `Deposited` or `DepositRefused`).

    It is handled like a client's batch. All batches below `sequence` are resolved.
    """

    topic: TopicMeta
    producer_id: int
    sequence: int
    count: int
    columns: int
    frames: Frames  # lengths, payloads, keys?, attributes?
    reply: Address


@message
@dataclass(frozen=True, slots=True)
class Deposited:
    """The batch is durable at the topic's level (Topic -> DeadLetters)."""

    producer_id: int
    sequence: int


@message
@dataclass(frozen=True, slots=True)
class DepositRefused:
    """The batch was refused, or its outcome is unknown: resend it (Topic, Frontend -> DeadLetters)."""

    producer_id: int
    sequence: int
    code: str
    text: str
