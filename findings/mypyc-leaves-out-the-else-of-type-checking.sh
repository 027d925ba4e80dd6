#!/bin/sh
# mypyc 2.4.1 (mypy 2.4.1), Python 3.11 and later, a C compiler.
#
# `if TYPE_CHECKING: ... else: ...` at the top of a module is how a name is one thing for the type checker and another at
# run time. mypyc compiles such a module without a word, but takes the type checker's side also at run time: the branch
# that the interpreter takes is left out, and importing the compiled module raises.
#
# Output seen:
#   interpreted: [3, 7]
#   compiled: RuntimeError: Reached allegedly unreachable code!
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check mypy==2.4.1 setuptools==80.9.0
cat > sums.py <<'PROGRAM'
import operator
from itertools import starmap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    Sums = starmap[int]
else:
    Sums = starmap


def sums(pairs: list[tuple[int, int]]) -> list[int]:
    return list(Sums(operator.add, pairs))
PROGRAM
show='
try:
    from sums import sums
    print(sums([(1, 2), (3, 4)]))
except RuntimeError as error:
    print("RuntimeError:", error)
'
interpreted=$("$folder/venv/bin/python" -c "$show")
"$folder/venv/bin/mypyc" sums.py > build.log 2>&1 || { cat build.log; exit 1; }
compiled=$("$folder/venv/bin/python" -c "$show")
echo "interpreted: $interpreted"
echo "compiled: $compiled"
[ "$interpreted" = "[3, 7]" ]
[ "$compiled" = "RuntimeError: Reached allegedly unreachable code!" ]
