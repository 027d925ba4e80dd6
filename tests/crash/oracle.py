"""The oracle: what clients sent, were promised and were given, and every way in which that does not fit together.

Pure, and told everything by clients: it knows no file and no process of the broker. Any thread may tell it.

What it holds a broker to
- a message with a receipt is in its topic, once, at the receipt's offset, byte for byte
- offsets are dense from 0, and an offset never stands for two messages
- a producer's messages are stored in the order sent, and none is missing between two of them unless it was refused
- a consumer in order (Exclusive, Failover) is given nothing before everything below it was given or acknowledged,
  but for what somebody gave back: that comes when it comes
- what was acknowledged and confirmed before a consumer attached is never given to it
- what was never acknowledged is given to who attaches
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from tests.crash.message import Identity, parse_payload

VIOLATIONS_MAX: Final = 200  # one cause makes thousands; the first ones tell it

DELIVERED: Final = 1
ACKNOWLEDGED: Final = 2  # a client asked for it: it may come again, or not
CONFIRMED: Final = 4  # the broker said that it is written
DELAYED: Final = 8  # a client gave it back, to come later: also behind those that follow it


class Violation(NamedTuple):
    """Something that must not be: `kind` is a word to count by, `text` says what and where."""

    kind: str
    text: str


@dataclass(slots=True)
class _Sent:
    checksum: int
    offset: int | None = None
    receipted: bool = False
    may_be_missing: bool = False  # its producer ended without an answer
    refused: str = ""


class Flags:
    """A few bits for every offset from 0 on."""

    __slots__ = ("_bits",)

    def __init__(self, bits: bytes | bytearray = b"") -> None:
        self._bits = bytearray(bits)

    def __getitem__(self, offset: int) -> int:
        return self._bits[offset] if offset < len(self._bits) else 0

    def add(self, offset: int, flag: int) -> bool:
        """Set a flag; return whether it was not set before."""
        if offset >= len(self._bits):
            self._bits.extend(bytes(offset + 1 - len(self._bits)))
        fresh = not self._bits[offset] & flag
        self._bits[offset] |= flag
        return fresh

    def copy(self) -> Flags:
        """Return what is set now."""
        return Flags(self._bits)


class ReadBack:
    """One reading of a topic, from an offset on, in order."""

    def __init__(self, topic: str, start: int = 0) -> None:
        self.topic = topic
        self.next = start
        self.last: dict[int, int] = {}
        self.places: dict[Identity, int] = {}


@dataclass(slots=True)
class _Topic:
    sent: dict[Identity, _Sent] = field(default_factory=dict)
    at: dict[int, Identity] = field(default_factory=dict)
    waiting: list[Identity] = field(default_factory=list)  # receipts not read back yet
    end: int = 0  # behind the highest offset that anybody has seen


class Attached:
    """One consumer of one subscription, from its opening to its close."""

    __slots__ = ("before", "given", "name", "reached", "subscription", "unconfirmed")

    def __init__(self, subscription: Subscription, name: str) -> None:
        self.subscription = subscription
        self.name = name
        self.before = subscription.flags.copy()
        self.given = Flags()
        self.reached = 0  # everything below was given to it, or acknowledged by somebody
        self.unconfirmed: list[int] = []


class Subscription:
    """What the clients of one subscription know together."""

    __slots__ = ("_acknowledged_below", "_confirmed_below", "flags", "in_order", "name", "topic")

    def __init__(self, topic: str, name: str, *, in_order: bool) -> None:
        self.topic = topic
        self.name = name
        self.in_order = in_order
        self.flags = Flags()
        self._confirmed_below = 0
        self._acknowledged_below = 0

    def unconfirmed(self, end: int) -> list[int]:
        """Return what is below `end`, and not known to be written down as acknowledged."""
        while self._confirmed_below < end and self.flags[self._confirmed_below] & CONFIRMED:
            self._confirmed_below += 1
        return [o for o in range(self._confirmed_below, end) if not self.flags[o] & CONFIRMED]

    def unacknowledged(self, end: int) -> list[int]:
        """Return what is below `end`, and nobody ever acknowledged."""
        while self._acknowledged_below < end and self.flags[self._acknowledged_below] & ACKNOWLEDGED:
            self._acknowledged_below += 1
        return [o for o in range(self._acknowledged_below, end) if not self.flags[o] & ACKNOWLEDGED]

    def __str__(self) -> str:
        return f"{self.topic}/{self.name}"


class Oracle:
    """Takes what clients tell, and keeps `violations` and `counts`."""

    def __init__(self) -> None:
        self.violations: list[Violation] = []
        self.counts: Counter[str] = Counter()
        self._lock = threading.RLock()
        self._topics: dict[str, _Topic] = {}

    def violated(self, kind: str, text: str) -> None:
        """Note a violation."""
        with self._lock:
            self.counts[f"violation {kind}"] += 1
            if len(self.violations) < VIOLATIONS_MAX:
                self.violations.append(Violation(kind, text))

    def _topic(self, topic: str) -> _Topic:
        found = self._topics.get(topic)
        if found is None:
            found = self._topics[topic] = _Topic()
        return found

    # ---- producers ----------------------------------------------------------------------------------------------

    def sent(self, topic: str, payload: bytes) -> Identity:
        """A producer is about to send this."""
        parsed = parse_payload(payload)
        assert parsed is not None
        with self._lock:
            self._topic(topic).sent[parsed.identity] = _Sent(parsed.checksum)
            self.counts["sent"] += 1
        return parsed.identity

    def receipted(self, topic: str, identity: Identity, offset: int | None) -> None:
        """The broker said that it is stored there; None: it is, and the broker forgot where."""
        with self._lock:
            belief = self._topic(topic)
            sent = belief.sent[identity]
            sent.receipted = True
            sent.offset = offset
            belief.waiting.append(identity)
            self.counts["receipts"] += 1
            if offset is None:
                self.counts["receipts without offset"] += 1
            else:
                self._is_at(topic, belief, offset, identity, "a receipt")

    def refused(self, topic: str, identity: Identity, code: str) -> None:
        """The broker refused it for good: it must not be stored."""
        with self._lock:
            self._topic(topic).sent[identity].refused = code
            self.counts["refused"] += 1

    def abandoned(self, topic: str, identity: Identity) -> None:
        """Its producer ended before an answer came: it may be stored, or not."""
        with self._lock:
            self._topic(topic).sent[identity].may_be_missing = True
            self.counts["abandoned"] += 1

    def _is_at(self, topic: str, belief: _Topic, offset: int, identity: Identity, who: str) -> None:
        belief.end = max(belief.end, offset + 1)
        known = belief.at.setdefault(offset, identity)
        if known != identity:
            self.violated(
                "offset-reused",
                f"{topic} {offset}: {who} says {_name(identity)}, before it was {_name(known)}",
            )

    def end(self, topic: str) -> int:
        """Return the offset behind the last message that clients know of."""
        with self._lock:
            return self._topic(topic).end

    # ---- what is stored -----------------------------------------------------------------------------------------

    def _check_bytes(self, topic: str, offset: int, payload: bytes, who: str) -> Identity | None:
        parsed = parse_payload(payload)
        if parsed is None:
            self.violated("wrong-bytes", f"{topic} {offset}: {who} got {len(payload)} bytes that nobody sent")
            return None
        belief = self._topic(topic)
        sent = belief.sent.get(parsed.identity)
        if sent is None or sent.checksum != parsed.checksum:
            self.violated(
                "wrong-bytes", f"{topic} {offset}: {who} got {_name(parsed.identity)}, never sent so"
            )
            return None
        if sent.refused:
            text = f"{topic} {offset}: {who} got {_name(parsed.identity)}, refused with {sent.refused}"
            self.violated("refused-but-stored", text)
        self._is_at(topic, belief, offset, parsed.identity, who)
        return parsed.identity

    def read(self, back: ReadBack, offset: int, payload: bytes) -> None:
        """A reader of the whole topic was given this."""
        with self._lock:
            topic = back.topic
            if offset < back.next:  # a reader that lost its worker begins again: the same must come
                self._check_bytes(topic, offset, payload, "the reader")
                return
            if offset > back.next:
                self.violated("not-dense", f"{topic}: offset {offset} came where {back.next} was due")
            back.next = offset + 1
            identity = self._check_bytes(topic, offset, payload, "the reader")
            if identity is None:
                return
            first = back.places.setdefault(identity, offset)
            if first != offset:
                self.violated("stored-twice", f"{topic}: {_name(identity)} is at {first} and at {offset}")
                return
            last = back.last.get(identity.producer, -1)
            if identity.number < last:
                text = f"{topic} {offset}: {_name(identity)} is stored behind number {last}"
                self.violated("out-of-order", text)
                return
            back.last[identity.producer] = identity.number
            belief = self._topic(topic)
            for number in range(last + 1, identity.number):
                missing = belief.sent.get(Identity(identity.producer, number))
                if missing is not None and not missing.refused and not missing.may_be_missing:
                    text = f"{topic}: {identity.producer}#{number} is missing before {_name(identity)} at {offset}"
                    self.violated("lost" if missing.receipted else "hole", text)

    def read_to_end(self, back: ReadBack, *, everything: bool = False) -> None:
        """The reader has come to the end: every receipt (`everything`), or those not looked at, must be found."""
        with self._lock:
            belief = self._topic(back.topic)
            waiting = (
                [i for i, sent in belief.sent.items() if sent.receipted] if everything else belief.waiting
            )
            for identity in waiting:
                offset = belief.sent[identity].offset
                place = back.places.get(identity)
                if place is None:
                    text = f"{back.topic}: {_name(identity)}, receipt for offset {offset}, is nowhere"
                    self.violated("lost", text)
                elif offset is not None and place != offset:
                    text = f"{back.topic}: {_name(identity)} is at {place}, its receipt said {offset}"
                    self.violated("misplaced", text)
            belief.waiting = []

    # ---- subscriptions ------------------------------------------------------------------------------------------

    def attach(self, subscription: Subscription, name: str) -> Attached:
        """Call it before a consumer is opened: what is confirmed until now must not come to it."""
        with self._lock:
            return Attached(subscription, name)

    def delivered(self, attached: Attached, offset: int, payload: bytes) -> None:
        """A consumer was given this."""
        subscription = attached.subscription
        with self._lock:
            who = f"{subscription} ({attached.name})"
            self._check_bytes(subscription.topic, offset, payload, who)
            if attached.before[offset] & CONFIRMED:
                text = f"{who} was given {offset}, acknowledged and confirmed before it attached"
                self.violated("acknowledged-came-back", text)
            fresh = subscription.flags.add(offset, DELIVERED)
            self.counts["delivered" if fresh else "delivered again"] += 1
            attached.given.add(offset, DELIVERED)
            if subscription.in_order:
                self._check_order(attached, offset, who)

    def _check_order(self, attached: Attached, offset: int, who: str) -> None:
        flags, given = attached.subscription.flags, attached.given
        reached = attached.reached
        while reached < offset and (given[reached] or flags[reached] & (ACKNOWLEDGED | DELAYED)):
            reached += 1
        if reached < offset:
            self.violated("gap", f"{who} was given {offset} before {reached}, which nobody acknowledged")
            reached = offset
        attached.reached = reached

    def acknowledged(self, attached: Attached, offsets: Iterable[int]) -> None:
        """A consumer is about to acknowledge these."""
        with self._lock:
            for offset in offsets:
                attached.subscription.flags.add(offset, ACKNOWLEDGED)
                attached.unconfirmed.append(offset)
                self.counts["acknowledged"] += 1

    def given_back(self, attached: Attached, offset: int) -> None:
        """A consumer is about to refuse this one."""
        with self._lock:
            attached.subscription.flags.add(offset, DELAYED)
            self.counts["given back"] += 1

    def acknowledged_until(self, attached: Attached, offset: int) -> None:
        """A consumer is about to acknowledge everything up to and including this offset."""
        with self._lock:
            self.acknowledged(attached, attached.subscription.unconfirmed(offset + 1))

    def confirmed(self, attached: Attached, offsets: Iterable[int]) -> None:
        """The broker said that these are written."""
        with self._lock:
            for offset in offsets:
                if attached.subscription.flags.add(offset, CONFIRMED):
                    self.counts["confirmed"] += 1

    def take_unconfirmed(self, attached: Attached) -> list[int]:
        """Return what was acknowledged since the last time, for `confirmed`, or to be forgotten."""
        with self._lock:
            taken, attached.unconfirmed = attached.unconfirmed, []
            return taken

    def missing(self, attached: Attached) -> list[int]:
        """Return what was never acknowledged, and was not given to this consumer."""
        with self._lock:
            end = self._topic(attached.subscription.topic).end
            return [o for o in attached.subscription.unacknowledged(end) if not attached.given[o]]

    def drained(self, attached: Attached) -> None:
        """This consumer waited long enough: it must have been given all that was never acknowledged."""
        missing = self.missing(attached)
        if missing:
            text = f"{attached.subscription} ({attached.name}): {len(missing)} unacknowledged messages were not given"
            self.violated(
                "skipped", f"{text}, first {missing[:5]}, of {self.end(attached.subscription.topic)}"
            )


def _name(identity: Identity) -> str:
    return f"{identity.producer}#{identity.number}"
