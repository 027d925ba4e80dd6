"""Messages from a ROUTER, frame by frame: a message with more frames than allowed is discarded in steps.

Invariants
- a turn never takes more than a bounded number of frames of one message
- whatever the number of frames, the next message is read from its first frame

May touch: the socket it is made for. Runs on the loop's thread.
"""

from __future__ import annotations

from typing import Final

import zmq

# Routing id, header, lengths, payloads, and three columns are seven.
FRAMES_MAX: Final = 16
# Frames discarded in a turn of the loop: some 5 ms, after which timers, mail and commits have their turn.
SKIP_FRAMES: Final = 5_000


class TooManyFramesError(Exception):
    """A message has more frames than any; `routing` says whose it is, `fd` over which connection, -1 if not known."""

    def __init__(self, routing: bytes, fd: int) -> None:
        super().__init__(f"a message of more than {FRAMES_MAX - 1} frames")
        self.routing, self.fd = routing, fd


class FrameReader:
    """Takes messages off a ROUTER."""

    def __init__(self, router: zmq.Socket[bytes]) -> None:
        self._receive = router.recv
        self._skipping = False
        self._header: zmq.Frame | None = None

    def take(self) -> list[bytes] | None:
        """Return the next message, its routing id first; None if there is none now.

        Raises TooManyFramesError, once for such a message; what is left of it is skipped by the calls that follow.
        """
        receive = self._receive
        if self._skipping and not self._skip():
            return None
        try:
            parts = [receive(zmq.NOBLOCK)]
        except zmq.Again:
            return None
        frame = self._header = receive(zmq.NOBLOCK, False)
        parts.append(frame.bytes)
        while frame.more:
            frame = receive(zmq.NOBLOCK, False)
            if len(parts) == FRAMES_MAX:
                self._skipping = bool(frame.more)
                raise TooManyFramesError(parts[0], source_of(frame))
            parts.append(frame.bytes)
        return parts

    def _skip(self) -> bool:
        """Throw away what is left of a message, a part of it a turn; say whether that was all."""
        receive = self._receive
        for _ in range(SKIP_FRAMES):
            if not receive(zmq.NOBLOCK, False).more:
                self._skipping = False
                return True
        return False

    @property
    def source(self) -> int:
        """The descriptor of the connection over which the last message came, -1 if it is not known."""
        return -1 if self._header is None else source_of(self._header)


def source_of(frame: zmq.Frame) -> int:
    """Return the descriptor of the connection over which a frame came, -1 if it is not known."""
    try:
        return int(frame.get(zmq.SRCFD))
    except (zmq.ZMQError, AttributeError, TypeError, ValueError):
        return -1
