"""Ister for asyncio: the same client, waiting in the event loop.

    import ister.aio

    async with ister.aio.connect("tcp://127.0.0.1:5555") as client:
        async with client.producer("orders") as producer:
            receipt = await producer.send(b"hello")
            print((await receipt).offset)
        async with client.consumer("orders", subscription="billing", start="earliest") as consumer:
            async for message in consumer:
                consumer.ack(message)

Methods that never wait are plain (`ack`, `nack`, `ack_until`, `done`); all others are awaited, with the arguments and
errors of the synchronous client. Sending uses the socket in the loop's thread; receiving is done by background threads,
which wake the loop once for everything that arrives together.

Invariants
- only the event loop's thread runs users' coroutines; background threads only report that something has changed
- nothing here blocks the loop for longer than it takes to copy one batch into a socket
"""

from ister.aio.client import Client, connect
from ister.aio.closing import Closing, Opening
from ister.aio.deadletters import DeadLetters
from ister.aio.message import Batch, Message
from ister.aio.producer import Producer, Receipt
from ister.aio.receiver import Consumer, Reader, Receiver

__all__ = [
    "Batch",
    "Client",
    "Closing",
    "Consumer",
    "DeadLetters",
    "Message",
    "Opening",
    "Producer",
    "Reader",
    "Receipt",
    "Receiver",
    "connect",
]
