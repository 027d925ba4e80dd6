"""The producers of a topic: which handles are open under which producer id, and what they are sent.

Part of a Topic, in a worker process. It owns the open handles. May touch the gateway.

Invariants
- a producer id belongs to one handle at a time: the one that opened last
- a command about a handle that was closed or opened again since changes nothing
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from ister.actors.messages import CloseProducer, Deposit, OpenProducer, Publish
from ister.actors.runtime import Ref
from ister.errors import IsterError, RemoteError
from ister.storage.meta import TopicMeta
from ister.storage.producers import HELD_MS, Gap, ProducerTable
from ister.transport.gateway import Gateway
from ister.transport.session import Handle
from ister.wire import RECEIPTS_MAX, Key, Type
from ister.words import counted


class Publisher(NamedTuple):
    """The state behind a producer's handle: its topic, and the producer id it opened with."""

    topic: Ref
    producer_id: int


# So many producers of a topic may have the largest window; where there are more, those that open get smaller ones.
WIDE_WINDOWS: Final = 8


class Publishers:
    """The open handles of a topic; `on_closed(producer_id)` is called when a producer has its receipts and closes.

    `window_bytes_max` is the largest window of a producer, where that is more than what every topic grants.
    """

    def __init__(
        self,
        topic: Ref,
        meta: TopicMeta,
        gateway: Gateway,
        *,
        on_closed: Callable[[int], None],
        window_bytes_max: int = 0,
    ) -> None:
        self._topic = topic
        self._name = meta.name
        self._strategy = meta.dispatch
        self._gateway = gateway
        self._on_closed = on_closed
        self._window_bytes_max = window_bytes_max
        self.handles: dict[int, Handle] = {}  # by producer id: the newest handle of each

    def open(self, command: OpenProducer, expected: int) -> None:
        """Let a handle publish from sequence number `expected` on, unless it was closed or opened again meanwhile."""
        handle = command.handle
        if handle.generation != command.generation or handle.state != "opening":
            return
        self.fence(command)
        # it was opened again, perhaps for another producer
        if self.handles.get(producer_of(handle)) is handle:
            del self.handles[producer_of(handle)]
        self.handles[command.producer_id] = handle
        handle.target = Publisher(self._topic, command.producer_id)
        if self._gateway.sessions.opened(handle, command.generation, "producer"):
            self._gateway.send(
                handle.session,
                {
                    Key.TYPE: Type.OPENED,
                    Key.REF: command.ref,
                    Key.HANDLE: handle.number,
                    Key.SEQUENCE: expected,
                    Key.BYTES: self._window_bytes(),
                    Key.STRATEGY: self._strategy,
                },
            )

    def _window_bytes(self) -> int:
        """Return the window of the producer that has just opened."""
        most = self._window_bytes_max
        if len(self.handles) > WIDE_WINDOWS:
            most = most * WIDE_WINDOWS // len(self.handles)
        return max(self._gateway.sessions.limits.producer_window_bytes, most)

    def fence(self, command: OpenProducer) -> None:
        """Fence the handle that publishes under the id of a producer that opens."""
        older = self.handles.get(command.producer_id)
        if older is None or older is command.handle:
            return
        if older.session.handles.get(older.number) is older:
            self._close_handle(
                older,
                RemoteError(
                    "producer-fenced",
                    f"a newer producer of the same name, or id, publishes to topic {self._name!r} now: "
                    "one at a time may, so give each program a name of its own, or have one wait for the other",
                ),
            )
        del self.handles[command.producer_id]

    def refuse_open(self, command: OpenProducer, error: IsterError) -> None:
        """Refuse a handle's request to publish."""
        handle = command.handle
        if handle.generation == command.generation and handle.state == "opening":
            self._gateway.send_error(handle.session, error, {Key.REF: command.ref, Key.HANDLE: handle.number})
            self._gateway.forget(handle, error)

    def refuse(self, handle: Handle, sequence: int, error: IsterError) -> None:
        """Tell a handle that a batch was refused, or that its outcome is unknown."""
        echo = {Key.HANDLE: handle.number, Key.SEQUENCE: sequence}
        self._gateway.send_error(handle.session, error, echo)

    def receipt(self, receipts: dict[Handle, list[int]]) -> None:
        """Send receipts: by handle, the sequence and offset of each batch."""
        for handle, pairs in receipts.items():
            for start in range(0, len(pairs), 2 * RECEIPTS_MAX):
                header = {
                    Key.TYPE: Type.RECEIPT,
                    Key.HANDLE: handle.number,
                    Key.RECEIPTS: pairs[start : start + 2 * RECEIPTS_MAX],
                }
                self._gateway.send(handle.session, header)

    def closed(self, command: CloseProducer) -> None:
        """Close a handle that has all its receipts, and confirm that if it asked."""
        handle = command.handle
        if handle.generation == command.generation:
            if self.handles.get(producer_of(handle)) is handle:
                del self.handles[producer_of(handle)]
                if command.ref is not None:  # it has its receipts; one whose session ended may return
                    self._on_closed(producer_of(handle))
            self._gateway.forget(handle)
        if command.ref is not None:
            self._gateway.send(handle.session, {Key.TYPE: Type.DONE, Key.REF: command.ref})

    def send_away(self, error: IsterError) -> None:
        """Close all handles with an error."""
        for handle in list(self.handles.values()):
            self._close_handle(handle, error)
        self.handles.clear()

    def _close_handle(self, handle: Handle, error: IsterError) -> None:
        self._gateway.send_error(handle.session, error, {Key.HANDLE: handle.number, Key.CLOSED: True})
        self._gateway.forget(handle, error)


def producer_of(handle: Handle) -> int:
    """Return the producer id behind a handle, 0 if it has none."""
    return handle.target.producer_id if isinstance(handle.target, Publisher) else 0


def expected_sequence(producers: ProducerTable, command: OpenProducer, now_ms: int) -> int:
    """Return the sequence number with which a producer that opens has to continue.

    Raises RemoteError `busy` if no more producers can be remembered without forgetting one that may resend.
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
    """Return the error for a batch whose sequence number is not the expected one."""
    expected = getattr(verdict, "expected", None)
    if isinstance(verdict, Gap):
        text = f"sequence {publish.sequence} is not the next one ({expected}): resend from there"
        return RemoteError("sequence-gap", text)
    batch = f"sequence {publish.sequence} with {counted(publish.count, 'message')}"
    text = f"{batch} is cut differently than before (expected {expected})"
    return RemoteError("sequence-overlap", text)
