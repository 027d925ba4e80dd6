"""Tests of the package's structure: what importing Ister loads, and how the broker's folders are part of it."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BROKERS = ("ister.actors", "ister.transport", "ister.storage", "actors", "transport", "storage", "google")
PROGRAM = f"import sys, ister; print(*sorted(set({BROKERS}) & sys.modules.keys()))"


def test_importing_ister_imports_none_of_the_brokers_packages() -> None:
    """A client needs none of them, and never imports a user's own storage.py or actors.py."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    assert (done.stdout.strip(), done.stderr, done.returncode) == ("", "", 0)


def test_the_brokers_folders_are_linked_into_the_package() -> None:
    """They are at the top of the repository, and imported as `ister.actors` and so on."""
    for name in ("actors", "transport", "storage"):
        link = ROOT / "ister" / name
        if not link.is_symlink():
            pytest.skip("this is no checkout, but an sdist: the folders are in the package")
        assert (link.resolve(), (ROOT / name).is_dir()) == ((ROOT / name).resolve(), True)
        assert importlib.import_module(f"ister.{name}").__file__ == str(link / "__init__.py")


def test_every_package_says_what_lives_in_it() -> None:
    """The four packages begin with a sentence, and contain their types and specifications."""
    for package in ("", "actors", "transport", "storage"):
        assert (ROOT / "ister" / package / "__init__.py").read_text(encoding="utf-8").startswith('"""')
    assert (ROOT / "ister" / "py.typed").exists()
    assert (ROOT / "ister" / "transport" / "PROTOCOL.md").exists()
    assert (ROOT / "ister" / "storage" / "FORMAT.md").exists()
