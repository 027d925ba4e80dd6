"""How a thread sleeps until a file descriptor is readable, another thread wakes it, or the time has passed.

Knows nothing of sockets and frames: see `connection.py` and `waits.py`. May touch: file descriptors.
"""

from __future__ import annotations

import os
import select


class Wake:
    """A file descriptor that is readable after `set`: what wakes one thread from `poll`.

    Most waits end without a `set`, by what has arrived. Then `clear` reads nothing: that would be an exception, some
    microseconds of the hundred that a lone message costs its program. Set at the same moment, it may wake the next wait
    in vain.
    """

    __slots__ = ("_set", "_write", "fd")

    def __init__(self) -> None:
        self._set = False
        if hasattr(os, "eventfd"):
            self.fd = self._write = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        else:  # macOS
            self.fd, self._write = os.pipe()
            os.set_blocking(self.fd, False)
            os.set_blocking(self._write, False)

    def set(self) -> None:
        """Wake the thread, now or when it polls next."""
        self._set = True
        try:
            os.write(self._write, b"\x01\0\0\0\0\0\0\0")
        except OSError:
            pass  # the pipe is full: the thread wakes anyway

    def clear(self) -> None:
        """Forget earlier calls of `set`."""
        if self._set:
            self.drain()

    def drain(self) -> None:
        """Forget earlier calls of `set`, also one that was not seen to be made."""
        self._set = False
        try:
            os.read(self.fd, 64)
        except OSError:
            pass  # nothing to read

    def close(self) -> None:
        """Close the descriptors."""
        os.close(self.fd)
        if self._write != self.fd:
            os.close(self._write)


def poll(wake: Wake, fds: tuple[int, ...], timeout_s: float) -> None:
    """Wait until the wake or one of the descriptors is readable, or the time has passed (without the lock)."""
    poller = select.poll()
    poller.register(wake.fd, select.POLLIN)
    for fd in fds:
        poller.register(fd, select.POLLIN)
    milliseconds = None if timeout_s > 3600 else max(0, int(timeout_s * 1000 + 0.999))
    for fd, event in poller.poll(milliseconds):
        if fd == wake.fd:
            wake.drain()
        elif event & select.POLLNVAL:
            return  # the socket was closed meanwhile
