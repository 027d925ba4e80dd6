"""The lint of Markdown files: `python -m tests.markdown` prints what is wrong with them, and exits with 1.

It needs no network and takes a fraction of a second, so `make check` runs it. What it checks:
- no line is over 120 columns, tables and code blocks excepted;
- code in backticks ends on its line, so that it can be searched for and copied;
- a link leads to a file, not a folder, and its anchor to a heading;
- a path in backticks exists (`storage/wal.py`), and so does a name in it (`ister/wire.py::Key.TYPE`), except in the
  changelog, which names files that are gone.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

COLUMNS_MAX = 120
SKIPPED = {
    "build",
    "dist",
    "data",
    "ister",
    "ister-env",
    "node_modules",
}  # `ister` holds links to folders seen anyway
BUILT = {"build", "node_modules", "target"}  # in whatever folder: what others wrote
HISTORY = {"CHANGELOG.md"}  # names files that are gone

FENCE = re.compile(r"^\s*(```|~~~)")
HEADING = re.compile(r"^(#{1,6})\s+(?P<title>.*?)\s*#*$")
LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\((?P<target>[^()\s]+)\)")
QUOTED = re.compile(r"`(?P<path>[\w.-]+(?:/[\w.-]+)+\.(?:py|md|toml|service|lock))(?:::(?P<name>[\w.]+))?`")
ELSEWHERE = re.compile(r"^[a-z][a-z0-9+.-]*:")


def files(root: Path) -> list[Path]:
    """Return the Markdown files below `root`, except those of environments and builds."""
    found = list(root.glob("*.md"))
    for folder in sorted(root.iterdir()):
        if folder.is_dir() and folder.name not in SKIPPED and not folder.name.startswith("."):
            found += (path for path in folder.rglob("*.md") if BUILT.isdisjoint(path.relative_to(root).parts))
    return sorted(found)


def prose(text: str) -> Iterator[tuple[int, str]]:
    """Yield number and text of each line outside code blocks."""
    fenced = False
    for number, line in enumerate(text.splitlines(), 1):
        if FENCE.match(line):
            fenced = not fenced
        elif not fenced:
            yield number, line


@cache
def anchors(path: Path) -> frozenset[str]:
    """Return the anchors of a file's headings, as Git hosts and Sphinx generate them from the titles."""
    found: set[str] = set()
    for _, line in prose(path.read_text(encoding="utf-8")):
        heading = HEADING.match(line)
        if heading is not None:
            title = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading["title"]).lower()
            anchor = re.sub(r"[^\w\- ]", "", title).replace(" ", "-")
            number = 1
            while (anchor if number == 1 else f"{anchor}-{number - 1}") in found:
                number += 1
            found.add(anchor if number == 1 else f"{anchor}-{number - 1}")
    return frozenset(found)


@cache
def names(path: Path) -> frozenset[str]:
    """Return the names that a module defines: its own, and those of its classes as `Class.name`."""
    found: set[str] = set()

    def gather(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.ClassDef):
                found.add(prefix + node.name)
                gather(node.body, prefix + node.name + ".")
            elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                found.add(prefix + node.name)
            elif isinstance(node, (ast.Assign, ast.AnnAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                found.update(prefix + each.id for each in targets if isinstance(each, ast.Name))

    gather(ast.parse(path.read_text(encoding="utf-8")).body, "")
    return frozenset(found)


def problems(path: Path, root: Path) -> Iterator[str]:
    """Yield the problems of a file, each as a sentence that begins with its place."""
    shown = path.relative_to(root)
    for number, line in prose(path.read_text(encoding="utf-8")):
        if len(line) > COLUMNS_MAX and not line.lstrip().startswith("|"):
            yield f"{shown}:{number}: {len(line)} columns are over {COLUMNS_MAX}: break the line"
        if line.count("`") % 2:
            yield f"{shown}:{number}: the code in backticks does not end on this line"
        for link in LINK.finditer(line):
            problem = broken(link["target"], path)
            if problem is not None:
                yield f"{shown}:{number}: {problem}"
        if path.name in HISTORY:
            continue
        for quoted in QUOTED.finditer(line):
            file = root / quoted["path"]
            if not file.exists() and not (root / "ister" / quoted["path"]).exists():
                yield f"{shown}:{number}: there is no file {quoted['path']}"
            elif quoted["name"] is not None and quoted["name"] not in names(file):
                yield f"{shown}:{number}: {quoted['path']} defines no {quoted['name']}"


def broken(target: str, path: Path) -> str | None:
    """Return the problem of a link's target in the file `path`, or None."""
    if ELSEWHERE.match(target):
        return None
    place, _, anchor = target.partition("#")
    file = path.parent / place if place else path
    if not file.exists():
        return f"the link to {target} leads to no file"
    if file.is_dir():
        return f"the link to {target} leads to a folder, which is no page of the site: link a file in it"
    if anchor and anchor not in anchors(file):
        return f"the link to {target} leads to no heading of {file.name}"
    return None


def main(root: Path) -> int:
    """Print the problems of all files below `root`; return the exit code."""
    found = [problem for path in files(root) for problem in problems(path, root)]
    for problem in found:
        print(problem)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(Path(__file__).parents[1]))
