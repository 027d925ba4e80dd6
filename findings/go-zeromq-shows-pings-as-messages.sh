#!/bin/sh
# go-zeromq/zmq4 0.17.0 (pure Go); Go 1.24 and later, and Python 3.11 and later for a libzmq 4.3.5 ROUTER.
#
# A ROUTER with ZMQ_HEARTBEAT_IVL sends ZMTP PINGs, which are commands: one would expect a library to answer them, or to
# drop them. Here `Recv` of a DEALER returns each as a message of one frame that begins with a byte 4 and "PING". None
# is answered, so the ROUTER ends the connection when its ZMQ_HEARTBEAT_TIMEOUT is over. `Send` returns nil after that.
#
# Output seen (the count varies):
#   received 3 messages that begin with "\x04PING", then EOF
#   sent after the end: <nil>
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pyzmq==27.3.0
cd "$folder"
cat > main.go <<'PROGRAM'
package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"github.com/go-zeromq/zmq4"
)

func main() {
	socket := zmq4.NewDealer(context.Background())
	if err := socket.Dial(os.Args[1]); err != nil {
		panic(err)
	}
	for count := 0; ; count++ {
		message, err := socket.Recv()
		if err != nil {
			fmt.Printf("received %d messages that begin with \"\\x04PING\", then %v\n", count, err)
			break
		} else if len(message.Frames) != 1 || !bytes.HasPrefix(message.Frames[0], []byte("\x04PING")) {
			panic(message)
		}
	}
	fmt.Println("sent after the end:", socket.Send(zmq4.NewMsgString("lost")))
}
PROGRAM
go mod init program 2>/dev/null
go get github.com/go-zeromq/zmq4@v0.17.0 2>/dev/null
go build -o program .
"$folder/venv/bin/python" - <<'PROGRAM'
import subprocess
import zmq

router = zmq.Context().socket(zmq.ROUTER)
router.heartbeat_ivl, router.heartbeat_timeout = 500, 1500
router.bind("tcp://127.0.0.1:*")
said = subprocess.check_output(["./program", router.get(zmq.LAST_ENDPOINT).decode()], text=True, timeout=60)
print(said, end="")
assert said.startswith("received ") and not said.startswith("received 0 ")
assert said.endswith("sent after the end: <nil>\n")
PROGRAM
