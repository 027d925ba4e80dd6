"""Subscriptions: who gets what of a topic. Here are the consumers, their credit, whose turn it is, and handing over.

Runs in a worker process, not always its topic's. What is delivered, and what becomes of it, is not decided here: that
is for its parts (`parts.py`), one of which is the delivery of its type (`deliveries.py`).

Invariants
- a consumer is attached from `Granted` to `Left`, and gets nothing before or after
- who is to give back what it holds (it was taken over, the subscription is moved) has done so before anything is
  delivered again
- where another consumer is to be active, nothing is delivered until the one before holds nothing more
- dispatch happens once a turn, after everything that the turn brought
- work is per piece (some 64 KiB), never per message
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

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
    Explain,
    Granted,
    Left,
    NodeStarted,
    Notice,
    Pause,
    Paused,
    Refused,
    SetCredit,
    StartSubscription,
    TimeoutChanged,
    TopicFailed,
    TopicUpdated,
    UpdateSubscription,
    Yielded,
)
from ister.actors.pieces import Piece
from ister.actors.presence import presence
from ister.actors.runtime import LoopActor, Ref, System, Timer, receives
from ister.actors.selection import Member
from ister.actors.subscription.consumers import Consumers
from ister.actors.subscription.parts import DISPATCH_BYTES_MAX, Delivery, Host, SubscriptionPart
from ister.errors import IsterError, RemoteError
from ister.storage.catalogue import SubscriptionMeta, TopicMeta
from ister.subscriptions import TRAITS
from ister.transport.session import SessionLimits
from ister.wire import encode_result

_Waiting = AttachConsumer | StartSubscription | Describe  # what is answered once the topic has answered


class Subscription(LoopActor):
    """The consumers of one subscription; `deliver_by(self)` returns the delivery, whose parts are this one's."""

    def __init__(
        self,
        system: System,
        path: str,
        topic: TopicMeta,
        meta: SubscriptionMeta,
        *,
        limits: SessionLimits,
        ack_timeout_ms: int,
        deliver_by: Callable[[Host], Delivery],
    ) -> None:
        super().__init__(system, path)
        self._me = self.ref
        self.topic = topic
        self.meta = meta
        self._limits = limits
        self.ack_timeout_ms = int(meta.settings.get("ack_timeout_ms", ack_timeout_ms))
        self._traits = TRAITS[meta.type]
        self._in_shares = self._traits.shares and not self._traits.by_key
        self._paused = bool(meta.settings.get("paused", 0))
        self._dispatch_scheduled = False
        self._wake_timer: Timer | None = None
        self._ready = False  # the topic answered, and the start is fixed
        self.failure: IsterError | None = None  # why it serves nobody
        self._started_ms = self.clock.time_ms()
        self._waiting: list[_Waiting] = []
        self.delivered = 0
        self.redelivered = 0
        self.delivery = deliver_by(self)
        self.consumers = Consumers(meta.type, meta.name, self.wake, takes_back=self.delivery.takes_back)
        self._parts: tuple[SubscriptionPart, ...] = tuple(self.delivery.parts)
        self.compose(self._parts)

    def on_start(self) -> None:
        """Have the parts begin."""
        for part in self._parts:
            part.start()

    def on_stop(self) -> None:
        """Have the parts write down what they know, and let go of what they have."""
        for part in self._parts:
            part.stop()

    def on_failure(self, *_error: object) -> None:
        """Send the consumers away: they may open again, and find a new actor, which goes on where this one was."""
        self.evict_all("internal", "the broker failed for this subscription; its log says how")
        self.on_stop()

    # ---- consumers ----------------------------------------------------------------------------------------------

    @receives(AttachConsumer)
    def on_arrival(self, command: AttachConsumer) -> None:
        """Give a consumer its place, once there is one."""
        self.delivery.expected()
        self._admit_in_time(command, self._ready)

    @receives(StartSubscription, Describe)
    def on_question(self, command: StartSubscription | Describe) -> None:
        """Say that the subscription is there, and what it is, once that is known."""
        self._admit_in_time(command, self._ready or self.delivery.always_there)

    def _admit_in_time(self, command: _Waiting, ready: bool) -> None:
        if not ready and self.failure is None:
            self._waiting.append(command)
        else:
            self._admit(command)

    def _admit(self, command: _Waiting) -> None:
        failure = self.failure
        if isinstance(command, Describe):
            self.answer(command, self._description())
            return
        if isinstance(command, StartSubscription):
            if failure is None:
                self.answer(command, {})
            else:
                self.refuse(command, failure)
            return
        if failure is not None:
            command.consumer.tell(Evicted(failure.code, failure.text))
            return
        consumers = self.consumers
        if command.force and self.meta.type == "exclusive" and (before := consumers.take_over()) is not None:
            self.delivery.detached(before)
        try:
            member = consumers.attach(command)
        except RemoteError as error:
            command.consumer.tell(Evicted(error.code, error.text))
            return
        self.delivery.attached(member)
        failures_max = self.delivery.failures_max
        command.consumer.tell(Granted(self.delivery.position(), self.ack_timeout_ms, failures_max))
        self._greet(command.consumer)
        consumers.elect()
        if self._traits.stands_by and consumers.active is not member:
            command.consumer.tell(Notice("standby", 0, "another consumer is active"))

    @property
    def is_ready(self) -> bool:
        """Whether the topic answered, and the start is fixed."""
        return self._ready

    def become_ready(self) -> None:
        """Serve those who wait."""
        self._ready, self.failure = True, None
        self._admit_waiting()

    def become_unready(self) -> None:
        """Let those who come wait until it is ready again."""
        self._ready = False

    def become_failed(self, error: IsterError) -> None:
        """Serve nobody, and tell those who wait why."""
        self.failure = error
        self._admit_waiting()

    def _admit_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        for command in waiting:
            self._admit(command)

    @receives(Left)
    def on_left(self, command: Left) -> None:
        """Take a consumer's place from it, and have what it held go to the next one."""
        self.delivery.given_back(command)
        key = command.key
        self._waiting = [
            waiting
            for waiting in self._waiting
            if not (isinstance(waiting, AttachConsumer) and waiting.key == key)
        ]
        if (member := self.consumers.detach(key)) is not None:
            self.delivery.detached(member)
        self.consumers.elect()
        for part in self._parts:
            part.consumer_left()
        if not self.consumers.refs and not self._waiting:
            self.delivery.abandoned()

    @receives(AddCredit)
    def on_credit(self, command: AddCredit) -> None:
        """A consumer has room for more."""
        limits = self._limits
        self.consumers.roster.add_credit(
            command.key,
            command.messages,
            command.bytes,
            messages_max=limits.credit_messages_max,
            bytes_max=limits.credit_bytes_max,
        )
        self.delivery.credited(command.key, command.messages)
        self.wake()

    @receives(SetCredit)
    def on_set_credit(self, command: SetCredit) -> None:
        """A consumer came back: what it was told may have been lost with its connection."""
        self.consumers.roster.set_credit(command.key, command.messages, command.bytes)
        self.delivery.credited(command.key, None)
        self._waiting = [
            replace(waiting, messages=command.messages, bytes=command.bytes)
            if isinstance(waiting, AttachConsumer) and waiting.key == command.key
            else waiting
            for waiting in self._waiting
        ]
        if (consumer := self.consumers.refs.get(command.key)) is not None:
            self._greet(consumer)
        self.wake()

    @receives(Pause)
    def on_pause(self, command: Pause) -> None:
        """Send a consumer nothing more until it comes back, and tell it so, behind whatever is on its way to it."""
        self.consumers.roster.block(command.key, True, "leaving")
        command.consumer.tell(Paused())

    @receives(Yielded)
    def on_yielded(self, command: Yielded) -> None:
        """Who was active has given back what it held: the next one may begin, with that."""
        self.consumers.release(command.key)
        self.wake()

    @receives(Block)
    def on_block(self, command: Block) -> None:
        """A consumer's connection is full, or takes again."""
        self.consumers.roster.block(command.key, command.blocked, command.why)
        self.delivery.credited(command.key, 0)
        if not command.blocked:
            self.wake()

    # ---- dispatch -----------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Dispatch once, at the end of this turn, whatever the turn brings."""
        if not self._dispatch_scheduled and self._ready and self.consumers.refs:
            self._dispatch_scheduled = True
            self.at_turn_end(self._dispatch)

    def wake_at(self, due_s: float) -> None:
        """Dispatch again at that time, if not before."""
        timer = self._wake_timer
        if timer is not None and timer.pending:
            if timer.due <= due_s + 0.001:
                return
            timer.cancel()
        delay_s = max(due_s - self.clock.monotonic(), 0.0) + 0.001
        self._wake_timer = self.call_later(delay_s, self.wake)

    def _dispatch(self) -> None:
        self._dispatch_scheduled = False
        self.delivery.hand_out()

    @property
    def may_deliver(self) -> bool:
        """Whether anything may be delivered: nobody is to give back anything first, and it is not paused."""
        return not (self._paused or self.consumers.held or self.consumers.hands_over)

    def take_turns(self) -> None:
        """Deliver what the delivery has next to whoever's turn it is, until one of the two is exhausted."""
        consumers = self.consumers
        roster, next_piece = consumers.roster, self.delivery.next_piece
        if consumers.held or self._paused or roster.active is not consumers.active:
            return
        budget = DISPATCH_BYTES_MAX
        share = roster.share(self.delivery.backlog()) if self._in_shares else None
        while budget > 0:
            member = roster.choose()
            if member is None:
                return
            piece = next_piece(member, member.messages if share is None else min(member.messages, share))
            if piece is None:
                return
            self.deliver(member, piece)
            budget -= piece.bytes
        self.wake()

    def deliver(self, member: Member, piece: Piece) -> None:
        """Send a consumer a piece."""
        self.consumers.roster.spend(member, piece.count, piece.bytes)
        self.consumers.refs[member.key].tell(Deliver(piece, self._me))
        self.delivered += piece.count
        if piece.attempt > 1:
            self.redelivered += piece.count
        self.delivery.delivered(member, piece)

    # ---- the topic, and the parts -------------------------------------------------------------------------------

    @receives(TopicUpdated)
    def on_topic_updated(self, command: TopicUpdated) -> None:
        """Go by the topic's new settings."""
        self.topic = command.topic
        for part in self._parts:
            part.topic_updated()

    @receives(NodeStarted)
    def on_node_started(self, started: NodeStarted) -> None:
        """Have the parts tell a process that was started again what it was told before."""
        for part in self._parts:
            part.node_started(started)

    @receives(TopicFailed)
    def topic_failed(self, failed: TopicFailed) -> None:
        """The topic failed, or is gone."""
        for part in self._parts:
            part.topic_failed(failed)

    def opened(self) -> None:
        """Tell the parts that the cursor is there."""
        for part in self._parts:
            part.opened()

    def may_read(self) -> None:
        """Tell the parts that what could not be read may be read now."""
        self.wake()
        for part in self._parts:
            part.may_read()

    def forget(self) -> None:
        """Have the parts forget what they know of single messages."""
        for part in self._parts:
            part.forget()

    # ---- what the consumers are told ----------------------------------------------------------------------------

    def _greet(self, consumer: Ref) -> None:
        """Tell a consumer that comes what happened while nobody was here, and whether anything will."""
        self.consumers.tell_unseen(consumer)
        if self._paused:
            consumer.tell(Notice("paused", 0, f"subscription {self.meta.name!r} is paused"))
        for part in self._parts:
            part.greet(consumer)

    def evict_all(self, code: str, text: str) -> None:
        """Send everybody away, also who still waits for a place."""
        self.consumers.tell_all(Evicted(code, text))
        self.become_failed(RemoteError(code, text))

    # ---- what operators ask for ---------------------------------------------------------------------------------

    @receives(UpdateSubscription)
    def on_update(self, command: UpdateSubscription) -> None:
        """Take new settings: a policy for what fails from now on, a timeout for what is delivered from now on."""
        before = (self.ack_timeout_ms, self.delivery.failures_max)
        self.meta = command.meta
        self.ack_timeout_ms = int(self.meta.settings.get("ack_timeout_ms", self.ack_timeout_ms))
        for part in self._parts:
            part.settings_updated()
        if before != (self.ack_timeout_ms, self.delivery.failures_max):
            self.consumers.tell_all(TimeoutChanged(self.ack_timeout_ms, self.delivery.failures_max))
        self._pause(bool(self.meta.settings.get("paused", 0)))
        self.answer(command, {})

    def _pause(self, paused: bool) -> None:
        """Deliver nothing more, or go on; the consumers are told."""
        if paused == self._paused:
            return
        self._paused = paused
        what = "was paused" if paused else "goes on"
        self.consumers.notify(
            Notice("paused" if paused else "resumed", 0, f"subscription {self.meta.name!r} {what}")
        )
        self.wake()

    @receives(Delete)
    def on_delete(self, command: Delete) -> None:
        """Send the consumers away for good, and leave nothing."""
        if command.with_topic:
            self.evict_all("topic-deleted", f"topic {self.topic.name!r} was deleted")
        else:
            self.evict_all("subscription-deleted", f"subscription {self.meta.name!r} was deleted")
        for part in self._parts:
            part.erase()
        self.answer(command, {})
        self.stop_now()  # what waits behind this must not begin anything again

    @receives(Explain)
    def on_explain(self, command: Explain) -> None:
        """Say why nothing is delivered, as far as this actor knows."""
        self.answer(command, self._state())

    def answer(self, command: Any, body: Any) -> None:
        """Answer a question."""
        self.system.at(command.reply).tell(Answer(command.ticket, encode_result(body)))

    def refuse(self, command: Any, error: IsterError) -> None:
        """Answer a question with an error."""
        self.system.at(command.reply).tell(Refused(command.ticket, error.code, error.text))

    def _description(self) -> dict[str, Any]:
        body = {
            "topic": self.topic.name,
            "subscription": self.meta.name,
            "type": self.meta.type,
            "strategy": self.topic.dispatch,
            "consumers": len(self.consumers),
            "delivered": self.delivered,
            "redelivered": self.redelivered,
            "failure": None if self.failure is None else self.failure.text,
            "paused": self._paused,
            "settings": dict(self.meta.settings),
        }
        for part in self._parts:
            body |= part.description()
        return body

    def _state(self) -> State:
        limits = self._limits
        found: State = {
            "type": self.meta.type,
            "starting": not self._ready and self.failure is None,
            "started_ms": self._started_ms,
            "failure": None if self.failure is None else self.failure.text,
            "failure_code": None if self.failure is None else self.failure.code,
            "paused": self._paused,
            "standby": max(0, len(self.consumers.roster) - 1) if self._traits.stands_by else 0,
            "handing_over": self.consumers.yielding,
        }
        consumers = presence(
            self.consumers.roster.members,
            self.consumers.roster.active,
            self.clock.monotonic(),
            self.clock.time_ms(),
            heartbeat_ms=limits.heartbeat_ms,
            session_timeout_ms=limits.session_timeout_ms,
        )
        state: State = {**consumers, **found}
        for part in self._parts:
            state |= part.state()
        return state
