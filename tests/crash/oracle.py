"""The oracle: what clients sent, what they were promised, what they received, and every contradiction between these.

Pure. Clients tell it everything; it knows no file and no process of the broker. Any thread may call it.

What it checks
- a message with a receipt is in its topic, once, at the receipt's offset, byte for byte
- offsets are dense from 0, and an offset never stands for two messages
- a producer's messages are stored in the order sent, and none is missing between two of them unless it was refused
- an ordered consumer (Exclusive, Failover) receives a message only after everything below it was delivered or
  acknowledged, except refused messages, which may come later
- a message whose acknowledgment was confirmed before a consumer attached is never delivered to it
- a message that was never acknowledged is delivered to a consumer that attaches
- where delivery times are observed, no message is delivered before its time
- a key is with one consumer at a time, in order (`keys.py` defines that for clients and brokers that come and go)
- a dead letter is a message that was refused, unchanged, with its origin and the number of attempts
- a subscription that was moved delivers everything from there on, and nothing below
- a reader gets every message once, in order, whatever is killed
"""

from __future__ import annotations

import threading
from bisect import insort
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple

from tests.crash.message import Identity, parse_payload
from tests.crash.model import (
    ACKNOWLEDGED,
    BURIED,
    CONFIRMED,
    DELAYED,
    DELIVERED,
    Attached,
    Flags,
    ReadBack,
    Sent,
    Subscription,
    Topic,
)

VIOLATIONS_MAX: Final = 200  # one cause makes thousands; the first ones suffice

LOST: Final = "its consumer was lost"  # the reason of a dead letter whose consumer was lost
POISON: Final = "poison"  # the attribute of a message that some consumers always refuse


class Violation(NamedTuple):
    """A broken promise: `kind` is a word to count by, `text` says what and where."""

    kind: str
    text: str


