"""Files that a command writes: what may be replaced, and is said to be. May touch: the file system.

Invariants
- a command replaces what it wrote before, and says so; any other file only with --force
- what cannot be written is refused before the work that would be lost
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from ister.cli.command import NO_ROOM
from ister.errors import DiskFullError, UsageError


def may_be_written(name: str, is_ours: Callable[[str], bool], kind: str, *, force: bool = False) -> None:
    """Raise `UsageError` unless the file can be written; `is_ours` says whether a text is of the `kind` it replaces."""
    path = Path(name)
    if not path.parent.is_dir():
        raise UsageError(f"{name} cannot be written: there is no folder {path.parent}")
    if not path.exists():
        if not os.access(path.parent, os.W_OK):
            raise UsageError(f"{name} cannot be written: nothing may be added to the folder {path.parent}")
        return
    if path.is_dir():
        raise UsageError(f"{name} is a folder: name a file")
    if not os.access(path, os.W_OK):
        raise UsageError(f"{name} may not be written")
    if not path.is_file() or path.stat().st_size == 0:  # a device or a pipe has nothing to lose
        return
    if not force and not is_ours(path.read_text(encoding="utf-8", errors="replace")):
        raise UsageError(f"{name} exists and is not {kind}: name another file, or replace it with --force")
    print(f"{name} exists and is replaced", file=sys.stderr)


def put(name: str, text: str) -> None:
    """Write a file; raises `DiskFullError` or `UsageError` with the reason if that fails."""
    try:
        Path(name).write_text(text, encoding="utf-8")
    except OSError as error:
        if error.errno in NO_ROOM:
            raise DiskFullError(f"{name} cannot be written: {error.strerror}") from None
        raise UsageError(f"{name} cannot be written: {error.strerror}") from None
