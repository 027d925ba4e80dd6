"""What one consumer has for its program, and the credit for more: deliveries that wait, and the one in hand.

Decides how many messages go to the program at a time, and what the broker is told of that: credit, and how many
messages the program has, or may have by now. What the program says of them is in `acknowledgments.py`, the rest of the
conversation in `attachment.py`. Pure: no socket, clock or thread. The caller holds the client's lock.

Invariants
- what is in `queue` never exceeds the credit given (bytes: by one delivery), so memory is bounded
- credit is returned only for messages that the program was given
- a reader continues at the first message that was not handed out, wherever it opens again
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from ister import wire
from ister.message import Batch, Delivery, Hand
from ister.pace import START_ALONE, START_SHARED, Pace
from ister.wire import Key, Limits, Type

CREDIT_MESSAGES_MAX: Final = 65_536  # of a consumer whose credit follows its program's pace
# Credit is returned once this much of it is used, and a sixteenth of all, or half of a small credit: often enough to
# show that the program reads, and rarely enough that a frame stands for many messages.
CREDIT_BACK_MESSAGES: Final = 256
CREDIT_BACK_BYTES: Final = 256 << 10
# messages; a program that takes no more at a time has its acknowledgments sent before the report of what is next
ACK_AT_ONCE: Final = 64


class Speaker(Protocol):
    """What handing out needs of the consumer it is part of."""

    def say(self, kind: int, more: wire.Header) -> bool:
        """Send a frame about this consumer; False where it is not open, and nothing was sent."""

    def expect_leave(self) -> int | None:
        """Return a REF whose answer is brought to `Handing.on_leave`; `None` where the consumer is not open."""


class Handing:
    """One consumer's messages on their way to the program."""

    def __init__(
        self,
        speaker: Speaker,
        flush: Callable[[], None],
        *,
        shares: bool,
        credit_messages: int | None,
        credit_bytes: int,
    ) -> None:
        """`flush()` sends the acknowledgments made so far; `shares`: other consumers may get what this one leaves.

        Without `credit_messages` the credit follows the program's pace.
        """
        self.queue: deque[Delivery] = deque()
        self.sharing = 1  # how many consumers the program takes from in turn, when it is this one's turn
        self.next: int | None = None  # of a reader: the first offset that was not handed out
        start = START_SHARED if shares else START_ALONE
        self.credit_messages = start if credit_messages is None else credit_messages
        self.credit_bytes = credit_bytes
        self.handed = 0  # messages since OPENED that are the program's, or in the iterator that it takes from
        self.tells = False  # the broker wants to be told what the program takes
        self._speaker = speaker
        self._flush = flush
        self._in_hand: Delivery | None = None  # the last one that was taken
        self._at = 0  # its messages up to this index were handed out, or are in the iterator that was
        self._pace = Pace(start, CREDIT_MESSAGES_MAX)
        self._paced = credit_messages is None
        self._most = CREDIT_MESSAGES_MAX
        self._now = 0.0  # when the program last asked for something
        self._used_messages = 0
        self._used_bytes = 0
        self._recalled = False  # the credit is withheld until the program asks for something
        # What the broker is told about messages that the program takes, counted since OPENED
        self._came = 0
        self._told = 0  # these may be handed out
        self._singly = 0  # deliveries in the queue that are handed out one by one
        self._asking: int | None = None  # the REF of the question whether the next one may be handed out
        self._leave = False  # it may
        # The last message was handed out alone, and its acknowledgment may be in transit: the next one waits for the
        # answer to a question after that acknowledgment; otherwise a program that is killed would seem to have died of
        # both.
        self._after_singly = False

    # ---- coming in -----------------------------------------------------------------------------------------------

    def restart(self, limits: Limits) -> None:
        """The consumer is opened, perhaps again: nothing has come yet, and no credit is used."""
        self.queue.clear()
        # what is left of a delivery in hand is handed out without credit: this open has given none for it
        self._used_messages = 0 if self._in_hand is None else self._at - self._in_hand.count
        self._used_bytes = 0
        self._came = self.handed = self._told = self._singly = 0
        self.tells = self._leave = self._recalled = self._after_singly = False
        self._asking = None
        self.credit_messages = min(self.credit_messages, limits.credit_messages_max)
        self.credit_bytes = min(self.credit_bytes, limits.credit_bytes_max)

    def on_delivery(self, delivery: Delivery) -> None:
        """Take in what the broker delivered."""
        self._came += delivery.count
        self._singly += delivery.singly
        self.queue.append(delivery)

    def on_sought(self) -> None:
        """The subscription was moved: what the program was not given is void, and its credit is for what follows."""
        self._drop_waiting()
        self._give_credit()

    def on_recalled(self) -> None:
        """The broker gave what waits here to others, and all credit is used until the program asks for something."""
        self._drop_waiting()
        self._recalled = True
        self._used_messages, self._used_bytes = self.credit_messages, self.credit_bytes

    def _drop_waiting(self) -> None:
        """Drop what the program was not given: the broker has taken it back."""
        for delivery in self.queue:
            self._used_messages += delivery.count
            self._used_bytes += delivery.size
        if self._in_hand is not None:
            self._used_messages += self._in_hand.count - self._at
        self.queue.clear()
        self.withhold()
        self._singly, self._asking, self._leave = 0, None, False
        self.handed = self._came  # later messages come after it

    def withhold(self) -> None:
        """Hand out nothing more of the present delivery."""
        if self._in_hand is not None:
            self._in_hand.withhold()
            self._in_hand = None

    # ---- handing out ---------------------------------------------------------------------------------------------

    @property
    def has_in_hand(self) -> bool:
        """Whether something of the delivery that was taken last was not handed out."""
        delivery = self._in_hand
        return delivery is not None and (self._at < delivery.count or delivery.unseen > 0)

    @property
    def asks(self) -> bool:
        """Whether the broker still has to say that the next message may be handed out."""
        return self._asking is not None

    @property
    def has_some(self) -> bool:
        """Whether there is a message to hand out, or a question to ask the broker."""
        if self._recalled:
            return True
        if self.asks:
            return self._in_hand is not None and self._in_hand.unseen > 0
        return bool(self.queue) or self.has_in_hand

    def asked(self, now: float) -> None:
        """Note that the program asks for more: it is done with what it had; adjust its credit."""
        self._now = now
        pace = self._pace
        if self._in_hand is None or not self._in_hand.unseen:
            pace.asked(now)
            if self._paced and (window := self._window()) != self.credit_messages:
                self._set_credit(window, self.credit_bytes)
        if self._recalled:
            self._recalled = False
            self._give_credit()

    def take(self) -> Delivery | None:
        """Return the next delivery as a whole; None when there is none."""
        delivery = self._begin()
        if delivery is not None:
            self._at = delivery.count
            self._hand_over(delivery.count, together=True)
        return delivery

    def hand_out(self) -> Hand | None:
        """Return an iterator over the next messages, shared by all who take from it; None if there are none.

        If the broker is told what is taken, they are no more than the program processes in a moment.
        """
        batch = self._cut(self._pace.at_once if self.tells else None, together=False)
        return None if batch is None else batch.hand_out()

    def grab(self, most: int | None) -> Batch | None:
        """Return the next messages, at most `most`; what an iterator has not yielded is taken from it."""
        if self._in_hand is not None and (unseen := self._in_hand.take_back()):
            self._at -= unseen
            self.handed -= unseen
            self._used_messages -= unseen
        return self._cut(most, together=True)

    def _begin(self) -> Delivery | None:
        """Take the next delivery in hand."""
        if not self.queue:
            return None
        delivery = self._in_hand = self.queue.popleft()
        self._at = 0
        self._singly -= delivery.singly
        self._used_bytes += delivery.size
        if self.next is not None:
            self.next = delivery.end
        return delivery

    def _cut(self, most: int | None, *, together: bool) -> Batch | None:
        delivery = self._in_hand
        if delivery is None or self._at >= delivery.count:
            delivery = self._begin()
            if delivery is None:
                return None
        first = self._at
        stop = delivery.count if most is None else min(delivery.count, first + most)
        if self.tells and (delivery.singly or self._after_singly):
            if not self._may_have_one():
                return None
            self._after_singly = delivery.singly
            stop = first + 1
        self._at = stop
        self._hand_over(stop - first, together=together)
        return Batch(delivery, first, stop)

    def _hand_over(self, count: int, *, together: bool) -> None:
        """Give messages to the program: report that first, and return credit once that is a good part of all."""
        assert self._in_hand is not None
        self._pace.handed(count, self._in_hand.came, self._now, together=together)
        self._used_messages += count
        self.handed += count
        messages = _part(self.credit_messages, CREDIT_BACK_MESSAGES)
        due = self._used_messages >= messages or self._used_bytes >= _part(
            self.credit_bytes, CREDIT_BACK_BYTES
        )
        if self.tells and (due or self.handed > self._told):
            self._told = max(self._told, self.handed)
            if not (self._singly or self._in_hand.singly):
                self._told = max(self._told, self.handed - count + self._pace.at_once)
            if self._pace.at_once <= ACK_AT_ONCE:
                self._flush()  # messages that are done are not in the program's hands any more
            # One frame for both: a frame costs the worker more than its content. A small credit waits until it is due.
            self._give_credit(taken=self._told, back=due or 2 * self._used_messages >= messages)
        elif due:
            self._give_credit()

    def _may_have_one(self) -> bool:
        """Return whether the broker knows that the program gets the next message, which may kill it; otherwise ask."""
        if self._leave:
            self._leave = False
            return True
        if self._asking is None and (ref := self._speaker.expect_leave()) is not None:
            self._asking = ref
            self._flush()
            self._give_credit(taken=self.handed + 1, ref=ref)
        return False

    def on_leave(self, ref: int, *, given: bool) -> bool:
        """Record the answer to the question whether the next message may be handed out; False for an old question."""
        if ref != self._asking:
            return False
        self._asking = None
        if given:
            self._leave = True
            self._told = max(self._told, self.handed + 1)
        return True

    # ---- credit --------------------------------------------------------------------------------------------------

    def _give_credit(self, *, taken: int | None = None, ref: int | None = None, back: bool = True) -> None:
        """Return the credit of `back`, and report how many messages the program may have `taken`."""
        messages, size = (max(0, self._used_messages), max(0, self._used_bytes)) if back else (0, 0)
        if not (messages or size or taken is not None):
            return
        more: wire.Header = {}
        if taken is not None:
            more[Key.TAKEN] = taken
        if ref is not None:
            more[Key.REF] = ref
        more[Key.MESSAGES] = messages
        more[Key.BYTES] = size
        if self._speaker.say(Type.CREDIT, more):
            self._used_messages -= messages
            self._used_bytes -= size

    def resize(self, credit_messages: int, credit_bytes: int) -> None:
        """Set the credit, or its upper limit if it follows the program's pace."""
        if self._paced:
            self._most = credit_messages
            credit_messages = self._window()
        self._set_credit(credit_messages, credit_bytes)

    def _window(self) -> int:
        """Return how many messages the program should have ready, by its pace and what it is working on."""
        return max(1, min(self._pace.window // self.sharing, self._most))

    def _set_credit(self, credit_messages: int, credit_bytes: int) -> None:
        """Set the credit: a larger one is given at once, a smaller one is reached as deliveries are handed out."""
        self._used_messages += (
            credit_messages - self.credit_messages
        )  # below zero: more is given than should be
        self._used_bytes += credit_bytes - self.credit_bytes
        self.credit_messages, self.credit_bytes = credit_messages, credit_bytes
        if self._used_messages > 0 or self._used_bytes > 0:
            self._give_credit()


def _part(credit: int, least: int) -> int:
    """Return how much of a credit is returned at once."""
    return max(credit // 16, min((credit + 1) // 2, least))
