"""The states of a subscription while it is moved to another offset; pure.

```
idle --ask--> finding --found--> yielding --yielded--> moving --moved--> idle
                 +--------------------- refused ----------+--------------> idle
```

Invariants
- `TABLE` has every transition; any other is an error
- there is a command in every state but `idle`, and a target offset once it was found
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from ister.actors.messages import Seek

State = Literal["idle", "finding", "yielding", "moving"]
Step = Literal["ask", "found", "yielded", "moved", "refused"]

TABLE: Final[dict[tuple[State, Step], State]] = {
    ("idle", "ask"): "finding",  # the target offset is looked up, which may need the store
    ("finding", "found"): "yielding",  # all consumers give back what they hold
    ("finding", "refused"): "idle",  # there is no such offset, or it cannot be read
    ("yielding", "yielded"): "moving",  # the journal is replaced
    ("moving", "moved"): "idle",
    ("moving", "refused"): "idle",  # the journal could not be written
}


class Move:
    """The moves of one subscription, one at a time."""

    def __init__(self) -> None:
        self.state: State = "idle"
        self.command: Seek | None = None
        self.target: int | None = None  # the target offset, once known; then nothing is delivered

    def _step(self, step: Step) -> None:
        try:
            self.state = TABLE[self.state, step]
        except KeyError:
            raise AssertionError(
                f"a subscription that is {self.state} cannot take the step {step!r}"
            ) from None

    def ask(self, command: Seek) -> None:
        """Begin a move."""
        self._step("ask")
        self.command = command

    def found(self, target: int) -> None:
        """Set the target offset."""
        self._step("found")
        self.target = target

    def yielded(self) -> None:
        """Note that no consumer holds messages any more."""
        self._step("yielded")

    def end(self, *, moved: bool) -> Seek:
        """End the move, done or refused; return its command."""
        self._step("moved" if moved else "refused")
        command = self.command
        assert command is not None
        self.command = self.target = None
        return command
