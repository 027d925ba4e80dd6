"""Tests of the files that commands write: what is refused before the work, and what is never lost."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from ister.cli.output import may_be_written, put
from ister.errors import DiskFullError, UsageError


def ours(text: str) -> bool:
    """Whether a text is of the kind that is replaced."""
    return text.startswith("ours")


def test_a_file_of_the_same_kind_is_replaced_and_said_to_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the command itself wrote before needs no word of the user."""
    file = tmp_path / "a"
    may_be_written(str(file), ours, "ours")
    assert capsys.readouterr().err == ""
    put(str(file), "ours, first")
    may_be_written(str(file), ours, "ours")
    assert capsys.readouterr().err == f"{file} exists and is replaced\n"


def test_any_other_file_is_kept_unless_forced(tmp_path: Path) -> None:
    """The error names the file and says what to do."""
    file = tmp_path / "a"
    file.write_text("a letter", encoding="utf-8")
    with pytest.raises(UsageError, match="is not a page: name another file, or replace it with --force"):
        may_be_written(str(file), ours, "a page")
    may_be_written(str(file), ours, "a page", force=True)


def test_an_empty_file_and_a_device_have_nothing_to_lose(tmp_path: Path) -> None:
    """`--json /dev/null`, and a file that mktemp made, are written."""
    (tmp_path / "a").touch()
    may_be_written(str(tmp_path / "a"), ours, "ours")
    may_be_written("/dev/null", ours, "ours")


def test_a_place_where_nothing_can_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    """A missing folder, or a folder in the file's place, is said at once."""
    with pytest.raises(UsageError, match="there is no folder"):
        may_be_written(str(tmp_path / "no/a"), ours, "ours")
    with pytest.raises(UsageError, match="is a folder: name a file"):
        may_be_written(str(tmp_path), ours, "ours")


def test_what_goes_wrong_while_writing_is_an_error_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that went meanwhile is a wrong call, and a full disk is a full disk."""
    with pytest.raises(UsageError, match="cannot be written: No such file or directory"):
        put(str(tmp_path / "no/a"), "text")

    def full(*_given: object, **_more: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(DiskFullError, match="No space left"):
        put(str(tmp_path / "a"), "text")
