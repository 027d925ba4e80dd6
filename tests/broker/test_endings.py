"""However a program ends, its Exclusive place is free at once; only a killed one's is held for a while."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

import ister
from ister.ownbroker import OwnBroker
from tests.broker.conftest import MakeBroker

pytestmark = pytest.mark.process

OPENED = """
import asyncio, signal, sys
import ister, ister.aio
client = ister.connect({endpoint!r})
consumer = client.consumer({topic!r}, "s", type="exclusive")
"""
OPENED_IN_A_LOOP = """
import asyncio, signal, sys
import ister, ister.aio

async def opened():
    client = await ister.aio.connect({endpoint!r})
    return await client.consumer({topic!r}, "s", type="exclusive")
"""
ENDINGS = {
    "end": OPENED,
    "exit": OPENED + "sys.exit(3)",
    "exception": OPENED + "raise ValueError('on purpose')",
    "exit in a thread that waits": OPENED
    + """
import threading
threading.Timer(0.5, lambda: signal.raise_signal(signal.SIGINT)).start()
consumer.receive()
""",
    "with block": OPENED + "with client, consumer: raise ValueError('on purpose')",
    "exception in a loop": OPENED_IN_A_LOOP
    + """
async def main():
    consumer = await opened()
    raise ValueError("on purpose")
asyncio.run(main())
""",
    "cancelled in a loop": OPENED_IN_A_LOOP
    + """
async def main():
    consumer = await opened()
    asyncio.get_running_loop().call_later(0.2, asyncio.current_task().cancel)
    await consumer.receive()
asyncio.run(main())
""",
    "signal": OPENED
    + """
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
print("ready", flush=True)
consumer.receive()
""",
    "signal in a loop": OPENED_IN_A_LOOP
    + """
async def main():
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asyncio.current_task().cancel)
    consumer = await opened()
    print("ready", flush=True)
    await consumer.receive()
asyncio.run(main())
""",
}


@pytest.fixture(scope="module")
def broker(make_broker: MakeBroker) -> OwnBroker:
    """Return a broker that holds places for an hour."""
    return make_broker(
        settings={"protocol.session_timeout_ms": 3_600_000, "protocol.resume_within_ms": 3_600_000}
    )


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_program_that_ends_leaves_its_place(broker: OwnBroker, ending: str) -> None:
    """By the end of its code, an exception, `sys.exit`, or a signal that it handles."""
    topic = "endings/" + ending.replace(" ", "-")
    with ister.connect(broker.endpoint, timeout=20) as client:
        client.create_topic(topic)
        program = ENDINGS[ending].format(endpoint=broker.endpoint, topic=topic)
        with subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            if "ready" in program:
                assert process.stdout.readline() == b"ready\n"
                process.send_signal(signal.SIGTERM)
            _, told = process.communicate(timeout=40)
        assert b"never retrieved" not in told
        # the last frames may still be in transit when the process is gone
        client.consumer(topic, "s", type="exclusive", timeout=20).close()
