"""The naive model, with one entry per message, that the oracle compares with what it sees.

It asks the broker nothing: everything is known from the frames between clients and workers, and from what the programs
did.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tests.sim.limits import Limits

PASSED_OVER_MAX = (
    40  # deliveries to other consumers of a Shared subscription while a consumer with credit gets nothing
)
CLOCK_S = 0.002  # times of waits are kept in milliseconds


class Sent(NamedTuple):
    """A message as its program sent it."""

    topic: str
    identity: bytes
    key: bytes
    deliver_at_ms: int
    sent_s: float
    size: int


@dataclass(slots=True, eq=False)
class TopicModel:
    """What is known about a topic's messages."""

    name: str
    strategy: str
    durability: str
    limits: Limits = field(default_factory=Limits)  # of its retention and time to live
    at: dict[int, bytes] = field(default_factory=dict)  # offset: identity
    place: dict[bytes, int] = field(default_factory=dict)  # identity: offset
    key_of: dict[int, bytes] = field(default_factory=dict)
    by_key: dict[bytes, list[int]] = field(default_factory=dict)  # ascending offsets
    receipted: dict[bytes, int | None] = field(default_factory=dict)
    end: int = 0
    lost: bool = False  # objects of it were deleted from the store without the right to do so
    told: set[int] = field(default_factory=set)  # a consumer was told that these are damaged
    times: dict[int, int] = field(default_factory=dict)  # offset: when the broker received it, by its clock
    sought: list[tuple[str, int, int]] = field(
        default_factory=list
    )  # moves to a time, and the resulting offsets
    created_s: float = 0.0  # when its creation was requested
    generation: int = 0  # how many topics had this name before


@dataclass(slots=True, eq=False)
class PatternModel:
    """The subscription of a pattern, on every topic that matches."""

    pattern: str
    subscription: str
    kind: str
    start: str
    options: dict[str, Any]
    first_s: float = float("inf")  # when it was first known to exist on a topic
    alone: bool = False  # a single program consumes it
    looked_s: float = float("inf")  # when that program saw which topics existed


@dataclass(slots=True, eq=False)
class SessionModel:
    """A client's session with one start of a worker."""

    token: bytes
    machine: str
    worker: int
    heard_s: float
    routing: bytes
    uncertain: bool = (
        False  # the worker may have found the connection closed, and ignores it until the next HELLO
    )
    ended: bool = False
    closed_s: float = float("inf")  # when the worker was told that the connection is closed
    consumers: dict[int, ConsumerModel] = field(default_factory=dict)
    producers: dict[int, tuple[str, int]] = field(default_factory=dict)  # handle: topic, producer id
    # handle: the oldest generation of the topic it may belong to
    asked_in: dict[int, int] = field(default_factory=dict)
    of: dict[int, TopicModel | None] = field(default_factory=dict)  # a producer's handle; None: unknown
    unclear: dict[int, list[SubscriptionModel]] = field(default_factory=dict)  # a consumer's handle


@dataclass(slots=True, eq=False)
class ConsumerModel:
    """One consumer's handle."""

    session: SessionModel
    handle: int
    subscription: SubscriptionModel
    opening: dict[int, Any] | None = None
    opened: bool = False
    closing: bool = False  # it has sent CLOSE
    asked_in: int = 0  # the oldest generation of its topic that it may belong to
    priority: int = 0
    credit: int = 0
    bytes_credit: int = 0
    given: set[int] = field(default_factory=set)  # since it opened
    since: set[int] = field(default_factory=set)  # since the subscription was moved
    reached: int = 0
    # what it acknowledged, and refused before that with a delay: until when; by the REF that asked for DONE
    pending: list[tuple[int | None, list[tuple[int, int]], dict[int, float]]] = field(default_factory=list)
    gave_back: dict[int, float] = field(default_factory=dict)
    places: list[tuple[int, bool]] = field(
        default_factory=list
    )  # offsets as delivered since OPENED, and whether SINGLY
    taken: int = 0  # how many of them were reported as taken
    alone: set[int] = field(
        default_factory=set
    )  # places in this list that it asked about, as is required for SINGLY
    passed_over: int = 0
    passed_at_s: float = 0.0
    moved: bool = False  # what was given before the subscription was moved cannot be acknowledged any more
    moves: int | None = None  # as it was told last; None: it does not say of which it has heard
    anew_s: float = -1e9  # the last restart after which the numbers of a non-reliable topic began again
    full_at_s: float = -1e9
    ready_since_s: float = 0.0

    def in_hand(self) -> set[int]:
        """Return what its program has or may have, without what waits in its client."""
        last = {offset: (place, singly) for place, (offset, singly) in enumerate(self.places)}
        return {
            offset
            for offset, (place, singly) in last.items()
            if (place in self.alone if singly else place < self.taken)
        }

    def __str__(self) -> str:
        session = self.session
        return f"{session.machine}/{session.worker}/{session.routing[1:].decode()}/{self.handle}"


class Hold(NamedTuple):
    """A message that a consumer holds."""

    consumer: ConsumerModel
    at_s: float
    attempt: int


