"""The Subscription actor: its consumers, their credit, whose turn it is, and the sending of pieces.

Runs in a worker process, not always that of its topic. It does not decide what is delivered, or what happens to it
afterwards: its parts do (`parts.py`), one of which is the delivery of its type (`deliveries.py`).

Invariants
- a consumer is attached from `Granted` to `Left`, and gets nothing before or after
- while a consumer is to give back what it holds (it was taken over, or the subscription is moved), nothing is delivered
- where another consumer is to become active, nothing is delivered until the one before it holds nothing any more
- dispatch happens once per turn of the loop, after all messages of the turn
- work is per piece (some 64 KiB), never per message
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ister.actors.explain_state import State
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
from ister.storage.meta import SubscriptionMeta, TopicMeta
from ister.subscriptions import TRAITS
from ister.transport.session import SessionLimits
from ister.wire import encode_result

_Waiting = AttachConsumer | StartSubscription | Describe  # answered once the topic has answered


class Subscription(LoopActor):
    """The consumers of one subscription. `deliver_by(self)` returns its delivery, which lists the parts."""

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
        self._ready = False  # the topic has answered, and the start offset is fixed
        self.failure: IsterError | None = None  # why no consumer can be served
        self._started_ms = self.clock.time_ms()
        self._waiting: list[_Waiting] = []
        self.delivered = 0
        self.redelivered = 0
        self.delivery = deliver_by(self)
        self.consumers = Consumers(meta.type, meta.name, self.wake, takes_back=self.delivery.takes_back)
        self._parts: tuple[SubscriptionPart, ...] = tuple(self.delivery.parts)
        self.compose(self._parts)

    def on_start(self) -> None:
        """Start the parts."""
        for part in self._parts:
            part.start()

    def on_stop(self) -> None:
        """Stop the parts: they write down what they know and close what they hold."""
        for part in self._parts:
            part.stop()

    def on_failure(self, *_error: object) -> None:
        """Evict the consumers. They may open again, which starts a new actor that continues from the cursor."""
        self.evict_all("internal", "the broker failed for this subscription; its log says how")
        self.on_stop()

    # ---- consumers ----------------------------------------------------------------------------------------------

    @receives(AttachConsumer)
    def on_arrival(self, command: AttachConsumer) -> None:
        """Attach a consumer, at once or when the subscription is ready."""
        self.delivery.expected()
        self._admit_in_time(command, self._ready)

    @receives(StartSubscription, Describe)
    def on_question(self, command: StartSubscription | Describe) -> None:
        """Answer that the subscription exists, or describe it, at once or when it is ready."""
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
        """Whether the topic has answered, and the start offset is fixed."""
        return self._ready

    def become_ready(self) -> None:
        """Serve the consumers and questions that wait."""
        self._ready, self.failure = True, None
        self._admit_waiting()

    def become_unready(self) -> None:
        """Let new consumers wait until the subscription is ready again."""
        self._ready = False

    def become_failed(self, error: IsterError) -> None:
        """Serve no consumer; those that wait are refused with the error."""
        self.failure = error
        self._admit_waiting()

    def _admit_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        for command in waiting:
            self._admit(command)

    @receives(Left)
    def on_left(self, command: Left) -> None:
        """Detach a consumer, and queue what it held for the others."""
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
        """Add to a consumer's credit."""
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
        """Set a consumer's credit after its client reconnected: what was in transit may be lost."""
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
        """Send a consumer nothing until it returns. `Paused` tells it that everything sent before has arrived."""
        self.consumers.roster.block(command.key, True, "leaving")
        command.consumer.tell(Paused())

    @receives(Yielded)
    def on_yielded(self, command: Yielded) -> None:
        """Let the next consumer begin: the one that was active has given back what it held."""
        self.consumers.release(command.key)
        self.wake()

    @receives(Block)
    def on_block(self, command: Block) -> None:
        """Stop or resume sending to a consumer whose connection is full, or has room again."""
        self.consumers.roster.block(command.key, command.blocked, command.why)
        self.delivery.credited(command.key, 0)
        if not command.blocked:
            self.wake()

    # ---- dispatch -----------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Schedule one dispatch at the end of this turn."""
        if not self._dispatch_scheduled and self._ready and self.consumers.refs:
            self._dispatch_scheduled = True
            self.at_turn_end(self._dispatch)

    def wake_at(self, due_s: float) -> None:
        """Schedule a dispatch for a time of the monotonic clock, in seconds, unless one comes earlier."""
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
        """Whether anything may be delivered: not while paused, or while a consumer has to give back messages."""
        return not (self._paused or self.consumers.held or self.consumers.hands_over)

    def take_turns(self) -> None:
        """Send pieces to consumers in turn, until nothing is left, nobody has credit, or the turn's budget is spent."""
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
        """Send a piece to a consumer."""
        self.consumers.roster.spend(member, piece.count, piece.bytes)
        self.consumers.refs[member.key].tell(Deliver(piece, self._me))
        self.delivered += piece.count
        if piece.attempt > 1:
            self.redelivered += piece.count
        self.delivery.delivered(member, piece)

    # ---- the topic, and the parts -------------------------------------------------------------------------------

    @receives(TopicUpdated)
    def on_topic_updated(self, command: TopicUpdated) -> None:
        """Take over the topic's new settings."""
        self.topic = command.topic
        for part in self._parts:
            part.topic_updated()

    @receives(NodeStarted)
    def on_node_started(self, started: NodeStarted) -> None:
        """Tell the parts that a process was started again: it has lost what it was told before."""
        for part in self._parts:
            part.node_started(started)

    @receives(TopicFailed)
    def topic_failed(self, failed: TopicFailed) -> None:
        """Tell the parts that the topic failed or was deleted."""
        for part in self._parts:
            part.topic_failed(failed)

    def opened(self) -> None:
        """Tell the parts that the cursor's journal is open."""
        for part in self._parts:
            part.opened()

    def may_read(self) -> None:
        """Tell the parts that reading may succeed now where it failed before."""
        self.wake()
        for part in self._parts:
            part.may_read()

    def forget(self) -> None:
        """Have the parts forget the state of single messages."""
        for part in self._parts:
            part.forget()

    # ---- what the consumers are told ----------------------------------------------------------------------------

    def _greet(self, consumer: Ref) -> None:
        """Tell a new consumer what happened while none was attached, and what holds delivery up."""
        self.consumers.tell_unseen(consumer)
        if self._paused:
            consumer.tell(Notice("paused", 0, f"subscription {self.meta.name!r} is paused"))
        for part in self._parts:
            part.greet(consumer)

    def evict_all(self, code: str, text: str) -> None:
        """Evict all consumers, also those that wait to be attached."""
        self.consumers.tell_all(Evicted(code, text))
        self.become_failed(RemoteError(code, text))

    # ---- what operators ask for ---------------------------------------------------------------------------------

    @receives(UpdateSubscription)
    def on_update(self, command: UpdateSubscription) -> None:
        """Apply new settings: the failure policy to later failures, the timeout to later deliveries."""
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
        """Pause or resume delivery, and tell the consumers."""
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
        """Evict all consumers and delete what is stored of the subscription."""
        if command.with_topic:
            self.evict_all("topic-deleted", f"topic {self.topic.name!r} was deleted")
        else:
            self.evict_all("subscription-deleted", f"subscription {self.meta.name!r} was deleted")
        for part in self._parts:
            part.erase()
        self.answer(command, {})
        self.stop_now()  # messages that are queued behind this one must not start anything

    @receives(Explain)
    def on_explain(self, command: Explain) -> None:
        """Answer why nothing is delivered, as far as this actor knows."""
        self.answer(command, self._state())

    def answer(self, command: Any, body: Any) -> None:
        """Answer a question; `body` is encoded as a RESULT."""
        self.system.at(command.reply).tell(Answer(command.ticket, encode_result(body)))

    def refuse(self, command: Any, error: IsterError) -> None:
        """Refuse a question with an error."""
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
