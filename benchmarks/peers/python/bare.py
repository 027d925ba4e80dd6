"""The least that a broker in Python over ZeroMQ could be: a ROUTER that answers, and passes on to one DEALER.

    bare.py serve PORT FOLDER fsync|none                  the "server": one process, one thread, no actors, no topics
    bare.py SYSTEM ROLE HOST:PORT TOPIC MESSAGES BYTES RATE    a driver; see ../README.md

With `fsync` each message is written and synced (pwrite, fdatasync) in the loop itself before its answer; a disk that
stalls stops everything. What a broker over this transport adds to it is its own; what is here, no such broker saves.
"""

from __future__ import annotations

import json
import os
import select
import sys
import time

import zmq

WATCH_NS = 80_000  # before a message is due: the clock is watched, not slept through
LOG_BYTES = 16 << 20
PUBLISH, SUBSCRIBE = b"p", b"s"
now = time.monotonic_ns


def serve(port: str, folder: str, durability: str) -> None:
    """Answer each message, and pass it on to whoever subscribed last, until the process is killed."""
    log = os.open(f"{folder}/bare.log", os.O_RDWR | os.O_CREAT, 0o644)
    os.posix_fallocate(log, 0, LOG_BYTES)
    for at in range(0, LOG_BYTES, 1 << 20):  # written once, so that a sync has no blocks to allocate
        os.pwrite(log, bytes(1 << 20), at)
    os.fsync(log)
    router = zmq.Context().socket(zmq.ROUTER)
    router.set(zmq.SNDHWM, 0)
    router.set(zmq.RCVHWM, 0)
    router.bind(f"tcp://127.0.0.1:{port}")
    receive, send = router.recv_multipart, router.send_multipart
    synced, reader, end = durability == "fsync", b"", 0
    while True:
        peer, kind, payload = receive()
        if kind == SUBSCRIBE:
            reader = peer
            send((peer, b"ok"))
            continue
        if synced:
            if end + len(payload) > LOG_BYTES:
                end = 0
            os.pwrite(log, payload, end)
            end += len(payload)
            os.fdatasync(log)
        send((peer, b"ok"))
        if reader:
            send((reader, payload))


def connected(address: str) -> zmq.Socket[bytes]:
    """Return a DEALER that is connected, without limits."""
    socket = zmq.Context().socket(zmq.DEALER)
    socket.set(zmq.RCVHWM, 0)
    socket.set(zmq.SNDHWM, 0)
    socket.connect(f"tcp://{address}")
    return socket


def say(told: object) -> None:
    """Print one object, or "ready"."""
    print(json.dumps(told), flush=True)


def wait_for_go() -> None:
    """Say "ready", and wait for the line that lets it begin."""
    say("ready")
    if not sys.stdin.readline():
        sys.exit(1)


def lone(socket: zmq.Socket[bytes], messages: int, size: int) -> None:
    """Send one, wait for its answer, send the next."""
    payload, took = bytes(size), []
    wait_for_go()
    began = last = now()
    for _ in range(messages):
        socket.send_multipart((PUBLISH, payload))
        socket.recv()
        at = now()
        took.append(at - last)
        last = at
    say({"began": began, "ended": last, "took": took})


def paced(socket: zmq.Socket[bytes], messages: int, size: int, rate: float) -> None:
    """Send each when it is due, in one thread that waits for answers between them."""
    rest, took, sent = bytes(size - 8), [], 0
    descriptor = socket.get(zmq.FD)
    wait_for_go()
    began = now() + 1_000_000
    due = [began + int(number * 1e9 / rate) for number in range(messages)]
    while len(took) < messages:
        while socket.get(zmq.EVENTS) & zmq.POLLIN:
            socket.recv()
            took.append(now() - due[len(took)])
        if sent == messages:
            if len(took) < messages:
                socket.poll()
            continue
        wait = due[sent] - now()
        if wait <= 0:
            socket.send_multipart((PUBLISH, due[sent].to_bytes(8, "little") + rest))
            sent += 1
        elif wait > WATCH_NS and not socket.get(zmq.EVENTS) & zmq.POLLIN:
            select.select([descriptor], [], [], (wait - WATCH_NS) / 1e9)
    say({"took": took})


def consume(socket: zmq.Socket[bytes], messages: int, rate: float) -> None:
    """Take all messages."""
    socket.send_multipart((SUBSCRIBE, b""))
    socket.recv()
    say("ready")
    size, took = 0, []
    for _ in range(messages):
        payload = socket.recv()
        if rate > 0:
            took.append(now() - int.from_bytes(payload[:8], "little"))
        size += len(payload)
    say({"messages": messages, "bytes": size, "ended": now(), "took": took})


def main() -> None:
    """Serve, or drive."""
    if sys.argv[1] == "serve":
        serve(*sys.argv[2:])
    _system, role, address, _topic, messages, size, rate = sys.argv[1:]
    if role == "remove":  # nothing is kept
        return
    socket = connected(address)
    if role == "lone":
        lone(socket, int(messages), int(size))
    elif role == "paced":
        paced(socket, int(messages), int(size), float(rate))
    elif role == "consume":
        consume(socket, int(messages), float(rate))
    else:
        sys.exit(f"there is no role {role}")


if __name__ == "__main__":
    main()
