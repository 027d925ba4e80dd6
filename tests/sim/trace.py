"""The events of a run: a digest of all, and the last ones in full."""

from __future__ import annotations

from collections import deque
from hashlib import blake2b
from typing import Final

TAIL: Final = 400


class Trace:
    """The events of a run, in order; `digest` tells two runs apart."""

    def __init__(self, now: object) -> None:
        self._clock = now
        self._digest = blake2b(digest_size=16)
        self.events = 0
        self.tail: deque[tuple[object, ...]] = deque(maxlen=TAIL)
        # all events, for finding the first difference of two runs
        self.log: list[tuple[object, ...]] | None = None

    def note(self, *what: object) -> None:
        """Note an event: plain values whose `repr` is the same in every process."""
        entry = (round(self._clock.now_s, 6), *what)  # type: ignore[attr-defined]
        self.events += 1
        self.tail.append(entry)
        if self.log is not None:
            self.log.append(entry)
        self._digest.update(repr(entry).encode())

    @property
    def digest(self) -> str:
        """The digest of the events so far, in hexadecimal."""
        return self._digest.hexdigest()

    def last(self, count: int) -> str:
        """Return the last events as lines."""
        return "\n".join(
            f"{entry[0]:12.6f} " + " ".join(map(str, entry[1:])) for entry in list(self.tail)[-count:]
        )
