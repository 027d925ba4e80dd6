"""Dead letters: publishes given-up messages to their dead-letter topic, and reports when they are durable there.

Runs in a worker process, one actor per subscription with dead letters, beside it.

Invariants
- a letter is reported `Buried` once the dead-letter topic has it, durable at that topic's level, and never before
- one batch is in transit at a time, under a sequence number that it keeps: a lost answer stores no letter twice
- what is held here is bounded; letters beyond the bound are ignored, because the subscription has them on disk and
  asks again
- no letter is dropped: every failure is reported (`BuryDelayed`), and tried again at growing intervals
- a letter that the topic refuses stops no other: it is put aside, and its subscription is told (`Unburied`)
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from dataclasses import replace
from typing import Any, Final

from ister.actors.addresses import BROKER, DIRECTORY_PATH, actor_path
from ister.actors.messages import (
    Answer,
    Ask,
    Buried,
    Bury,
    BuryDelayed,
    Deposit,
    Deposited,
    DepositRefused,
    Letter,
    Locate,
    Located,
    NodeStarted,
    Refused,
    StopBurying,
    Unburied,
)
from ister.actors.options import DEAD_LETTERS, dead_letter_topic
from ister.actors.runtime import LoopActor, Ref, System, Timer, receives
from ister.backoff import BackOff
from ister.bodies import encode_attributes, pack_column, pack_lengths
from ister.storage.meta import SubscriptionMeta, TopicMeta
from ister.wire import Column, encode_result

log = logging.getLogger("ister.deadletters")

LETTERS_MAX: Final = 1000  # in hand
LETTERS_BYTES_MAX: Final = 8 << 20  # in hand; one letter that is larger fits alone
BATCH_BYTES_MAX: Final = 1 << 20  # of one batch; one letter that is larger goes alone
LETTER_OVERHEAD_BYTES: Final = 200  # what a letter takes beside its payload, key and attributes
RETRY_S_MIN: Final = 0.5
RETRY_S_MAX: Final = 30.0
# A request for a letter that was buried this recently was sent before the subscription knew that.
REMEMBERED_S: Final = 1.0
# Errors that concern a letter and not its topic: they last until a setting is changed.
OF_A_LETTER: Final = frozenset(
    {"batch-too-large", "message-too-large", "lengths-mismatch", "malformed", "invalid-argument"}
)
IDLE_S: Final = 60.0
# the name of the subscription of a dead-letter topic from which its letters are redriven
REDRIVE: Final = "redrive"
_CREATED: Final[dict[str, Any]] = {
    "dispatch": "reliable",
    "durability": "fsync",
    "retention_acknowledged": 1,
    DEAD_LETTERS: 1,
}


def dead_letters(system: System, topic: TopicMeta, meta: SubscriptionMeta, subscription: Ref) -> Ref:
    """Return the DeadLetters actor of a subscription of this worker; it is started if necessary."""
    path = actor_path("deadletters", topic, meta)
    if system.find(path) is not None:
        return system.ref(system.node, path)
    return system.spawn(DeadLetters, path, dead_letter_topic(meta), subscription)


class _Batch:
    """A batch in transit: its letters, and the mail that carries it."""

    def __init__(self, letters: list[Letter], deposit: Deposit) -> None:
        self.offsets = [letter.offset for letter in letters]
        self.deposit = deposit


class DeadLetters(LoopActor):
    """Publishes the dead letters of one subscription to the topic called `topic`, which is created if necessary."""

    def __init__(self, system: System, path: str, topic: str, subscription: Ref) -> None:
        super().__init__(system, path)
        self._topic = topic
        self._subscription = subscription
        self._directory = system.ref(BROKER, DIRECTORY_PATH)
        self._letters: OrderedDict[int, Letter] = (
            OrderedDict()
        )  # in hand, by offset, those on their way included
        self._bytes = 0
        self._buried: OrderedDict[int, float] = OrderedDict()  # when letters were buried lately, by offset
        self._alone: set[int] = set()  # offsets that are sent one by one: one of them was refused
        self._producer_id = self._new_producer()
        self._sequence = 0
        self._batch: _Batch | None = None
        self._found: TopicMeta | None = None  # the dead-letter topic, once located
        self._node = ""  # the node it runs on
        self._target: Ref | None = None  # its actor; None while it is located or created
        # what the Directory was asked for last: "topic.create", "locate" or "subscription.create"
        self._step = ""
        self._ticket = 0
        self._timer: Timer | None = None
        self._wait = BackOff(RETRY_S_MIN, RETRY_S_MAX)

    def _new_producer(self) -> int:
        return self.system.random.getrandbits(63) | 1

    def on_start(self) -> None:
        """Do nothing until letters arrive."""
        self._go_on()

    # ---- what is in hand ----------------------------------------------------------------------------------------

    @receives(Bury)
    def on_bury(self, command: Bury) -> None:
        """Accept letters, as many as there is room for."""
        if command.topic and command.topic != self._topic:
            if self._letters:
                return  # the letters in hand are for the old topic; they are asked for again
            self._topic, self._target, self._step = command.topic, None, ""
            self._ticket += 1  # answers of the Directory that are still to come are about the old topic
        idle = not self._letters
        self._forget_buried()
        again = [letter.offset for letter in command.letters if letter.offset in self._buried]
        if again:
            self._subscription.tell(Buried(again))
        for letter in command.letters:
            if letter.offset in self._letters or letter.offset in self._buried:
                continue
            size = _size(letter)
            if len(self._letters) >= LETTERS_MAX or (
                self._letters and self._bytes + size > LETTERS_BYTES_MAX
            ):
                break
            # A copy: the original may be a view of a segment, which would stay mapped.
            self._letters[letter.offset] = replace(letter, payload=bytes(letter.payload))
            self._bytes += size
        if idle:
            self._go_on()

    def _forget_buried(self) -> None:
        old_s = self.clock.monotonic() - REMEMBERED_S
        while self._buried and next(iter(self._buried.values())) < old_s:
            self._buried.popitem(last=False)

    @receives(StopBurying)
    def on_stop_burying(self, _command: StopBurying) -> None:
        """Stop; letters in hand are dropped."""
        self.stop_now()

    # ---- the dead-letter topic ----------------------------------------------------------------------------------

    def _go_on(self) -> None:
        """Take the next step, and repeat it after a while if nobody answers."""
        self._cancel()
        if not self._letters:
            self._timer = self.call_later(IDLE_S, self._end_idle)
            return
        if self._target is None:
            self._ask(self._step or "topic.create")
        else:
            if self._batch is None:
                self._batch = self._next_batch()
            assert self._found is not None
            self._target.tell(replace(self._batch.deposit, topic=self._found))
        self._timer = self.call_later(self._wait.next, self._unanswered)

    def _ask(self, step: str) -> None:
        self._step = step
        self._ticket += 1
        if step == "locate":
            self._directory.tell(Locate(self._topic, self.address, self._ticket))
            return
        arguments: dict[str, Any] = {"topic": self._topic}
        if step == "topic.create":
            arguments |= _CREATED
        else:
            arguments |= {"subscription": REDRIVE, "type": "exclusive", "start": "earliest"}
        self._directory.tell(Ask(step, encode_result(arguments), self.address, self._ticket))

    @receives(Answer)
    def on_answer(self, answer: Answer) -> None:
        """Continue: the topic, or its subscription, was created."""
        if answer.ticket == self._ticket:
            self._created()

    def _created(self) -> None:
        if self._step == "topic.create":
            self._step = "locate"
        elif self._step == "subscription.create" and self._found is not None:
            self._step = ""
            self._target = self.system.ref(self._node, actor_path("topic", self._found))
        self._go_on()

    @receives(Located)
    def on_located(self, located: Located) -> None:
        """Continue: the topic was located."""
        if located.ticket != self._ticket or self._step != "locate":
            return
        if located.topic.dispatch != "reliable":
            text = f"topic {self._topic!r} is non-reliable: it keeps no dead letters"
            self._delay(f"{text}; give the subscription another dead_letter_topic, or delete that topic")
            self._step = ""
            return
        self._found, self._node = located.topic, located.node
        self._step = "subscription.create"
        self._go_on()

    @receives(Refused)
    def on_refused(self, refused: Refused) -> None:
        """Continue if the refusal says that it exists already; otherwise try again later."""
        if refused.ticket != self._ticket:
            return
        if refused.code in ("topic-exists", "subscription-exists"):
            self._created()
            return
        if refused.code == "unknown-topic":  # deleted again meanwhile
            self._step = ""
        self._delay(f"the dead-letter topic {self._topic!r} cannot be had: {refused.text}")

    # ---- batches ------------------------------------------------------------------------------------------------

    def _next_batch(self) -> _Batch:
        letters: list[Letter] = []
        size = 0
        for letter in self._letters.values():
            size += _size(letter)
            alone = letter.offset in self._alone
            if letters and (size > BATCH_BYTES_MAX or alone):
                break
            letters.append(letter)
            if alone:
                break
        payloads = [letter.payload for letter in letters]
        frames = [pack_lengths(payloads), b"".join(payloads)]
        columns = Column.ATTRIBUTES
        if any(letter.key for letter in letters):
            columns |= Column.KEYS
            frames.append(pack_column([letter.key for letter in letters]))
        frames.append(pack_column([encode_attributes(letter.attributes) for letter in letters]))
        assert self._found is not None
        deposit = Deposit(
            self._found, self._producer_id, self._sequence, len(letters), columns, tuple(frames), self.address
        )
        return _Batch(letters, deposit)

    @receives(Deposited)
    def on_deposited(self, command: Deposited) -> None:
        """Report a durable batch as buried, and continue with the next."""
        batch = self._batch_of(command)
        if batch is None:
            return
        self._batch = None
        self._sequence += len(batch.offsets)
        self._wait.succeeded()
        now_s = self.clock.monotonic()
        self._forget_buried()
        for offset in batch.offsets:
            self._bytes -= _size(self._letters.pop(offset))
            self._alone.discard(offset)
            self._buried[offset] = now_s
        self._subscription.tell(Buried(batch.offsets))
        self._go_on()

    @receives(DepositRefused)
    def on_deposit_refused(self, refused: DepositRefused) -> None:
        """Send the batch again after a while, or, if the topic is another one now, once that was located."""
        batch = self._batch_of(refused)
        if batch is None:
            return
        if refused.code in OF_A_LETTER:
            self._set_apart(batch, refused)
            return
        if refused.code in ("topic-deleted", "unknown-topic"):
            self._target, self._step = None, ""
        elif refused.code.startswith(
            "sequence-"
        ):  # not caused by us: what the topic knows of this producer is not what was sent
            log.error("%s: %s", self, refused.text)
            self._producer_id, self._sequence, self._batch = self._new_producer(), 0, None
        self._delay(f"the dead-letter topic {self._topic!r} takes nothing: {refused.text}")

    def _set_apart(self, batch: _Batch, refused: DepositRefused) -> None:
        """Find out which letter is refused, and continue without it."""
        self._batch = None
        if len(batch.offsets) > 1:
            self._alone.update(batch.offsets)
        else:
            (offset,) = batch.offsets
            self._bytes -= _size(self._letters.pop(offset))
            self._alone.discard(offset)
            text = f"the dead-letter topic {self._topic!r} does not take the letter of offset {offset}: {refused.text}"
            log.error("%s: %s", self, text)
            self._subscription.tell(Unburied(offset, text))
        self._go_on()

    def _batch_of(self, answer: Deposited | DepositRefused) -> _Batch | None:
        batch = self._batch
        if batch is None:
            return None
        sent = batch.deposit
        return batch if (sent.producer_id, sent.sequence) == (answer.producer_id, answer.sequence) else None

    # ---- patience -----------------------------------------------------------------------------------------------

    def _unanswered(self) -> None:
        """Send the batch again: mail can be lost."""
        self._wait.failed()
        if self._wait.next >= 4 * RETRY_S_MIN:
            what = (
                "does not answer"
                if self._target is not None
                else "cannot be had: the Directory does not answer"
            )
            self._subscription.tell(
                BuryDelayed(f"the dead-letter topic {self._topic!r} {what}; it is tried again")
            )
        self._go_on()

    def _delay(self, text: str) -> None:
        log.warning("%s: %s", self, text)
        self._subscription.tell(BuryDelayed(text))
        self._cancel()
        self._timer = self.call_later(self._wait.next, self._go_on)
        self._wait.failed()

    def _end_idle(self) -> None:
        """Stop until there is something to do: most subscriptions have no dead letters for days."""
        if not len(self.inbox):
            self.stop_now()

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @receives(NodeStarted)
    def on_node_started(self, started: NodeStarted) -> None:
        """Send again what a restarted process, of the topic or of the Directory, has lost."""
        waits_for = BROKER if self._target is None else self._target.address.node
        if started.node == waits_for and self._letters:
            self._wait.succeeded()
            self._go_on()


def _size(letter: Letter) -> int:
    attributes = sum(len(name) + len(value) for name, value in letter.attributes.items())
    return len(letter.payload) + len(letter.key) + attributes + LETTER_OVERHEAD_BYTES
