"""Finding drivers, and talking to one: the test's side of DRIVER.md.

May touch: one child process for each `Driver`, by its id; the files `clients/*/driver.json`.

Invariants
- no driver outlives the test that started it
- a driver that does not answer, ends, or sends an invalid answer, fails the test with what it wrote
"""

from __future__ import annotations

import contextlib
import functools
import json
import queue
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

CLIENTS: Final = Path(__file__).parents[2] / "clients"
PATIENCE_S: Final = 40.0  # seconds beyond a command's own timeout, for a busy machine
END_WITHIN_S: Final = 20.0
DEFAULT_TIMEOUT_MS: Final = 10_000  # as DRIVER.md says
STDERR_TAIL: Final = 2_000
BROKEN: Final = ("driver-failed", "unsupported")  # errors that no scenario may count as an answer


class DriverBrokenError(Exception):
    """The driver does not work: it ended, fell silent, or violates the protocol."""


class AnsweredError(Exception):
    """The driver answered a command with an error of the client."""

    def __init__(self, command: str, error: dict[str, str]) -> None:
        self.code, self.action, self.text = error["code"], error["action"], error.get("text", "")
        super().__init__(f"{command}: {self.code} ({self.action}): {self.text}")


@dataclass(frozen=True, slots=True)
class Kind:
    """A driver in the repository: its language, how it is started, what it needs."""

    name: str
    folder: Path
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()
    built: str | None = None
    build: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()
    check: tuple[str, ...] = ()
    packages: str = ""

    def lacks(self) -> str | None:
        """Return why it cannot be started or built on this machine; None if it can."""
        missing = [program for program in self.needs if shutil.which(program) is None]
        if not missing:
            missing = [f"headers of {library}" for library in self.libraries if not _has_library(library)]
        if not missing and self.check and not _works(self.check):
            missing = [self.packages]
        return f"{self.name}: this machine has no {' and no '.join(missing)}" if missing else None

    def why_not(self) -> str | None:
        """Return why it cannot be started; None if it can."""
        if (lacking := self.lacks()) is not None:
            return lacking
        if self.built is not None and not (self.folder / self.built).exists():
            return f"{self.name}: clients/{self.folder.name}/{self.built} is not built: make build-clients"
        return None


def find(folder: Path = CLIENTS) -> list[Kind]:
    """Return every driver of the repository, by name."""
    return sorted(
        (_read(path) for path in folder.glob("*/driver.json")),
        key=lambda kind: (kind.name != "python", kind.name),
    )


def named(name: str, folder: Path = CLIENTS) -> Kind:
    """Return the driver of a name: a language, with or without `-driver`. Raises `LookupError`."""
    wanted = name.removesuffix("-driver")
    kinds = find(folder)
    for kind in kinds:
        if kind.name == wanted:
            return kind
    known = ", ".join(kind.name for kind in kinds)
    raise LookupError(f"clients/ has no driver for {wanted!r}; it has {known}")


def _read(path: Path) -> Kind:
    said = json.loads(path.read_text(encoding="utf-8"))
    return Kind(
        said["language"],
        path.parent,
        tuple(said["command"]),
        tuple(said.get("needs", ())),
        said.get("built"),
        tuple(said.get("build", ())),
        tuple(said.get("libraries", ())),
        tuple(said.get("check", ())),
        said.get("packages", ""),
    )


def _has_library(name: str) -> bool:
    return shutil.which("pkg-config") is not None and _works(("pkg-config", "--exists", name))


@functools.cache
def _works(command: tuple[str, ...]) -> bool:
    return subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode == 0


