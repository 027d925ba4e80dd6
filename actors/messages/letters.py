"""Dead letters: a subscription hands them to DeadLetters, which brings them to the topic that takes them.

Subscription --Bury--> DeadLetters --Deposit--> Topic
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ister.actors.mail import Frames, message
from ister.actors.runtime import Address
from ister.storage.catalogue import TopicMeta
from ister.wire import Buffer


@dataclass(frozen=True, slots=True)
class Letter:
    """A message that cannot be processed; `attributes` are its own and those that say where it comes from."""

    offset: int
    payload: Buffer
    key: bytes
    attributes: dict[str, str]


@dataclass(frozen=True, slots=True)
class Bury:
    """Put these into the dead-letter topic (Subscription -> DeadLetters; answered by `Buried`).

    It may be sent again: what is in hand already is ignored. What does not fit in hand is ignored too, so that it must
    be sent again.
    """

    letters: Sequence[Letter]
    topic: str = ""  # the dead-letter topic, where that has changed since DeadLetters was started


@dataclass(frozen=True, slots=True)
class Buried:
    """The letters of these offsets are durable in the dead-letter topic (DeadLetters -> Subscription)."""

    offsets: Sequence[int]


@dataclass(frozen=True, slots=True)
class BuryDelayed:
    """It does not work now, and is tried again (DeadLetters -> Subscription, for whoever asks)."""

    text: str


@dataclass(frozen=True, slots=True)
class Unburied:
    """The dead-letter topic does not take this letter, and why; others continue (DeadLetters -> Subscription)."""

    offset: int
    text: str


@dataclass(frozen=True, slots=True)
class StopBurying:
    """Nothing more is to be done (Subscription -> DeadLetters)."""


@message
@dataclass(frozen=True, slots=True)
class Deposit:
    """A batch from inside the broker (DeadLetters -> Topic; answered by `Deposited` or `DepositRefused`).

    It takes the road of a client's batch. The sender has nothing unresolved below `sequence`.
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
    """The batch is as durable as the topic promises (Topic -> DeadLetters)."""

    producer_id: int
    sequence: int


@message
@dataclass(frozen=True, slots=True)
class DepositRefused:
    """The batch was refused, or may be there or not: resend it (Topic, Frontend -> DeadLetters)."""

    producer_id: int
    sequence: int
    code: str
    text: str
