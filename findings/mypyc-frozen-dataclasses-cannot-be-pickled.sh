#!/bin/sh
# mypyc 2.4.1 (mypy 2.4.1), Python 3.11 and later, a C compiler.
#
# A frozen dataclass can be pickled and copied. Compiled, it is pickled, but cannot be read back: the state is set with
# setattr, which a frozen dataclass refuses.
#
# Output seen:
#   interpreted: Point(x=1)
#   compiled: FrozenInstanceError: cannot assign to field 'x'
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check mypy==2.4.1 setuptools==80.9.0
cat > point.py <<'PROGRAM'
from dataclasses import dataclass


@dataclass(frozen=True)
class Point:
    x: int
PROGRAM
show='
import pickle
from point import Point
try:
    print(pickle.loads(pickle.dumps(Point(1))))
except AttributeError as error:
    print(f"{type(error).__name__}: {error}")
'
interpreted=$("$folder/venv/bin/python" -c "$show")
"$folder/venv/bin/mypyc" point.py > build.log 2>&1 || { cat build.log; exit 1; }
compiled=$("$folder/venv/bin/python" -c "$show")
echo "interpreted: $interpreted"
echo "compiled: $compiled"
[ "$interpreted" = "Point(x=1)" ]
[ "$compiled" = "FrozenInstanceError: cannot assign to field 'x'" ]
