"""Is this build faster than another one, row by row, and what does each process pay for a message?

    python benchmarks/against.py --base ../other-checkout [--rows message-1k,keys-8] [--rounds 5] [--json FILE]
    python benchmarks/against.py --base v0.1.0 --scale 0.2 --rounds 3          a revision: checked out beside the cache
    python benchmarks/against.py --list

Each row of `workloads.py` runs with the code of both builds, one after the other, the first of them in turn; the same
file drives both, each with the Python of its own checkout's `.venv`. A table has the medians, the ratio of the medians
and the lowest and highest ratio of a round; below it stands the CPU time of a message by process. A base that is a
revision is checked out into a folder of the user's cache, with an environment made from its own requirements.lock.

With `--minutes` each row has its share of them, and at least one round; what was left out is said. At the end stand the
figures whose median is worse than `FLOOR` of the base's.

A row in which some round's ratios lie on both sides of 1 has decided nothing. On a machine with other load the CPU
times are worth more than the rates.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from arguments import above_zero, made_folder, output, whole
from budget import Budget
from workloads import ROWS, Row, python_built

HERE: Final = Path(__file__).parents[1]
CACHE: Final = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ister-bench"
ROW_WITHIN_S: Final = 900.0
WARM_BYTES_MAX: Final = 8 << 30
FLOOR: Final = 0.97  # of the base: what is below is named at the end


def warm_memory() -> int:
    """Touch half of the free memory once and give it back; return how many bytes.

    The first use of a page can cost a virtual machine ten times what later uses cost: its host has to find it.
    """
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            size = min(WARM_BYTES_MAX, int(line.split()[1]) * 1024 // 2)
            code = f"import mmap; m = mmap.mmap(-1, {size})\nfor at in range(0, {size}, 4096): m[at] = 1"
            subprocess.run([sys.executable, "-c", code], check=True)
            return size
    return 0


def machine() -> str:
    """Say what machine this is, and how busy."""
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text(encoding="ascii").splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    uname = os.uname()
    load = os.getloadavg()[0]
    return f"{os.cpu_count()} cores of {model}, {uname.sysname} {uname.release}, load {load:.1f} at the start"


def checkout(base: str) -> Path:
    """Return the folder of a build: the folder itself, or a revision checked out into the cache."""
    if Path(base).is_dir():
        folder = Path(base).resolve()
        if not (folder / ".venv/bin/python").exists():
            raise SystemExit(f"{folder} has no .venv: run `make .venv/.installed` there first")
        return folder
    found = _git("rev-parse", "--verify", "--quiet", f"{base}^{{commit}}")
    if found.returncode:
        raise SystemExit(f"--base {base} is neither a folder nor a revision of this repository")
    folder = CACHE / found.stdout.strip()[:12]
    if not (folder / ".venv/.installed").exists():
        print(f"checking out {base} into {folder}, with an environment of its own", file=sys.stderr)
        folder.parent.mkdir(parents=True, exist_ok=True)
        if (
            not folder.exists()
            and _git("worktree", "add", "--detach", str(folder), found.stdout.strip()).returncode
        ):
            raise SystemExit(f"git could not check out {base} into {folder}")
        subprocess.run(["make", "--no-print-directory", ".venv/.installed"], cwd=folder, check=True)
    return folder


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *arguments], cwd=HERE, capture_output=True, text=True, check=False)


def revision(folder: Path) -> str:
    """Name the code of a folder: its commit, and whether files differ from it."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "no revision"


