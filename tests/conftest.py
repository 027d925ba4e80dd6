"""Setup for all tests: the markers and Hypothesis.

Fixtures of one package are in that package's folder.
"""

from __future__ import annotations

import os
import signal

import pytest
from hypothesis import HealthCheck, settings

# A deadline per example would fail on a busy machine, without a fault in the code.
settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", parent=settings.get_profile("default"), derandomize=True, print_blob=True)
settings.register_profile("quick", parent=settings.get_profile("ci"), max_examples=10)
settings.register_profile("long", parent=settings.get_profile("default"), max_examples=5000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

MARKERS = (
    "process: starts processes of its own (a broker, workers, a client program)",
    "slow: takes longer than five seconds",
    "requirement(numbers): holds these requirements of PROTOCOL.md (python -m tests.requirements prints the table)",
    "gcs: speaks to the fake-gcs-server program",
)


def pytest_configure(config: pytest.Config) -> None:
    """Declare the markers; have children hear Ctrl-C and SIGHUP, which shells disable for background jobs and nohup."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(
            signal.SIGHUP, lambda *_: None
        )  # ignored here still, but no longer by programs that are started
    for marker in MARKERS:
        config.addinivalue_line("markers", marker)