class Oracle:
    """Collects what clients report, and keeps `violations` and `counts`."""

    def __init__(self, unix_ms: Callable[[], float]) -> None:
        self._unix_ms = unix_ms  # the broker's clock
        self.violations: list[Violation] = []
        self.counts: Counter[str] = Counter()
        self._lock = threading.RLock()
        self._topics: dict[str, Topic] = {}

    def violated(self, kind: str, text: str) -> None:
        """Note a violation."""
        with self._lock:
            self.counts[f"violation {kind}"] += 1
            if len(self.violations) < VIOLATIONS_MAX:
                self.violations.append(Violation(kind, text))

    def _topic(self, topic: str) -> Topic:
        found = self._topics.get(topic)
        if found is None:
            found = self._topics[topic] = Topic()
        return found

    # ---- producers ----------------------------------------------------------------------------------------------

    def sent(
        self, topic: str, payload: bytes, *, key: bytes = b"", deliver_at_ms: int = 0, poison: bool = False
    ) -> Identity:
        """A producer is about to send a message."""
        parsed = parse_payload(payload)
        assert parsed is not None
        with self._lock:
            sent = Sent(parsed.checksum, key=key, deliver_at_ms=deliver_at_ms, poison=poison)
            self._topic(topic).sent[parsed.identity] = sent
            self.counts["sent"] += 1
            self.counts["sent with a time"] += deliver_at_ms > 0
            self.counts["sent poison"] += poison
        return parsed.identity

    def receipted(self, topic: str, identity: Identity, offset: int | None) -> None:
        """The broker reported a message as stored at an offset; None: the broker does not know the offset any more."""
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
        """The broker refused a message for good: it must not be stored."""
        with self._lock:
            self._topic(topic).sent[identity].refused = code
            self.counts["refused"] += 1

    def abandoned(self, topic: str, identity: Identity) -> None:
        """The producer ended before an answer came: the message may be stored or not."""
        with self._lock:
            self._topic(topic).sent[identity].may_be_missing = True
            self.counts["abandoned"] += 1

    def _is_at(self, topic: str, belief: Topic, offset: int, identity: Identity, who: str) -> None:
        belief.end = max(belief.end, offset + 1)
        if offset not in belief.at:
            sent = belief.sent[identity]
            if sent.key:
                insort(belief.by_key[sent.key], offset)
            if sent.poison:
                insort(belief.poison, offset)
        known = belief.at.setdefault(offset, identity)
        if known != identity:
            self.violated(
                "offset-reused",
                f"{topic} {offset}: {who} says {_name(identity)}, before it was {_name(known)}",
            )

    def end(self, topic: str) -> int:
        """Return the offset after the last message that clients know of."""
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
        """A reader of the whole topic received a message."""
        with self._lock:
            topic = back.topic
            # a consumer that lost its worker starts again: the same messages must come
            if offset < back.next:
                if back.once:
                    self.violated(
                        "read-again", f"{topic}: the reader was given {offset} after {back.next - 1}"
                    )
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
        """The reader is at the end: every receipt (`everything`), or those not checked yet, must have been read."""
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
        """Note a consumer that is about to be opened: what is confirmed by now must not be delivered to it."""
        with self._lock:
            return Attached(subscription, name)

    def delivered(
        self, attached: Attached, offset: int, payload: bytes, key: bytes = b"", opening: int | None = None
    ) -> None:
        """A consumer received a message, in its opening of this number (None: unknown)."""
        subscription = attached.subscription
        with self._lock:
            who = f"{subscription} ({attached.name})"
            identity = self._check_bytes(subscription.topic, offset, payload, who)
            if identity is not None:
                self._check_sent(subscription, offset, identity, key, who)
            if attached.before[offset] & CONFIRMED:
                text = f"{who} was given {offset}, acknowledged and confirmed before it attached"
                self.violated("acknowledged-came-back", text)
            fresh = subscription.flags.add(offset, DELIVERED)
            self.counts["delivered" if fresh else "delivered again"] += 1
            attached.given.add(offset, DELIVERED)
            if subscription.in_order:
                self._check_order(attached, offset, who)
            elif subscription.holders is not None and key:
                self._check_key(attached, offset, key, who)
                self.counts["keys handed over"] += subscription.holders.give(attached, opening, key, offset)

    def _check_sent(
        self, subscription: Subscription, offset: int, identity: Identity, key: bytes, who: str
    ) -> None:
        sent = self._topic(subscription.topic).sent[identity]
        if key != sent.key:
            self.violated("wrong-key", f"{who} was given {offset} with key {key!r}, sent was {sent.key!r}")
        early_ms = sent.deliver_at_ms - self._unix_ms()
        if subscription.timed and early_ms > 0:
            self.violated("too-early", f"{who} was given {offset} {early_ms:.1f} ms before its time")

    def _check_key(self, attached: Attached, offset: int, key: bytes, who: str) -> None:
        """Check that older messages of a key without a delivery time were delivered here, or acknowledged."""
        flags, belief = attached.subscription.flags, self._topic(attached.subscription.topic)
        for other in belief.by_key[key]:
            if other >= offset:
                return
            if flags[other] & (ACKNOWLEDGED | DELAYED) or attached.given[other]:
                continue
            if not belief.sent[belief.at[other]].deliver_at_ms:
                self.violated("key-order", f"{who} was given {offset} of key {key!r} before {other}")
                return

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
        """A consumer is about to acknowledge messages."""
        with self._lock:
            for offset in offsets:
                attached.subscription.flags.add(offset, ACKNOWLEDGED)
                attached.unconfirmed.append(offset)
                self.counts["acknowledged"] += 1
                self._released(attached, offset)

    def given_back(self, attached: Attached, offset: int) -> None:
        """A consumer is about to refuse a message."""
        with self._lock:
            attached.subscription.flags.add(offset, DELAYED)
            self.counts["given back"] += 1
            self._released(attached, offset)

    def _released(self, attached: Attached, offset: int) -> None:
        if attached.subscription.holders is not None:
            attached.subscription.holders.release(attached, offset)

    def left(self, attached: Attached) -> None:
        """A consumer is about to close."""
        with self._lock:
            if attached.subscription.holders is not None:
                attached.subscription.holders.leave(attached)

    def acknowledged_until(self, attached: Attached, offset: int) -> None:
        """A consumer is about to acknowledge everything up to and including this offset."""
        with self._lock:
            self.acknowledged(attached, attached.subscription.unconfirmed(offset + 1))

    def confirmed(self, attached: Attached, offsets: Iterable[int], opening: int | None = None) -> None:
        """The broker confirmed acknowledgments, all of one opening of the consumer if that is known."""
        subscription = attached.subscription
        with self._lock:
            any_written = False
            for offset in offsets:
                any_written = True
                if subscription.flags.add(offset, CONFIRMED):
                    self.counts["confirmed"] += 1
            if any_written and opening is not None and subscription.holders is not None:
                for text in subscription.holders.alive(attached, opening, attached.mark):
                    self.violated("key-with-two", f"{subscription}: {text}")

    def take_unconfirmed(self, attached: Attached) -> list[int]:
        """Return what was acknowledged since the last call, for `confirmed`, or to be forgotten."""
        with self._lock:
            taken, attached.unconfirmed = attached.unconfirmed, []
            if attached.subscription.holders is not None:
                attached.mark = attached.subscription.holders.found
            return taken

    def missing(self, attached: Attached) -> list[int]:
        """Return the messages that were never acknowledged, and not delivered to this consumer."""
        with self._lock:
            end = self._topic(attached.subscription.topic).end
            return [o for o in attached.subscription.unacknowledged(end) if not attached.given[o]]

    def drained(self, attached: Attached) -> None:
        """This consumer has waited long enough: it must have got all messages that were never acknowledged."""
        missing = self.missing(attached)
        if missing:
            text = f"{attached.subscription} ({attached.name}): {len(missing)} unacknowledged messages were not given"
            self.violated(
                "skipped", f"{text}, first {missing[:5]}, of {self.end(attached.subscription.topic)}"
            )

    # ---- moving -------------------------------------------------------------------------------------------------

    def moved(self, attached: Attached, offset: int) -> None:
        """The only consumer of a subscription moved it: everything from there on comes again, nothing below."""
        with self._lock:
            attached.subscription.moved(offset)
            attached.before = attached.subscription.flags.copy()
            attached.given = Flags()
            attached.reached = offset
            attached.unconfirmed = []
            self.counts["moved"] += 1

    # ---- dead letters -------------------------------------------------------------------------------------------

    def buried(
        self, subscription: Subscription, payload: bytes, key: bytes, attributes: Mapping[str, str]
    ) -> None:
        """A message is in the dead-letter topic of a subscription."""
        with self._lock:
            who = f"the dead-letter topic of {subscription}"
            told = {name.removeprefix("ister."): value for name, value in attributes.items()}
            offset = int(told.get("offset", -1))
            identity = self._check_bytes(subscription.topic, offset, payload, who) if offset >= 0 else None
            if identity is None or (told.get("topic"), told.get("subscription")) != (
                subscription.topic,
                subscription.name,
            ):
                self.violated("wrong-letter", f"{who} has one that says {told}")
                return
            sent = self._topic(subscription.topic).sent[identity]
            complete = {"producer", "timestamp", "reason", "dead_lettered_at"} <= told.keys()
            if key != sent.key or (POISON in told) != sent.poison or not complete:
                self.violated("wrong-letter", f"{who} has {offset} with key {key!r} and {told}")
            if int(told.get("attempts", 0)) < subscription.max_deliveries:
                self.violated("buried-alive", f"{who} has {offset} after {told.get('attempts')} attempts")
            if told["reason"] == LOST:  # this counts as a failure, and perhaps no client saw the message
                self.counts["buried for losses"] += 1
            elif not subscription.flags[offset] & DELAYED:
                self.violated("buried-alive", f"{who} has {offset}, which nobody refused: {told}")
            fresh = subscription.flags.add(offset, BURIED)
            subscription.flags.add(offset, ACKNOWLEDGED)
            self.counts["buried" if fresh else "buried again"] += 1

    def unburied(self, subscription: Subscription) -> list[int]:
        """Return the messages that are poison to this subscription and not in its dead-letter topic."""
        with self._lock:
            poison = self._topic(subscription.topic).poison if subscription.max_deliveries else ()
            return [offset for offset in poison if not subscription.flags[offset] & BURIED]


def _name(identity: Identity) -> str:
    return f"{identity.producer}#{identity.number}"
