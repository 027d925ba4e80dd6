"""The Frontend: connects a worker's gateway with its actors, and starts the actors that clients ask for.

Runs in every worker process, one per process. It asks the Directory where things are, answers `moved` for what runs
elsewhere, and is not involved after that: batches, credit and acknowledgments go from the gateway straight to Topic and
Consumer.

Invariants
- every open and every request of a client is answered once, within `ANSWER_WITHIN_S` of the question to the Directory
  (`open_questions.py`)
- an actor of a topic or subscription runs only where placement puts it
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from ister.actors.addresses import BROKER, DIRECTORY_PATH, instance_of
from ister.actors.consumer import Consumer
from ister.actors.ledger import Held
from ister.actors.messages import (
    Answer,
    Ask,
    AskFenced,
    Attach,
    AttachConsumer,
    CloseConsumer,
    CloseProducer,
    ConsumerFrame,
    Delete,
    Deliver,
    Deposit,
    DepositRefused,
    Describe,
    Evicted,
    Explain,
    KeptSessions,
    Locate,
    Located,
    LocateSubscription,
    NodeStarted,
    NodeStopped,
    OpenProducer,
    Pause,
    Publish,
    Refused,
    Reopen,
    Repair,
    Returned,
    Seek,
    StartSubscription,
    SubscriptionTask,
    TopicFailed,
    TopicTask,
    Unblock,
    Update,
    UpdateSubscription,
    Verify,
)
from ister.actors.open_questions import Attaching, Opening, OpenQuestions, Question, Requesting
from ister.actors.process import NodeDown, NodeUp
from ister.actors.publishers import Publisher
from ister.actors.runtime import LoopActor, Ref, System, receives
from ister.actors.tasks import message_to_subscription, message_to_topic
from ister.bodies import Buffer
from ister.errors import IsterError, RemoteError, UsageError
from ister.names import check_subscription_name, check_topic_name
from ister.storage.meta import SubscriptionMeta, TopicMeta
from ister.transport.gateway import Gateway
from ister.transport.session import Handle, Session
from ister.wire import Header, Key, Type, encode_result

log = logging.getLogger("ister.frontend")

# seconds; how late an ephemeral topic may be deleted if the mail about its session's end was lost
KEEP_S: Final = 10.0
SWEEP_S: Final = 0.5  # seconds; how late a silent session may be ended
REASON_LENGTH_MAX: Final = 500


# The questions that wait for an answer
_ANSWERED: Final = (
    AskFenced
    | Describe
    | Delete
    | StartSubscription
    | Update
    | UpdateSubscription
    | Seek
    | Unblock
    | Explain
    | Verify
    | Repair
)


class Actors(Protocol):
    """Starts the actors of topics and subscriptions: the worker's composition root."""

    def topic(self, meta: TopicMeta) -> Ref:
        """Return the Topic actor of this worker; it is started if necessary."""

    def subscription(self, topic: TopicMeta, meta: SubscriptionMeta, topic_node: str) -> Ref:
        """Return the Subscription actor of this worker; it is started if necessary."""


