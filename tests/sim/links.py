"""The network between clients and workers: sockets, their monitors, and links that delay, stall, fill up and break.

A link is one connection of one socket to one start of a worker. Each of its two directions keeps the order; frames in
transit when the link breaks are lost. A socket reconnects by itself, as ZeroMQ's do, and gets another routing id.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Final, Protocol

import zmq

from tests.stage import NOTHING_THERE, StagedLoop, StagedRouter

REDIAL_S: Final = 0.05  # seconds until a socket that reaches no worker tries again; doubling up to a second
REDIAL_S_MAX: Final = 1.0
POLLIN: Final = int(zmq.POLLIN)
POLLOUT: Final = int(zmq.POLLOUT)
EVENTS: Final = int(zmq.EVENTS)
ZMTP_TIMEOUT_S: Final = 15.0  # silence after which ZeroMQ itself gives a connection up


class Tap(Protocol):
    """Sees every frame when the broker reads it and when the broker sends it."""

    def to_broker(self, router: SimRouter, routing: bytes, parts: list[bytes]) -> None:
        """A worker is about to find this in its socket."""

    def from_broker(self, router: SimRouter, routing: bytes, parts: list[bytes]) -> None:
        """A worker has sent this."""

    def refused(self, router: SimRouter, routing: bytes, parts: list[bytes]) -> None:
        """A worker could not send this: the connection is full or gone."""

    def closed(self, router: SimRouter, routing: bytes) -> None:
        """A worker is told that a connection is closed."""

    def named(self, machine: str, path: str) -> None:
        """A file on a machine's disk was given this name."""

    def unnamed(self, machine: str, path: str) -> None:
        """A file's name was removed."""

    def lost(self, machine: str, names: list[str]) -> None:
        """The power failed; these names are left."""


class SimRouter(StagedRouter):
    """The ROUTER of one start of a worker, with links to clients' sockets."""

    def __init__(self, tap: Tap) -> None:
        super().__init__()
        self.tap = tap
        self.links: dict[bytes, Link] = {}
        self.machine = ""
        self.number = 0
        self.alive = False

    def receive_from(self, routing: bytes, parts: list[bytes]) -> None:
        """Take a frame from a link."""
        self.tap.to_broker(self, routing, parts)
        self.incoming.append([routing, *parts])

    def send_multipart(self, parts: Sequence[Any], _flags: int = 0, **_more: Any) -> None:
        link = self.links.get(bytes(parts[0]))
        if link is None:
            if bytes(parts[0]) in self.out:
                super().send_multipart(parts)
                return
            self.tap.refused(self, bytes(parts[0]), [bytes(part) for part in parts[1:]])
            raise zmq.ZMQError(zmq.EHOSTUNREACH)
        if link.is_full():
            self.tap.refused(self, link.routing, [bytes(part) for part in parts[1:]])
            raise NOTHING_THERE.with_traceback(None)
        copied = [bytes(part) for part in parts[1:]]
        self.tap.from_broker(self, link.routing, copied)
        link.send_down(copied)


