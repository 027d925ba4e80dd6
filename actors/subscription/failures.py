"""Failures: how often a message is tried, its back-off, and what happens when it has failed too often.

Runs in a worker process, as a part of a Subscription. It owns the failure policy and the poison messages; these are
kept by `actors/poison.py` until the dead-letter topic has them or an operator has decided.

Invariants
- a poison message is acknowledged once it is durable in the dead-letter topic, or dropped by policy, and not before
- dead letters are read from the log each time they are sent; none is kept in memory
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from ister.actors.explain_state import State, Stop
from ister.actors.ledger import Held, back_off_ms
from ister.actors.messages import Buried, Bury, BuryDelayed, Letter, Notice, StopBurying, Unblock, Unburied
from ister.actors.poison import Poison, Poisoned, Policy
from ister.actors.runtime import Ref, Timer, receives
from ister.actors.subscription.cursor_log import CursorLog
from ister.actors.subscription.log_access import LogAccess
from ister.actors.subscription.parts import Host, Queue, SubscriptionPart
from ister.bodies import decode_attributes
from ister.errors import RemoteProtocolError
from ister.settings import SubscriptionSettings
from ister.words import counted

log = logging.getLogger("ister.subscription")

BURY_BYTES_MAX: Final = 4 << 20  # dead letters in transit to the dead-letter topic at a time
# a letter that was refused is tried again after this: a setting may have been changed
TAKE_UP_S: Final = 60.0
BURY_AGAIN_S: Final = 10.0  # DeadLetters may have failed and have lost what it was sent


class Failures(SubscriptionPart):
    """The failed messages of one subscription.

    `undertaker()` returns the actor that publishes dead letters, which is started if necessary. `defaults` apply where
    the subscription has no option of its own.
    """

    def __init__(
        self,
        subscription: Host,
        queue: Queue,
        journal: CursorLog,
        access: LogAccess,
        *,
        undertaker: Callable[[], Ref],
        defaults: SubscriptionSettings,
    ) -> None:
        self._subscription = subscription
        self._topic, self._name = subscription.topic.name, subscription.meta.name
        self._queue = queue
        self._journal = journal
        self._access = access
        self._undertaker = undertaker
        self._defaults = defaults
        self.policy = Policy.of(subscription.topic, subscription.meta, defaults)
        self.poison = Poison()
        self._bury_timer: Timer | None = None
        self._take_up_s = 0.0  # when refused letters are tried again
        self._burying_bytes = 0
        self._bury_trouble: str | None = None
        self._given_up: Poisoned | None = None  # the last message that was given up
        self._dead_lettered = 0
        self._dropped = 0

    def forget(self) -> None:
        """Forget all poison messages."""
        self.poison = Poison()
        self._burying_bytes, self._bury_trouble = 0, None

    def topic_updated(self) -> None:
        """Apply the topic's new settings: it may have a dead-letter topic now."""
        self._look_at_policy()

    def settings_updated(self) -> None:
        """Apply the subscription's new settings."""
        self._look_at_policy()

    def _look_at_policy(self) -> None:
        self.policy = Policy.of(self._subscription.topic, self._subscription.meta, self._defaults)

    # ---- what comes back ----------------------------------------------------------------------------------------

    def take_back(self, held: Sequence[Held], delay_s: float | None, why: str, *, failed: bool) -> None:
        """Queue returned messages for redelivery, or give them up; without a delay, failed ones get their back-off."""
        clock, policy = self._subscription.clock, self.policy
        now_s = clock.monotonic()
        for part in held:
            failures = part.failures + failed
            poison = failed and policy.is_poison(failures)
            wait_s = 0.0 if poison else delay_s
            if wait_s is None:
                wait_s = back_off_ms(failures, policy.backoff_ms_min, policy.backoff_ms_max) / 1000
            if failed:
                wait_ms = round(wait_s * 1000)
                until_ms = clock.time_ms() + wait_ms if wait_ms else 0
                self._journal.note_failed(part.first, part.end, part.attempt, failures, until_ms, wait_ms)
            if poison:
                self._give_up(part._replace(failures=failures), why)
                continue
            again = part._replace(attempt=part.attempt + 1, failures=failures)
            self._queue.again(again, now_s + wait_s if wait_s else now_s, now_s)
        self._subscription.wake()

    def is_blocked(self) -> bool:
        """Say whether an operator has to decide about a message; messages that are done meanwhile are forgotten."""
        blocking = self.poison.blocking
        while blocking and not self._journal.cursor.pending(blocking[0].held.first, blocking[0].held.end):
            del blocking[0]  # acknowledged late, or trimmed: no decision is needed any more
        return bool(blocking)

    # ---- what fails too often -----------------------------------------------------------------------------------

    def _give_up(self, part: Held, why: str) -> None:
        """Apply the subscription's policy to messages that failed too often."""
        self._queue.hold(part.first, part.end)
        for first, end in self._journal.cursor.pending(part.first, part.end):
            poisoned = self._given_up = Poisoned(
                part._replace(first=first, end=end), self._subscription.clock.time_ms(), why
            )
            if self.policy.poison == "drop":
                self._drop(poisoned)
            elif self.policy.poison == "block":
                self.poison.blocking.append(poisoned)
                times = counted(part.failures, "time")
                text = (
                    f"offset {first} failed {times}, the last time: {why}; nothing is delivered until: "
                    f"ister subscription unblock {self._topic} {self._name}"
                )
                log.warning("subscription %s of topic %s is blocked: %s", self._name, self._topic, text)
                self._subscription.consumers.notify(Notice("blocked", end - first, text, first))
            else:
                self.poison.bury(poisoned)
        self._bury()

    def _drop(self, poisoned: Poisoned) -> None:
        held = poisoned.held
        self._dropped += self._journal.finish(held.first, held.end)
        log.warning(
            "subscription %s of topic %s drops offsets %d to before %d after %d failures: %s",
            self._name,
            self._topic,
            held.first,
            held.end,
            held.failures,
            poisoned.reason,
        )

    def _bury(self) -> None:
        """Send poison messages to the dead-letter topic, up to the limit in transit."""
        letters: list[Letter] = []
        while self._burying_bytes < BURY_BYTES_MAX and (taken := self.poison.take()) is not None:
            offset, poisoned = taken
            letter = None if self._is_done(offset) else self._read_letter(offset, poisoned)
            if letter is not None:
                self._burying_bytes += len(letter.payload)
                letters.append(letter)
            elif self._is_done(offset):
                self.poison.done([offset])
            else:  # it cannot be read now
                self.poison.put_back(offset)
                break
        if letters:
            self._undertaker().tell(Bury(letters, self.policy.dead_letter_topic))
        if self.poison.messages and (self._bury_timer is None or not self._bury_timer.pending):
            self._bury_timer = self._subscription.call_later(BURY_AGAIN_S, self._bury_again)

    def may_read(self) -> None:
        """Read the letters that could not be read before."""
        self._bury()

    def _is_done(self, offset: int) -> bool:
        return self._journal.cursor.is_acknowledged(offset)

    def _bury_again(self) -> None:
        """Send the letters in transit again; DeadLetters ignores those that it still has."""
        self.poison.done([offset for offset, _ in self.poison.in_hand() if self._is_done(offset)])
        if self._subscription.clock.monotonic() >= self._take_up_s:
            self.poison.take_up()
        letters = [
            letter
            for offset, poisoned in self.poison.in_hand()
            if (letter := self._read_letter(offset, poisoned)) is not None
        ]
        if letters:
            self._undertaker().tell(Bury(letters, self.policy.dead_letter_topic))
        self._bury()

    def _read_letter(self, offset: int, poisoned: Poisoned) -> Letter | None:
        sheet = self._access.read(lambda: self._access.source.sheet_at(offset))
        if sheet is None:
            return None
        at, held = offset - sheet.first, poisoned.held
        try:
            attributes = decode_attributes(sheet.attributes[at])
        except RemoteProtocolError:  # an error of the message's producer: no consumer could read it either
            attributes = {}
        attributes |= {
            "ister.topic": self._topic,
            "ister.subscription": self._name,
            "ister.offset": str(offset),
            "ister.producer": f"{sheet.producer_id(at):016x}",
            "ister.timestamp": str(sheet.timestamp_ms(at)),
            "ister.attempts": str(held.attempt),
            "ister.reason": poisoned.reason,
            "ister.dead_lettered_at": str(poisoned.since_ms),
        }
        return Letter(offset, bytes(sheet.payload(at, at + 1)), sheet.keys[at], attributes)

    @receives(Buried)
    def on_buried(self, command: Buried) -> None:
        """Mark messages as done that are durable in the dead-letter topic."""
        done = self.poison.done(command.offsets)
        for offset in done:
            self._dead_lettered += self._journal.finish(offset, offset + 1)
        if not self.poison.has_put_off:
            self._bury_trouble = None
        self._burying_bytes = 0  # counted again from what is sent next; at most twice the limit is in transit
        self._bury()
        if done:
            self._subscription.wake()

    @receives(Unburied)
    def on_unburied(self, command: Unburied) -> None:
        """Continue with the letters after one that the dead-letter topic refused; that one is tried again later."""
        self.poison.put_off(command.offset)
        self._take_up_s = self._subscription.clock.monotonic() + TAKE_UP_S
        self._bury_trouble = command.text
        self._burying_bytes = 0
        self._bury()

    @receives(BuryDelayed)
    def on_bury_delayed(self, delayed: BuryDelayed) -> None:
        """Note why dead letters wait."""
        self._bury_trouble = delayed.text

    @receives(Unblock)
    def on_unblock(self, command: Unblock) -> None:
        """Do with the messages that block what an operator decided: try them again, drop them, or bury them."""
        blocking = self.poison.unblock()
        now_s = self._subscription.clock.monotonic()
        for poisoned in blocking:
            if command.action == "drop":
                self._drop(poisoned)
            elif command.action == "dead-letter":
                self.poison.bury(poisoned)
            else:
                held = poisoned.held
                self._journal.note_failed(held.first, held.end, held.attempt, 0)
                self._queue.again(held._replace(attempt=held.attempt + 1, failures=0), now_s, now_s)
        if blocking:
            self._journal.flush()  # so that the operator's decision survives a restart
        self._bury()
        self._subscription.wake()
        messages = sum(poisoned.held.end - poisoned.held.first for poisoned in blocking)
        self._subscription.answer(command, {"messages": messages})

    def erase(self) -> None:
        """Stop sending dead letters."""
        if self.poison.messages:
            self._undertaker().tell(StopBurying())

    # ---- what it reports ----------------------------------------------------------------------------------------

    def description(self) -> Mapping[str, Any]:
        """Return what happened to the messages that failed too often."""
        return {
            "dead_lettered": self._dead_lettered,
            "dead_letter_topic": self.policy.dead_letter_topic,
            "burying": self.poison.messages,
            "dropped_poison": self._dropped,
            "blocked": bool(self.poison.blocking),
        }

    def state(self) -> State:
        """Return the same, and why dead letters wait."""
        blocking = self.poison.blocking
        return {
            "poison": _stop(blocking[0]) if blocking else None,
            "burying": self.poison.messages,
            "dead_letter_topic": self.policy.dead_letter_topic,
            "bury_trouble": self._bury_trouble,
            "dead_lettered": self._dead_lettered,
            "given_up": None if self._given_up is None else _stop(self._given_up),
        }


def _stop(poisoned: Poisoned) -> Stop:
    return {
        "first": poisoned.held.first,
        "end": poisoned.held.end,
        "attempts": poisoned.held.attempt,
        "since_ms": poisoned.since_ms,
        "text": poisoned.reason,
    }