def run(folder: Path, row: str, scale: float, data: str) -> dict[str, Any]:
    """Run a row once with the code of a folder.

    It runs in that folder: a broker is started as `python -m ister`, which imports from the current directory first.
    """
    python = folder / ".venv/bin/python"
    command = [
        str(python if python.exists() else sys.executable),
        str(Path(__file__).with_name("workloads.py")),
    ]
    done = subprocess.run(
        [*command, row, "--scale", str(scale), "--data", str(Path(data).resolve())],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=ROW_WITHIN_S,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{row} failed with {folder}:\n{done.stderr[-1500:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    for whose in ("ister", "broker"):
        if Path(found[whose]).resolve() != folder:
            raise RuntimeError(f"{row} was to measure {folder}, but {whose} was imported from {found[whose]}")
    return found


def compared(base: Sequence[float], new: Sequence[float]) -> dict[str, float | None]:
    """Return medians, their ratio, and the lowest and highest ratio of a round; None where the base is 0."""
    middle, other = statistics.median(base), statistics.median(new)
    ratios = [b / a for a, b in zip(base, new, strict=True) if a]
    return {
        "base": middle,
        "new": other,
        "ratio": round(other / middle, 3) if middle else None,
        "low": round(min(ratios), 3) if ratios else None,
        "high": round(max(ratios), 3) if ratios else None,
    }


def summary(row: Row, rounds: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, Any]:
    """Return what the rounds of a row say: each figure, and CPU time by process."""
    figures = {
        name: compared([a[name] for a, _ in rounds], [b[name] for _, b in rounds])
        | {"better": "higher" if more else "lower"}
        for name, more in row.figures.items()
    }
    roles: Iterable[str] = rounds[0][0].get("cpu_us", {})
    cpu = {
        role: compared(
            [a["cpu_us"][role] for a, _ in rounds], [b["cpu_us"].get(role, 0.0) for _, b in rounds]
        )
        for role in roles
    }
    missing = sum(each.get("missing", 0) for pair in rounds for each in pair)
    return {"row": row.name, "what": row.what, "figures": figures, "cpu_us": cpu, "missing": missing}


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:,.4g}"


def lines_of(found: dict[str, Any]) -> list[str]:
    """Return the lines of the table for one row."""
    lines = [f"{found['row']}: {found['what']}"]
    for name, each in found["figures"].items():
        ratio = "-" if each["ratio"] is None else f"{each['ratio']:.2f}"
        spread = "" if each["low"] is None else f"{each['low']:.2f} to {each['high']:.2f}"
        lines.append(
            f"  {name:<22}{_number(each['base']):>12}{_number(each['new']):>12}{ratio:>8}  {spread:<16}"
            f"{each['better']} is better"
        )
    if found["cpu_us"]:
        parts = (
            f"{role} {_number(each['base'])} -> {_number(each['new'])}"
            + ("" if each["ratio"] is None else f" ({each['ratio']:.2f})")
            for role, each in found["cpu_us"].items()
            if max(each["base"] or 0, each["new"] or 0) >= 0.01
        )
        lines.append(f"  CPU us a message      {', '.join(parts)}")
    if found["missing"]:
        lines.append(f"  {found['missing']:,} messages of the non-reliable topic were dropped")
    return lines


def main() -> int:
    """Run the rows on both builds, and print one table."""
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--base", help="a checkout with a .venv, or a revision")
    parse.add_argument("--new", default=str(HERE), help="the same; default: this checkout")
    parse.add_argument(
        "--rows", help="names, with commas between; all if missing; keys-* for all that begin so"
    )
    parse.add_argument("--rounds", type=whole, default=5)
    parse.add_argument(
        "--minutes", type=above_zero, help="of the whole run, at most about; default: no limit"
    )
    parse.add_argument("--scale", type=above_zero, default=1.0, help="of the numbers of messages and topics")
    parse.add_argument(
        "--data", type=made_folder, default=".", help="where folders of brokers are made: a real disk"
    )
    parse.add_argument(
        "--json", type=output, metavar="FILE", help="where the results go, also those of each round"
    )
    parse.add_argument("--no-warm-memory", action="store_true")
    parse.add_argument("--list", action="store_true", help="say which rows there are")
    given = parse.parse_args()
    if given.list:
        for row in ROWS.values():
            print(f"{row.name:20} {row.what}")
        return 0
    if not given.base:
        parse.error("--base is missing: a checkout with a .venv, or a revision")
    chosen = _chosen(given.rows)
    base, new = checkout(given.base), checkout(given.new)
    about = {
        "machine": machine(),
        "python": python_built(),
        "base": f"{base} at {revision(base)}",
        "new": f"{new} at {revision(new)}",
        "rounds": given.rounds,
        "scale": given.scale,
        "warmed_bytes": 0 if given.no_warm_memory else warm_memory(),
    }
    for name in ("machine", "python", "base", "new"):
        print(f"{name:<8}{about[name]}")
    print(f"\n  {'':<22}{'base':>12}{'new':>12}{'ratio':>8}  lowest to highest of {given.rounds} rounds")
    results, failed = [], False
    budget = Budget(given.minutes, len(chosen), time.monotonic)
    for row in chosen:
        rounds: list[tuple[dict[str, Any], dict[str, Any]]] = []
        took = 0.0
        budget.begin_row()
        for number in range(given.rounds):
            if number and budget.enough(took):
                break
            began = time.monotonic()
            order = (base, new) if number % 2 == 0 else (new, base)
            try:
                pair = {folder: run(folder, row.name, given.scale, given.data) for folder in order}
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                print(f"{row.name}, round {number + 1}: {error}", file=sys.stderr)
                failed = True
                continue
            finally:
                took = time.monotonic() - began
            rounds.append((pair[base], pair[new]))
            if sys.stderr.isatty():
                print(f"  {row.name} {number + 1}/{given.rounds} ({took:.0f} s)", file=sys.stderr, end="\r")
        if rounds:
            found = summary(row, rounds)
            print("\n".join(lines_of(found)), flush=True)
            results.append({**found, "rounds": rounds})
        if given.json:
            Path(given.json).write_text(
                json.dumps({"about": about, "rows": results}, indent=1), encoding="utf-8"
            )
    print("\n".join(worse(results, given.rounds)))
    return 1 if failed else 0


def worse(results: Sequence[dict[str, Any]], rounds: int) -> list[str]:
    """Return the figures that are below the floor, and the rows that had fewer rounds than were wanted."""
    lines = []
    for found in results:
        for name, each in found["figures"].items():
            ratio = each["ratio"]
            if ratio and (ratio if each["better"] == "higher" else 1 / ratio) < FLOOR:
                lines.append(f"worse than {FLOOR:g} of the base: {found['row']}, {name}: {ratio:.2f}")
                lines[-1] += f" ({each['low']:.2f} to {each['high']:.2f})"
    fewer = [f"{each['row']} {len(each['rounds'])}" for each in results if len(each["rounds"]) < rounds]
    if fewer:
        lines.append(f"fewer than {rounds} rounds, for want of time or by a failure: {', '.join(fewer)}")
    return lines or [f"nothing is worse than {FLOOR:g} of the base"]


def _chosen(names: str | None) -> list[Row]:
    if names is None:
        return list(ROWS.values())
    chosen: dict[str, Row] = {}
    for name in names.split(","):
        found = [
            row
            for row in ROWS.values()
            if row.name == name or (name[-1:] == "*" and row.name.startswith(name[:-1]))
        ]
        if not found:
            raise SystemExit(f"there is no row {name!r}; --list names them")
        chosen |= {row.name: row for row in found}
    return list(chosen.values())


if __name__ == "__main__":
    sys.exit(main())
