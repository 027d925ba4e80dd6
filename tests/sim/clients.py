"""Real clients without sockets and threads: `ister.Client` with its producers and consumers, over simulated links.

The loop does the work of a client's background thread: it looks when frames have arrived, and when something is due.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, cast

from ister.client import Client
from ister.clientsession import Handle
from ister.clock import Clock
from ister.connection import Connection, Owner
from ister.network import Network as ClientNetwork
from ister.network import _live
from tests.sim.links import Dealer, Network
from tests.stage import StagedClock


class Bell:
    """What wakes a client's background thread: here its work is done at once."""

    def __init__(self, ring: Callable[[], None]) -> None:
        self.set = ring

    def close(self) -> None:
        """Wake nothing any more."""
        self.set = _nobody


class NoWaits:
    """Nobody waits in a simulation."""

    def wait(self, *_asked: Any) -> bool:
        raise AssertionError("nobody waits in a simulation")

    anywhere = wait

    def close(self) -> None:
        """There is nothing to close."""


def _nobody() -> None:
    """Do nothing: there is no thread to wake."""


class SimConnection(Connection):
    """A connection whose background thread is the loop."""

    network: SimNetwork

    def __init__(self, network: Owner, endpoints: list[str], *, first: bool) -> None:
        super().__init__(network, endpoints, first=first)
        self.background.close()
        self.background = cast(Any, Bell(self._ring))
        self._armed = float("inf")
        self._rung = False

    def start(self) -> None:
        self.service()

    def join(self) -> None:
        """Do nothing: there is no thread."""

    def nudge(self, due: float) -> None:
        self._arm(due)

    def service(self) -> None:
        super().service()
        self._arm(self.deadline())

    def pump(self) -> bool:
        heard = super().pump()
        if not self.closed:
            self._arm(self.deadline())
        return heard

    def _connect(self, now: float) -> None:
        super()._connect(now)
        if self._socket is not None:
            cast(Dealer, self._socket).on_readable = self._ring

    def close(self) -> None:
        super().close()
        self.network.links.after(0.0, lambda: self.network.forget(self))

    def _ring(self) -> None:
        if not self._rung:
            self._rung = True
            self.network.links.after(0.0, self._run_once)

    def _arm(self, due: float) -> None:
        now = self.network.clock.monotonic()
        if due < self._armed and due != float("inf"):
            self._armed = due
            self.network.links.after(max(0.0, due - now) + 1e-6, self._alarm)

    def _alarm(self) -> None:
        if self.network.clock.monotonic() >= self._armed:
            self._armed = float("inf")
            self._ring()

    def _run_once(self) -> None:
        """Do what the background thread does when it wakes up."""
        self._rung = False
        network = self.network
        if network.frozen or network.vanished:
            return
        with network.lock:
            if not self.closed:
                self.service()
        network.settle()


class SimNetwork(ClientNetwork):
    """The connections of one simulated client."""

    def __init__(
        self,
        endpoints: list[str],
        links: Network,
        jitter: Callable[[], float],
        clock: Clock,
        client_text: str,
    ) -> None:
        self.links = links
        self.frozen = self.vanished = False
        super().__init__(
            endpoints,
            clock=clock,
            jitter=jitter,
            client_text=client_text,
            context=cast(Any, links),
            connection_type=SimConnection,
        )
        self.eager = True
        self.waits = cast(Any, NoWaits())
        _live.discard(self)  # nothing of it needs an end

    def close_with(self, receiver: object, handle: Handle) -> None:
        """Have nothing done when garbage is collected: no seed can tell, and no world would be."""

    def thaw(self) -> None:
        """Continue after having been stopped."""
        self.frozen = False
        for connection in list(self._connections):
            connection.background.set()

    def vanish(self) -> None:
        """Disappear without a goodbye, and without a closed connection."""
        self.vanished = True
        for connection in self._connections:
            connection.closed = True
            if connection._socket is not None:
                cast(Dealer, connection._socket).vanish()

    def die(self) -> None:
        """Die without a goodbye; the machine's kernel closes its connections."""
        self.vanished = True
        for connection in self._connections:
            connection.closed = True
            if connection._socket is not None:
                connection._socket.close(0)


class SimClient(Client):
    """A client in one thread: instead of methods that wait, its `opener` and `try_...` are used."""

    network: SimNetwork

    def __init__(self, endpoints: list[str], links: Network, random: Random, clock: StagedClock) -> None:
        self._links, self._given = links, random
        super().__init__(endpoints, clock=clock)

    def _checked(self, endpoints: Any) -> list[str]:
        return list(endpoints)  # the names exist in this simulation only

    def _make_random(self) -> Random:
        return self._given

    def _make_network(
        self, endpoints: list[str], clock: Clock, client_text: str, on_event: object
    ) -> SimNetwork:
        return SimNetwork(endpoints, self._links, self._given.random, clock, client_text)
