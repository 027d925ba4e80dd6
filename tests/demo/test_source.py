"""Tests of the demonstration's input."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from ister.demo.source import lines_of, read_source
from ister.errors import UsageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a small library: an empty file, one without a last newline, one of all bytes."""
    (tmp_path / "b").mkdir()
    (tmp_path / "a.py").write_bytes(b"")
    (tmp_path / "b" / "c.py").write_bytes(b"one\r\n\n\ntwo")
    (tmp_path / "d.py").write_bytes(bytes(range(256)) + b"\n")
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "e.py").write_bytes(b"not ours")
    return tmp_path


def test_lines_joined_are_the_file_again(folder: Path) -> None:
    """Cutting a file into lines neither loses nor adds a byte."""
    source = read_source(root=str(folder))
    assert [file.name for file in source.files] == ["a.py", "b/c.py", "d.py"]
    for file, lines in lines_of(source.files):
        assert len(lines) == file.count
        assert hashlib.sha256(b"\n".join(lines)).digest() == file.digest
        assert b"\n".join(lines) == Path(file.path).read_bytes()


def test_lines_are_numbered_through(folder: Path) -> None:
    """Every process that reads the source gives a line the same number."""
    source = read_source(root=str(folder))
    assert [(file.first, file.count) for file in source.files] == [(0, 1), (1, 4), (5, 3)]
    assert source.lines == 8


def test_a_limit_keeps_whole_files(folder: Path) -> None:
    """Digests are of whole files, so a file is included or not; at least one is."""
    assert read_source(5, str(folder)).lines == 5
    assert read_source(6, str(folder)).lines == 5
    assert read_source(1, str(folder)).lines == 1
    with pytest.raises(UsageError):
        read_source(root=str(folder / "nowhere"))
