"""Tests of verifying a log in a child process: it reports the same as a thread, and leaves no process behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from ister.storage import apart
from ister.storage.apart import CheckRules, Kept, verify_aside
from ister.storage.disk import LocalDisk
from ister.storage.verify import VerifyProgress, VerifyReport, verify_log
from ister.storage.wal import Wal

pytestmark = pytest.mark.process


@pytest.fixture
def wal(
    open_log: Callable[..., Wal], put: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Wal]:
    """Return a log of several segments that counts as large, with one bit flipped."""
    monkeypatch.setattr("ister.storage.apart.APART_BYTES_MIN", 0)
    wal = open_log(LocalDisk())
    for number in range(100):
        put(wal, b"%04d" % number + b"x" * 900, b"y")
        wal.commit()
    assert len(wal.sealed()) > 4
    damaged = Path(wal.folder, sorted(os.listdir(wal.folder))[1])
    contents = bytearray(damaged.read_bytes())
    contents[contents.index(b"xxx")] ^= 1
    damaged.write_bytes(contents)
    yield wal
    wal.close()


def children() -> set[int]:
    """Return the processes that this one has started."""
    listed = subprocess.run(["ps", "--ppid", str(os.getpid()), "-o", "pid="], capture_output=True, text=True)
    return {int(word) for word in listed.stdout.split()}


def test_it_says_what_a_check_in_a_thread_says(wal: Wal) -> None:
    """Progress, counts and the damaged range are the same, and a child process runs meanwhile."""
    expected = list(verify_log(LocalDisk(), wal.folder, wal.incarnation, durable_end=wal.durable_end))
    before, found, most = children(), [], set()
    for step in verify_aside(LocalDisk(), wal.folder, wal.incarnation, durable_end=wal.durable_end):
        most |= children() - before
        found.append(step)
    assert found[-1] == expected[-1]
    # It does not tell each segment, and one that takes long again and again.
    assert [step for step in expected if step in found] == list(dict.fromkeys(found))
    assert isinstance(found[-1], VerifyReport)
    assert len(found[-1].damaged) == 1
    assert sys.platform != "linux" or len(most) >= 1


def test_a_small_log_needs_no_process(wal: Wal, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is verified before a process would have started."""
    monkeypatch.setattr("ister.storage.apart.APART_BYTES_MIN", 1 << 40)
    monkeypatch.setattr(apart, "_verify_apart", None)
    *_, report = verify_aside(LocalDisk(), wal.folder, wal.incarnation)
    assert isinstance(report, VerifyReport)


def test_who_wants_to_know_no_more_leaves_no_process_behind(wal: Wal) -> None:
    """The child ends with the generator."""
    before = children()
    steps = verify_aside(LocalDisk(), wal.folder, wal.incarnation)
    assert isinstance(next(steps), VerifyProgress)
    steps.close()  # type: ignore[attr-defined]
    assert {pid for pid in children() - before if is_check(pid)} == set()


def test_one_log_is_checked_at_a_time(wal: Wal, tmp_path: Path) -> None:
    """A second check says that it waits, begins when the first has ended, and leaves when nobody wants to know."""
    rules = CheckRules(turn=str(tmp_path / "turn"))
    disk = LocalDisk()
    with disk.exclusive(str(tmp_path / "turn")):
        steps = verify_aside(disk, wal.folder, wal.incarnation, rules=rules)
        assert [next(steps) for _ in range(3)] == [VerifyProgress(0, 0, 0, 0)] * 3
        left = verify_aside(disk, wal.folder, wal.incarnation, rules=rules)
        assert next(left) == VerifyProgress(0, 0, 0, 0)
        left.close()  # type: ignore[attr-defined]
    *_, report = steps
    assert isinstance(report, VerifyReport)
    assert report.records


@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="Linux alone has it")
def test_a_check_runs_when_nothing_else_does(wal: Wal) -> None:
    """Its process has the scheduling policy, and with it the priority of reads, of what may always wait."""
    steps = apart._verify_apart(wal.folder, wal.incarnation, None, CheckRules(1))
    next(steps)
    pid = steps.gi_frame.f_locals["check"].pid  # type: ignore[attr-defined]
    assert os.sched_getscheduler(pid) == os.SCHED_IDLE
    steps.close()  # type: ignore[attr-defined]


