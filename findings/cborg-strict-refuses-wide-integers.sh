#!/bin/sh
# cborg 6.1.5, Node.js 20 and later with npm.
#
# The option `strict` of decode sounds like "refuse what is not CBOR". It refuses valid CBOR: an integer that is written
# in more bytes than it needs. RFC 8949 asks for the shortest form in its preferred serialization alone (4.1); a longer
# one is well-formed and valid. Without `strict` the same bytes are the number that they say.
#
# Output seen:
#   18 01 without strict: 1
#   18 01 with strict: CBOR decode error: integer encoded in more bytes than necessary (strict decode)
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm install --silent --no-audit --no-fund cborg@6.1.5
cat > program.mjs <<'PROGRAM'
import assert from "node:assert/strict";
import { decode } from "cborg";

const one = Uint8Array.of(0x18, 0x01);
console.log(`18 01 without strict: ${decode(one)}`);
assert.equal(decode(one), 1);
let said = "taken";
try {
  decode(one, { strict: true });
} catch (error) {
  said = error.message;
}
console.log(`18 01 with strict: ${said}`);
assert.match(said, /more bytes than necessary/);
PROGRAM
node program.mjs
