"""An object store that fails as a test says: before a call, or after it, with a lost answer.

`calls` records all calls as (operation, name).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ister.errors import StoreError
from ister.storage.disk import Disk
from ister.storage.objectstore import ObjectStore

Hook = Callable[[str, str], None]


def nothing(_operation: str, _name: str) -> None:
    """Do nothing."""


class FaultyStore:
    """A wrapper of a store: `before` and `after` each call may raise."""

    def __init__(self, store: ObjectStore, disk: Disk | None = None) -> None:
        """Wrap `store`; files to upload are on `disk`, if that is not the store's own."""
        self.store = store
        self.disk = disk
        self.before: Hook = nothing
        self.after: Hook = nothing
        self.calls: list[tuple[str, str]] = []

    def away(self) -> None:
        """Let every call fail from now on."""

        def fail(operation: str, name: str) -> None:
            raise StoreError(f"the store is away: {operation} {name}")

        self.before = fail

    def back(self) -> None:
        """Let calls succeed from now on."""
        self.before = self.after = nothing

    def lose_answer(self, operation: str, part: str) -> None:
        """Do the next such call on a name that contains `part`, and lose its answer."""

        def fail(done: str, name: str) -> None:
            if done.startswith(operation) and part in name:
                self.after = nothing
                raise StoreError(f"the answer to {done} {name} is lost")

        self.after = fail

    def _do(self, operation: str, name: str, *given: Any, **more: Any) -> Any:
        self.calls.append((operation, name))
        self.before(operation, name)
        answer = getattr(self.store, operation)(name, *given, **more)
        if operation == "list":
            answer = list(answer)
        self.after(operation, name)
        return answer

    def put_if_absent(self, name: str, data: Any, **more: Any) -> bool:
        """Create an object."""
        return bool(self._do("put_if_absent", name, data, **more))

    def put_file_if_absent(self, name: str, path: str, **more: Any) -> bool:
        """Create an object of a file."""
        if self.disk is not None:
            return self.put_if_absent(name, self.disk.read(path), **more)
        return bool(self._do("put_file_if_absent", name, path, **more))

    def get(self, name: str) -> bytes:
        """Return an object's bytes."""
        return bytes(self._do("get", name))

    def get_range(self, name: str, start: int, length: int) -> bytes:
        """Return a part of an object's bytes."""
        return bytes(self._do("get_range", name, start, length))

    def head(self, name: str) -> Any:
        """Return the description of an object."""
        return self._do("head", name)

    def list_page(self, prefix: str, **more: Any) -> Any:
        """Return a page of a listing."""
        return self._do("list_page", prefix, **more)

    def list(self, prefix: str) -> Iterator[Any]:
        """Return a listing."""
        return iter(self._do("list", prefix))

    def delete(self, name: str) -> bool:
        """Delete an object."""
        return bool(self._do("delete", name))

    def close(self) -> None:
        """Close the store."""
        self.store.close()


__all__ = ["FaultyStore"]