def test_a_check_that_gets_nowhere_is_started_again_with_a_share(
    wal: Wal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine that is always busy, what runs when nothing else does would never end."""
    began: list[str] = []
    real = apart._Check

    class Starved(real):  # type: ignore[misc,valid-type]
        def __init__(self, when: str) -> None:
            super().__init__(when)
            began.append(when)
            if when == "idle":
                os.kill(self.pid, signal.SIGSTOP)

    monkeypatch.setattr(apart, "_Check", Starved)
    monkeypatch.setattr(apart, "PATIENCE_S", 0.1)
    *_, report = verify_aside(LocalDisk(), wal.folder, wal.incarnation)
    assert isinstance(report, VerifyReport)
    assert began == ["idle", "nice"]


def test_a_child_that_hears_nothing_is_ended_too(wal: Wal) -> None:
    """A stopped child does not notice that nobody reads its output any more."""
    steps = apart._verify_apart(wal.folder, wal.incarnation, None, CheckRules())
    next(steps)
    check = steps.gi_frame.f_locals["check"]  # type: ignore[attr-defined]
    os.kill(check.pid, signal.SIGSTOP)
    steps.close()  # type: ignore[attr-defined]
    assert check.code() == -signal.SIGKILL


def test_checks_that_follow_one_another_share_a_process(wal: Wal) -> None:
    """The second one is made by the process of the first, and says what a check in a thread says."""
    *_, expected = verify_log(LocalDisk(), wal.folder, wal.incarnation, durable_end=wal.durable_end)
    kept = Kept()
    pids = []
    for _ in range(3):
        steps = apart._verify_apart(wal.folder, wal.incarnation, wal.durable_end, CheckRules(kept=kept))
        next(steps)
        pids.append(steps.gi_frame.f_locals["check"].pid)  # type: ignore[attr-defined]
        *_, report = steps
        assert report == expected
    assert len(set(pids)) == 1
    kept.end()
    assert not is_check(pids[0])


def test_a_process_that_is_kept_ends_after_a_while(wal: Wal) -> None:
    """Nothing is left of it when no other check has come."""
    before, kept = children(), Kept(keep_s=0.1)
    *_, report = verify_aside(LocalDisk(), wal.folder, wal.incarnation, rules=CheckRules(kept=kept))
    assert isinstance(report, VerifyReport)
    deadline = time.monotonic() + 20
    while {pid for pid in children() - before if Path(f"/proc/{pid}").exists()}:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert kept.take() is None


def test_a_kept_process_that_has_ended_is_replaced(wal: Wal) -> None:
    """Whoever killed it, the next check has a new one."""
    kept = Kept()
    rules = CheckRules(kept=kept)
    *_, _ = verify_aside(LocalDisk(), wal.folder, wal.incarnation, rules=rules)
    check = kept.take()
    assert check is not None
    os.kill(check.pid, signal.SIGKILL)
    assert check.code() == -signal.SIGKILL
    kept.put(check)
    *_, report = verify_aside(LocalDisk(), wal.folder, wal.incarnation, rules=rules)
    assert isinstance(report, VerifyReport)
    kept.end()


def test_a_check_that_nobody_waited_for_is_not_kept(wal: Wal) -> None:
    """Its process still reports to who has left."""
    kept = Kept()
    steps = verify_aside(LocalDisk(), wal.folder, wal.incarnation, rules=CheckRules(1, kept=kept))
    next(steps)
    steps.close()  # type: ignore[attr-defined]
    assert kept.take() is None


def test_the_process_has_no_client_in_it(wal: Wal) -> None:
    """It imports storage alone: the client's libraries take longer to import than many a check takes."""
    program = (
        "import json, sys, types; package = sys.modules['ister'] = types.ModuleType('ister'); "
        f"package.__path__ = [{os.path.dirname(os.path.dirname(apart.__file__))!r}]; "
        "import ister.storage.apart; print(json.dumps([*sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert {"zmq", "cbor2", "ister.client"}.isdisjoint(json.loads(done.stdout))


def test_a_check_that_is_killed_is_an_error(wal: Wal, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no report of a log without damage."""
    started: list[subprocess.Popen[str]] = []

    class Killed(subprocess.Popen[str]):
        def __init__(self, *arguments: object, **more: object) -> None:
            super().__init__(*arguments, **more)  # type: ignore[call-overload]
            started.append(self)
            self.send_signal(signal.SIGKILL)

    monkeypatch.setattr("ister.storage.apart.subprocess.Popen", Killed)
    with pytest.raises(OSError, match="without a report"):
        list(verify_aside(LocalDisk(), wal.folder, wal.incarnation))
    assert [process.returncode for process in started] == [-signal.SIGKILL]


def test_a_check_in_a_large_segment_says_that_it_gets_on(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Otherwise one that rests for long would be taken for one that is never run."""
    reporting = apart._Reporting()
    progress = VerifyProgress(1, 2, 300, 600)
    reporting.reached(progress)
    monkeypatch.setattr(apart, "WAITS_S", 0.0)
    reporting.sleep(0.0)
    monkeypatch.setattr(apart, "WAITS_S", 3600.0)
    reporting.sleep(0.0)
    lines = capfd.readouterr().out.splitlines()
    assert [json.loads(line) for line in lines] == [asdict(progress)] * 2


def test_a_folder_that_is_gone_is_an_error(wal: Wal, tmp_path: Path) -> None:
    """The error comes from this process or from the child, whichever looks first."""
    with pytest.raises(OSError, match="no-such-folder"):
        list(verify_aside(LocalDisk(), str(tmp_path / "no-such-folder"), wal.incarnation))
    with pytest.raises(OSError, match="no-such-folder"):
        list(apart._verify_apart(str(tmp_path / "no-such-folder"), wal.incarnation, None, CheckRules()))


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc")
def test_it_ends_with_the_process_that_began_it(wal: Wal) -> None:
    """A killed worker leaves no child behind: nobody would read its report."""
    program = (
        "import os, signal, sys; from ister.storage import apart; "
        "rules = apart.CheckRules(1); "
        "steps = apart._verify_apart(sys.argv[1], bytes.fromhex(sys.argv[2]), None, rules); next(steps); "
        "print(steps.gi_frame.f_locals['check'].pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    arguments = [sys.executable, "-c", program, wal.folder, wal.incarnation.hex()]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=30)
    deadline = time.monotonic() + 20
    while is_check(int(done.stdout)):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_check(pid: int) -> bool:
    """Return whether this process is a verification that runs."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        line = Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return False
    return state != "Z" and (b"ister.storage.apart" in line or b"ister: verify" in line)
