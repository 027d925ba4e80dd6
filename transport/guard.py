"""Guards the TCP connections under a worker's socket: closes those of clients that never introduce themselves.

ZeroMQ gathers all frames of a message before the layers above see one, accepts every connection, and has no call that
closes one. It does report the descriptors of its connections; this module watches and closes those.

Invariants
- a connection without a session is closed when it has sent more bytes than a HELLO has, or after its time for one
- a connection whose message keeps ZeroMQ's thread busy and never ends is closed: such a message has millions of frames
- near the limit of descriptors, connections without a session are closed first, the oldest first
- nothing from a closed connection reaches an actor: what the kernel still holds is discarded
- a connection that is ended with an answer is closed when the other side has the answer, or after `ANSWERED_S_MAX`

May touch: the descriptors it is told of. Runs on the loop's thread.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import logging
import socket
import struct
import sys
import termios
from collections.abc import Callable
from itertools import islice
from typing import Final, NamedTuple, Protocol

from ister.clock import Clock
from ister.transport.hidden import HiddenWork, IoThread
from ister.transport.outgoing import Outgoing

log = logging.getLogger("ister.gateway")

# A greeting, a handshake and a HELLO are less than 9 KB; a message of empty frames has 2 bytes per frame, each of
# which costs a worker a microsecond.
STRANGER_BYTES_MAX: Final = 64 << 10
STRANGER_S_MAX: Final = 10.0  # a client says HELLO at once, and again after an error
LOOK_S: Final = (
    # seconds, while there are connections without a session: what they may send meanwhile costs others some 100 ms
    0.01
)
LOOKS_MAX: Final = 500  # connections checked each time, some microseconds each
IDLE_LOOK_S: Final = 0.05  # seconds; only a clock is read
# How long an answer may take to a client whose connection is ended after it. It is there within a look or two, unless
# its client does not read, or ZeroMQ's thread has to wait for a processor.
ANSWERED_S_MAX: Final = 1.0
UNREAD_MIN: Final = 4096  # bytes; a sender that ZeroMQ cannot keep up with has more than this waiting
# Of struct tcp_info (Linux 4.1 and later): the bytes that the peer has, and those that arrived here.
_BYTES_ACKED_AT: Final = 120
_BYTES_RECEIVED_AT: Final = 128


class Speaker(Protocol):
    """The session that uses a connection."""

    heard_at_s: float


class Connection:
    """One connection; `sent` and `acked` are the bytes since its session began."""

    __slots__ = ("acked", "base", "fd", "moved_s", "sent", "since_s", "who")

    def __init__(self, fd: int, since_s: float) -> None:
        self.fd = fd  # -1: it is closed
        self.since_s = since_s  # when it last had no session
        self.base = 0  # bytes acknowledged before its session began
        self.who: Speaker | None = None
        self.sent = self.acked = 0
        self.moved_s = 0.0  # when `acked` last grew


class _Answered(NamedTuple):
    """A connection is ended behind an answer: once more is acknowledged than was `written` before, or at `until_s`."""

    written: int | None
    until_s: float
    why: str


class Guard:
    """The connections of one ROUTER; `is_short()` says whether descriptors are nearly used up."""

    def __init__(self, clock: Clock, is_short: Callable[[], bool] = lambda: False) -> None:
        self._clock = clock
        self._is_short = is_short
        self._all: dict[int, Connection] = {}  # by descriptor
        self._strangers: dict[Connection, None] = {}  # connections without a session, the oldest first
        self._answered: dict[Connection, _Answered] = {}  # to be ended
        self.outgoing = Outgoing(clock, acknowledged, self.end)
        self._hidden = HiddenWork()
        self._io = IoThread()
        self._suspects: set[Connection] = set()
        self._suspected_s = 0.0
        self.ended = 0

    def __len__(self) -> int:
        return len(self._all)

    def accepted(self, fd: int) -> None:
        """Note that a connection was accepted."""
        self.closed(fd)
        new = self._all[fd] = Connection(fd, self._clock.monotonic())
        self._strangers[new] = None

    def closed(self, fd: int) -> None:
        """Note that a connection was closed."""
        before = self._all.get(fd)
        if before is not None:
            self._forget(before)

    def _forget(self, connection: Connection) -> None:
        self._all.pop(connection.fd, None)
        self._strangers.pop(connection, None)
        self._answered.pop(connection, None)
        self.outgoing.forget(connection)
        connection.fd = -1

    def introduced(self, fd: int, who: Speaker) -> Connection | None:
        """Note that a connection has a session; return it, None if it is closed."""
        found = self._all.get(fd)
        if found is not None and found in self._strangers:
            del self._strangers[found]
            found.base, found.sent, found.acked = acknowledged(found) or 0, 0, 0
        if found is not None:
            found.who = who
        return found

    def left(self, connection: Connection | None) -> None:
        """Note that a connection has no session any more."""
        if connection is not None and connection.fd >= 0:
            connection.since_s = self._clock.monotonic()
            connection.who = None
            self._strangers[connection] = None

    def is_quiet(self) -> bool:
        """Return whether nothing has happened since the last check that needs another."""
        return not (self._strangers or self._suspects or self._answered) and self._io.rests()

    def look(self, messages: int = 0, bytes_: int = 0, *, drained: bool = False) -> float:
        """Close the connections that must go, and return how soon to check again, in seconds.

        `messages` and `bytes_` are the totals that passed through the socket; `drained`: nothing waits to be read from
        it.
        """
        hidden = self._hidden.is_much(self._io.cpu_s(), messages, bytes_)
        if hidden and drained:
            self._suspect()
        elif not hidden:
            self._suspects.clear()
        if self._answered:
            self._look_at_answered()
        if not self._strangers:
            return LOOK_S if hidden or self._answered else IDLE_LOOK_S
        self._look_at_strangers()
        return LOOK_S

    def _suspect(self) -> None:
        """Close connections that produced no message since the last check, though bytes of them waited then and now."""
        now = self._clock.monotonic()
        found = {
            each for each in self._all.values() if each.who is not None and unread(each.fd) >= UNREAD_MIN
        }
        for each in found & self._suspects:
            if each.who is not None and each.who.heard_at_s < self._suspected_s:
                self.end(each, "it sends a message of too many frames")
        self._suspects, self._suspected_s = found, now

    def _look_at_strangers(self) -> None:
        now = self._clock.monotonic()
        short = self._is_short()
        for stranger in list(islice(self._strangers, LOOKS_MAX)):
            if now - stranger.since_s > STRANGER_S_MAX:
                self.end(stranger, f"it had no session for {STRANGER_S_MAX:.0f} s")
            elif short:
                self.end(stranger, "it had no session, and descriptors are short")
                short = self._is_short()
            elif received(stranger) > STRANGER_BYTES_MAX and stranger.base == 0:
                self.end(stranger, f"it had no session and sent more than {STRANGER_BYTES_MAX} bytes")

    def end_behind_answer(self, fd: int, why: str) -> bool:
        """End the connection that has this descriptor once its client has what it is told now, or does not take it.

        Called before the answer is sent. Returns False where the connection is being ended already: once is enough.
        """
        found = self._all.get(fd)
        if found in self._answered:
            return False
        if found is not None:
            until_s = self._clock.monotonic() + ANSWERED_S_MAX
            waiting = unsent(
                fd
            )  # first: an acknowledgment that comes between makes the sum too high, not too low
            acked = _counted(fd, _BYTES_ACKED_AT)
            written = None if acked is None else acked + waiting
            self._answered[found] = _Answered(written, until_s, why)
        return True

    def _look_at_answered(self) -> None:
        now = self._clock.monotonic()
        for each, answered in list(self._answered.items()):
            acked = _counted(each.fd, _BYTES_ACKED_AT)
            has_it = (
                acked is not None
                and answered.written is not None
                and acked > answered.written
                and unsent(each.fd) == 0
            )
            if has_it or now >= answered.until_s:
                self.end(each, answered.why)

    def end(self, connection: Connection, why: str) -> None:
        """Close a connection, and discard what is in transit in both directions."""
        fd = connection.fd
        self._forget(connection)
        if fd < 0:
            return
        try:
            tcp = socket.socket(fileno=fd)
        except OSError:  # it is closed already
            return
        self.ended += 1
        try:
            with contextlib.suppress(OSError):
                log.warning("closing the connection of %s: %s", tcp.getpeername(), why)
            _reset(tcp)
        finally:
            tcp.detach()  # ZeroMQ closes it


def _reset(tcp: socket.socket) -> None:
    """Reset a connection, and discard what its kernel holds in both directions."""
    if sys.platform == "linux":  # where connecting to AF_UNSPEC does that
        ctypes.CDLL(None).connect(tcp.fileno(), bytes(16), 16)
    with contextlib.suppress(OSError):
        tcp.shutdown(socket.SHUT_RDWR)


def unread(fd: int) -> int:
    """Return how many bytes of a connection the kernel has that were not read yet."""
    return _queued(fd, termios.FIONREAD)


def unsent(fd: int) -> int:
    """Return how many bytes of a connection its kernel has that the other side has not acknowledged."""
    return _queued(fd, termios.TIOCOUTQ)


def _queued(fd: int, queue: int) -> int:
    if fd < 0:
        return 0
    room = bytearray(4)
    try:
        fcntl.ioctl(fd, queue, room)
    except OSError:
        return 0
    return int.from_bytes(room, sys.byteorder)


def received(connection: Connection) -> int:
    """Return how many bytes were received over a connection; 0 if that is unknown."""
    return _counted(connection.fd, _BYTES_RECEIVED_AT) or 0


def acknowledged(connection: Connection) -> int | None:
    """Return how many bytes the peer has acknowledged since its session began; None if that is unknown."""
    found = _counted(connection.fd, _BYTES_ACKED_AT)
    return None if found is None else found - connection.base


def _counted(fd: int, at: int) -> int | None:
    if sys.platform != "linux" or fd < 0:  # a session may learn late that its connection is closed
        return None
    try:
        tcp = socket.socket(fileno=fd)
    except OSError:
        return None
    try:
        return int(
            struct.unpack_from("<Q", tcp.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, at + 8), at)[0]
        )
    except (OSError, struct.error):  # a kernel that reports less
        return None
    finally:
        tcp.detach()