class Link:
    """A connection: two directions with delays of their own."""

    def __init__(self, network: Network, dealer: Dealer, router: SimRouter) -> None:
        self.network, self.dealer, self.router = network, dealer, router
        network.routings += 1
        self.routing = b"\0%05d" % network.routings
        self.alive = True
        self.delay_s, self.jitter_s = network.delays()
        self.stalled_until = 0.0  # nothing moves before this time
        self.frames_max = (
            network.frames_max()
        )  # frames that may be in transit to the client and unread before the connection is full
        self.under_way = 0
        self._up_at = self._down_at = 0.0
        router.links[self.routing] = self

    def _when(self, last: float) -> float:
        now = self.network.loop.time.now_s
        delay = self.delay_s + self.network.random.random() * self.jitter_s
        return (
            max(last, self.stalled_until, now) + delay * 0.1
            if last > now
            else max(self.stalled_until, now) + delay
        )

    def send_up(self, parts: list[bytes]) -> None:
        """Send a client's frame to the worker."""
        self._up_at = max(self._up_at, self._when(self._up_at))
        self.network.at(self._up_at, lambda: self._arrive_up(parts))

    def _arrive_up(self, parts: list[bytes]) -> None:
        if self._waits(lambda: self._arrive_up(parts)):
            return
        if self.alive and self.router.alive:
            self.network.counts["frames up"] += 1
            self.router.receive_from(self.routing, parts)

    def send_down(self, parts: list[bytes]) -> None:
        """Send a worker's frame to the client."""
        self.under_way += 1
        self._down_at = max(self._down_at, self._when(self._down_at))
        self.network.at(self._down_at, lambda: self._arrive_down(parts))

    def _arrive_down(self, parts: list[bytes]) -> None:
        if self._waits(lambda: self._arrive_down(parts)):
            return
        self.under_way -= 1
        if self.alive and not self.dealer.closed:
            self.network.counts["frames down"] += 1
            self.dealer.inbox.append(parts)
            self.dealer.on_readable()

    def _waits(self, arrive: Callable[[], None]) -> bool:
        """Return whether the link stalls; what arrives then is delivered afterwards, in the order of sending."""
        if self.alive and self.stalled_until > self.network.loop.time.now_s:
            self._up_at = self._down_at = max(self._up_at, self._down_at, self.stalled_until)
            self.network.at(self.stalled_until, arrive)
            return True
        return False

    def is_full(self) -> bool:
        """Return whether the worker cannot send more."""
        return self.under_way + len(self.dealer.inbox) >= self.frames_max

    def stall(self, seconds: float) -> None:
        """Let nothing through for a while; beyond ZeroMQ's timeout both sides find the link broken."""
        self.stalled_until = self.network.loop.time.now_s + seconds
        if seconds > ZMTP_TIMEOUT_S:
            self.network.after(ZMTP_TIMEOUT_S, self.break_)

    def break_(self) -> None:
        """Break: frames in transit are lost, the worker finds no connection, and the socket reconnects."""
        if self.alive:
            self.alive = False
            self.router.links.pop(self.routing, None)
            self.network.after(self.network.random.choice((0.0, 0.0, 0.01)), self._tell_router)
            self.dealer.on_broken()

    def _tell_router(self) -> None:
        if self.router.alive:
            self.router.tap.closed(self.router, self.routing)
            self.router.on_closed(self.routing)


class Monitor:
    """The socket that reports events of another one's connection."""

    def __init__(self) -> None:
        self.events: deque[int] = deque()

    def getsockopt(self, option: int) -> int:
        return POLLIN if option == EVENTS and self.events else 0

    def recv_multipart(self, _flags: int = 0) -> list[bytes]:
        if not self.events:
            raise NOTHING_THERE.with_traceback(None)
        return [self.events.popleft().to_bytes(2, "little") + bytes(4), b""]

    def close(self, linger: int = 0) -> None:
        """Close."""


