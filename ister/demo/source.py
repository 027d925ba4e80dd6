"""The input: every line of every source file of the running Python's standard library.

Each line becomes a message; the lines of a file joined by newlines are the file again, byte for byte. Names are
relative to the library's folder and sorted, so that every process that reads the source numbers its lines alike.
"""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ister.errors import UsageError


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file: its lines are numbers `first` to `first + count - 1` of the source; `digest` is its SHA-256."""

    name: str
    path: str
    first: int
    count: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Source:
    """All files of the input, in order; `bytes` counts the payloads (without newlines)."""

    files: tuple[SourceFile, ...]
    lines: int
    bytes: int


def read_source(lines_max: int | None = None, root: str | None = None) -> Source:
    """Read the source: whole files, as many as stay within `lines_max` lines (at least one)."""
    folder = Path(root or sysconfig.get_path("stdlib"))
    files: list[SourceFile] = []
    total = size = 0
    for path in sorted(folder.rglob("*.py")):
        if "site-packages" in path.parts or not path.is_file():
            continue
        data = path.read_bytes()
        count = data.count(b"\n") + 1
        if files and lines_max is not None and total + count > lines_max:
            break
        name = path.relative_to(folder).as_posix()
        files.append(SourceFile(name, str(path), total, count, hashlib.sha256(data).digest()))
        total += count
        size += len(data) - count + 1
    if not files:
        raise UsageError(f"there are no Python source files in {folder}")
    return Source(tuple(files), total, size)


def lines_of(files: Sequence[SourceFile]) -> Iterator[tuple[SourceFile, list[bytes]]]:
    """Yield each file with its lines."""
    for file in files:
        yield file, Path(file.path).read_bytes().split(b"\n")
