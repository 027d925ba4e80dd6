"""What the tests of clients as packages share: their marks, running a command, and the programs of a README."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest


def marks(patience_s: int, why_not: str | None) -> list[pytest.MarkDecorator]:
    """Return the marks of a module whose commands may take `patience_s` each; it is skipped where there is a reason."""
    return [
        pytest.mark.process,
        pytest.mark.slow,
        pytest.mark.timeout(patience_s + 60),
        pytest.mark.skipif(why_not is not None, reason=why_not or ""),
    ]


def attempt(
    folder: Path, *command: str | Path, patience_s: int, environment: Mapping[str, str] = MappingProxyType({})
) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, with more variables in its environment."""
    return subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=patience_s,
        check=False,
        env={**os.environ, **environment},
    )


def run(
    folder: Path,
    *command: str | Path,
    patience_s: int,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """Run a command that must succeed, and return what it printed."""
    done = attempt(folder, *command, patience_s=patience_s, environment=environment)
    assert done.returncode == 0, f"{' '.join(map(str, command))}: {done.stdout}{done.stderr}"
    return done.stdout


def programs(folder: Path, *languages: str) -> list[tuple[str, str, str]]:
    """Return the programs of a client's README that are to be run: what each prints, its language, its text."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    pattern = rf'<!-- run: prints "(.*?)" -->\n```({"|".join(languages)})\n(.*?)```'
    return re.findall(pattern, text, re.DOTALL)
