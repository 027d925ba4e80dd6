"""The demonstration on part of its input: the broker loses a worker, a consumer leaves, no message is missing."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.process, pytest.mark.slow]


def test_no_acknowledged_message_is_lost_when_a_worker_is_killed() -> None:
    """Every line arrives byte for byte at every reliable subscription, in order where that is promised."""
    command = [sys.executable, "-m", "ister", "demo", "--lines-max", "30000", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=55)
    assert (done.returncode, done.stderr) == (0, "")
    shown = json.loads(done.stdout)
    assert shown["ok"]
    assert shown["problems"] == []
    reliable = [row for row in shown["subscriptions"] if row["topic"] == "stdlib/reliable"]
    assert [row["type"] for row in reliable] == ["exclusive", "shared", "failover"]
    for row in reliable:
        assert (row["sent"], row["received"], row["lost"]) == (shown["lines"], shown["lines"], 0)
        assert row["files_verified"] == shown["files"]
    assert shown["worker_killed"]["pid"] != shown["worker_killed"]["pid_after"]
    kinds = {row["actor"] for row in shown["actors"]}
    assert kinds >= {"topic", "subscription", "consumer", "directory", "supervisor"}
