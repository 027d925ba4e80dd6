"""Tests of the commands that are clients, as processes, against a real broker."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ister.client import connect
from ister.errors import RemoteError
from ister.ownbroker import OwnBroker
from tests.cli.conftest import Ister

pytestmark = pytest.mark.process

BYTES = [b"plain", b"", b"\xff\x00 not text \x80", "Дунай".encode(), b"tab\there", b" " * 3]


def test_what_is_produced_line_by_line_is_consumed_line_by_line(ister: Ister) -> None:
    """A line may have any bytes but a newline: it may be empty, spaces, or no valid text."""
    stdin = b"\n".join(BYTES) + b"\n"
    produced = ister("produce", "lines", "--create", "--json", stdin=stdin)
    assert produced.returncode == 0, produced.stderr
    report = json.loads(produced.stdout)
    assert (report["messages"], report["first_offset"], report["last_offset"]) == (6, 0, 5)
    consumed = ister("consume", "lines", "--subscription", "s", "--start", "earliest")
    assert (consumed.returncode, consumed.stdout) == (0, stdin)


def test_a_last_line_without_its_newline_is_a_message_too(ister: Ister, tmp_path: Path) -> None:
    """The end of a file is not lost, and no empty message is added."""
    path = tmp_path / "file"
    path.write_bytes(b"one\n\ntwo")
    assert ister("produce", "tail", "--create", "--file", str(path)).returncode == 0
    consumed = ister("consume", "tail", "-s", "s", "--start", "earliest")
    assert consumed.stdout == b"one\n\ntwo\n"


def test_json_output_tells_everything_of_a_message(ister: Ister) -> None:
    """Key, attributes, offset, time and attempt are there; a payload that is no valid text is base64."""
    ister("produce", "told", "--create", "--key", "k", "--attribute", "a=b=c", stdin=b"text\n\xff\n")
    consumed = ister("consume", "told", "-s", "s", "--start", "earliest", "--json")
    first, second = map(json.loads, consumed.stdout.splitlines())
    assert first.items() >= {"offset": 0, "key": "k", "attributes": {"a": "b=c"}, "payload": "text"}.items()
    assert second["payload_base64"] == "/w=="
    assert second["attempt"] == 1
    assert abs(second["timestamp"] / 1000 - time.time()) < 60


def test_consume_goes_on_where_it_stopped(ister: Ister) -> None:
    """What was printed is acknowledged, and nothing else."""
    ister("produce", "resume", "--create", stdin=b"".join(b"%d\n" % number for number in range(100)))
    first = ister("consume", "resume", "-s", "s", "--start", "earliest", "--count", "30")
    assert first.stdout.split() == [b"%d" % number for number in range(30)]
    rest = ister("consume", "resume", "-s", "s")
    assert rest.stdout.split() == [b"%d" % number for number in range(30, 100)]
    assert ister("consume", "resume", "-s", "s").stdout == b""


def test_the_life_of_a_topic(ister: Ister) -> None:
    """Create, refuse to create again, show, list, delete, and it is gone."""
    made = ister("topic", "create", "life/one", "--dispatch", "non-reliable", "--json")
    assert json.loads(made.stdout)["strategy"] == "non-reliable"
    again = ister("topic", "create", "life/one")
    assert again.returncode == 1
    assert b"(topic-exists)" in again.stderr
    assert ister("topic", "create", "life/one", "--dispatch", "non-reliable", "--exist-ok").returncode == 0
    listed = json.loads(ister("topic", "list", "--json").stdout)
    assert "life/one" in [topic["topic"] for topic in listed]
    shown = ister("topic", "show", "life/one")
    assert b"non-reliable" in shown.stdout
    nothing = ister("topic", "update", "life/one")
    assert (nothing.returncode, b"--retention 7d" in nothing.stderr) == (2, True)
    assert ister("topic", "delete", "life/one", "--yes").returncode == 0
    gone = ister("topic", "show", "life/one", "--json")
    assert (gone.returncode, json.loads(gone.stderr)["error"]["code"]) == (1, "unknown-topic")


def test_the_life_of_a_subscription(ister: Ister) -> None:
    """Created before it is consumed, it collects messages; `show` says how many are left; deleted, it is gone."""
    ister("topic", "create", "subs")
    assert ister("subscription", "create", "subs", "s", "--type", "failover").returncode == 0
    ister("produce", "subs", stdin=b"a\nb\n")
    assert json.loads(ister("subscription", "show", "subs", "s", "--json").stdout)["type"] == "failover"
    assert b"failover" in ister("subscription", "list", "subs").stdout
    wrong = ister("consume", "subs", "-s", "s", "--type", "shared")
    assert (wrong.returncode, b"(subscription-type)" in wrong.stderr) == (1, True)
    assert ister("consume", "subs", "-s", "s", "--type", "failover").stdout == b"a\nb\n"
    assert ister("subscription", "delete", "subs", "s", "--yes").returncode == 0
    assert ister("subscription", "show", "subs", "s").returncode == 1


def test_status_names_every_process(ister: Ister) -> None:
    """Broker, two workers and tier, each with its pid, also in the table."""
    found = json.loads(ister("status", "--json").stdout)
    nodes = {process["node"]: process["pid"] for process in found["processes"]}
    assert nodes.keys() == {"broker", "worker-0", "worker-1", "tier"}
    table = ister("status").stdout.decode()
    assert all(node in table and str(pid) in table for node, pid in nodes.items())


def test_producing_to_a_topic_that_is_not_there_says_how_to_make_it(ister: Ister) -> None:
    """The error names the topic, and the advice has the command that creates it."""
    done = ister("produce", "nowhere", stdin=b"x\n")
    assert done.returncode == 1
    assert b"nowhere" in done.stderr
    assert b"ister topic create" in done.stderr


def test_a_line_that_is_too_long_is_refused(ister: Ister) -> None:
    """The error has the size and the limit; earlier lines are sent."""
    done = ister("produce", "long", "--create", stdin=b"short\n" + b"x" * (5 << 20) + b"\n")
    assert done.returncode != 0
    assert b"message-too-large" in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_closed_pipe_ends_quietly_and_acknowledges_nothing_unwritten(ister: Ister) -> None:
    """`ister consume | head` prints no traceback, and what was not written completely goes to the next consumer."""
    stdin = b"".join(
        b"%d" % number * 200_000 + b"\n" for number in range(5)
    )  # each is larger than a pipe's buffer
    assert ister("produce", "piped", "--create", stdin=stdin).returncode == 0
    command = [sys.executable, "-m", "ister", "consume", "piped", "-s", "s", "--start", "earliest"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(10) == b"0" * 10
        process.stdout.close()
        assert process.wait(20) == 141
        assert process.stderr.read() == b""
    assert ister("consume", "piped", "-s", "s").stdout == stdin


@pytest.mark.parametrize("command", ["consume full -s s --start earliest", "topic list"])
def test_a_full_disk_is_an_error_in_words_and_nothing_unwritten_is_acknowledged(
    ister: Ister, command: str
) -> None:
    """`ister consume > file` ends at once, and what found no room goes to the next consumer."""
    assert ister("produce", "full", "--create", stdin=b"x\n").returncode == 0
    with open("/dev/full", "wb") as full:
        process = subprocess.Popen(
            [sys.executable, "-m", "ister", *command.split()], stdout=full, stderr=subprocess.PIPE
        )
        _, told = process.communicate(timeout=30)
    assert (process.returncode, told.count(b"\n")) == (73, 2)
    assert told.startswith(b"ister: what is printed cannot be written: No space left on device (disk-full)")
    if command.startswith("consume"):
        assert ister("consume", "full", "-s", "s").stdout == b"x\n"


def test_ctrl_c_ends_a_follower_without_a_traceback(ister: Ister) -> None:
    """Exit code 130, as shells report Ctrl-C; what was printed stays acknowledged."""
    ister("produce", "followed", "--create", stdin=b"a\n")
    command = [
        sys.executable,
        "-m",
        "ister",
        "consume",
        "followed",
        "-s",
        "s",
        "--start",
        "earliest",
        "--follow",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"a\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        assert process.stderr.read() == b""


def test_a_pattern_is_consumed_like_a_topic(ister: Ister) -> None:
    """Every topic that matches, until all are drained; messages name their topic; an invalid pattern is refused."""
    for number in range(3):
        ister("produce", f"pattern/{number}", "--create", stdin=b"a\nb\n")
    command = ["consume", "pattern/*", "-s", "s", "--start", "earliest", "--json"]
    told = [json.loads(line) for line in ister(*command).stdout.splitlines()]
    assert sorted(message["topic"] for message in told) == [f"pattern/{n}" for n in (0, 0, 1, 1, 2, 2)]
    assert ister("consume", "pattern/>", "-s", "s").stdout == b""
    ister("produce", "pattern/new", "--create", stdin=b"c\n")
    assert ister("consume", "pattern/*", "-s", "s", "--start", "earliest").stdout == b"c\n"
    wrong = ister("consume", "pattern*", "-s", "s")
    assert (wrong.returncode, b"whole part" in wrong.stderr) == (2, True)
    assert ister("consume", "pattern/*").returncode == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_whoever_is_asked_to_end_leaves_its_place_at_once(
    ister: Ister, broker: OwnBroker, number: signal.Signals
) -> None:
    """After a service manager's SIGTERM or a closed terminal, its Exclusive place is free at once."""
    topic = f"ended/{number.name}"
    ister("produce", topic, "--create", stdin=b"a\n")
    command = [sys.executable, "-m", "ister", "consume", topic, "-s", "s", "--type", "exclusive"]
    command += ["--start", "earliest", "--follow"]
    with connect(broker.endpoint) as client:
        for _ in range(2):
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
                assert process.stdout is not None
                assert process.stderr is not None
                assert process.stdout.readline() == b"a\n"
                process.send_signal(number)
                assert process.wait(20) == 128 + number
                assert process.stderr.read() == b""
            client.consumer(topic, "s", type="exclusive").close()
            client.seek(topic, "s", "earliest")


