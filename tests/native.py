"""Holds the compiled form to the suites of the pure one: builds the wheel, and runs tests where it is imported.

    python -m tests.native [PYTEST ARGUMENTS]     (make test-native)

The compiled modules of the wheel are put beside the sources in a copy of the checkout, and an environment of its own
imports Ister from there, so that every process that a test starts has them, too. Without a C compiler nothing is run,
and the last line says so.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "native"
SUITES = ["tests/ister", "tests/actors", "tests/transport", "tests/cli"]
SEEDS = 100


def main(arguments: list[str]) -> int:
    """Build, and run; return the exit status."""
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")[0]
    if shutil.which(compiler) is None:
        print(f"SKIPPED: the compiled form was not tested: there is no C compiler ({compiler})")
        return 0
    tree = BUILD / "tree"
    shutil.rmtree(BUILD, ignore_errors=True)
    tree.mkdir(parents=True)
    environment = {**os.environ, "ISTER_NATIVE": "1"}
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(BUILD)]
    subprocess.run(build, cwd=ROOT, env=environment, check=True)
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_symlink() or (ROOT / name).exists():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name, follow_symlinks=False)
    (wheel,) = BUILD.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tree, [name for name in archive.namelist() if name.endswith(".so")])
    python = _environment(tree)
    check = "import ister, sys; print(ister.__file__); sys.exit(not ister.__compiled__)"
    subprocess.run([python, "-c", check], cwd=BUILD, check=True)
    tests = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    chosen = arguments or [*SUITES, "-m", "not slow and not gcs"]
    status = subprocess.run([*tests, *chosen], cwd=tree, check=False).returncode
    if not arguments and not status:
        campaign = [python, "-m", "tests.sim.campaign", "--seeds", str(SEEDS), "--jobs", "2"]
        status = subprocess.run(campaign, cwd=tree, check=False).returncode
    return status


def _environment(tree: Path) -> str:
    """Make an environment that imports Ister from there, and all else from this one; return its interpreter."""
    folder = BUILD / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "ister.pth").write_text(f"{tree}\n{sysconfig.get_path('purelib')}\n")
    return str(folder / "bin" / "python")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
