"""A broker for tests of your own programs: in memory, in one thread of this process, nothing kept.

    import ister, ister.testing

    def test_mine() -> None:
        with ister.testing.Broker() as broker, ister.connect(broker.endpoint) as client:
            client.create_topic("orders")
            ...

It speaks protocol version 1 and does what a broker does for producers, consumers, readers and requests, in the simplest
way. A refused message waits for its back-off, and finally goes to the dead-letter topic, as in a broker; `paused`
works; there is no acknowledgment timeout, and other options are only stored and shown. It can be made to fail:
`refuse`, `disconnect`, `restart`, `silent`, `moved`. It is not fast, and stores nothing durably.

May touch: zmq, one thread, the clock. Invariant: everything but the public methods runs in that thread.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

import zmq

from ister import wire
from ister.clock import Clock, SystemClock
from ister.testing.protocol import Protocol
from ister.wire import Limit

TICK_MS: Final = 20
ANSWER_S: Final = 5.0  # seconds; how long a public method waits for the broker's thread
REBIND_S: Final = 0.002  # seconds between attempts to listen again while the old socket is being closed


class Broker:
    """A small broker in memory; use it in a `with` block.

    `endpoint` is its address. `heard` has the type and header of every frame that arrived (the last 10,000), for
    assertions. While `silent` is true, it reads frames and answers none. `moved` maps topics to the endpoints at which
    it says they are.
    """

    def __init__(
        self,
        *,
        heartbeat_ms: int = 1000,
        limits: dict[int, int] | None = None,
        moved: dict[str, str] | None = None,
        clock: Clock | None = None,
    ) -> None:
        """`limits` by key of `wire.Limit`, over the defaults: messages of 1 MiB, batches of 4 MiB, and so on."""
        self.endpoint = ""
        self.moved = {} if moved is None else moved
        self.silent = False
        limits = {
            Limit.MESSAGE_BYTES_MAX: 1 << 20,
            Limit.BATCH_BYTES_MAX: 4 << 20,
            Limit.BATCHES_IN_FLIGHT_MAX: 64,
            Limit.PRODUCER_WINDOW_BYTES: 4 << 20,
            Limit.SESSION_TIMEOUT_MS: 30_000,
            Limit.HANDLES_MAX: 1000,
            Limit.CREDIT_MESSAGES_MAX: 1 << 20,
            Limit.CREDIT_BYTES_MAX: 1 << 30,
        } | (limits or {})
        self._clock = clock or SystemClock()
        self._protocol = Protocol(
            self._send,
            self._moved_to,
            limits=limits,
            heartbeat_ms=heartbeat_ms,
            clock=self._clock,
        )
        self.heard: deque[tuple[int, wire.Header]] = self._protocol.heard
        self._jobs: deque[tuple[Callable[[], None], threading.Event]] = deque()
        self._over = False
        self._pause = threading.Event()
        self._context = zmq.Context()
        self._router = self._bind("tcp://127.0.0.1:*")
        self.endpoint = self._router.getsockopt_string(zmq.LAST_ENDPOINT)
        self._thread = threading.Thread(target=self._run, name="ister.testing.Broker", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop; to clients the broker is gone."""
        self._over = True
        self._thread.join()
        self._router.close(0)
        self._context.term()

    # ---- making it fail ------------------------------------------------------------------------------------------

    def refuse(self, kind: int, code: str, times: int = 1) -> None:
        """Answer the next frames of a type (`wire.Type`) with an error of that code."""
        self._in_thread(lambda: self._protocol.refuse(kind, code, times))

    def disconnect(self) -> None:
        """Break every connection; sessions are kept, so that clients resume."""
        self._in_thread(self._disconnect)

    def restart(self) -> None:
        """Break every connection and forget every session; topics and what was acknowledged are kept."""
        self._in_thread(self._restart)

    def expire(self) -> None:
        """Forget every session without breaking connections: the next frame is answered `hello-required`."""
        self._in_thread(self._protocol.expire)

    def fail(self, topic: str, code: str) -> None:
        """Close every producer and consumer of a topic with an error of that code."""
        self._in_thread(lambda: self._protocol.fail(topic, code))

    def _in_thread(self, job: Callable[[], None]) -> None:
        done = threading.Event()
        self._jobs.append((job, done))
        done.wait(ANSWER_S)

    # ---- the socket, and its thread ------------------------------------------------------------------------------

    def _bind(self, endpoint: str) -> zmq.Socket[bytes]:
        router = self._context.socket(zmq.ROUTER)
        router.linger = 0
        router.sndhwm = router.rcvhwm = 0
        try:
            router.bind(endpoint)
        except zmq.ZMQError:
            router.close(0)
            raise
        return router

    def _disconnect(self) -> None:
        self._router.close(0)
        self._protocol.unplug()
        deadline = self._clock.monotonic() + ANSWER_S
        while True:
            try:
                self._router = self._bind(self.endpoint)
            except zmq.ZMQError:  # the old socket is still being closed
                if self._clock.monotonic() > deadline:
                    raise
                self._pause.wait(REBIND_S)
            else:
                return

    def _restart(self) -> None:
        self._disconnect()
        self._protocol.restart()

    def _run(self) -> None:
        while not self._over:
            while self._jobs:
                job, done = self._jobs.popleft()
                try:
                    job()
                finally:
                    done.set()
            if self._router.poll(TICK_MS):
                while True:
                    try:
                        peer, *frames = self._router.recv_multipart(zmq.NOBLOCK)
                    except zmq.Again:
                        break
                    self._protocol.hear(peer, frames, silent=self.silent)
            self._protocol.tick()

    def _moved_to(self, topic: str) -> str | None:
        return self.moved.get(topic)

    def _send(self, peer: bytes, header: wire.Header, *body: bytes) -> None:
        if not self.silent:
            self._router.send_multipart([peer, wire.encode_header(header), *body])