class Driver:
    """A running driver; as a context manager it is ended at the end of the block.

    `ask` is a command with its answer; `send` and `answer` are its halves, for commands that run at the same time.
    """

    def __init__(self, kind: Kind) -> None:
        """Start it and ask for its capabilities."""
        self.kind = kind
        command = [sys.executable if word == "{python}" else word for word in kind.command]
        first = kind.folder / command[0]
        if first.exists():
            command[0] = str(first)
        self._process = subprocess.Popen(
            command,
            cwd=kind.folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._stderr: list[str] = []
        self._numbers = 0
        self._sent: dict[int, tuple[str, float]] = {}
        self._answers: dict[int, dict[str, Any]] = {}
        self._readers = [
            threading.Thread(target=self._read_lines, daemon=True),
            threading.Thread(target=self._read_stderr, daemon=True),
        ]
        for reader in self._readers:
            reader.start()
        try:
            hello = self.ask("hello")
            if hello.get("protocol") != 1:
                raise DriverBrokenError(f"{kind.name}: this is driver protocol 1, it speaks {hello!r}")
        except BaseException:
            self.kill()
            raise
        self.client_text: str = hello["client"]
        self.capabilities = frozenset(hello["capabilities"])

    def _read_lines(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(ValueError):  # it is being closed
            for line in self._process.stdout:
                self._lines.put(line)
        self._lines.put(None)

    def _read_stderr(self) -> None:
        assert self._process.stderr is not None
        with contextlib.suppress(ValueError):
            for line in self._process.stderr:
                self._stderr.append(line)
                del self._stderr[:-200]

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def send(self, do: str, **arguments: Any) -> int:
        """Send a command and return its number, for `answer`."""
        self._numbers += 1
        given = {name: value for name, value in arguments.items() if value is not None}
        line = json.dumps({"id": self._numbers, "do": do, **given})
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):
            raise self._broken(f"it ended before {do!r}") from None
        timeout_ms = given.get("timeout_ms", DEFAULT_TIMEOUT_MS)
        self._sent[self._numbers] = (do, timeout_ms / 1000 + PATIENCE_S)
        return self._numbers

    def answer(self, number: int) -> dict[str, Any]:
        """Return the answer to a command; raises `AnsweredError`, `DriverBrokenError`."""
        while number not in self._answers:
            do, patience = self._sent[number]
            try:
                line = self._lines.get(timeout=patience)
            except queue.Empty:
                raise self._broken(f"no answer to {do!r} in {patience:.0f} s") from None
            if line is None:
                raise self._broken(f"it ended without an answer to {do!r}")
            try:
                said = json.loads(line)
                self._answers[said["id"]] = said
            except (ValueError, KeyError, TypeError):
                raise self._broken(f"this is no answer: {line[:200]!r}") from None
        do, _ = self._sent.pop(number)
        said = self._answers.pop(number)
        if "error" in said:
            if said["error"]["code"] in BROKEN:
                raise self._broken(f"{do!r}: {said['error']['code']}: {said['error'].get('text', '')}")
            raise AnsweredError(do, said["error"])
        answered: dict[str, Any] = said["ok"]
        return answered

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Send a command and return its answer; raises `AnsweredError`, `DriverBrokenError`."""
        return self.answer(self.send(do, **arguments))

    def _broken(self, why: str) -> DriverBrokenError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0.2)
        code = self._process.poll()
        state = "runs" if code is None else f"ended with code {code}"
        tail = "".join(self._stderr)[-STDERR_TAIL:].strip()
        return DriverBrokenError(f"driver {self.kind.name}: {why} (it {state}); it wrote:\n{tail}")

    # ---- the end ------------------------------------------------------------------------------------------------

    def kill(self) -> None:
        """Kill it with SIGKILL."""
        self._process.kill()
        self._end()

    def finish(self) -> int:
        """Close its standard input, and return its exit code; it is killed if that takes too long."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(END_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
        return self._end()

    def _end(self) -> int:
        code = self._process.wait()
        for reader in self._readers:
            reader.join(5.0)
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self.finish()
        else:
            self._end()


def build(kinds: Sequence[Kind]) -> list[str]:
    """Build the drivers that this machine can build; return a line for each."""
    told = []
    for kind in kinds:
        if not kind.build:
            continue
        if (lacking := kind.lacks()) is not None:
            told.append(f"SKIPPED {lacking}")
            continue
        done = subprocess.run(kind.build, cwd=kind.folder, check=False)
        told.append(f"{'built' if done.returncode == 0 else 'FAILED'} {kind.name}: {' '.join(kind.build)}")
    return told
