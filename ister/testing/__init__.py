"""A broker for tests of your own programs: in memory, in one thread of this process, nothing kept.

    import ister, ister.testing

    def test_mine() -> None:
        with ister.testing.Broker() as broker, ister.connect(broker.endpoint) as client:
            client.create_topic("orders")
            ...

It speaks protocol version 1 and does what a broker does for producers, consumers, readers and requests, in the
simplest way. What is refused waits for its back-off, and at last goes to the dead-letter topic, as in a broker;
`paused` is obeyed; there is no acknowledgment timeout, and other options are only kept and shown. It can be made to
fail: `refuse`, `disconnect`, `restart`, `silent`, `moved`. It is not fast, and promises nothing. What it knows is in
`model.py`, what becomes of failures in `failures.py`.

May touch: zmq, one thread, the clock. Invariant: everything but the public methods runs in that thread.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self

import zmq

from ister import wire
from ister.clock import Clock, SystemClock
from ister.errors import CODES, RemoteError, RemoteProtocolError
from ister.names import topic_pattern
from ister.subscriptions import SUBSCRIPTION_TYPES, TRAITS
from ister.testing import failures
from ister.testing.model import Consumer, Producer, Record, Session, Subscription, Topic, runs
from ister.wire import Column, Key, Limit, Type

TICK_MS: Final = 20
WATCH_MS: Final = 5000  # how long a watch waits for a change
_NO_SETTINGS: Final = frozenset({"topic", "dispatch", "durability", "ephemeral"})
_NO_OPTIONS: Final = frozenset({"topic", "subscription", "type", "start"})
ANSWER_S: Final = 5.0  # how long a public method waits for the broker's thread


class Broker:
    """A small broker in memory; use it in a `with` block."""

    def __init__(
        self,
        *,
        heartbeat_ms: int = 1000,
        limits: dict[int, int] | None = None,
        moved: dict[str, str] | None = None,
        clock: Clock | None = None,
    ) -> None:
        """`limits` by key of `wire.Limit`; `moved` maps topics to the endpoints at which they are said to be."""
        self.endpoint = ""
        self.moved = {} if moved is None else moved
        self.silent = False  # takes frames in and answers none
        self.heard: deque[tuple[int, wire.Header]] = deque(
            maxlen=10_000
        )  # every frame that came in, for assertions
        self._heartbeat_ms = heartbeat_ms
        self._limits = {
            Limit.MESSAGE_BYTES_MAX: 1 << 20,
            Limit.BATCH_BYTES_MAX: 4 << 20,
            Limit.BATCHES_IN_FLIGHT_MAX: 64,
            Limit.PRODUCER_WINDOW_BYTES: 4 << 20,
            Limit.SESSION_TIMEOUT_MS: 30_000,
            Limit.HANDLES_MAX: 1000,
            Limit.CREDIT_MESSAGES_MAX: 1 << 20,
            Limit.CREDIT_BYTES_MAX: 1 << 30,
        } | (limits or {})
        self._clock = clock or SystemClock()
        self._boot = 1
        self._count = 0
        self._topics: dict[str, Topic] = {}
        self._sessions: dict[bytes, Session] = {}  # by secret
        self._peers: dict[bytes, Session] = {}  # by routing id
        self._readers: list[Subscription] = []  # in no topic's list: each ends with its consumer
        self._named_for_letters: set[str] = set()  # topics, if they are there or not
        self._changes = 0  # counts how often a topic came or went
        self._subscribed = 0
        self._watches: list[tuple[Session, int, dict[str, Any], float]] = []  # REF, arguments, until when
        self._refusals: list[tuple[int, str]] = []
        self._jobs: deque[tuple[Callable[[], None], threading.Event]] = deque()
        self._over = False
        self._pause = threading.Event()
        self._context = zmq.Context()
        self._router = self._bind("tcp://127.0.0.1:*")
        self.endpoint = self._router.getsockopt_string(zmq.LAST_ENDPOINT)
        self._thread = threading.Thread(target=self._run, name="ister.testing.Broker", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop."""
        self._over = True
        self._thread.join()
        self._router.close(0)
        self._context.term()

    # ---- making it fail ------------------------------------------------------------------------------------------

    def refuse(self, kind: int, code: str, times: int = 1) -> None:
        """Answer the next frames of a type with an error of that code."""
        self._in_thread(lambda: self._refusals.extend([(kind, code)] * times))

    def disconnect(self) -> None:
        """Break every connection; sessions are kept, so that clients resume."""
        self._in_thread(self._rebind)

    def restart(self) -> None:
        """Break every connection and forget every session; topics and what was acknowledged are kept."""
        self._in_thread(self._restart)

    def expire(self) -> None:
        """Forget every session without breaking connections: the next frame is answered `hello-required`."""
        self._in_thread(self._forget_sessions)

    def fail(self, topic: str, code: str) -> None:
        """Close every producer and consumer of a topic with an error of that code."""
        self._in_thread(lambda: self._close_handles(topic, code))

    def _in_thread(self, job: Callable[[], None]) -> None:
        done = threading.Event()
        self._jobs.append((job, done))
        done.wait(ANSWER_S)

    def _bind(self, endpoint: str) -> zmq.Socket[bytes]:
        router = self._context.socket(zmq.ROUTER)
        router.linger = 0
        router.sndhwm = router.rcvhwm = 0
        try:
            router.bind(endpoint)
        except zmq.ZMQError:
            router.close(0)
            raise
        return router

    def _rebind(self) -> None:
        self._router.close(0)
        self._peers.clear()
        deadline = self._clock.monotonic() + ANSWER_S
        while True:
            try:
                self._router = self._bind(self.endpoint)
            except zmq.ZMQError:  # the old socket is still being closed
                if self._clock.monotonic() > deadline:
                    raise
                self._pause.wait(0.002)
            else:
                return

    def _restart(self) -> None:
        self._rebind()
        self._boot += 1
        self._forget_sessions()

    def _forget_sessions(self) -> None:
        for session in list(self._sessions.values()):
            self._end(session)

    def _close_handles(self, topic: str, code: str) -> None:
        for session in self._sessions.values():
            for number, handle in list(session.handles.items()):
                place = handle.topic if isinstance(handle, Producer) else handle.subscription.topic
                if place.name == topic:
                    self._leave(session, number)
                    self._error(
                        session.peer,
                        RemoteError(code, f"{code}, says the test"),
                        {Key.HANDLE: number},
                        closed=True,
                    )

    # ---- the loop ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._over:
            while self._jobs:
                job, done = self._jobs.popleft()
                try:
                    job()
                finally:
                    done.set()
            if self._router.poll(TICK_MS):
                while True:
                    try:
                        peer, *frames = self._router.recv_multipart(zmq.NOBLOCK)
                    except zmq.Again:
                        break
                    self._take(peer, frames)
            self._answer_watches()
            self._dispatch_all()

    def _send(self, peer: bytes, header: wire.Header, *body: bytes) -> None:
        if not self.silent:
            self._router.send_multipart([peer, wire.encode_header(header), *body])

    def _error(self, peer: bytes, error: RemoteError, cause: wire.Header, *, closed: bool = False) -> None:
        header: wire.Header = {
            Key.TYPE: Type.ERROR,
            Key.CODE: error.code,
            Key.TEXT: error.text,
            Key.ACTION: error.action,
        }
        header |= {key: cause[key] for key in (Key.REF, Key.HANDLE, Key.SEQUENCE) if key in cause}
        if closed:
            header[Key.CLOSED] = True
        self._send(peer, header)

    def _take(self, peer: bytes, frames: list[bytes]) -> None:
        try:
            header = wire.decode_header(frames[0] if frames else b"")
        except RemoteProtocolError as error:
            self._error(peer, RemoteError(error.code, error.text, "fix"), {})
            return
        kind = header[Key.TYPE]
        self.heard.append((kind, header))
        if self.silent:
            return
        try:
            if kind == Type.HELLO:
                self._on_hello(peer, header)
                return
            session = self._peers.get(peer)
            if session is None:
                raise RemoteError("hello-required", "there is no session here: say hello")
            for refusal in self._refusals:
                if refusal[0] == kind:
                    self._refusals.remove(refusal)
                    raise RemoteError(
                        refusal[1], f"{refusal[1]}, says the test", CODES.get(refusal[1], "fix")
                    )
            self._serve(session, kind, header, frames[1:])
        except RemoteError as error:
            self._error(peer, error, header)
        except RemoteProtocolError as error:
            self._error(peer, RemoteError(error.code, error.text, "fix"), header)

    def _on_hello(self, peer: bytes, header: wire.Header) -> None:
        if wire.PROTOCOL_VERSION not in header[Key.VERSION]:
            raise RemoteError("unsupported-version", "this broker speaks version 1")
        session = self._sessions.get(header.get(Key.SESSION, b""))
        resumed = session is not None
        if session is None:
            self._count += 1
            session = Session(self._count.to_bytes(16), peer)
            self._sessions[session.secret] = session
        self._peers.pop(session.peer, None)
        session.peer = peer
        self._peers[peer] = session
        self._send(
            peer,
            {
                Key.TYPE: Type.WELCOME,
                Key.VERSION: wire.PROTOCOL_VERSION,
                Key.SESSION: session.secret,
                Key.BOOT: self._boot,
                Key.LIMITS: self._limits,
                Key.HEARTBEAT: self._heartbeat_ms,
                Key.RESUMED: resumed,
            },
        )

    def _serve(self, session: Session, kind: int, header: wire.Header, body: list[bytes]) -> None:
        if kind == Type.BYE:
            self._end(session)
        elif kind == Type.PING:
            self._send(session.peer, {Key.TYPE: Type.PONG, Key.BOOT: self._boot})
        elif kind == Type.REQUEST and header[Key.OPERATION] == "topic.watch":
            asked = header.get(Key.ARGUMENTS, {})
            until = self._clock.monotonic() + asked.get("wait_ms", WATCH_MS) / 1000
            self._watches.append((session, header[Key.REF], asked, until))
        elif kind == Type.REQUEST:
            result = self._answer(header[Key.OPERATION], header.get(Key.ARGUMENTS, {}))
            self._send(
                session.peer, {Key.TYPE: Type.RESULT, Key.REF: header[Key.REF]}, wire.encode_result(result)
            )
        elif kind in (Type.OPEN_PRODUCER, Type.OPEN_CONSUMER):
            self._open(session, kind, header)
        elif kind == Type.CLOSE:
            self._leave(session, header[Key.HANDLE])
            self._send(session.peer, {Key.TYPE: Type.DONE, Key.REF: header[Key.REF]})
        else:
            handle = session.handles.get(header[Key.HANDLE])
            if isinstance(handle, Producer) and kind == Type.PUBLISH:
                self._publish(handle, header, body)
            elif isinstance(handle, Consumer):
                self._consumer_frame(handle, kind, header)
            elif kind not in (Type.ACK, Type.CREDIT):
                raise RemoteError("unknown-handle", f"handle {header[Key.HANDLE]} is not open")

    def _end(self, session: Session) -> None:
        for number in list(session.handles):
            self._leave(session, number)
        self._sessions.pop(session.secret, None)
        self._peers.pop(session.peer, None)

    def _leave(self, session: Session, number: int) -> None:
        handle = session.handles.pop(number, None)
        if isinstance(handle, Consumer):
            subscription = handle.subscription
            self._release(handle)
            if handle in subscription.consumers:
                subscription.consumers.remove(handle)

    def _release(self, consumer: Consumer) -> None:
        subscription = consumer.subscription
        if subscription in self._readers:
            self._readers.remove(subscription)
        subscription.again = sorted({*subscription.again, *consumer.held} - subscription.acked)
        for offset in consumer.held:
            subscription.attempts[offset] = subscription.attempts.get(offset, 1) + 1
        consumer.held.clear()

    # ---- topics --------------------------------------------------------------------------------------------------

    def _topic(self, name: str) -> Topic:
        topic = self._topics.get(name)
        if topic is None:
            raise RemoteError("unknown-topic", f"there is no topic {name!r}")
        return topic

    def _answer(self, operation: str, asked: dict[str, Any]) -> Any:
        if operation == "status":
            return {"broker": {"boot": self._boot}, "processes": []}
        if operation == "topic.list":
            names = sorted(name for name in self._topics if name > asked.get("after", ""))
            limit = asked.get("limit", 100)
            return {"topics": [self._topics[n].shown() for n in names[:limit]], "more": len(names) > limit}
        if operation == "topic.create":
            if asked["topic"] in self._topics:
                raise RemoteError("topic-exists", f"topic {asked['topic']!r} exists")
            topic = Topic(asked["topic"], asked["dispatch"], asked.get("durability", "fsync"))
            topic.settings = {key: asked[key] for key in asked if key not in _NO_SETTINGS}
            if topic.name in self._named_for_letters:
                topic.settings.setdefault("dead_letters", 1)
            self._topics[topic.name] = topic
            self._changes += 1
            topic.number = self._changes
            return topic.shown()
        topic = self._topic(asked["topic"])
        if operation == "topic.show":
            return topic.shown()
        if operation == "topic.delete":
            self._close_handles(topic.name, "topic-deleted")
            del self._topics[topic.name]
            self._changes += 1
            return {}
        if operation == "subscription.list":
            return {
                "subscriptions": [self._shown(s) for _, s in sorted(topic.subscriptions.items())],
                "more": False,
            }
        return self._answer_of_subscription(topic, operation, asked)

    def _answer_watches(self) -> None:
        now, watches, self._watches = self._clock.monotonic(), self._watches, []
        for watch in watches:
            session, ref, asked, until = watch
            if asked.get("version") == self._changes and now < until:
                self._watches.append(watch)
            elif session.secret in self._sessions:
                matches = topic_pattern(asked["pattern"]).fullmatch
                there = [
                    topic
                    for name, topic in sorted(self._topics.items())
                    if matches(name) and not topic.settings.get("dead_letters")
                ]
                known = [each.subscriptions.get(asked.get("subscription", "")) for each in there]
                first = min((each.number for each in known if each is not None), default=self._changes)
                found = [
                    topic.shown()
                    | {"created_ms": topic.number, "later": one is None and topic.number > first}
                    for topic, one in zip(there, known, strict=True)
                ]
                result = wire.encode_result({"version": self._changes, "topics": found})
                self._send(session.peer, {Key.TYPE: Type.RESULT, Key.REF: ref}, result)

    def _answer_of_subscription(self, topic: Topic, operation: str, asked: dict[str, Any]) -> Any:
        name = asked["subscription"]
        if operation == "subscription.create":
            if name in topic.subscriptions:
                raise RemoteError("subscription-exists", f"subscription {name!r} exists")
            made = self._subscribe(topic, name, asked["type"], asked.get("start", "latest"))
            made.settings = {key: asked[key] for key in asked if key not in _NO_OPTIONS}
            self._name_for_letters(made)
            return self._shown(made)
        if name not in topic.subscriptions:
            raise RemoteError("unknown-subscription", f"there is no subscription {name!r}")
        subscription = topic.subscriptions[name]
        if operation == "subscription.show":
            return self._shown(subscription)
        if operation == "subscription.update":
            before = subscription.settings.get("paused", 0)
            subscription.settings |= {key: asked[key] for key in asked if key not in _NO_OPTIONS}
            self._name_for_letters(subscription)
            if subscription.settings.get("paused", 0) != before:
                self._tell(subscription, "resumed" if before else "paused")
            return self._shown(subscription)
        if operation == "subscription.seek":
            return {"position": self._seek(subscription, asked["to"])}
        if operation == "subscription.unblock":
            return {"messages": self._unblock(subscription, asked["action"])}
        if operation == "subscription.explain":
            return subscription.explain()
        if operation == "subscription.delete":
            for consumer in list(topic.subscriptions.pop(name).consumers):
                self._leave(consumer.session, consumer.handle)
                gone = RemoteError("subscription-deleted", f"subscription {name!r} was deleted")
                self._error(consumer.session.peer, gone, {Key.HANDLE: consumer.handle}, closed=True)
            return {}
        raise RemoteError("unknown-operation", f"there is no operation {operation!r}")

    def _subscribe(self, topic: Topic, name: str, kind: str, start: Any) -> Subscription:
        if kind not in SUBSCRIPTION_TYPES:
            text = f"subscription type {kind!r:.40} is not one of {', '.join(SUBSCRIPTION_TYPES)}"
            raise RemoteError("invalid-argument", text)
        subscription = topic.subscriptions[name] = Subscription(topic, name, kind, topic.place(start))
        subscription.number = self._changes
        self._subscribed += 1
        subscription.made = self._subscribed
        return subscription

    def _shown(self, subscription: Subscription) -> dict[str, Any]:
        options = failures.options_of(subscription)
        return subscription.shown() | {
            "options": options,
            "dead_letter_topic": options.get("dead_letter_topic"),
        }

    def _name_for_letters(self, subscription: Subscription) -> None:
        """Mark the topic that a subscription names for its dead letters: patterns do not follow it."""
        name = subscription.settings.get("dead_letter_topic")
        if name:
            self._named_for_letters.add(name)
            if name in self._topics and "dead_letters" not in self._topics[name].settings:
                self._topics[name].settings["dead_letters"] = 1
                self._changes += 1

    def _seek(self, subscription: Subscription, to: Any) -> int:
        position = subscription.topic.place(to)
        subscription.seek(position)
        self._tell(subscription, "sought", position)
        return position

    def _tell(self, subscription: Subscription, code: str, offset: int | None = None) -> None:
        for consumer in subscription.consumers:
            news = {Key.TYPE: Type.EVENT, Key.HANDLE: consumer.handle, Key.CODE: code}
            self._send(consumer.session.peer, news if offset is None else {**news, Key.OFFSET: offset})

    # ---- handles -------------------------------------------------------------------------------------------------

    def _open(self, session: Session, kind: int, header: wire.Header) -> None:
        number, name = header[Key.HANDLE], header[Key.TOPIC]
        answer: wire.Header = {Key.REF: header[Key.REF], Key.HANDLE: number}
        if name in self.moved:
            self._leave(session, number)
            self._send(session.peer, {Key.TYPE: Type.MOVED, **answer, Key.ENDPOINT: self.moved[name]})
            return
        topic = self._topic(name)
        answer |= {Key.TYPE: Type.OPENED, Key.STRATEGY: topic.strategy}
        if kind == Type.OPEN_PRODUCER:
            producer = Producer(session, number, topic, header[Key.PRODUCER])
            session.handles[number] = producer
            older = topic.owners.get(producer.producer_id)
            topic.owners[producer.producer_id] = producer
            if older is not None and older.session is not session:
                self._leave(older.session, older.handle)
                fenced = RemoteError("producer-fenced", "a newer producer has this id")
                self._error(older.session.peer, fenced, {Key.HANDLE: older.handle}, closed=True)
            stored = topic.expected.get(producer.producer_id, 0)
            topic.expected[producer.producer_id] = max(stored, header.get(Key.SEQUENCE, 0))
            answer |= {
                Key.SEQUENCE: topic.expected[producer.producer_id],
                Key.BYTES: self._limits[Limit.PRODUCER_WINDOW_BYTES],
            }
        else:
            answer[Key.OFFSET] = self._attach(session, topic, header)
            if Key.INSTANCE in header:
                mine = topic.subscriptions.get(header[Key.SUBSCRIPTION])
                of_topic = str(topic.number)
                answer[Key.INSTANCE] = of_topic if mine is None else f"{of_topic}.{mine.made}"
        self._send(session.peer, answer)

    def _attach(self, session: Session, topic: Topic, header: wire.Header) -> int:
        number, name, kind = header[Key.HANDLE], header[Key.SUBSCRIPTION], header[Key.SUBSCRIPTION_TYPE]
        self._leave(session, number)
        if kind == "reader":
            subscription = Subscription(topic, name, kind, topic.place(header.get(Key.START, "latest")))
            self._readers.append(subscription)
        else:
            found = topic.subscriptions.get(name)
            if found is None:
                found = self._subscribe(topic, name, kind, header.get(Key.START, "latest"))
                found.settings = dict(header.get(Key.ARGUMENTS, {}))
                self._name_for_letters(found)
            subscription = found
        if subscription.kind != kind:
            raise RemoteError("subscription-type", f"subscription {name!r} is {subscription.kind}")
        for option, value in header.get(Key.ARGUMENTS, {}).items():
            has = failures.options_of(subscription).get(option)
            if has != value:
                text = f"subscription {name!r} has {option} {has!r}, not {value!r}"
                raise RemoteError("subscription-options", text)
        if kind == "exclusive" and subscription.consumers and header.get(Key.FORCE):
            for older in list(subscription.consumers):
                self._leave(older.session, older.handle)
                taken = RemoteError("taken-over", f"another consumer took subscription {name!r} over")
                self._error(older.session.peer, taken, {Key.HANDLE: older.handle}, closed=True)
        if kind == "exclusive" and subscription.consumers:
            raise RemoteError("subscription-busy", f"subscription {name!r} has a consumer")
        priority = header.get(Key.PRIORITY, 0)
        consumer = Consumer(
            session,
            number,
            subscription,
            priority,
            header[Key.MESSAGES],
            header[Key.BYTES],
            header.get(Key.SPARSE, False),
        )
        session.handles[number] = consumer
        subscription.consumers.append(consumer)
        subscription.consumers.sort(key=lambda each: each.priority)
        return subscription.again[0] if subscription.again else subscription.next

    def _publish(self, producer: Producer, header: wire.Header, body: list[bytes]) -> None:
        columns = header.get(Key.COLUMNS, 0)
        frames = [wire.pack_lengths(body), body[0]] if len(body) == 1 and not columns else body
        count = wire.check_batch(
            frames,
            columns,
            message_bytes_max=self._limits[Limit.MESSAGE_BYTES_MAX],
            batch_bytes_max=self._limits[Limit.BATCH_BYTES_MAX],
        )
        topic, sequence = producer.topic, header[Key.SEQUENCE]
        expected = topic.expected[producer.producer_id]
        if sequence > expected:
            raise RemoteError("sequence-gap", f"sequence {sequence} came, {expected} was expected")
        if sequence == expected:
            first = len(topic.records)
            nothing = [b""] * count
            keys = wire.split_column(frames[2], count) if columns & Column.KEYS else nothing
            attributes = (
                wire.split_column(frames[2 + (columns & 1)], count)
                if columns & Column.ATTRIBUTES
                else nothing
            )
            times = wire.split_times(frames[-1], count) if columns & Column.DELIVER_AT else [0] * count
            now = self._clock.time_ms()
            for each in zip(wire.split_payloads(frames[0], frames[1]), keys, attributes, times, strict=True):
                topic.records.append(Record(*each, now))
            topic.expected[producer.producer_id] = sequence + count
            topic.placed[producer.producer_id, sequence] = first
        first = topic.placed.get((producer.producer_id, sequence), wire.OFFSET_UNKNOWN)
        self._send(
            producer.session.peer,
            {Key.TYPE: Type.RECEIPT, Key.HANDLE: producer.handle, Key.RECEIPTS: [sequence, first]},
        )

    # ---- consumers -----------------------------------------------------------------------------------------------

    def _consumer_frame(self, consumer: Consumer, kind: int, header: wire.Header) -> None:
        subscription = consumer.subscription
        if kind == Type.CREDIT:
            consumer.messages += header[Key.MESSAGES]
            consumer.bytes += header[Key.BYTES]
        elif kind == Type.ACK_UNTIL:
            everybody = not TRAITS[subscription.kind].shares
            below = range(header[Key.OFFSET] + 1)
            self._acknowledge(consumer, set(below) if everybody else consumer.held & set(below))
        else:
            ranges = header[Key.RANGES]
            offsets: set[int] = set()
            for at in range(0, len(ranges), 2):
                if ranges[at + 1] > subscription.next:
                    raise RemoteError("ack-unknown", f"offset {ranges[at + 1] - 1} was never delivered")
                offsets.update(range(ranges[at], ranges[at + 1]))
            if kind == Type.ACK:
                self._acknowledge(consumer, offsets)
            elif kind == Type.NACK:
                self._refused(consumer, offsets, header)
        if Key.REF in header:
            self._send(consumer.session.peer, {Key.TYPE: Type.DONE, Key.REF: header[Key.REF]})

    def _refused(self, consumer: Consumer, offsets: set[int], header: wire.Header) -> None:
        """Have messages wait until they come again, or do with poison what the subscription's options say."""
        subscription, now_s = consumer.subscription, self._clock.monotonic()
        if subscription.kind == "reader":
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
            self._tell(subscription, "blocked", offset)
            return
        if poison == "dead-letter":
            self._bury(subscription, offset, reason)
        subscription.acked.add(offset)

    def _bury(self, subscription: Subscription, offset: int, reason: str) -> None:
        name = failures.options_of(subscription)["dead_letter_topic"]
        made = name not in self._topics
        topic = failures.dead_letter_topic(self._topics, name)
        if made:
            self._changes += 1
            topic.number = self._changes
        producer_id = failures.producer_of(subscription.topic, offset)
        letter = failures.letter_of(subscription, offset, producer_id, reason, self._clock.time_ms())
        topic.records.append(letter)
        subscription.dead_lettered += 1

    def _unblock(self, subscription: Subscription, action: str) -> int:
        blocking, subscription.blocking = subscription.blocking, []
        for offset, reason in blocking:
            subscription.failures.pop(offset, None)
            if action == "retry":
                subscription.attempts[offset] = subscription.attempts.get(offset, 1) + 1
                subscription.again = sorted({*subscription.again, offset})
                continue
            if action == "dead-letter":
                self._bury(subscription, offset, reason)
            subscription.acked.add(offset)
        return len(blocking)

    def _acknowledge(self, consumer: Consumer, offsets: set[int]) -> None:
        subscription = consumer.subscription
        if subscription.kind == "reader":
            return
        subscription.acked |= offsets
        for each in subscription.consumers:
            each.held -= offsets
        subscription.again = [offset for offset in subscription.again if offset not in offsets]

    def _dispatch_all(self) -> None:
        now = self._clock.monotonic()
        subscriptions = [each for topic in self._topics.values() for each in topic.subscriptions.values()]
        for subscription in [*subscriptions, *self._readers]:
            due = [offset for when, offset in subscription.later if when <= now]
            if due:
                subscription.later = [pair for pair in subscription.later if pair[0] > now]
                subscription.again = sorted({*subscription.again, *due} - subscription.acked)
            stopped = subscription.settings.get("paused") or subscription.blocking
            while not stopped and self._dispatch(subscription):
                pass

    def _dispatch(self, subscription: Subscription) -> bool:
        consumers = subscription.consumers
        if TRAITS[subscription.kind].stands_by:
            for consumer in consumers:
                active = consumer is consumers[0]
                if consumer.told != active:
                    consumer.told = active
                    code = "active" if active else "standby"
                    news = {Key.TYPE: Type.EVENT, Key.HANDLE: consumer.handle, Key.CODE: code}
                    self._send(consumer.session.peer, news)
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
        body = [wire.pack_lengths([r.payload for r in batch]), b"".join(r.payload for r in batch)]
        columns = 0
        if any(record.key for record in batch):
            columns |= Column.KEYS
            body.append(wire.pack_column([record.key for record in batch]))
        if any(record.attributes for record in batch):
            columns |= Column.ATTRIBUTES
            body.append(wire.pack_column([record.attributes for record in batch]))
        if any(record.deliver_at for record in batch):
            columns |= Column.DELIVER_AT
            body.append(wire.pack_times([record.deliver_at for record in batch]))
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
        self._send(consumer.session.peer, header, *body)
        return True
