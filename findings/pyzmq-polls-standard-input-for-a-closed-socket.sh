#!/bin/sh
# pyzmq 27.3.0 (with its own libzmq 4.3.5), Python 3.11 and later.
#
# `zmq_poll`, and so `Poller.poll`, with a socket that was closed raises nothing, as `recv` and `send` do (ENOTSOCK): it
# polls file descriptor 0 in place of the socket. A loop that polls a closed socket is silent as long as standard input
# is, and is told of descriptor 0, which it never registered, as soon as somebody types.
#
# Output seen:
#   open socket, silent input: []
#   closed socket, silent input: []
#   closed socket, input with something to read: [(0, 1)]
#   recv on the closed socket: Socket operation on non-socket
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pyzmq==27.3.0
"$folder/venv/bin/python" - <<'PROGRAM'
import os

import zmq

read, write = os.pipe()
os.dup2(read, 0)
context = zmq.Context()
socket = context.socket(zmq.PAIR)
socket.bind("inproc://pair")
poller = zmq.Poller()
poller.register(socket, zmq.POLLIN)
found = [poller.poll(0)]
print("open socket, silent input:", found[-1])
socket.close()
found.append(poller.poll(0))
print("closed socket, silent input:", found[-1])
os.write(write, b"typed")
found.append(poller.poll(0))
print("closed socket, input with something to read:", found[-1])
try:
    socket.recv(zmq.NOBLOCK)
except zmq.ZMQError as error:
    print("recv on the closed socket:", error)
    assert error.errno == zmq.ENOTSOCK
assert found == [[], [], [(0, zmq.POLLIN)]]
PROGRAM
