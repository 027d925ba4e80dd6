"""Subscriptions: who gets what of a topic. What both kinds share: the consumers, their credit, when to dispatch.

Runs in a worker process, not always its topic's.

Invariants
- a consumer is attached from `Granted` to `Left`, and gets nothing before or after
- who is to give back what it holds (it was taken over, the subscription is moved) has done so before anything is
  delivered again
- where another consumer is to be active, nothing is delivered until the one before holds nothing more
- dispatch happens once a turn, after everything that the turn brought
- work is per piece (some 64 KiB), never per message
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import replace
from typing import Any, Final

from ister.actors.explain import State
from ister.actors.messages import (
    AddCredit,
    Answer,
    AttachConsumer,
    Block,
    Delete,
    Deliver,
    Describe,
    Evicted,
    Granted,
    NodeStarted,
    Notice,
    Pause,
    Paused,
    Refused,
    SetCredit,
    StartSubscription,
    TopicUpdated,
    Yield,
    Yielded,
)
from ister.actors.pieces import Piece
from ister.actors.presence import presence
from ister.actors.runtime import LoopActor, Ref, System, receives
from ister.actors.selection import Member, Roster
from ister.errors import IsterError, RemoteError
from ister.storage.catalogue import SubscriptionMeta, TopicMeta
from ister.transport.session import SessionLimits
from ister.wire import encode_result

log = logging.getLogger("ister.subscription")

# One turn of a subscription hands out at most this much before other actors and sockets get their turn: some 1 ms.
DISPATCH_BYTES_MAX: Final = 1 << 20
NOTICES_KEPT: Final = 16  # while no consumer is there; the counts in `ister subscription show` have all of it


_Waiting = AttachConsumer | StartSubscription | Describe  # what is answered once the topic has answered


class Subscription(LoopActor):
    """What both kinds share: the consumers, their credit, and when to dispatch."""

    def __init__(
        self,
        system: System,
        path: str,
        topic: TopicMeta,
        meta: SubscriptionMeta,
        *,
        limits: SessionLimits,
        ack_timeout_ms: int,
    ) -> None:
        super().__init__(system, path)
        self._me = self.ref
        self.topic = topic
        self.meta = meta
        self._limits = limits
        self._ack_timeout_ms = int(meta.settings.get("ack_timeout_ms", ack_timeout_ms))
        self._roster = Roster(meta.type, meta.name)
        self._paused = bool(meta.settings.get("paused", 0))
        self._consumers: dict[int, Ref] = {}
        self._active: Member | None = None
        self._dispatch_scheduled = False
        self._yielding: set[int] = set()  # consumers that were active, and still hold something
        self._takes_sparse = False  # the consumer whose turn it is: offsets that do not follow each other
        self._ready = False  # the topic answered, and the start is fixed
        self._failure: IsterError | None = None
        self._started_ms = self.clock.time_ms()
        self._waiting: list[_Waiting] = []
        self._unseen: deque[Notice] = deque(maxlen=NOTICES_KEPT)  # for the next consumer: nobody was there
        self.delivered = 0
        self.redelivered = 0

    # ---- consumers ----------------------------------------------------------------------------------------------

    @receives(AttachConsumer, StartSubscription)
    def on_arrival(self, command: _Waiting) -> None:
        """Give a consumer its place, or answer that the subscription is there, once that is so."""
        if not self._ready and self._failure is None:
            self._waiting.append(command)
        else:
            self._admit(command)

    def _admit(self, command: _Waiting) -> None:
        failure = self._failure
        if isinstance(command, Describe):
            answer = Answer(command.ticket, encode_result(self._description()))
            self.system.at(command.reply).tell(answer)
            return
        if isinstance(command, StartSubscription):
            refused = failure and Refused(command.ticket, failure.code, failure.text)
            self.system.at(command.reply).tell(refused or Answer(command.ticket, encode_result({})))
            return
        if failure is not None:
            command.consumer.tell(Evicted(failure.code, failure.text))
            return
        if command.force and self.meta.type == "exclusive":
            self._take_over()
        try:
            member = self._roster.attach(
                command.key,
                priority=command.priority,
                messages=command.messages,
                bytes=command.bytes,
                sparse=command.sparse,
            )
        except RemoteError as error:
            command.consumer.tell(Evicted(error.code, error.text))
            return
        member.client = command.client
        session = command.session
        if session is not None:
            member.heard_s = lambda: session.heard_at_s
            member.connected = lambda: session.routing is not None
        self._consumers[command.key] = command.consumer
        self._attached(member)
        command.consumer.tell(Granted(self._position(), self._ack_timeout_ms, self._failures_max()))
        self._greet(command.consumer)
        self._after_change()
        if self.meta.type == "failover" and self._active is not member:
            command.consumer.tell(Notice("standby", 0, "another consumer is active"))

    def _failures_max(self) -> int:
        """Return how often a message may fail; 0: there is no limit."""
        return 0

    def _attached(self, member: Member) -> None:
        """A consumer has its place."""

    def _detached(self, member: Member) -> None:
        """A consumer has its place no more."""

    def _take_over(self) -> None:
        """Send the consumer of an Exclusive subscription away for another, which begins with what it gives back."""
        active = self._roster.active
        if active is None:
            return
        self._roster.detach(active.key)
        self._detached(active)
        self._yielding.add(active.key)
        text = f"another consumer took subscription {self.meta.name!r} over"
        self._consumers.pop(active.key).tell(Evicted("taken-over", text))

    def _become_ready(self) -> None:
        self._ready, self._failure = True, None
        self._admit_waiting()

    def _become_failed(self, error: IsterError) -> None:
        self._failure = error
        self._admit_waiting()

    def _admit_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        for command in waiting:
            self._admit(command)

    def _after_change(self) -> None:
        """Let a Failover's preferred consumer be active, once the one before has nothing left, and go on."""
        active = self._roster.active
        if active is not self._active and not self._is_busy(self._active):
            before, self._active = self._active, active
            if active is not None and self.meta.type == "failover":
                self._consumers[active.key].tell(Notice("active", 0, "this consumer is active now"))
            if before is not None and before.key in self._consumers:
                self._yielding.add(before.key)
                self._consumers[before.key].tell(Notice("standby", 0, "another consumer is active"))
                self._consumers[before.key].tell(Yield())
        self._wake()

    def _is_busy(self, member: Member | None) -> bool:  # noqa: ARG002
        """Whether a consumer that was active still holds what nobody else may have meanwhile."""
        return False

    @property
    def _hands_over(self) -> bool:
        """Whether another consumer is to be active than the one that is."""
        return self._roster.active is not self._active

    def _remove(self, key: int) -> None:
        self._waiting = [
            command
            for command in self._waiting
            if not (isinstance(command, AttachConsumer) and command.key == key)
        ]
        member = self._roster.get(key)
        if member is not None:
            self._roster.detach(key)
            self._detached(member)
        self._consumers.pop(key, None)
        self._yielding.discard(key)
        self._after_change()

    @receives(AddCredit)
    def on_credit(self, command: AddCredit) -> None:
        """A consumer has room for more."""
        limits = self._limits
        self._roster.add_credit(
            command.key,
            command.messages,
            command.bytes,
            messages_max=limits.credit_messages_max,
            bytes_max=limits.credit_bytes_max,
        )
        self._wake()

    @receives(SetCredit)
    def on_set_credit(self, command: SetCredit) -> None:
        """A consumer came back: what it was told may have been lost with its connection."""
        self._roster.set_credit(command.key, command.messages, command.bytes)
        self._waiting = [
            replace(waiting, messages=command.messages, bytes=command.bytes)
            if isinstance(waiting, AttachConsumer) and waiting.key == command.key
            else waiting
            for waiting in self._waiting
        ]
        if command.key in self._consumers:
            self._greet(self._consumers[command.key])
        self._wake()

    @receives(Pause)
    def on_pause(self, command: Pause) -> None:
        """Send a consumer nothing more until it comes back, and tell it so, behind whatever is on its way to it."""
        self._roster.block(command.key, True, "leaving")
        command.consumer.tell(Paused())

    @receives(Yielded)
    def on_yielded(self, command: Yielded) -> None:
        """Who was active has given back what it held: the next one may begin, with that."""
        self._yielding.discard(command.key)
        self._wake()

    @receives(Block)
    def on_block(self, command: Block) -> None:
        """A consumer's connection is full, or takes again."""
        self._roster.block(command.key, command.blocked, command.why)
        if not command.blocked:
            self._wake()

    # ---- dispatch -----------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        """Dispatch once, at the end of this turn, whatever the turn brings."""
        if not self._dispatch_scheduled and self._ready and self._consumers:
            self._dispatch_scheduled = True
            self.at_turn_end(self._dispatch)

    def _dispatch(self) -> None:
        self._dispatch_scheduled = False
        if self._yielding or self._paused or self._hands_over:
            return
        budget = DISPATCH_BYTES_MAX
        roster = self._roster
        share = roster.share(self._backlog()) if self.meta.type == "shared" else None
        while budget > 0:
            member = roster.choose()
            if member is None:
                return
            self._takes_sparse = member.sparse
            piece = self._next_piece(member.messages if share is None else min(member.messages, share))
            if piece is None:
                return
            self._deliver_to(member, piece)
            budget -= piece.bytes
        self._wake()

    def _deliver_to(self, member: Member, piece: Piece) -> None:
        self._roster.spend(member, piece.count, piece.bytes)
        self._consumers[member.key].tell(Deliver(piece, self._me))
        self.delivered += piece.count
        if piece.attempt > 1:
            self.redelivered += piece.count

    def _backlog(self) -> int:
        """Return how many messages could be delivered now, about: what a fair share is a share of."""
        raise NotImplementedError

    def _next_piece(self, messages_max: int) -> Piece | None:
        raise NotImplementedError

    def _position(self) -> int:
        raise NotImplementedError

    # ---- the rest -----------------------------------------------------------------------------------------------

    @receives(TopicUpdated)
    def on_topic_updated(self, command: TopicUpdated) -> None:
        """Go by the topic's new settings."""
        self.topic = command.topic

    @receives(NodeStarted)
    def on_node_started(self, started: NodeStarted) -> None:
        """Nothing to say to a process that was started again."""

    def on_failure(self, *_error: object) -> None:
        """Send the consumers away: they may open again, and find a new actor."""
        self._evict_all("internal", "the broker failed for this subscription; its log says how")

    def _description(self) -> dict[str, Any]:
        return {
            "topic": self.topic.name,
            "subscription": self.meta.name,
            "type": self.meta.type,
            "strategy": self.topic.dispatch,
            "consumers": len(self._consumers),
            "delivered": self.delivered,
            "redelivered": self.redelivered,
            "failure": None if self._failure is None else self._failure.text,
            "paused": self._paused,
            "settings": dict(self.meta.settings),
        }

    @receives(Describe)
    def on_describe(self, command: Describe) -> None:
        """Say what there is."""
        self._admit(command)

    def _common_state(self) -> State:
        """Return what both kinds say of themselves when they are asked why nothing flows."""
        limits = self._limits
        found: State = {
            "type": self.meta.type,
            "starting": not self._ready and self._failure is None,
            "started_ms": self._started_ms,
            "failure": None if self._failure is None else self._failure.text,
            "failure_code": None if self._failure is None else self._failure.code,
            "paused": self._paused,
            "standby": max(0, len(self._roster) - 1) if self.meta.type == "failover" else 0,
            "handing_over": len(self._yielding),
        }
        consumers = presence(
            self._roster.members,
            self._roster.active,
            self.clock.monotonic(),
            self.clock.time_ms(),
            heartbeat_ms=limits.heartbeat_ms,
            session_timeout_ms=limits.session_timeout_ms,
        )
        return {**consumers, **found}

    def _greet(self, consumer: Ref) -> None:
        """Tell a consumer that comes what happened while nobody was here, and whether anything will."""
        while self._unseen:
            consumer.tell(self._unseen.popleft())
        if self._paused:
            consumer.tell(Notice("paused", 0, f"subscription {self.meta.name!r} is paused"))

    def _notify(self, notice: Notice) -> None:
        """Tell all consumers, or the next one that comes."""
        for consumer in self._consumers.values():
            consumer.tell(notice)
        if not self._consumers:
            self._unseen.append(notice)

    def _pause(self, paused: bool) -> None:
        """Deliver nothing more, or go on; the consumers are told."""
        if paused == self._paused:
            return
        self._paused = paused
        what = "was paused" if paused else "goes on"
        self._notify(Notice("paused" if paused else "resumed", 0, f"subscription {self.meta.name!r} {what}"))
        self._wake()

    def _evict_deleted(self, command: Delete) -> None:
        """Send everybody away for good, and say what was deleted."""
        if command.with_topic:
            self._evict_all("topic-deleted", f"topic {self.topic.name!r} was deleted")
        else:
            self._evict_all("subscription-deleted", f"subscription {self.meta.name!r} was deleted")

    def _evict_all(self, code: str, text: str) -> None:
        """Send everybody away, also who still waits for a place."""
        for consumer in self._consumers.values():
            consumer.tell(Evicted(code, text))
        self._become_failed(RemoteError(code, text))
