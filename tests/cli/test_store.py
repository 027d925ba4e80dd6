"""`ister store`: reading a store without a broker."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ister.storage.folderstore import FolderStore
from ister.storage.store_folders import places
from tests.storedtopic import FIRST_MS, StoredTopic, payload, store_a_topic

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture
def topic(tmp_path: Path) -> Iterator[StoredTopic]:
    """Return a topic `orders` of a store in a folder."""
    topic = store_a_topic(tmp_path, FolderStore(f"{tmp_path}/store"))
    yield topic
    topic.close()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run `ister store` with arguments; URL stands for the store's address."""

    def run(*arguments: str) -> subprocess.CompletedProcess[bytes]:
        given = [f"file://{tmp_path}/store" if each == "URL" else each for each in arguments]
        return subprocess.run(
            [sys.executable, "-m", "ister", "store", *given], capture_output=True, timeout=30
        )

    return run


def test_cat_prints_every_payload(topic: StoredTopic, run: Run) -> None:
    """One line each, in order, and nothing else on stdout or stderr."""
    done = run("cat", "URL", "orders")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == b"".join(payload(offset) + b"\n" for offset in range(61))


def test_cat_begins_and_ends_where_it_is_told(topic: StoredTopic, run: Run) -> None:
    """By offset, by time in three spellings, and by count, also in the middle of a batch."""
    one = payload(21) + b"\n" + payload(22) + b"\n"
    assert run("cat", "URL", "orders", "--from-offset", "21", "--count", "2").stdout == one
    assert run("cat", "URL", "orders", "--from-time", str(FIRST_MS + 2000), "--count", "2").stdout == one
    assert run("cat", "URL", "orders", "--from-time", "2026-02-25T06:13:22Z", "--count", "2").stdout == one
    assert run("cat", "URL", "orders", "--from-offset", "61").stdout == b""
    assert run("cat", "URL", "orders", "--from-time", "-1m").stdout == b""


def test_cat_json_is_a_message_a_line(topic: StoredTopic, run: Run) -> None:
    """With all its fields."""
    lines = run("cat", "URL", "orders", "--from-offset", "15", "--count", "1", "--json").stdout.splitlines()
    assert [json.loads(line) for line in lines] == [
        {
            "topic": "orders",
            "offset": 15,
            "key": "k15",
            "attributes": {"n": "15"},
            "timestamp": FIRST_MS + 1000,
            "payload": payload(15).decode(),
        }
    ]


def test_ls_shows_topics_and_their_objects(topic: StoredTopic, run: Run, tmp_path: Path) -> None:
    """For people and for scripts; a folder's path is accepted like its address."""
    (listed,) = json.loads(run("ls", "URL", "--json").stdout)
    assert (listed["topic"], listed["start_offset"], listed["end_offset"], listed["segments"]) == (
        "orders",
        0,
        61,
        3,
    )
    assert (listed["unjoined"], listed["unused"], listed["undecided_epoch"]) == ([], [], None)
    printed = run("ls", f"{tmp_path}/store").stdout.decode()
    assert "orders" in printed
    assert "2026-02-25 06:13:20Z" in printed
    pieces = json.loads(run("ls", "URL", "orders", "--json").stdout)["pieces"]
    assert [(piece["first"], piece["end"], piece["epoch"]) for piece in pieces] == [
        (0, 36, 1),
        (36, 50, 1),
        (50, 61, 1),
    ]
    assert topic.layout.segment(36, 1) in run("ls", "URL", "orders").stdout.decode()
    (tmp_path / "data").mkdir()
    assert b"the folder `store` in its data folder" in run("ls", f"{tmp_path}/data").stdout


def test_verify_says_that_all_is_well(topic: StoredTopic, run: Run) -> None:
    """Exit code 0, and a summary."""
    done = run("verify", "URL")
    assert done.returncode == 0
    assert "offsets 0 to before 61 in 3 segments" in done.stdout.decode()
    assert "every byte is what was written" in done.stdout.decode()
    (report,) = json.loads(run("verify", "URL", "orders", "--json").stdout)
    assert (report["sound"], report["records"], report["damaged"]) == (True, 6, [])


def test_damage_and_gaps_end_with_exit_code_1(topic: StoredTopic, run: Run, tmp_path: Path) -> None:
    """`verify` names object and offsets; `cat` prints what comes before, and says why it stops."""
    path = tmp_path / "store" / places(topic.layout.segment(36, 1))[0].path
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()  # it is a hard link to the log's own file
    path.write_bytes(data)
    done = run("verify", "URL")
    assert done.returncode == 1
    assert "offsets 36 to before 50" in done.stdout.decode()
    done = run("cat", "URL", "orders")
    assert done.returncode == 1
    assert done.stdout.count(b"\n") == 36
    assert b"log-damaged" in done.stderr
    path.unlink()
    done = run("cat", "URL", "orders")
    assert (done.returncode, done.stdout.count(b"\n")) == (1, 36)
    assert b"36 to before 50" in done.stderr
    assert run("verify", "URL").returncode == 1


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("cat", "URL", "nothing"), 2, "unknown-topic"),
        (("cat", "URL", "orders", "--from-offset", "62"), 2, "offset-out-of-range"),
        (("cat", "URL", "orders", "--from-time", "tomorrow"), 2, "neither a time"),
        (("ls", "/no/such/folder"), 1, "store-missing"),
        (("ls", "s3://bucket"), 2, "give file:///folder or gs://bucket/prefix"),
        (("cat", "URL", "a b"), 2, "topic"),
        (("cat", "URL", "nothing"), 2, "ister store ls"),
        (("cat", "URL", "orders", "--from-time", "yesterday"), 2, "-15m"),
    ],
)
def test_what_cannot_be_read_is_said(
    topic: StoredTopic, run: Run, arguments: tuple[str, ...], code: int, says: str
) -> None:
    """A line on stderr, no traceback, nothing on stdout, and the fitting exit code."""
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (code, b"")
    assert says in done.stderr.decode()
    assert b"Traceback" not in done.stderr
