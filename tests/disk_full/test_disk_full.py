"""A broker on a real file system that is really full: ext4 in a file (tmpfs without loop devices).

A limit on file sizes or a quota fails elsewhere, and differently; so if nothing can be mounted these tests are skipped.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

import ister
from ister.errors import TimeoutExpiredError
from ister.ownbroker import free_ports
from tests.crash.message import make_payload
from tests.crash.model import ReadBack
from tests.crash.oracle import Oracle
from tests.crash.victim import Victim

pytestmark = [pytest.mark.process, pytest.mark.slow, pytest.mark.timeout(120)]

DISK_BYTES = 48 << 20
SETTINGS: dict[str, object] = {
    "protocol.message_bytes_max": 1_200_000,
    "protocol.batch_bytes_max": 1_200_000,
    "log.segment_bytes_max": 3_000_000,
}
LARGE = 200_000


def mount(folder: Path) -> tuple[Path, str]:
    """Mount a small file system, and return its path and kind; raises OSError with the reason."""
    at = folder / "disk"
    at.mkdir()
    image = folder / "image"
    with image.open("wb") as file:
        file.truncate(DISK_BYTES)
    complaints = []
    for kind, commands in (
        ("ext4", [["mkfs.ext4", "-q", "-m", "0", str(image)], ["mount", "-o", "loop", str(image), str(at)]]),
        ("tmpfs", [["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(at)]]),
    ):
        try:
            for command in commands:
                subprocess.run(command, check=True, capture_output=True, timeout=20)
        except (OSError, subprocess.SubprocessError) as error:
            said = getattr(error, "stderr", None) or str(error).encode()
            complaints.append(f"{kind}: {said.decode(errors='replace').strip()}")
        else:
            return at, kind
    raise OSError("; ".join(complaints))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a file system so small that it is full within a second."""
    if not sys.platform.startswith("linux"):
        pytest.skip("mounts a small file system, which is done for Linux only")
    try:
        at, _kind = mount(tmp_path)
    except OSError as error:
        pytest.skip(f"no small file system can be mounted here ({error})")
    try:
        yield at
    finally:
        subprocess.run(["umount", "-l", str(at)], check=True, capture_output=True)