class SubscriptionModel:
    """A subscription of one broker."""

    def __init__(
        self, machine: str, topic: TopicModel, name: str, kind: str, options: dict[str, Any]
    ) -> None:
        self.machine, self.topic, self.name, self.kind, self.options = machine, topic, name, kind, options
        self.ack_timeout_s = options.get("ack_timeout_ms", 300_000) / 1000
        self.begin: int | None = 0  # None: at the latest, whatever that will be
        self.follows: PatternModel | None = None
        self.by_consumers = False  # it is created by the first consumer
        self.began_s = float("inf")  # when a client was told that it exists
        self.opens = 0  # requests to open it, answered or not
        self.consumers: list[ConsumerModel] = []
        self.holds: dict[int, Hold] = {}
        self.acknowledged: set[int] = (
            set()
        )  # an acknowledgment reached the broker, which may have read it or not
        self.settled: set[int] = set()  # the broker must have read it
        self.confirmed: set[int] = set()  # the broker confirmed that it is stored
        self.delayed: set[int] = set()  # refused, or timed out: comes again when it may
        self.not_before: dict[int, float] = {}
        self.written_waits: dict[int, float] = {}  # of these, what a restart finds, because it was answered
        self.sends: Counter[int] = Counter()
        self.done_otherwise: set[int] = set()  # trimmed, expired, dropped as poison
        self.taken_by_retention: set[int] = set()  # while a consumer had it, which was told
        self.ever: Counter[int] = Counter()  # all deliveries, whatever happened in between
        self.unseen = 0  # deliveries that could not be sent, and may count
        self.unsure: set[int] = set()  # held by a consumer when everything started over, and perhaps still
        self.back_at: dict[int, float] = {}  # when it was last known to come back
        # of each key, the highest offset delivered since everything started over
        self.highest: dict[bytes, int] = {}
        self.paused_s: float | None = None  # nothing may be delivered after this time
        self.was_moved = False
        self.moving = 0  # moves that were requested and not answered: each may have happened
        self.acknowledged_since: set[int] = set()  # since they were requested
        self.disturbed_s = -1e9  # what was delivered before may be delivered again
        self.active_since: dict[ConsumerModel, float] = {}
        self.told: set[int] = set()  # its consumers were told that these are damaged or lost
        # at the broker that had it before, and may have it still
        self.before: SubscriptionModel | None = None

    def __str__(self) -> str:
        return f"{self.machine}:{self.topic.name}/{self.name}({self.kind})"

    @property
    def in_order(self) -> bool:
        """Whether a consumer must never see a gap."""
        return self.kind in ("exclusive", "failover")

    def release(
        self, consumer: ConsumerModel, now_s: float, but: frozenset[int] | set[int] = frozenset()
    ) -> list[int]:
        """Release what a consumer holds, `but` for some; return it."""
        holds = self.holds
        mine = [offset for offset, hold in holds.items() if hold.consumer is consumer and offset not in but]
        for offset in mine:
            if now_s - holds[offset].at_s >= self.ack_timeout_s - 1e-6:
                self.delayed.add(offset)  # its timeout was over: perhaps it waits for the back-off
            del holds[offset]
            self.back_at[offset] = now_s
        return mine

    def disturb(self, now_s: float) -> None:
        """Note an event after which everything may come again: the subscription's actor started over."""
        self.disturbed_s = now_s
        self.unsure.update(self.holds)
        self.delayed.update(self.holds)
        self.holds.clear()
        self.highest.clear()
        self.settled = set(self.confirmed)
        self.not_before = {offset: due - CLOCK_S for offset, due in self.written_waits.items()}
        self.sends.clear()
        self.active_since.clear()

    def waits_since_before(self, offset: int) -> bool:
        """Return whether a message that came back at the earlier broker may wait here, if the store knows of it."""
        before = self.before
        return before is not None and (offset in before.delayed or offset in before.holds)

    def maybe_poison(self, offset: int) -> bool:
        """Return whether a message may have failed `max_deliveries` times."""
        most = self.options.get("max_deliveries", 0)
        return bool(most) and self.ever[offset] + self.unseen >= most

    def may_move(self, now_s: float) -> None:
        """Note the request for a move, which may happen from now on."""
        self.was_moved = True
        self.moving += 1
        if self.moving == 1:
            self.acknowledged_since = set()
        self.confirmed.clear()
        self.written_waits.clear()
        self.disturb(now_s)

    def moved(self, position: int | None, now_s: float) -> None:
        """Note the answer: it continues at `position`, below which all is acknowledged, or was not moved."""
        self.moving -= 1
        if position is not None:
            self.acknowledged = set(range(position)) | self.acknowledged_since
        else:  # everything was returned for it: earlier deliveries may count as unknown
            for consumer in self.consumers:
                consumer.moved = True
                consumer.since.clear()
        self.confirmed.clear()
        self.disturb(now_s)

    def forget_confirmed(self) -> None:
        """Forget what was written and not synced: the power failed."""
        self.confirmed.clear()
        self.settled.clear()
        self.written_waits.clear()
        self.not_before.clear()
