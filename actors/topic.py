"""Topics: one owner of one order. What `ReliableTopic` and `NonReliableTopic` share: producers, receipts, watchers.

Runs in a worker process, one actor a topic.

Invariants
- offsets are assigned by the topic and nowhere else, dense and in the order of arrival
- a producer id belongs to one handle at a time: the one that opened last
- work is per batch; what can be shared by the batches of a turn (commit, receipts, notices) is
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ister.actors.messages import (
    CloseProducer,
    Deposit,
    Detach,
    NodeStarted,
    NodeStopped,
    OpenProducer,
    Publish,
    TopicFailed,
    TopicUpdated,
)
from ister.actors.runtime import Address, LoopActor, Ref, System, receives
from ister.errors import IsterError, RemoteError
from ister.storage.catalogue import TopicMeta
from ister.storage.producers import HELD_MS, Gap, ProducerTable
from ister.transport.gateway import Gateway
from ister.transport.session import Handle
from ister.wire import RECEIPTS_MAX, Key, Type
from ister.words import counted


class Publisher(NamedTuple):
    """What stands behind a producer's handle: its topic, and the producer id it opened with."""

    topic: Ref
    producer_id: int


class Intake:
    """What came in since a topic's actor started."""

    __slots__ = ("bytes", "last_ms", "messages")

    def __init__(self) -> None:
        self.messages = 0
        self.bytes = 0
        self.last_ms: int | None = None  # None: nothing came


class Topic(LoopActor):
    """What both kinds share: the producers that are open, and who watches."""

    def __init__(self, system: System, path: str, meta: TopicMeta, gateway: Gateway) -> None:
        super().__init__(system, path)
        self.meta = meta
        self._gateway = gateway
        self._publishers: dict[int, Handle] = {}  # by producer id: one handle each, the newest
        self._watchers: dict[Address, Ref] = {}
        self.intake = Intake()

    def _open(self, command: OpenProducer, expected: int) -> None:
        handle = command.handle
        if handle.generation != command.generation or handle.state != "opening":
            return  # closed, or opened again, meanwhile
        self._fence(command)
        if self._publishers.get(producer_of(handle)) is handle:  # opened again, perhaps for another producer
            del self._publishers[producer_of(handle)]
        self._publishers[command.producer_id] = handle
        handle.target = Publisher(self.ref, command.producer_id)
        if self._gateway.sessions.opened(handle, command.generation, "producer"):
            self._gateway.send(
                handle.session,
                {
                    Key.TYPE: Type.OPENED,
                    Key.REF: command.ref,
                    Key.HANDLE: handle.number,
                    Key.SEQUENCE: expected,
                    Key.BYTES: self._gateway.sessions.limits.producer_window_bytes,
                    Key.STRATEGY: self.meta.dispatch,
                },
            )

    def _fence(self, command: OpenProducer) -> None:
        """Let nobody else publish under the id of a producer that opens."""
        older = self._publishers.get(command.producer_id)
        if older is None or older is command.handle:
            return
        if older.session.handles.get(older.number) is older:
            self._close_handle(
                older,
                RemoteError(
                    "producer-fenced",
                    f"a newer producer of the same name, or id, publishes to topic {self.meta.name!r} now: "
                    "one at a time may, so give each program a name of its own, or have one wait for the other",
                ),
            )
        del self._publishers[command.producer_id]

    def _refuse_open(self, command: OpenProducer, error: IsterError) -> None:
        handle = command.handle
        if handle.generation == command.generation and handle.state == "opening":
            self._gateway.send_error(handle.session, error, {Key.REF: command.ref, Key.HANDLE: handle.number})
            self._gateway.forget(handle, error)

    def _refuse(self, publish: Publish, error: IsterError) -> None:
        handle = publish.handle
        echo = {Key.HANDLE: handle.number, Key.SEQUENCE: publish.sequence}
        self._gateway.send_error(handle.session, error, echo)

    def _close_handle(self, handle: Handle, error: IsterError) -> None:
        self._gateway.send_error(handle.session, error, {Key.HANDLE: handle.number, Key.CLOSED: True})
        self._gateway.forget(handle, error)

    def _closed(self, command: CloseProducer) -> None:
        handle = command.handle
        if handle.generation == command.generation:
            if self._publishers.get(producer_of(handle)) is handle:
                del self._publishers[producer_of(handle)]
                if command.ref is not None:  # it has its receipts; one whose session ended may come back
                    self._producer_closed(producer_of(handle))
            self._gateway.forget(handle)
        if command.ref is not None:
            self._gateway.send(handle.session, {Key.TYPE: Type.DONE, Key.REF: command.ref})

    def _producer_closed(self, producer_id: int) -> None:
        """A producer has all its receipts, and closed."""

    def _send_receipts(self, receipts: dict[Handle, list[int]]) -> None:
        for handle, pairs in receipts.items():
            for start in range(0, len(pairs), 2 * RECEIPTS_MAX):
                header = {
                    Key.TYPE: Type.RECEIPT,
                    Key.HANDLE: handle.number,
                    Key.RECEIPTS: pairs[start : start + 2 * RECEIPTS_MAX],
                }
                self._gateway.send(handle.session, header)

    def on_failure(self, *_error: object) -> None:
        """Send the producers away and tell the watchers: they open and attach again, and find a new actor."""
        text = f"topic {self.meta.name!r} failed and is started again"
        self._leave(RemoteError("unavailable", f"{text}: open it again"))
        for watcher in self._watchers.values():
            watcher.tell(TopicFailed("unavailable", text))

    @receives(Detach)
    def on_detach(self, command: Detach) -> None:
        """Forget a watcher."""
        self._watchers.pop(command.watcher, None)

    @receives(NodeStopped)
    def on_node_stopped(self, stopped: NodeStopped) -> None:
        """Forget the watchers of a process that is gone; those of its next self attach again."""
        self._watchers = {a: ref for a, ref in self._watchers.items() if a.node != stopped.node}

    @receives(NodeStarted)
    def on_node_started(self, started: NodeStarted) -> None:
        """Nothing to tell a process that was started again."""

    def _take_settings(self, meta: TopicMeta) -> None:
        """Go by other settings, and let those who watch go by them too."""
        self.meta = meta
        for watcher in self._watchers.values():
            watcher.tell(TopicUpdated(meta))

    def _tell_deleted(self) -> RemoteError:
        """Say to whoever watches, and is in no catalogue, that there is nothing more to come; return the error."""
        error = RemoteError("topic-deleted", f"topic {self.meta.name!r} was deleted")
        for watcher in self._watchers.values():
            watcher.tell(TopicFailed(error.code, error.text))
        return error

    def _leave(self, error: IsterError) -> None:
        for handle in list(self._publishers.values()):
            self._close_handle(handle, error)
        self._publishers.clear()

    def _description(self) -> dict[str, Any]:
        return {
            "topic": self.meta.name,
            "strategy": self.meta.dispatch,
            "producers": len(self._publishers),
            "messages_in": self.intake.messages,
            "bytes_in": self.intake.bytes,
            "last_published_ms": self.intake.last_ms,
        }


