"""How much does a message of millions of frames delay other clients?

    python benchmarks/frames.py [--frames 6000000] [--seconds 5]

A broker of its own with one worker. A connected client sends a PING every 5 ms; meanwhile another one sends a message
of `--frames` empty frames, first without a session, then with one. A row for each: the longest and the median wait for
a PONG in ms, and whether and when the sender's connection was closed.
"""

from __future__ import annotations

import argparse
import json
import socket
import tempfile
import threading
import time
from statistics import median
from typing import Any, Final

import cbor2
import zmq
from arguments import above_zero, whole

from ister.ownbroker import OwnBroker
from ister.wire import Key, Type

GREETING: Final = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(48)
READY: Final = b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"
HELLO: Final = cbor2.dumps({int(Key.TYPE): int(Type.HELLO), int(Key.VERSION): [1], int(Key.CLIENT): "frames"})


def flood(host: str, port: int, frames: int, introduce: bool, told: dict[str, Any]) -> None:
    """Send one message of `count` frames, and note when the connection was closed."""
    raw = socket.create_connection((host, port))
    raw.sendall(GREETING)
    raw.recv(64)
    raw.sendall(b"\x04" + bytes([len(READY)]) + READY)
    time.sleep(0.1)
    if introduce:
        raw.sendall(b"\x00" + bytes([len(HELLO)]) + HELLO)
        time.sleep(0.2)
    began = time.monotonic()
    try:
        raw.sendall(b"\x01\x00" * (frames - 1) + b"\x00\x00")
        raw.settimeout(120)
        while raw.recv(4096):
            pass
        told["ended_s"] = time.monotonic() - began
    except ConnectionError:
        told["ended_s"] = time.monotonic() - began
    except TimeoutError:
        told["ended_s"] = None


def waits(endpoint: str, frames: int, introduce: bool, seconds: float) -> dict[str, Any]:
    """Return how long another client waited for each PONG."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    dealer.linger = 0
    dealer.connect(endpoint)
    dealer.send(HELLO)
    dealer.recv()
    told: dict[str, Any] = {}
    host, port = endpoint.removeprefix("tcp://").rsplit(":", 1)
    thread = threading.Thread(target=flood, args=(host, int(port), frames, introduce, told), daemon=True)
    found, until = [], time.monotonic() + seconds
    ping = cbor2.dumps({int(Key.TYPE): int(Type.PING), int(Key.REF): 1})
    started = False
    while time.monotonic() < until or thread.is_alive():
        began = time.perf_counter()
        dealer.send(ping)
        dealer.recv()
        found.append((time.perf_counter() - began) * 1000)
        if not started and len(found) > 50:
            thread.start()
            started = True
        time.sleep(0.005)
    context.destroy(linger=0)
    return {"session": introduce, "longest_ms": max(found), "median_ms": median(found), **told}


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=whole, default=6_000_000)
    parser.add_argument("--seconds", type=above_zero, default=5.0)
    given = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        OwnBroker(f"{folder}/data", f"{folder}/log", workers=1) as broker,
    ):
        for introduce in (False, True):
            print(json.dumps(waits(broker.endpoint, given.frames, introduce, given.seconds)), flush=True)


if __name__ == "__main__":
    main()
