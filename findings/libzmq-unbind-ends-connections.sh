#!/bin/sh
# libzmq 4.3.5 (in the pyzmq 27.3.0 wheel), Python 3.11 and later.
#
# zmq_unbind(3) speaks of the endpoint: no new connections, and the queue of what came in is discarded. It says nothing
# of connections that were accepted before, and one would expect them to stay, as those of a listening TCP socket that
# is closed do. They are ended as well: what a connected DEALER sends after the unbind does not arrive, and when the
# same endpoint is bound again the DEALER comes back as another peer, with another routing id. What it had sent between
# is lost, without an error on either side.
#
# Output seen:
#   after unbind: something arrives: False
#   after bind: the same routing id: False, received: third
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pyzmq==27.3.0
"$folder/venv/bin/python" - <<'PROGRAM'
import time

import zmq

assert zmq.zmq_version() == "4.3.5", zmq.zmq_version()
context = zmq.Context()
router, dealer = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
router.bind("tcp://127.0.0.1:*")
endpoint = router.get(zmq.LAST_ENDPOINT).decode()
dealer.connect(endpoint)
dealer.send(b"first")
peer, _ = router.recv_multipart()

router.unbind(endpoint)
time.sleep(0.5)
dealer.send(b"second")
arrived = bool(router.poll(2000))
print("after unbind: something arrives:", arrived)

router.bind(endpoint)
time.sleep(2)  # the DEALER connects again by itself
dealer.send(b"third")
found, received = [], []
while router.poll(3000):
    who, what = router.recv_multipart()
    found.append(who == peer)
    received.append(what.decode())
print(f"after bind: the same routing id: {any(found)}, received: {', '.join(received)}")
context.destroy(linger=0)
assert not arrived
assert not any(found)
assert received[-1] == "third"
PROGRAM
