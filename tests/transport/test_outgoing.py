"""Tests of data that waits for clients that do not read: it is bounded in total, and does not delay those that read."""

from __future__ import annotations

from dataclasses import dataclass

from ister.transport.outgoing import OWES_MIN, QUEUED_BYTES_END, QUEUED_BYTES_MAX, STUCK_S, Outgoing

PIECE = 64 << 10


@dataclass(eq=False)
class Client:
    """A client that reads or not; its kernel takes `room` bytes for it."""

    reads: bool
    room: int = 0
    sent: int = 0
    acked: int = 0
    moved_s: float = 0.0
    ended: bool = False


class Moved:
    """Time that a test moves."""

    now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s

    def time_ms(self) -> int:
        return 0


class Scene:
    """Clients, and what is sent to them while that is allowed."""

    def __init__(self) -> None:
        self.clock = Moved()
        self.outgoing = Outgoing(self.clock, self.acknowledged, self.end)

    @staticmethod
    def acknowledged(client: Client) -> int:
        return client.sent if client.reads else min(client.sent, client.room)

    @staticmethod
    def end(client: Client, why: str) -> None:
        assert "does not read" in why
        client.ended = True

    def offer(self, client: Client) -> bool:
        """Send a piece if that is allowed; time passes."""
        self.clock.now_s += 0.001
        if not self.outgoing.may_send(client):
            return False
        self.outgoing.sent(client, PIECE)
        return True

    def waiting(self, *clients: Client) -> int:
        return sum(client.sent - self.acknowledged(client) for client in clients if not client.ended)


def test_a_hundred_clients_that_do_not_read_are_bounded_together() -> None:
    """Whatever their credit, the total that waits is bounded, and a client that reads gets everything."""
    scene = Scene()
    deaf = [Client(reads=False, room=100_000) for _ in range(100)]
    healthy = Client(reads=True)
    for _ in range(50):
        for client in deaf:
            if not client.ended:
                scene.offer(client)
            assert scene.offer(healthy)
        assert scene.waiting(*deaf) <= QUEUED_BYTES_END
    assert healthy.sent == 5000 * PIECE


def test_one_alone_may_have_all_that_waits() -> None:
    """No client is held back while little waits; one that reads again gets more."""
    scene = Scene()
    slow = Client(reads=False)
    while scene.offer(slow):
        assert slow.sent < 2 * QUEUED_BYTES_MAX
    assert slow.sent > QUEUED_BYTES_MAX - PIECE
    scene.clock.now_s += 1
    slow.room = slow.sent - OWES_MIN
    assert scene.offer(slow)


def test_many_that_do_not_read_lose_their_connections() -> None:
    """Each has a piece before it is known to be slow: over the limit, those that do not read are closed."""
    scene = Scene()
    deaf = [Client(reads=False) for _ in range(1500)]
    for client in deaf:
        scene.offer(client)
    assert scene.waiting(*deaf) > QUEUED_BYTES_END
    scene.clock.now_s += STUCK_S
    healthy = Client(reads=True)
    assert scene.offer(healthy)
    assert scene.waiting(*deaf) <= QUEUED_BYTES_MAX
    assert sum(client.ended for client in deaf) < len(deaf)
    assert not healthy.ended


def test_a_connection_that_is_gone_owes_nothing() -> None:
    """What waited for it is dropped."""
    scene = Scene()
    gone = Client(reads=False)
    while scene.offer(gone):
        pass
    scene.outgoing.forget(gone)
    scene.outgoing.forget(gone)
    assert scene.outgoing.queued == 0
    assert scene.offer(Client(reads=False))


def test_where_nobody_knows_what_arrived_nothing_is_held_back() -> None:
    """Where the system does not say what arrived, there is no such limit, and sending goes on."""
    scene = Scene()
    scene.outgoing = Outgoing(scene.clock, lambda _: None, scene.end)
    client = Client(reads=False)
    for _ in range(2000):
        scene.clock.now_s += 0.02
        assert scene.offer(client)
