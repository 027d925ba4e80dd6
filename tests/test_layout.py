"""Tests of the house itself: what importing Ister brings in, and what a broker needs to be installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROGRAM = (
    "import sys, ister; print(*sorted({'actors', 'transport', 'storage', 'google'} & sys.modules.keys()))"
)


def test_importing_ister_imports_none_of_the_brokers_packages() -> None:
    """A user's own storage.py or actors.py can never be what the client imports."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    assert (done.stdout.strip(), done.stderr, done.returncode) == ("", "", 0)


def test_every_package_says_what_lives_in_it() -> None:
    """The four packages open with a sentence, and ship their types and their specifications."""
    for package in ("ister", "actors", "transport", "storage"):
        assert (ROOT / package / "__init__.py").read_text(encoding="utf-8").startswith('"""')
    assert (ROOT / "ister" / "py.typed").exists()
    assert (ROOT / "transport" / "PROTOCOL.md").exists()
    assert (ROOT / "storage" / "FORMAT.md").exists()
