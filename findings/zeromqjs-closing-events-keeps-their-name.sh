#!/bin/sh
# zeromq.js 6.8.0 (npm zeromq, with libzmq 4.3.5), Node.js 20 and later with npm.
#
# `socket.events` has a method `close`, and one would expect it to give back what the monitor holds. It does not: its
# descriptors stay open, and the name that it is bound to stays taken. As that name is made of an address in memory,
# which is used again, some later `socket.events` of another socket throws EADDRINUSE. Closing the socket alone, and
# reading its events to the one of type "end", gives everything back.
#
# Output seen (which turn fails varies from run to run):
#   read to the end: 60 sockets, none failed
#   closed: EADDRINUSE at socket 7
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm install --silent --no-audit --no-fund zeromq@6.8.0
cat > program.mjs <<'PROGRAM'
import assert from "node:assert/strict";
import { Dealer } from "zeromq";

async function read(events) {
  for await (const event of events) {
    if (event.type === "end") break;
  }
}

async function turns(count, closing) {
  for (let turn = 0; turn < count; turn++) {
    const socket = new Dealer({ linger: 0 });
    let events;
    try {
      events = socket.events;
    } catch (error) {
      socket.close();
      return { turn, code: error.code };
    }
    const over = read(events).catch(() => {});
    socket.connect("tcp://127.0.0.1:9");
    await new Promise((resolve) => setTimeout(resolve, 2));
    socket.close();
    if (closing) events.close();
    else await over;
    if (turn % 5 === 0) globalThis.gc();
  }
  return undefined;
}

assert.equal(await turns(60, false), undefined);
console.log("read to the end: 60 sockets, none failed");
const failed = await turns(150, true);
console.log(`closed: ${failed?.code} at socket ${failed?.turn}`);
assert.equal(failed?.code, "EADDRINUSE");
process.exit(0);
PROGRAM
node --expose-gc program.mjs