def test_a_signal_in_the_middle_of_the_work_leaves_the_place_too(ister: Ister, broker: OwnBroker) -> None:
    """Whenever it comes, also while frames are sent or read: no client has to wait for a session to end."""
    ister("topic", "create", "ended/busy")
    command = [sys.executable, "-m", "ister", "consume", "ended/busy", "-s", "s", "--type", "exclusive"]
    command += ["--start", "earliest", "--follow"]
    with connect(broker.endpoint) as client, client.producer("ended/busy") as producer:
        for _ in range(5):
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
                assert process.stdout is not None
                assert process.stderr is not None
                for _ in range(200):
                    producer.send_batch([b"x" * 100] * 100)
                producer.flush(20)
                for _ in range(500):
                    process.stdout.readline()
                process.send_signal(signal.SIGTERM)
                _, told = process.communicate(timeout=30)
                assert process.returncode == 143
                assert told == b""
            client.consumer("ended/busy", "s", type="exclusive").close()


def test_nohup_is_obeyed(ister: Ister) -> None:
    """A signal that is ignored when the command starts stays ignored."""
    ister("produce", "nohup", "--create", stdin=b"a\n")
    command = [
        "nohup",
        sys.executable,
        "-m",
        "ister",
        "consume",
        "nohup",
        "-s",
        "s",
        "--start",
        "earliest",
        "-f",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"a\n"
        process.send_signal(signal.SIGHUP)
        ister("produce", "nohup", stdin=b"b\n")
        assert process.stdout.readline() == b"b\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 143


def test_a_consumer_that_was_killed_can_come_back_soon(ister: Ister, broker: OwnBroker) -> None:
    """The kernel closes its connection: the broker need not wait for the session timeout (15 s)."""
    ister("produce", "killed", "--create", stdin=b"a\n")
    command = [sys.executable, "-m", "ister", "consume", "killed", "-s", "s", "--type", "exclusive"]
    command += ["--start", "earliest", "--follow"]
    with connect(broker.endpoint) as client:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"a\n"
            with pytest.raises(RemoteError, match="force=True"):
                client.consumer("killed", "s", type="exclusive", timeout=0.5)
            process.kill()
        with client.consumer("killed", "s", type="exclusive", timeout=12) as consumer:
            assert consumer.position <= 1
