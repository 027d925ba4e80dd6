"""Compiles the hot modules into a wheel, where `ISTER_NATIVE=1` asks for it; every other build is pure Python.

    ISTER_NATIVE=1 pip install .        (needs a C compiler, and the headers of Python)

Which modules, and why they and no others, is in docs/decisions/022-compiled-hot-modules.md. They are compiled in a copy
of the sources, so that nothing is left in a checkout, where it would be imported instead of what is being edited.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SWITCH = "ISTER_NATIVE"
# The version that the checks of the repository use: another one may compile other code.
NEEDS = ["mypy==2.4.1", "setuptools>=65"]
COMPILE = """
import sys
from mypyc.build import mypycify
from setuptools import setup

modules = sys.argv[1:]
setup(
    name="ister",
    packages=[],
    ext_modules=mypycify(
        ["--config-file", "types.toml", *modules], opt_level="2", group_name="ister.compiled", target_dir="c"
    ),
    script_args=["-q", "build_ext", "--inplace"],
)
"""


def asked_for() -> bool:
    """Whether the environment asks for compiled modules."""
    value = os.environ.get(SWITCH, "")
    if value not in ("", "0", "1"):
        raise ValueError(f"{SWITCH} is 1 to compile the hot modules, or 0, not {value!r}")
    return value == "1"


class CompiledModules(BuildHookInterface):  # type: ignore[type-arg] # its parameter is the builder's own
    """Puts the compiled modules beside their sources."""

    PLUGIN_NAME = "custom"
    _folder: Path | None = None

    def dependencies(self) -> list[str]:
        """Return what an isolated build needs: the compiler, and what the types of the sources are made of."""
        if not asked_for():
            return []
        core = self.metadata.core
        return [*NEEDS, *core.dependencies, *core.optional_dependencies["broker"]]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, before the wheel is put together; an editable installation is never compiled."""
        if not asked_for() or version == "editable":
            return
        if sysconfig.get_config_var("Py_GIL_DISABLED"):
            raise RuntimeError(
                f"{SWITCH}=1: the compiled modules rely on the interpreter's lock, which {sys.executable} does not have"
            )
        self._folder = Path(mkdtemp(prefix="ister-native-"))
        try:
            built = self._compile(self._folder)
        except BaseException:
            shutil.rmtree(self._folder)
            raise
        build_data["force_include"] |= {str(each): str(each.relative_to(self._folder)) for each in built}
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def _compile(self, folder: Path) -> list[Path]:
        """Compile a copy of the sources in this folder, and return what came of it."""
        root = Path(self.root)
        shutil.copytree(root / "ister", folder / "ister", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(root / "pyproject.toml", folder / "types.toml")  # setuptools would read the name
        modules = [f"ister/{name}.py" for name in self.config["modules"]]
        done = subprocess.run(
            [sys.executable, "-c", COMPILE, *modules], cwd=folder, capture_output=True, text=True, check=False
        )
        built = sorted((folder / "ister").rglob(f"*{sysconfig.get_config_var('EXT_SUFFIX')}"))
        if done.returncode or len(built) != len(modules) + 1:  # each, and what they share
            raise RuntimeError(f"{SWITCH}=1: the modules were not compiled\n{done.stdout}\n{done.stderr}")
        return built

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what was compiled: it is in the wheel."""
        if self._folder is not None:
            shutil.rmtree(self._folder)
