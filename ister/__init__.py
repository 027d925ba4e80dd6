"""Ister: a topic/subscription message broker (this package is what users import).

import ister

with ister.connect("tcp://127.0.0.1:5555") as client:
    client.create_topic("orders", exist_ok=True)
    with client.producer("orders") as producer:
        print(producer.send(b"hello").result(timeout=5).offset)
"""

from ister.client import Client, connect
from ister.compiling import is_compiled
from ister.consumer import Consumer
from ister.deadletters import DeadLetter, DeadLetters
from ister.errors import (
    ClosedError,
    ConnectionLostError,
    ForkedError,
    IsterError,
    LocalProtocolError,
    NotInstalledError,
    RemoteError,
    RemoteProtocolError,
    TimeoutExpiredError,
    UsageError,
)
from ister.message import BaseMessage, Batch, BrokerEvent, Event, Message
from ister.producer import Producer
from ister.published import Published
from ister.reader import Reader
from ister.receipts import BatchReceipt, Receipt
from ister.version import __version__

__all__ = [
    "BaseMessage",
    "Batch",
    "BatchReceipt",
    "BrokerEvent",
    "Client",
    "ClosedError",
    "ConnectionLostError",
    "Consumer",
    "DeadLetter",
    "DeadLetters",
    "Event",
    "ForkedError",
    "IsterError",
    "LocalProtocolError",
    "Message",
    "NotInstalledError",
    "Producer",
    "Published",
    "Reader",
    "Receipt",
    "RemoteError",
    "RemoteProtocolError",
    "TimeoutExpiredError",
    "UsageError",
    "__compiled__",
    "__version__",
    "connect",
]

__compiled__: bool = is_compiled()  # whether the hot modules of this installation are compiled
