"""How long do receipts take while large topics are verified, and how long without?

    python benchmarks/verify.py [--topics 8] [--megabytes 256] [--rate 1000] [--seconds 5] [--rounds 4] [--json]

A broker of its own with one worker. `--topics` topics are filled with 1 KiB messages, then a producer sends `--rate` of
them per second to one more, and each receipt is timed, in alternating windows: in every second one all the large topics
are verified at the same time, again and again. Who asks for that is a process of its own, connected from the beginning:
what its threads take of an interpreter's time is not the broker's. Printed are p50 and p99 of both, and the medians
over the rounds of their ratios.

The goal is a p99 of at most 1.3 times what it is without. The first round is a warm-up and does not count.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Final, Self

sys.path.insert(0, str(Path(__file__).parents[1]))

from arguments import above_zero, made_folder, whole

import ister
from ister.ownbroker import OwnBroker

GOAL: Final = 1.3
PAYLOAD: Final = bytes(1024)
AT_ONCE: Final = 64


def main() -> int:
    """Measure, print, and return the exit code: 0 if the goal is met."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--topics", type=whole, default=8)
    parser.add_argument("--megabytes", type=whole, default=256, help="of each topic")
    parser.add_argument("--rate", type=whole, default=1000)
    parser.add_argument("--seconds", type=above_zero, default=5.0, help="of each window")
    parser.add_argument("--rounds", type=whole, default=4)
    parser.add_argument("--data", type=made_folder, help="where the broker's folder is made")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.data) as folder:
        Path(folder, "data").mkdir()
        settings = {"log.local_bytes": 4 * given.topics * given.megabytes << 20}
        with OwnBroker(f"{folder}/data", f"{folder}/log", workers=1, settings=settings) as broker:
            found = measure(broker.endpoint, given)
    if given.json:
        print(json.dumps(found))
    else:
        for name in ("quiet", "verifying"):
            print(f"{name:10}  p50 {found[name]['p50_us']:8.0f} us   p99 {found[name]['p99_us']:8.0f} us")
        print(f"ratios      p50 {found['ratio_p50']:8.2f}      p99 {found['ratio_p99']:8.2f}   (goal {GOAL})")
        print(
            f"verified    {found['verified_bytes'] / 1e6:,.0f} MB in {found['verifications']} verifications"
        )
    return int(found["ratio_p99"] > GOAL)


def measure(endpoint: str, given: argparse.Namespace) -> dict[str, object]:
    """Fill the topics, run the windows, and return the figures."""
    names = [f"large-{number}" for number in range(given.topics)]
    with ister.connect(endpoint) as client:
        for name in [*names, "timed"]:
            client.create_topic(name)
        for name in names:
            with client.producer(name) as producer:
                for _ in range(given.megabytes << 10 >> 6):
                    producer.send_batch([PAYLOAD] * AT_ONCE)
                producer.flush()
        rounds = []
        with Verifier(endpoint, names) as verifier, client.producer("timed", linger_ms=0) as producer:
            for _ in range(given.rounds + 1):
                quiet = window(producer, given)
                verifier.begin()
                rounds.append((quiet, window(producer, given)))
                verifier.end()
        verified = verifier.verified
    rounds = rounds[1:]
    return {
        "topics": given.topics,
        "megabytes": given.megabytes,
        "rate": given.rate,
        "quiet": {
            "p50_us": middle(each[0][0] for each in rounds),
            "p99_us": middle(each[0][1] for each in rounds),
        },
        "verifying": {
            "p50_us": middle(each[1][0] for each in rounds),
            "p99_us": middle(each[1][1] for each in rounds),
        },
        "ratio_p50": middle(each[1][0] / each[0][0] for each in rounds),
        "ratio_p99": middle(each[1][1] / each[0][1] for each in rounds),
        "verifications": verified[0],
        "verified_bytes": verified[1],
    }


class Verifier:
    """A process that verifies all the topics, each again and again, between `begin` and `end`."""

    def __init__(self, endpoint: str, topics: list[str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--verifier", endpoint, *topics],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self.verified = [0, 0]  # topics, bytes
        self._answer()

    def _answer(self) -> list[int]:
        assert self._process.stdout is not None
        answer: list[int] = json.loads(self._process.stdout.readline())
        return answer

    def _tell(self, word: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word}\n")

    def begin(self) -> None:
        """Begin, at once."""
        self._tell("begin")

    def end(self) -> None:
        """End, and wait until nothing is verified any more."""
        self._tell("end")
        self.verified = self._answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()


def verifier(endpoint: str, topics: list[str]) -> None:
    """Run as the Verifier's process."""
    verified = [0, 0]
    clients = [ister.connect(endpoint) for _ in topics]
    stop = threading.Event()

    def verify(client: ister.Client, topic: str) -> None:
        while not stop.is_set():
            report = client.verify_topic(topic, timeout=600)
            verified[0] += 1
            verified[1] += report["bytes"]

    print(json.dumps(verified), flush=True)
    for line in sys.stdin:
        if line.strip() == "begin":
            stop.clear()
            threads = [
                threading.Thread(target=verify, args=each) for each in zip(clients, topics, strict=True)
            ]
            for thread in threads:
                thread.start()
        else:
            stop.set()
            for thread in threads:
                thread.join()
            print(json.dumps(verified), flush=True)
    for client in clients:
        client.close()


def window(producer: ister.Producer, given: argparse.Namespace) -> tuple[float, float]:
    """Send at the rate, and return p50 and p99 of the receipts' latencies in microseconds."""
    took: list[float] = []
    begin = time.perf_counter()
    for number in range(int(given.rate * given.seconds)):
        while (wait := begin + number / given.rate - time.perf_counter()) > 0:
            time.sleep(wait)
        sent = time.perf_counter()
        producer.send(PAYLOAD).add_done_callback(lambda _, sent=sent: took.append(time.perf_counter() - sent))
    producer.flush()
    took.sort()
    return took[len(took) // 2] * 1e6, took[len(took) * 99 // 100] * 1e6


def middle(values: object) -> float:
    """Return the median."""
    return float(statistics.median(values))  # type: ignore[call-overload]


if __name__ == "__main__":
    if sys.argv[1:2] == ["--verifier"]:
        verifier(sys.argv[2], sys.argv[3:])
        sys.exit()
    sys.exit(main())
