"""What the broker for tests sends to consumers, and their answers: credit, acknowledgments, refusals.

`model.py` decides which messages come next; here they become frames. Opening consumers is in `handles.py`.
"""

from __future__ import annotations

from ister import bodies, wire
from ister.clock import Clock
from ister.errors import RemoteError
from ister.subscriptions import READER, TRAITS
from ister.testing import failures
from ister.testing.catalogue import Catalogue
from ister.testing.model import Consumer, Record, Subscription, runs
from ister.testing.sessions import Sessions
from ister.wire import Column, Key, Type


class Delivering:
    """Handles the frames of consumers, and delivers as far as their credit allows."""

    def __init__(self, catalogue: Catalogue, sessions: Sessions, clock: Clock) -> None:
        self._catalogue = catalogue
        self._sessions = sessions
        self._clock = clock

    # ---- reports of consumers ------------------------------------------------------------------------------------

    def on_frame(self, consumer: Consumer, kind: int, header: wire.Header) -> None:
        """Handle a CREDIT, ACK, ACK_UNTIL, NACK or EXTEND; raises `RemoteError` (`ack-unknown`)."""
        subscription = consumer.subscription
        if kind == Type.CREDIT:
            consumer.messages += header[Key.MESSAGES]
            consumer.bytes += header[Key.BYTES]
        elif consumer.counts_moves and header.get(Key.SOUGHT, 0) < subscription.moves:
            pass  # about deliveries from before a move
        elif kind == Type.ACK_UNTIL:
            everybody = not TRAITS[subscription.kind].shares
            below = set(range(header[Key.OFFSET] + 1))
            subscription.acknowledge(below if everybody else consumer.held & below)
        else:
            ranges = header[Key.RANGES]
            offsets: set[int] = set()
            for at in range(0, len(ranges), 2):
                if ranges[at + 1] > subscription.next:
                    raise RemoteError("ack-unknown", f"offset {ranges[at + 1] - 1} was never delivered")
                offsets.update(range(ranges[at], ranges[at + 1]))
            if kind == Type.ACK:
                subscription.acknowledge(offsets)
            elif kind == Type.NACK:
                self._refused(consumer, offsets, header)
        if Key.REF in header:
            self._sessions.say(consumer.session, {Key.TYPE: Type.DONE, Key.REF: header[Key.REF]})

    def _refused(self, consumer: Consumer, offsets: set[int], header: wire.Header) -> None:
        """Let refused messages wait for redelivery, or treat poison as the subscription's options say."""
        subscription, now_s = consumer.subscription, self._clock.monotonic()
        if subscription.kind == READER:
            return
        for offset in sorted(offsets & consumer.held):
            consumer.held.discard(offset)
            wait_s = failures.wait_s(subscription, offset, header.get(Key.DELAY))
            if wait_s is None:
                self._give_up(subscription, offset, header.get(Key.REASON, "refused"))
                continue
            subscription.attempts[offset] = subscription.attempts.get(offset, 1) + 1
            subscription.later.append((now_s + wait_s, offset))

    def _give_up(self, subscription: Subscription, offset: int, reason: str) -> None:
        poison = failures.options_of(subscription)["poison"]
        if poison == "block":
            subscription.blocking.append((offset, reason))
            self._sessions.tell(subscription, "blocked", offset)
            return
        if poison == "dead-letter":
            self._catalogue.bury(subscription, offset, reason, self._clock.time_ms())
        subscription.acked.add(offset)

    # ---- what consumers get --------------------------------------------------------------------------------------

    def dispatch(self) -> None:
        """Deliver from every subscription until nothing is left, or no consumer has credit."""
        now_s = self._clock.monotonic()
        for subscription in self._catalogue.everything_read():
            subscription.wake(now_s)
            stopped = subscription.settings.get("paused") or subscription.blocking
            while not stopped and self._deliver_once(subscription):
                pass

    def _deliver_once(self, subscription: Subscription) -> bool:
        consumers = subscription.consumers
        if TRAITS[subscription.kind].stands_by:
            for consumer in consumers:
                active = consumer is consumers[0]
                if consumer.told != active:
                    consumer.told = active
                    self._sessions.event(consumer, "active" if active else "standby")
            consumers = consumers[:1]
        for consumer in consumers:
            if consumer.messages > 0 and consumer.bytes > 0 and self._deliver(subscription, consumer):
                if TRAITS[subscription.kind].shares:
                    consumers.append(consumers.pop(0))
                return True
        return False

    def _deliver(self, subscription: Subscription, consumer: Consumer) -> bool:
        offsets = subscription.take(consumer, self._clock.monotonic(), self._clock.time_ms())
        if not offsets:
            return False
        batch = [subscription.topic.records[offset] for offset in offsets]
        columns, body = _frames(batch)
        header: wire.Header = {
            Key.TYPE: Type.DELIVER,
            Key.HANDLE: consumer.handle,
            Key.OFFSET: offsets[0],
            Key.COUNT: len(offsets),
            Key.TIMESTAMPS: [len(offsets), batch[0].timestamp],
            Key.ATTEMPT: subscription.attempts.get(offsets[0], 1),
        }
        if columns:
            header[Key.COLUMNS] = columns
        if offsets[-1] - offsets[0] >= len(offsets):
            header[Key.RANGES] = [number for pair in runs(offsets) for number in pair]
        consumer.held.update(offsets)
        consumer.messages -= len(offsets)
        consumer.bytes -= sum(map(len, body))
        self._sessions.say(consumer.session, header, *body)
        return True


def _frames(batch: list[Record]) -> tuple[int, list[bytes]]:
    """Return the columns of some messages, and the body of the frame that delivers them."""
    columns = 0
    body = [bodies.pack_lengths([record.payload for record in batch]), b"".join(r.payload for r in batch)]
    if any(record.key for record in batch):
        columns |= Column.KEYS
        body.append(bodies.pack_column([record.key for record in batch]))
    if any(record.attributes for record in batch):
        columns |= Column.ATTRIBUTES
        body.append(bodies.pack_column([record.attributes for record in batch]))
    if any(record.deliver_at for record in batch):
        columns |= Column.DELIVER_AT
        body.append(bodies.pack_times([record.deliver_at for record in batch]))
    return columns, body
