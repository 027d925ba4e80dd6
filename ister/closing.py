"""What programs open and close: the steps of closing, which are the same for producers and receivers.

Closing is made of steps that do not wait, so that `ister.aio` waits in the event loop between them. What only one of
them does is in `producer.py` and `receiver.py`. May touch: the network (to send).
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from ister import arguments
from ister.errors import IsterError, TimeoutExpiredError

if TYPE_CHECKING:
    from ister.clientsession import Handle
    from ister.network import Network

HURRY_S: Final = 1.0  # how long closing may take when an exception is on its way out


class Closing(ABC):
    """A producer or receiver, closed by `close` or at the end of a `with` block."""

    def __init__(self, network: Network, side: Handle) -> None:
        """`side` is its part of the protocol."""
        self._network = network
        self._lock: threading.Lock = network.lock
        self._side = side

    @property
    @abstractmethod
    def what(self) -> str:
        """What this is, for error texts."""

    @abstractmethod
    def close(self, timeout: float | None = None) -> None:
        """Close it, and wait at most `timeout` seconds for the broker; closing again does nothing."""

    @abstractmethod
    def end(self) -> None:
        """Release everything, whatever the broker answered."""

    @abstractmethod
    def blame(self, error: BaseException | None) -> None:
        """Let messages in hand fail, if an exception that ends the block is a failure."""

    # ---- the steps -----------------------------------------------------------------------------------------------

    def is_over(self) -> bool:
        """Whether there is nothing left to close."""
        return self._network.forked or self._network.closed or self._side.phase == "closed"

    def begin_close(self) -> None:
        """Send what is left to send, then CLOSE."""
        with self._lock:
            self._side.close()
            self._network.connection_of(self._side).touch()

    def is_closed(self) -> bool:
        """Whether the broker has answered the CLOSE (lock held)."""
        return self._side.phase == "closed"

    def closed(self, answered: bool) -> None:
        """Raise `TimeoutExpiredError` if the broker did not answer the CLOSE."""
        if not answered:
            raise TimeoutExpiredError(f"the broker did not confirm the close of {self.what}")

    # ---- time ----------------------------------------------------------------------------------------------------

    def deadline(self, timeout: float | None) -> float:
        """Return the clock's time in `timeout` seconds."""
        return self._network.deadline(arguments.timeout(timeout))

    def seconds_until(self, deadline: float) -> float | None:
        """Return how many seconds are left until then; `None` for ever."""
        return self._network.seconds_until(deadline)

    # ---- with ----------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        self.blame(error)
        try:
            self.close(HURRY_S)
        except IsterError:
            pass  # the exception that leaves the block matters more