class Frontend(LoopActor):
    """Opens handles and carries requests, as `ister.transport.gateway.GatewayEvents` and as an actor."""

    def __init__(
        self,
        system: System,
        path: str,
        gateway: Gateway,
        actors: Actors,
        describe: Callable[[], dict[str, Any]],
    ) -> None:
        super().__init__(system, path)
        self._gateway = gateway
        self._actors = actors
        self._describe = describe
        self._directory = system.ref(BROKER, DIRECTORY_PATH)
        self.questions = OpenQuestions()
        # sessions that made ephemeral topics, and the numbers the Directory knows them by
        self._owners: dict[Session, int] = {}
        self._owned_last = 0
        self._keys = 0
        self._swept_s = system.clock.monotonic()

    def on_start(self) -> None:
        """Start checking for sessions that fall silent."""
        self.call_later(SWEEP_S, self._sweep)

    def _sweep(self) -> None:
        self.call_later(SWEEP_S, self._sweep)
        now_s = self.clock.monotonic()
        late_s = now_s - self._swept_s - SWEEP_S
        self._swept_s = now_s
        # otherwise this process was paused: it must first read what its clients sent meanwhile
        if late_s < SWEEP_S:
            self._gateway.sweep()
        for ticket in self.questions.overdue(now_s):
            self._give_up(ticket)
        for ticket, question, asked_s in self.questions.unheard(now_s):
            self._locate(ticket, question, asked_s)

    # ---- GatewayEvents: called by the gateway, in the worker's loop ---------------------------------------------

    def open_producer(self, handle: Handle, header: Header) -> None:
        """Locate the topic."""
        check_topic_name(header[Key.TOPIC])
        if not header[Key.PRODUCER]:
            raise UsageError("producer id 0 is reserved: choose another number")
        self._ask_where(Opening(handle, handle.generation, header))

    def open_consumer(self, handle: Handle, header: Header) -> None:
        """Locate the subscription, or tell its consumer that the client reconnected."""
        if handle.target is not None:
            handle.target.tell(Reopen(handle, handle.generation, header))
            return
        check_topic_name(header[Key.TOPIC])
        check_subscription_name(header[Key.SUBSCRIPTION])
        self._ask_where(Opening(handle, handle.generation, header))

    def _ask_where(self, question: Opening | Attaching) -> None:
        """Ask the Directory where a topic or subscription runs. Raises RemoteError `busy`."""
        self._locate(self._expect(question), question, None)

    def _locate(self, ticket: int, question: Question, asked_s: float | None) -> None:
        """Send that question, or repeat it: it was asked first at `asked_s`."""
        where = self.address
        if isinstance(question, Attaching):
            self._directory.tell(Locate(question.message.topic.name, where, ticket))
        elif isinstance(question, Opening):
            if question.handle.generation != question.generation:
                return  # closed, or opened again, meanwhile
            header = question.header
            topic = header[Key.TOPIC]
            if header[Key.TYPE] == Type.OPEN_PRODUCER:
                self._directory.tell(Locate(topic, where, ticket))
                return
            type_, start = header[Key.SUBSCRIPTION_TYPE], str(header.get(Key.START, "latest"))
            name, options = header[Key.SUBSCRIPTION], header.get(Key.ARGUMENTS, {})
            self._directory.tell(
                LocateSubscription(topic, name, type_, start, options, where, ticket, asked_s)
            )

    def publish(
        self, handle: Handle, sequence: int, count: int, columns: int, frames: Sequence[Buffer], /
    ) -> None:
        """Hand a batch to its topic."""
        handle.target.topic.tell(Publish(handle, sequence, count, columns, frames))

    def consumer_frame(self, handle: Handle, header: Header) -> None:
        """Hand credit or an acknowledgment to its consumer."""
        handle.target.tell(ConsumerFrame(header))

    def close(self, handle: Handle, ref: int | None) -> None:
        """Close a handle."""
        target = handle.target
        if isinstance(target, Publisher):
            target.topic.tell(CloseProducer(handle, handle.generation, ref))
        elif target is not None:
            target.tell(CloseConsumer(handle, ref))
        else:
            self._closed(handle, ref)

    def _closed(self, handle: Handle, ref: int | None) -> None:
        self._gateway.forget(handle)
        if ref is not None:
            self._gateway.send(handle.session, {Key.TYPE: Type.DONE, Key.REF: ref})

    def request(self, session: Session, ref: int, operation: str, arguments: dict[str, object]) -> None:
        """Send a request to the Directory."""
        self.questions.check_session(session)
        ticket = self._expect(Requesting(session, ref))
        owner = self._owner(session) if operation == "topic.create" and "ephemeral" in arguments else 0
        asked_s = self.clock.monotonic()
        self._directory.tell(Ask(operation, encode_result(arguments), self.address, ticket, owner, asked_s))

    def session_ended(self, session: Session) -> None:
        """Close all handles of a session that has ended, and have its ephemeral topics deleted."""
        for handle in list(session.handles.values()):
            self.close(handle, None)
        if self._owners.pop(session, None) is not None:
            self._tell_sessions()

    def _owner(self, session: Session) -> int:
        """Return the number of a session that makes an ephemeral topic."""
        if not self._owned_last:
            self.call_later(KEEP_S, self._keep_sessions)
        if session not in self._owners:
            self._owned_last += 1
            self._owners[session] = self._owned_last
        return self._owners[session]

    def _keep_sessions(self) -> None:
        """Repeat which sessions exist: mail can be lost."""
        self.call_later(KEEP_S, self._keep_sessions)
        self._tell_sessions()

    def _tell_sessions(self) -> None:
        self._directory.tell(KeptSessions(self.system.node, list(self._owners.values())))

    # ---- answers of the Directory -------------------------------------------------------------------------------

    def _expect(self, question: Question) -> int:
        return self.questions.ask(question, self.clock.monotonic())

    def _give_up(self, ticket: int) -> None:
        pending = self.questions.answered(ticket)
        if pending is not None:
            self._refuse(pending, RemoteError("unavailable", "the Directory did not answer; try again"))

    def _refuse(self, pending: Question, error: IsterError) -> None:
        if isinstance(pending, Requesting):
            self._gateway.send_error(pending.session, error, {Key.REF: pending.ref})
            return
        if isinstance(pending, Attaching):
            self._refuse_attaching(pending.message, error)
            return
        handle = pending.handle
        if handle.generation == pending.generation and handle.state == "opening":
            self._close_handle(handle, error, {Key.REF: pending.header[Key.REF]})

    @receives(Refused)
    def on_refused(self, refused: Refused) -> None:
        """Pass a refusal on to the client."""
        pending = self.questions.answered(refused.ticket)
        if pending is not None:
            self._refuse(pending, RemoteError(refused.code, refused.text))

    @receives(Answer)
    def on_answer(self, answer: Answer) -> None:
        """Pass a result on to the client."""
        pending = self.questions.answered(answer.ticket)
        if isinstance(pending, Requesting):
            self._gateway.send(pending.session, {Key.TYPE: Type.RESULT, Key.REF: pending.ref}, (answer.body,))

    @receives(Located)
    def on_located(self, located: Located) -> None:
        """Open the handle here, or tell the client where it can be opened."""
        pending = self.questions.answered(located.ticket)
        if isinstance(pending, Attaching):
            self._attach(pending.message, located)
            return
        if not isinstance(pending, Opening):
            return
        handle, header = pending.handle, pending.header
        if handle.generation != pending.generation or handle.state != "opening":
            return  # closed, or opened again, meanwhile
        if located.node != self.system.node:
            moved = {
                Key.TYPE: Type.MOVED,
                Key.REF: header[Key.REF],
                Key.HANDLE: handle.number,
                Key.ENDPOINT: located.endpoint,
            }
            self._gateway.send(handle.session, moved)
            self._gateway.forget(handle)
        elif located.subscription is None:
            topic = self._actors.topic(located.topic)
            topic.tell(
                OpenProducer(
                    handle,
                    pending.generation,
                    header[Key.REF],
                    header[Key.PRODUCER],
                    header.get(Key.SEQUENCE, 0),
                )
            )
        else:
            self._start_consumer(handle, header, located)

    def _attach(self, message: Attach | Deposit, located: Located) -> None:
        """Start the topic that a message is for, unless another topic has its name by now."""
        if located.node == self.system.node and located.topic.incarnation == message.topic.incarnation:
            self._actors.topic(located.topic).tell(message)
        else:
            text = f"topic {message.topic.name!r} was deleted"
            self._refuse_attaching(message, RemoteError("topic-deleted", text))

    def _refuse_attaching(self, message: Attach | Deposit, error: IsterError) -> None:
        if isinstance(message, Attach):
            self.system.at(message.watcher).tell(TopicFailed(error.code, error.text))
        else:
            refused = DepositRefused(message.producer_id, message.sequence, error.code, error.text)
            self.system.at(message.reply).tell(refused)

    def _start_consumer(self, handle: Handle, header: Header, located: Located) -> None:
        assert located.subscription is not None
        subscription = self._actors.subscription(located.topic, located.subscription, located.topic_node)
        self._keys += 1
        handle.target = self.system.spawn(
            Consumer,
            f"consumer/{self._keys}",
            key=self._keys,
            handle=handle,
            header=header,
            gateway=self._gateway,
            subscription=subscription,
            subscription_type=located.subscription.type,
            strategy=located.topic.dispatch,
            instance=instance_of(located.topic, located.subscription),
        )

    # ---- tasks of the Directory ---------------------------------------------------------------------------------

    @receives(TopicTask)
    def on_topic_task(self, task: TopicTask) -> None:
        """Have a topic of this worker carry out what the Directory was asked for."""
        self._actors.topic(task.topic).tell(message_to_topic(task))

    @receives(SubscriptionTask)
    def on_subscription_task(self, task: SubscriptionTask) -> None:
        """Have a subscription of this worker carry out what the Directory was asked for."""
        subscription = self._actors.subscription(task.topic, task.subscription, task.topic_node)
        subscription.tell(message_to_subscription(task))

    @receives(Describe)
    def on_describe(self, command: Describe) -> None:
        """Describe this process."""
        self.system.at(command.reply).tell(Answer(command.ticket, encode_result(self._describe())))

    # ---- the other processes ------------------------------------------------------------------------------------

    @receives(NodeUp, NodeDown)
    def on_node_changed(self, change: NodeUp | NodeDown) -> None:
        """Tell the actors of this worker that may have dealt with the process."""
        news = NodeStarted(change.node) if isinstance(change, NodeUp) else NodeStopped(change.node)
        for path in self.system.paths():
            kind = path.partition("/")[0]
            if kind == "topic" or (
                kind in ("subscription", "deadletters", "relay") and isinstance(news, NodeStarted)
            ):
                self.system.ref(self.system.node, path).tell(news)

    def unclaimed(self, path: str, message: object) -> None:
        """Answer what was sent to an actor that has ended or not started; release the rest."""
        gone = RemoteError("unavailable", "it failed, or was deleted, and is started again: open it again")
        if isinstance(message, Attach | Deposit) and path.startswith("topic/"):
            try:
                self._ask_where(Attaching(message))
            except RemoteError as error:
                self._refuse(Attaching(message), error)
        elif isinstance(message, _ANSWERED):
            text = "it was being deleted or restarted; try again"
            self.system.at(message.reply).tell(Refused(message.ticket, "unavailable", text))
        elif isinstance(message, OpenProducer):
            handle = message.handle
            if handle.generation == message.generation and handle.state == "opening":
                self._close_handle(handle, gone, {Key.REF: message.ref})
        elif isinstance(message, Publish):
            if message.handle.state == "producer":  # otherwise it was told, and may be opening again already
                self._close_handle(message.handle, gone, {})
        elif isinstance(message, AttachConsumer | Pause):
            message.consumer.tell(Evicted(gone.code, gone.text))
        elif isinstance(message, Deliver):
            piece = message.piece  # nobody got it: that does not count as an attempt
            held = [Held(first, end, piece.attempt - 1, piece.failures) for first, end in piece.parts]
            message.subscription.tell(Returned(0, held, 0.0, "the consumer is gone"))
        elif isinstance(message, Reopen):
            self._open_anew(message)
        elif isinstance(message, CloseProducer | CloseConsumer):
            self._closed(message.handle, message.ref)
        else:
            log.debug("no actor at %s for %.200r", path, message)

    def _close_handle(self, handle: Handle, error: IsterError, echo: Header) -> None:
        self._gateway.send_error(handle.session, error, {**echo, Key.HANDLE: handle.number, Key.CLOSED: True})
        self._gateway.forget(handle, error)

    def _open_anew(self, reopen: Reopen) -> None:
        """Start a new consumer for a client that wants to continue with one that has ended."""
        handle = reopen.handle
        if handle.generation != reopen.generation or handle.state != "opening":
            return
        handle.target = None
        try:
            self.open_consumer(handle, reopen.header)
        except IsterError as error:
            self._close_handle(handle, error, {Key.REF: reopen.header[Key.REF]})
