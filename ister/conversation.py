"""Request and reply in the calling thread: what waits, and for how long; `inbox.py` has everything else.

`aio/conversation.py` is the same for the event loop.

May touch: the network (to wait). Invariant: a client has one inbox; another is made only when its session was lost.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, Final

from ister.administration import Administration
from ister.closing import HURRY_S
from ister.errors import IsterError, RemoteError, TimeoutExpiredError
from ister.inbox import GONE, Correspondence, Inbox, answered, asked, nobody
from ister.message import Message
from ister.network import Network
from ister.outstanding import Request
from ister.reader import Reader

DIAGNOSIS_S: Final = 1.0  # seconds that a request without an answer may take in addition, to find out why
DIAGNOSIS_MAX: Final = 20  # subscriptions that are looked at for that


class Conversation:
    """The requests of one client that await a reply, and its replies to the requests of others."""

    def __init__(
        self,
        correspondence: Correspondence,
        network: Network,
        client: Administration,
        ask: Callable[[Request, float | None], Any],
        open_reader: Callable[[str, float | None], Reader],
    ) -> None:
        """`ask(request, timeout)` has a request answered, `open_reader(topic, timeout)` opens a reader of an inbox."""
        self._correspondence = correspondence
        self._network = network
        self._client = client
        self._ask = ask
        self._open_reader = open_reader
        self._inbox: Inbox | None = None
        self._opening = threading.Lock()

    def request(
        self,
        topic: str,
        payload: bytes,
        *,
        seconds: float | None,
        key: bytes | None,
        attributes: Mapping[str, str] | None,
    ) -> Message:
        """Do what `Client.request` does."""
        network, correspondence = self._network, self._correspondence
        deadline = network.deadline(seconds)
        inbox = self._open_inbox(seconds)
        waiting = correspondence.expect(inbox)
        try:
            receipt = correspondence.outlets.producer(topic).send(
                payload,
                key=key,
                attributes=asked(attributes, inbox.topic, waiting.correlation_id),
                timeout=network.seconds_until(deadline),
            )
            over = correspondence.sent(receipt.shipment, inbox, waiting)
            network.waits.wait(inbox.reader.attachment, over, deadline, waiting)
        finally:
            correspondence.forget(inbox, waiting)
        if waiting.message is None and not inbox.closed:
            # raises if it was refused, or not even accepted
            receipt.shipment.outcome(receipt.index, 1, seconds)
            raise TimeoutExpiredError(nobody(topic, seconds, self._consumers_of(topic)))
        return correspondence.reply(inbox, waiting, topic)

    def reply(
        self,
        message: Message,
        payload: bytes,
        *,
        seconds: float | None,
        key: bytes | None,
        attributes: Mapping[str, str] | None,
    ) -> None:
        """Do what `Message.reply` does."""
        topic, told = answered(message, attributes)
        outlets = self._correspondence.outlets
        try:
            outlets.producer(topic).send(payload, key=key, attributes=told, timeout=seconds)
        except RemoteError as error:
            if error.code not in GONE:
                raise
            outlets.discard(topic)

    def finish(self) -> None:
        """Before the client is closed: have the replies sent that were just given."""
        for producer in self._correspondence.outlets.busy():
            try:
                producer.flush(HURRY_S)
            except IsterError:
                pass  # no broker is there to receive it

    def _open_inbox(self, seconds: float | None) -> Inbox:
        with self._opening:
            inbox = self._inbox
            if inbox is None or inbox.closed:
                if inbox is not None:
                    inbox.reader.end()
                request = self._correspondence.inbox_request()
                self._ask(request, seconds)
                reader = self._open_reader(request.arguments["topic"], seconds)
                inbox = self._inbox = self._correspondence.inbox(request, reader)
            return inbox

    def _consumers_of(self, topic: str) -> int | None:
        """Return how many consumers a topic has, if that can be found out quickly."""
        client = self._client
        try:
            names = [each["subscription"] for each in client.subscriptions(topic, timeout=DIAGNOSIS_S)]
            shown = (client.subscription(topic, name, timeout=DIAGNOSIS_S) for name in names[:DIAGNOSIS_MAX])
            return sum(int(each["consumers"]) for each in shown)
        except IsterError:
            return None