class Scene:
    """A broker on the small disk, a file that takes or frees space, and the oracle."""

    def __init__(self, disk: Path, log: Path) -> None:
        self.disk = disk
        self.ballast = disk / "ballast"
        self.victim = Victim(disk / "data", log, free_ports(1), SETTINGS)
        self.oracle = Oracle(lambda: time.time() * 1000)
        self._numbers = 0
        self._random = Random(1)

    @property
    def endpoint(self) -> str:
        """Where the broker listens."""
        return f"tcp://127.0.0.1:{self.victim.port}"

    def fill(self, leave: int = 0) -> None:
        """Use up all space except `leave` bytes, to the last block."""
        with self.ballast.open("ab", buffering=0) as file:
            size = 1 << 20
            while size >= 512:
                room = os.statvfs(self.disk)
                if leave and room.f_bavail * room.f_frsize <= leave:
                    return
                try:
                    file.write(bytes(size))
                except OSError:
                    size //= 2

    def make_room(self) -> None:
        """Free all of it."""
        self.ballast.unlink()

    def send(self, producer: ister.Producer, size: int = LARGE) -> ister.Receipt:
        """Publish a message that the oracle knows, and report its receipt when it comes."""
        payload = make_payload(1, self._numbers, self._random.randbytes(size))
        self._numbers += 1
        identity = self.oracle.sent("orders", payload)
        receipt = producer.send(payload, timeout=30)

        def done(answered: ister.Receipt) -> None:
            with contextlib.suppress(ister.IsterError):
                self.oracle.receipted("orders", identity, answered.result(0).offset)

        receipt.add_done_callback(done)
        return receipt

    def publish_until_full(self, producer: ister.Producer) -> tuple[ister.Receipt, TimeoutExpiredError]:
        """Publish until there is no receipt for two seconds; return that receipt, and its error."""
        for _ in range(DISK_BYTES // LARGE + 1):
            receipt = self.send(producer)
            try:
                receipt.result(2.0)
            except TimeoutExpiredError as error:
                return receipt, error
        raise AssertionError("the disk took more than it has")

    def read_back(self, client: ister.Client) -> int:
        """Read the topic from its start, check it, and return the number of messages."""
        back = ReadBack("orders")
        end = self.oracle.end("orders")
        with client.consumer(
            "orders", subscription=f"audit-{time.monotonic_ns()}", start="earliest"
        ) as consumer:
            while (message := consumer.receive(10.0 if back.next < end else 0.3)) is not None:
                self.oracle.read(back, message.offset, message.payload)
        self.oracle.read_to_end(back, everything=True)
        assert self.oracle.violations == []
        return back.next


@pytest.fixture
def scene(small_disk: Path, tmp_path: Path) -> Iterator[Scene]:
    """A broker on the small disk, running."""
    scene = Scene(small_disk, tmp_path / "broker.log")
    scene.victim.start(1)
    try:
        yield scene
    finally:
        scene.victim.end()


def test_a_full_disk_refuses_publishes_and_service_returns_when_there_is_room(scene: Scene) -> None:
    """The producer is told `disk-full`, loses nothing, and continues by itself; consumers never stop."""
    with ister.connect(scene.endpoint, timeout=20) as client:
        client.create_topic("orders")
        client.create_subscription("orders", "billing", start="earliest")
        producer = client.producer("orders")
        for _ in range(10):
            scene.send(producer).result(10)
        scene.fill(leave=8 << 20)
        waiting, error = scene.publish_until_full(producer)
        assert "disk-full" in str(error)
        scene.fill()

        with client.consumer("orders", subscription="billing") as consumer:
            for _ in range(10):
                message = consumer.receive(5)
                assert message is not None
                consumer.ack(message)
            assert consumer.receive(5) is not None
        assert not waiting.done() or waiting.result(0).offset is not None

        scene.make_room()
        assert waiting.result(20).offset is not None
        for _ in range(20):
            scene.send(producer).result(10)
        assert scene.read_back(client) >= 31
        with client.consumer("orders", subscription="billing") as consumer:
            again = consumer.receive(5)
            assert again is not None
            assert again.offset == 10
        producer.close()


def test_a_topic_can_be_deleted_on_a_full_disk(scene: Scene) -> None:
    """An operator does that to free space; subscriptions too."""
    with ister.connect(scene.endpoint, timeout=20) as client:
        client.create_topic("other")
        client.create_subscription("other", "billing", start="earliest")
        with client.producer("other") as other:
            for _ in range(20):
                other.send(bytes(LARGE)).result(10)
        scene.fill()
        client.delete_subscription("other", "billing", timeout=5)
        client.delete_topic("other", timeout=5)
        assert client.topics() == []


def test_a_confirmed_acknowledgment_on_a_full_disk_survives_a_kill(scene: Scene) -> None:
    """While the cursor cannot be written nothing is confirmed: a promise is kept, or not given."""
    with ister.connect(scene.endpoint, timeout=20) as client:
        client.create_topic("orders")
        client.create_subscription("orders", "billing", start="earliest")
        producer = client.producer("orders")
        for _ in range(2000):
            scene.send(producer, 10)
        producer.flush(20)
        scene.fill()
        confirmed = []
        with client.consumer("orders", subscription="billing") as consumer:
            for number in range(2000):
                message = consumer.receive(5)
                assert message is not None
                if number % 2:  # holes: each takes space in the journal
                    consumer.ack(message)
                    try:
                        consumer.flush(1.0)
                    except TimeoutExpiredError:
                        break
                    confirmed.append(message.offset)
            scene.victim.kill_all()
            assert scene.victim.gone() == {}
            client.close()  # it would reconnect, and take the only place of an Exclusive subscription
            scene.make_room()
            scene.victim.start(1)
            given = set()
            with ister.connect(scene.endpoint, timeout=20) as fresh:
                with fresh.consumer("orders", subscription="billing") as again:
                    while (message := again.receive(2.0)) is not None:
                        given.add(message.offset)
            assert given & set(confirmed) == set()


def test_a_broker_starts_on_a_full_disk_and_serves_what_is_there(scene: Scene) -> None:
    """Killed and restarted without a free block: everything can be read, and publishing works again with space."""
    with ister.connect(scene.endpoint, timeout=20) as client:
        client.create_topic("orders")
        client.create_subscription("orders", "billing", start="earliest")
        with client.producer("orders") as producer:
            for _ in range(30):
                scene.send(producer).result(10)
    scene.fill()
    scene.victim.kill_all()
    assert scene.victim.gone() == {}
    scene.fill()
    scene.victim.start(1)
    with ister.connect(scene.endpoint, timeout=20) as client:
        with client.consumer("orders", subscription="billing") as consumer:
            offsets = [message.offset for _ in range(30) if (message := consumer.receive(5)) is not None]
            assert offsets == list(range(30))
        producer = client.producer("orders")
        waiting, error = scene.publish_until_full(producer)
        assert "disk-full" in str(error)
        scene.make_room()
        waiting.result(20)
        producer.close()
        assert scene.read_back(client) >= 31


def test_acknowledgments_go_on_and_retention_makes_room_on_a_full_disk(scene: Scene) -> None:
    """Every acknowledgment is confirmed, and holds after a kill; then a shorter retention lets publishing continue."""
    with ister.connect(scene.endpoint, timeout=20) as client:
        client.create_topic("orders")
        client.create_topic("small")
        client.create_subscription("small", "billing", type="shared", start="earliest")
        with client.producer("small") as small:
            for _ in range(600):
                small.send(b"x")
        producer = client.producer("orders")
        scene.fill(leave=12 << 20)
        waiting, error = scene.publish_until_full(producer)
        assert "disk-full" in str(error)
        scene.fill()
        with client.consumer("small", subscription="billing", type="shared") as consumer:
            for _ in range(500):
                message = consumer.receive(5)
                assert message is not None
                consumer.ack(message)
                consumer.flush(10)
        scene.fill()
        client.update_topic("orders", retention_bytes=3_000_000)
        assert waiting.result(30).offset is not None
        producer.close()
    scene.victim.kill_all()
    assert scene.victim.gone() == {}
    scene.victim.start(1)
    with ister.connect(scene.endpoint, timeout=20) as client:
        with client.consumer("small", subscription="billing", type="shared") as consumer:
            left = [message.offset for _ in range(100) if (message := consumer.receive(5)) is not None]
        assert left == list(range(500, 600))
