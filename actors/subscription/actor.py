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

from collections import deque
from collections.abc import Callable
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
    Yield,
    Yielded,
)
from ister.actors.pieces import Piece
from ister.actors.presence import presence
from ister.actors.runtime import LoopActor, Ref, System, Timer, receives
from ister.actors.selection import Member, Roster
from ister.actors.subscription.parts import DISPATCH_BYTES_MAX, Delivery, Host, SubscriptionPart
from ister.errors import IsterError, RemoteError
from ister.storage.catalogue import SubscriptionMeta, TopicMeta
from ister.subscriptions import TRAITS
from ister.transport.session import SessionLimits
from ister.wire import encode_result

NOTICES_KEPT: Final = 16  # while no consumer is there; the counts in `ister subscription show` have all of it


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
        self.roster = Roster(meta.type, meta.name)
        self._paused = bool(meta.settings.get("paused", 0))
        self.consumers: dict[int, Ref] = {}
        self._active: Member | None = None
        self._dispatch_scheduled = False
        self._wake_timer: Timer | None = None
        self._yielding: set[int] = (
            set()
        )  # who is to give back what it holds; 0: the journal, which is being moved
        self._ready = False  # the topic answered, and the start is fixed
        self.failure: IsterError | None = None  # why it serves nobody
        self._started_ms = self.clock.time_ms()
        self._waiting: list[_Waiting] = []
        self._unseen: deque[Notice] = deque(maxlen=NOTICES_KEPT)  # for the next consumer: nobody was there
        self.delivered = 0
        self.redelivered = 0
        self.delivery = deliver_by(self)
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
        if command.force and self.meta.type == "exclusive":
            self._take_over()
        try:
            member = self.roster.attach(
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
        self.consumers[command.key] = command.consumer
        self.delivery.attached(member)
        failures_max = self.delivery.failures_max
        command.consumer.tell(Granted(self.delivery.position(), self.ack_timeout_ms, failures_max))
        self._greet(command.consumer)
        self._after_change()
        if self._traits.stands_by and self._active is not member:
            command.consumer.tell(Notice("standby", 0, "another consumer is active"))

    def _take_over(self) -> None:
        """Send the consumer of an Exclusive subscription away for another, which begins with what it gives back."""
        active = self.roster.active
        if active is None:
            return
        self.roster.detach(active.key)
        self.delivery.detached(active)
        self._yielding.add(active.key)
        text = f"another consumer took subscription {self.meta.name!r} over"
        self.consumers.pop(active.key).tell(Evicted("taken-over", text))

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

    def _after_change(self) -> None:
        """Let a Failover's preferred consumer be active, once the one before has nothing left, and go on."""
        active = self.roster.active
        if active is not self._active and not self._is_busy(self._active):
            before, self._active = self._active, active
            if active is not None and self._traits.stands_by:
                self.consumers[active.key].tell(Notice("active", 0, "this consumer is active now"))
            if before is not None and before.key in self.consumers:
                self._yielding.add(before.key)
                self.consumers[before.key].tell(Notice("standby", 0, "another consumer is active"))
                self.consumers[before.key].tell(Yield())
        self.wake()

    def _is_busy(self, member: Member | None) -> bool:
        """Whether a consumer that was active still holds what nobody else may have meanwhile."""
        return (
            self.delivery.takes_back
            and member is not None
            and member.key in self.consumers
            and member.outstanding > 0
        )

    @property
    def hands_over(self) -> bool:
        """Whether another consumer is to be active than the one that is."""
        return self.roster.active is not self._active

    @property
    def active(self) -> Member | None:
        """Who is active, of Exclusive and Failover."""
        return self._active

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
        member = self.roster.get(key)
        if member is not None:
            self.roster.detach(key)
            self.delivery.detached(member)
        self.consumers.pop(key, None)
        self._yielding.discard(key)
        self._after_change()
        for part in self._parts:
            part.consumer_left()
        if not self.consumers and not self._waiting:
            self.delivery.abandoned()

    @receives(AddCredit)
    def on_credit(self, command: AddCredit) -> None:
        """A consumer has room for more."""
        limits = self._limits
        self.roster.add_credit(
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
        self.roster.set_credit(command.key, command.messages, command.bytes)
        self.delivery.credited(command.key, None)
        self._waiting = [
            replace(waiting, messages=command.messages, bytes=command.bytes)
            if isinstance(waiting, AttachConsumer) and waiting.key == command.key
            else waiting
            for waiting in self._waiting
        ]
        if command.key in self.consumers:
            self._greet(self.consumers[command.key])
        self.wake()

    @receives(Pause)
    def on_pause(self, command: Pause) -> None:
        """Send a consumer nothing more until it comes back, and tell it so, behind whatever is on its way to it."""
        self.roster.block(command.key, True, "leaving")
        command.consumer.tell(Paused())

    @receives(Yielded)
    def on_yielded(self, command: Yielded) -> None:
        """Who was active has given back what it held: the next one may begin, with that."""
        self.release(command.key)
        self.wake()

    @receives(Block)
    def on_block(self, command: Block) -> None:
        """A consumer's connection is full, or takes again."""
        self.roster.block(command.key, command.blocked, command.why)
        self.delivery.credited(command.key, 0)
        if not command.blocked:
            self.wake()

    def settle(self, key: int, messages: int) -> None:
        """Note that a consumer holds so many messages less; another may have waited for that."""
        self.roster.settle(key, messages)
        if self.hands_over:
            self._after_change()

    def gave(self, key: int) -> bool:
        """Say whether it was this actor that delivered to a consumer, not the one before it, which failed."""
        return not key or key in self.consumers or key in self._yielding

    @property
    def yields(self) -> bool:
        """Whether somebody is to give back what it holds, and has not yet."""
        return bool(self._yielding)

    def hold(self, key: int) -> None:
        """Deliver nothing until `release(key)`: somebody is to give back what it holds, or (0) the journal moves."""
        self._yielding.add(key)

    def release(self, key: int) -> None:
        """Undo `hold`."""
        self._yielding.discard(key)

    # ---- dispatch -----------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Dispatch once, at the end of this turn, whatever the turn brings."""
        if not self._dispatch_scheduled and self._ready and self.consumers:
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
        return not (self._yielding or self._paused or self.hands_over)

    def take_turns(self) -> None:
        """Deliver what the delivery has next to whoever's turn it is, until one of the two is exhausted."""
        if self._yielding or self._paused or self.hands_over:
            return
        budget = DISPATCH_BYTES_MAX
        roster, next_piece = self.roster, self.delivery.next_piece
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
        self.roster.spend(member, piece.count, piece.bytes)
        self.consumers[member.key].tell(Deliver(piece, self._me))
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
        while self._unseen:
            consumer.tell(self._unseen.popleft())
        if self._paused:
            consumer.tell(Notice("paused", 0, f"subscription {self.meta.name!r} is paused"))
        for part in self._parts:
            part.greet(consumer)

    def notify(self, notice: Notice) -> None:
        """Tell all consumers, or the next one that comes."""
        self.tell_all(notice)
        if not self.consumers:
            self._unseen.append(notice)

    def tell_all(self, message: object) -> None:
        """Tell all consumers that are there."""
        for consumer in self.consumers.values():
            consumer.tell(message)

    def evict_all(self, code: str, text: str) -> None:
        """Send everybody away, also who still waits for a place."""
        self.tell_all(Evicted(code, text))
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
            self.tell_all(TimeoutChanged(self.ack_timeout_ms, self.delivery.failures_max))
        self._pause(bool(self.meta.settings.get("paused", 0)))
        self.answer(command, {})

    def _pause(self, paused: bool) -> None:
        """Deliver nothing more, or go on; the consumers are told."""
        if paused == self._paused:
            return
        self._paused = paused
        what = "was paused" if paused else "goes on"
        self.notify(Notice("paused" if paused else "resumed", 0, f"subscription {self.meta.name!r} {what}"))
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
            "standby": max(0, len(self.roster) - 1) if self._traits.stands_by else 0,
            "handing_over": len(self._yielding) or int(self.hands_over),
        }
        consumers = presence(
            self.roster.members,
            self.roster.active,
            self.clock.monotonic(),
            self.clock.time_ms(),
            heartbeat_ms=limits.heartbeat_ms,
            session_timeout_ms=limits.session_timeout_ms,
        )
        state: State = {**consumers, **found}
        for part in self._parts:
            state |= part.state()
        return state