def producer_of(handle: Handle) -> int:
    """Return the producer id behind a handle, 0 when it has none."""
    return handle.target.producer_id if isinstance(handle.target, Publisher) else 0


def expected_sequence(producers: ProducerTable, command: OpenProducer, now_ms: int) -> int:
    """Return the sequence number a producer that opens has to continue with.

    Raises RemoteError `busy` where one more cannot be remembered without forgetting another that may resend.
    """
    if not producers.has_room(command.producer_id, now_ms):
        minutes = HELD_MS // 60_000
        raise RemoteError(
            "busy",
            f"the topic remembers {counted(len(producers), 'producer')}, its limit, and "
            "each of them is connected, or "
            f"published within {minutes} minutes and did not close; close producers, or try again later",
        )
    producers.expect(command.producer_id, command.sequence)
    known = producers.next_sequence(command.producer_id)
    return command.sequence if known is None else known


def sequence_error(verdict: object, publish: Publish | Deposit) -> RemoteError:
    """Return the error for a batch that is not the one expected of its producer."""
    expected = getattr(verdict, "expected", None)
    if isinstance(verdict, Gap):
        text = f"sequence {publish.sequence} is not the next one ({expected}): resend from there"
        return RemoteError("sequence-gap", text)
    batch = f"sequence {publish.sequence} with {counted(publish.count, 'message')}"
    text = f"{batch} is cut differently than before (expected {expected})"
    return RemoteError("sequence-overlap", text)