class Dealer:
    """A client's socket."""

    linger = sndhwm = rcvhwm = reconnect_ivl = reconnect_ivl_max = 0

    def __init__(self, network: Network) -> None:
        self.network = network
        self.inbox: deque[list[bytes]] = deque()
        self.waiting: deque[list[bytes]] = deque()  # sent before there was a connection
        self.monitor = Monitor()
        self.endpoint = ""
        self.link: Link | None = None
        self.closed = False
        self.on_readable: Callable[[], None] = lambda: None
        self._redial_s = REDIAL_S

    def setsockopt(self, _option: int, _value: object) -> None:
        """Set an option."""

    def getsockopt(self, option: int) -> int:
        if option == EVENTS:
            return POLLOUT | POLLIN if self.inbox else POLLOUT
        return -1

    def get_monitor_socket(self, _events: int) -> Monitor:
        return self.monitor

    def disable_monitor(self) -> None:
        """Stop monitoring."""

    def connect(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self._dial()

    def _dial(self) -> None:
        delay, jitter = self.network.delays()
        self.network.after(delay + jitter * self.network.random.random(), self._connected)

    def _connected(self) -> None:
        if self.closed or self.link is not None:
            return
        router = self.network.listening(self.endpoint)
        if router is None:
            self._tell(zmq.EVENT_CONNECT_RETRIED)
            self.network.after(self._redial_s, self._dial)
            self._redial_s = min(REDIAL_S_MAX, 2 * self._redial_s)
            return
        self._redial_s = REDIAL_S
        self.link = Link(self.network, self, router)
        while self.waiting:
            self.link.send_up(self.waiting.popleft())

    def _tell(self, event: int) -> None:
        if not self.closed:
            self.monitor.events.append(event)
            self.on_readable()

    def on_broken(self) -> None:
        """The connection is gone: reconnect, and tell the monitor, now or a little later."""
        self.link = None
        if not self.closed:
            self.network.after(REDIAL_S, self._dial)
            self.network.after(
                self.network.random.choice((0.0, 0.0, 0.01, 0.2)), lambda: self._tell(zmq.EVENT_DISCONNECTED)
            )

    def send_multipart(self, parts: Sequence[Any], _flags: int = 0) -> None:
        copied = [bytes(part) for part in parts]
        if self.link is None:
            self.waiting.append(copied)
        else:
            self.link.send_up(copied)

    def recv_multipart(self, _flags: int = 0) -> list[bytes]:
        if not self.inbox:
            raise NOTHING_THERE.with_traceback(None)
        return self.inbox.popleft()

    def close(self, linger: int = 0) -> None:
        """Close; with a linger what was sent still arrives, without one it may not."""
        if self.closed:
            return
        self.closed = True
        link, self.link = self.link, None
        if link is not None:
            if linger:
                self.network.at(link._up_at + 0.001, link.break_)
            else:
                link.break_()

    def vanish(self) -> None:
        """The machine is gone: the worker is not told, and its frames go nowhere."""
        self.closed = True
        link, self.link = self.link, None
        if link is not None:
            link.stalled_until = float("inf")
            link.frames_max = 1 << 30
            self.network.after(ZMTP_TIMEOUT_S, link.break_)


class Network:
    """The listening workers, the delays, and all sockets."""

    def __init__(self, loop: StagedLoop, random: Random, counts: dict[str, int]) -> None:
        self.loop, self.random, self.counts = loop, random, counts
        self.routings = 0
        self.sockets: list[Dealer] = []
        self.listeners: dict[str, SimRouter] = {}
        self.slowness = random.choice((0.0005, 0.002, 0.02))
        self.narrow = random.random() < 0.3  # connections that fill up soon

    def at(self, when: float, call: Callable[[], None]) -> None:
        """Make a call at a time of the loop's clock."""
        self.loop.call_later(when - self.loop.time.now_s, call)

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        """Make a call later."""
        self.loop.call_later(seconds, call)

    def delays(self) -> tuple[float, float]:
        """Draw a new link's delay and its variation, in seconds."""
        return self.slowness * self.random.choice((0.2, 1.0, 3.0)), self.slowness

    def frames_max(self) -> int:
        """Draw how many frames a link holds."""
        return self.random.choice((8, 30, 1000)) if self.narrow else 1000

    def listening(self, endpoint: str) -> SimRouter | None:
        """Return the router that listens at an endpoint now."""
        router = self.listeners.get(endpoint)
        return router if router is not None and router.alive else None

    def links(self) -> list[Link]:
        """Return the existing connections, in the order of their creation."""
        found = [dealer.link for dealer in self.sockets if dealer.link is not None]
        self.sockets = [dealer for dealer in self.sockets if not dealer.closed]
        return found

    # what `ister.network.Network` asks of a zmq context

    def socket(self, _kind: int) -> Dealer:
        """Create a DEALER."""
        dealer = Dealer(self)
        self.sockets.append(dealer)
        return dealer

    def term(self) -> None:
        """Do nothing."""
