"""Reading messages from a ROUTER frame by frame: a message with too many frames is discarded in steps.

Invariants
- a turn reads at most a bounded number of frames of one message
- whatever the number of frames, the next message is read from its first frame

May touch: the socket it is given. Runs on the loop's thread.
"""

from __future__ import annotations

from typing import Any, Final

import zmq

from ister.sockets import has_message, uncopied

# Routing id, header, lengths, payloads, and three columns are seven.
FRAMES_MAX: Final = 16
# Frames discarded per turn of the loop: some 5 ms, after which timers, mail and commits have their turn.
SKIP_FRAMES: Final = 5_000
_DO_NOT_WAIT: Final = int(zmq.NOBLOCK)


class TooManyFramesError(Exception):
    """A message has too many frames; `routing` is its sender, `fd` its connection's descriptor, -1 if unknown."""

    def __init__(self, routing: bytes, fd: int) -> None:
        super().__init__(f"a message of more than {FRAMES_MAX - 1} frames")
        self.routing, self.fd = routing, fd


class FrameReader:
    """Reads messages from a ROUTER."""

    def __init__(self, router: zmq.Socket[bytes]) -> None:
        self._router = router
        self._receive = router.recv
        self._skipping = False
        self._header: zmq.Frame | None = None

    def take(self) -> list[Any] | None:
        """Return the next message, beginning with its routing id and header; None if there is none at present.

        These are bytes; large frames of the body are views of ZeroMQ's own memory, which they keep alive.
        Raises TooManyFramesError, once for each such message; the calls that follow discard the rest of it.
        """
        receive = self._receive
        if self._skipping and not self._skip():
            return None
        if not has_message(self._router):
            return None
        parts = [receive(_DO_NOT_WAIT)]
        frame = self._header = receive(_DO_NOT_WAIT, False)
        parts.append(frame.bytes)
        while frame.more:
            frame = receive(_DO_NOT_WAIT, False)
            if len(parts) == FRAMES_MAX:
                self._skipping = bool(frame.more)
                raise TooManyFramesError(parts[0], source_of(frame))
            parts.append(uncopied(frame))
        return parts

    def _skip(self) -> bool:
        """Discard the rest of a message, in parts over several turns; return whether that is done."""
        receive = self._receive
        for _ in range(SKIP_FRAMES):
            if not receive(_DO_NOT_WAIT, False).more:
                self._skipping = False
                return True
        return False

    @property
    def source(self) -> int:
        """The descriptor of the connection of the last message, -1 if unknown."""
        return -1 if self._header is None else source_of(self._header)


def source_of(frame: zmq.Frame) -> int:
    """Return the descriptor of the connection over which a frame came, -1 if unknown."""
    try:
        return int(frame.get(zmq.SRCFD))
    except (zmq.ZMQError, AttributeError, TypeError, ValueError):
        return -1
