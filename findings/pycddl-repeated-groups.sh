#!/bin/sh
# pycddl 0.6.4 (on the Rust crate cddl), Python 3.11 and later.
#
# RFC 8610 (2.2 and 3.2) lets an occurrence stand before a group in parentheses and count that. Here
# `[0*2 (first: uint, end: uint)]`, none to two pairs, refuses two pairs: the occurrence counts items of the array, so
# that two of them, one pair, are the most. `[0*4 (first: uint, end: uint)]` takes two pairs, and refuses three. The
# schema itself is taken without a word.
#
# Output seen:
#   0*2 pairs: one pair taken, two pairs refused, three pairs refused
#   0*4 pairs: one pair taken, two pairs taken, three pairs refused
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pycddl==0.6.4 cbor2==6.3.0
"$folder/venv/bin/python" - <<'PROGRAM'
import cbor2
import pycddl


def says(most, pairs):
    schema = pycddl.Schema(f"pairs = [0*{most} (first: uint, end: uint)]")
    try:
        schema.validate_cbor(cbor2.dumps([1, 2] * pairs))
    except pycddl.ValidationError:
        return "refused"
    return "taken"


found = {most: [says(most, pairs) for pairs in (1, 2, 3)] for most in (2, 4)}
for most, (one, two, three) in found.items():
    print(f"0*{most} pairs: one pair {one}, two pairs {two}, three pairs {three}")
assert found == {2: ["taken", "refused", "refused"], 4: ["taken", "taken", "refused"]}
PROGRAM
