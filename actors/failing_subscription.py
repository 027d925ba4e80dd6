"""Subscriptions and failure: how often a message is tried, and what becomes of it then.

Runs in a worker process. What failed too often is kept by `actors/poison.py` until the dead-letter topic has it, or an
operator has decided.

Invariants
- what is poison is acknowledged once it is durable in the dead-letter topic, or dropped by policy, and not before
- letters are read from the log when they are sent, and again when they must be sent again: none is kept in memory
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

from ister.actors.ledger import Held
from ister.actors.messages import (
    Answer,
    Buried,
    Bury,
    BuryDelayed,
    Explain,
    Letter,
    Notice,
    Seek,
    TopicUpdated,
    Unblock,
    Unburied,
    UpdateSubscription,
)
from ister.actors.poison import Poison, Poisoned, Policy
from ister.actors.runtime import Ref, Timer, receives
from ister.actors.timed_subscription import TimedSubscription
from ister.errors import RemoteProtocolError
from ister.settings import SubscriptionSettings
from ister.wire import decode_attributes, encode_result

log = logging.getLogger("ister.subscription")

BURY_BYTES_MAX: Final = 4 << 20  # on their way to the dead-letter topic at a time
_DEFAULTS: Final = SubscriptionSettings()
TAKE_UP_S: Final = (
    60.0  # a letter that was refused is tried again so often: somebody may have changed a setting
)
BURY_AGAIN_S: Final = 10.0  # the undertaker may have failed, and knows nothing


class FailingSubscription(TimedSubscription):
    """A subscription that gives messages up which fail too often.

    `undertaker()` returns the actor that puts dead letters into their topic, started if need be; `defaults` are what
    counts where the subscription has no option of its own.
    """

    def __init__(
        self,
        *args: Any,
        undertaker: Callable[[], Ref],
        defaults: SubscriptionSettings = _DEFAULTS,
        **given: Any,
    ) -> None:
        super().__init__(*args, **given)
        self._undertaker = undertaker
        self._defaults = defaults
        self._policy = Policy.of(self.topic, self.meta, defaults)
        self._poison = Poison()
        self._bury_timer: Timer | None = None
        self._take_up_s = 0.0  # when what was put off is tried once more
        self._burying_bytes = 0
        self._bury_trouble: str | None = None
        self._given_up: Poisoned | None = None  # the last one
        self.dead_lettered = 0
        self.dropped = 0

    def _failures_max(self) -> int:
        return self._policy.max_deliveries

    def _forget_all(self) -> None:
        super()._forget_all()
        self._poison = Poison()
        self._burying_bytes, self._bury_trouble = 0, None

    def _again(self, held: Held, ready_at_s: float, now_s: float) -> None:
        """Have messages delivered again, not before `ready_at_s`."""
        raise NotImplementedError

    def _reply(self, command: Seek | Unblock | UpdateSubscription | Explain, body: Any) -> None:
        self.system.at(command.reply).tell(Answer(command.ticket, encode_result(body)))

    def _look_at_policy(self) -> None:
        """Go by the settings as they are now."""
        self._policy = Policy.of(self.topic, self.meta, self._defaults)

    @receives(TopicUpdated)
    def on_topic_updated(self, command: TopicUpdated) -> None:
        """Go by the topic's new settings: it may take dead letters from now on."""
        super().on_topic_updated(command)
        self._look_at_policy()

    # ---- what fails too often -----------------------------------------------------------------------------------

    def _give_up(self, part: Held, why: str) -> None:
        """Do with messages that failed too often what the subscription's policy says."""
        for first, end in self._log.cursor.pending(part.first, part.end):
            poisoned = self._given_up = Poisoned(
                part._replace(first=first, end=end), self.clock.time_ms(), why
            )
            if self._policy.poison == "drop":
                self._drop(poisoned)
            elif self._policy.poison == "block":
                self._poison.blocking.append(poisoned)
                text = (
                    f"offset {first} failed {part.failures} times, the last time: {why}; nothing is delivered until: "
                    f"ister subscription unblock {self.topic.name} {self.meta.name}"
                )
                log.warning("subscription %s of %s is blocked: %s", self.meta.name, self.topic.name, text)
                self._notify(Notice("blocked", end - first, text, first))
            else:
                self._poison.bury(poisoned)
        self._bury()

    def _drop(self, poisoned: Poisoned) -> None:
        held = poisoned.held
        self.dropped += self._log.note(held.first, held.end)
        self._settled(held.first, held.end)
        log.warning(
            "subscription %s of %s drops offsets %d to before %d after %d failures: %s",
            self.meta.name,
            self.topic.name,
            held.first,
            held.end,
            held.failures,
            poisoned.reason,
        )

    def _bury(self) -> None:
        """Put poison on its way to the dead-letter topic, as much as may be on its way at a time."""
        letters: list[Letter] = []
        while self._burying_bytes < BURY_BYTES_MAX and (taken := self._poison.take()) is not None:
            offset, poisoned = taken
            letter = None if self._is_done(offset) else self._read_letter(offset, poisoned)
            if letter is not None:
                self._burying_bytes += len(letter.payload)
                letters.append(letter)
            elif self._is_done(offset):
                self._poison.done([offset])
            else:  # it cannot be read now
                self._poison.put_back(offset)
                break
        if letters:
            self._undertaker().tell(Bury(letters, self._policy.dead_letter_topic))
        if self._poison.messages and (self._bury_timer is None or not self._bury_timer.pending):
            self._bury_timer = self.call_later(BURY_AGAIN_S, self._bury_again)

    def _is_done(self, offset: int) -> bool:
        return self._log.cursor.is_acknowledged(offset)

    def _bury_again(self) -> None:
        """Send again what is on its way: whoever has it in hand already ignores it."""
        self._poison.done([offset for offset, _ in self._poison.in_hand() if self._is_done(offset)])
        if self.clock.monotonic() >= self._take_up_s:
            self._poison.take_up()
        letters = [
            letter
            for offset, poisoned in self._poison.in_hand()
            if (letter := self._read_letter(offset, poisoned)) is not None
        ]
        if letters:
            self._undertaker().tell(Bury(letters, self._policy.dead_letter_topic))
        self._bury()

    def _read_letter(self, offset: int, poisoned: Poisoned) -> Letter | None:
        sheet = self._read(lambda: self._source.sheet_at(offset))
        if sheet is None:
            return None
        at, held = offset - sheet.first, poisoned.held
        try:
            attributes = decode_attributes(sheet.attributes[at])
        except RemoteProtocolError:  # its producer's own; nobody could read them
            attributes = {}
        attributes |= {
            "ister.topic": self.topic.name,
            "ister.subscription": self.meta.name,
            "ister.offset": str(offset),
            "ister.producer": f"{sheet.batch.producer_id:016x}",
            "ister.timestamp": str(sheet.batch.timestamp_ms),
            "ister.attempts": str(held.attempt),
            "ister.reason": poisoned.reason,
            "ister.dead_lettered_at": str(poisoned.since_ms),
        }
        return Letter(offset, bytes(sheet.payload(at, at + 1)), sheet.keys[at], attributes)

    @receives(Buried)
    def on_buried(self, command: Buried) -> None:
        """Take what is durable in the dead-letter topic as done."""
        done = self._poison.done(command.offsets)
        for offset in done:
            self.dead_lettered += self._log.note(offset, offset + 1)
            self._settled(offset, offset + 1)
        if not self._poison.has_put_off:
            self._bury_trouble = None
        self._burying_bytes = 0  # counted anew with what is sent next; at most twice as much is on its way
        self._bury()
        if done:
            self._wake()

    @receives(Unburied)
    def on_unburied(self, command: Unburied) -> None:
        """Go on with the letters behind one that the dead-letter topic does not take; that one is tried again later."""
        self._poison.put_off(command.offset)
        self._take_up_s = self.clock.monotonic() + TAKE_UP_S
        self._bury_trouble = command.text
        self._burying_bytes = 0
        self._bury()

    @receives(BuryDelayed)
    def on_bury_delayed(self, delayed: BuryDelayed) -> None:
        """Note why dead letters wait."""
        self._bury_trouble = delayed.text

    @receives(Unblock)
    def on_unblock(self, command: Unblock) -> None:
        """Go on behind what blocks, as an operator decided: try it again, drop it, or bury it."""
        blocking = self._poison.unblock()
        now_s = self.clock.monotonic()
        for poisoned in blocking:
            if command.action == "drop":
                self._drop(poisoned)
            elif command.action == "dead-letter":
                self._poison.bury(poisoned)
            else:
                held = poisoned.held
                self._again(held._replace(attempt=held.attempt + 1, failures=0), now_s, now_s)
        self._bury()
        self._wake()
        messages = sum(poisoned.held.end - poisoned.held.first for poisoned in blocking)
        self._reply(command, {"messages": messages})
