"""References: the address of an actor, and what is told through it, in this process or to another one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

from ister.actors.loop import Scheduler
from ister.actors.mailbox import Inbox


class Address(NamedTuple):
    """An actor's address: its process's node name and its path there, such as ("worker-0", "topic/orders")."""

    node: str
    path: str


class Ref(ABC):
    """A reference to an actor in any process, also to one that does not exist (yet)."""

    __slots__ = ("address",)

    address: Address

    @abstractmethod
    def tell(self, message: object) -> None:
        """Send a message (a frozen dataclass); it arrives at most once.

        Raises MailboxFullError if the actor is in this process and its inbox is full.
        """

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ref) and self.address == other.address

    def __hash__(self) -> int:
        return hash(self.address)

    def __repr__(self) -> str:
        return f"<Ref {self.address.node}:{self.address.path}>"


class Carrier(Protocol):
    """Carries messages to other processes: `ister.actors.mail.Mail`, or a simulated network."""

    def send(self, address: Address, message: object) -> None:
        """Send `message` to another node."""

    def attach(self, loop: Scheduler, deliver: Callable[[str, object], None]) -> None:
        """Start receiving: call `deliver(path, message)` on `loop` for everything that arrives."""


class Inboxes(Protocol):
    """The inboxes of a process, by path: `ister.actors.runtime.System`."""

    def inbox_at(self, path: str) -> Inbox:
        """Return the inbox of the actor at `path`, or one that takes nothing."""

    def leave_unclaimed(self, path: str, messages: Iterable[object]) -> None:
        """Hand messages that found no actor to the process."""


class LocalRef(Ref):
    """A reference to an actor of this process."""

    __slots__ = ("_inbox", "_system")

    def __init__(self, system: Inboxes, address: Address) -> None:
        self.address = address
        self._system = system
        self._inbox = system.inbox_at(address.path)

    def tell(self, message: object) -> None:
        """Put a message on its way."""
        if not self._inbox.tell(message):
            # The actor is gone, or did not exist when this reference was made: there may be another by now.
            self._inbox = self._system.inbox_at(self.address.path)
            if not self._inbox.tell(message):
                self._system.leave_unclaimed(self.address.path, (message,))


class RemoteRef(Ref):
    """A reference to an actor of another process."""

    __slots__ = ("_mail",)

    def __init__(self, mail: Carrier, address: Address) -> None:
        self.address = address
        self._mail = mail

    def tell(self, message: object) -> None:
        """Put a message on its way."""
        self._mail.send(self.address, message)
