"""Tests of tests/markdown.py, the lint of documents, and of other checks that keep documents true."""

from __future__ import annotations

import fnmatch
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ister.settings import settings_toml
from tests import markdown

ROOT = Path(__file__).parents[1]


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """Return a folder with a module and a page in it."""
    (tmp_path / "storage").mkdir()
    (tmp_path / "storage" / "wal.py").write_text(
        "LIMIT = 1\n\n\nclass Wal:\n    size: int = 0\n\n    def append(self): ...\n"
    )
    (tmp_path / "page.md").write_text("# A page\n\n## What `wal.py` does, and why\n\n## Twice\n\n## Twice\n")
    return tmp_path


def complaints(house: Path, text: str) -> list[str]:
    """Return the problems of a page with this text."""
    page = house / "docs.md"
    page.write_text(text, encoding="utf-8")
    return list(markdown.problems(page, house))


def test_the_documents_have_no_broken_links_and_no_long_lines() -> None:
    """`make check` runs the same check."""
    assert [each for path in markdown.files(ROOT) for each in markdown.problems(path, ROOT)] == []


@pytest.mark.parametrize(
    "text",
    [
        "x" * 120,
        "| " + "x" * 200 + " |",
        "```\n" + "x" * 200 + "\n```",
        "[a](page.md) [b](page.md#what-walpy-does-and-why) [c](page.md#twice-1)",
        "# Here\n[here](#here) [out](https://example.com/none) [mail](mailto:a@example.com)",
        "`storage/wal.py` `storage/wal.py::Wal.append` `storage/wal.py::Wal.size` `storage/wal.py::LIMIT`",
        "```\n[in code](nowhere.md)\n```",
        "`no/path` `nothing.py` `orders/*`",
    ],
)
def test_what_is_right_is_let_be(house: Path, text: str) -> None:
    """Long tables and code, valid links, and words that only look like paths."""
    assert complaints(house, text) == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("x" * 121, "docs.md:1: 121 columns are over 120"),
        ("\n[a](nowhere.md)", "docs.md:2: the link to nowhere.md leads to no file"),
        ("[d](storage/)", "the link to storage/ leads to a folder"),
        ("Type `make check", "docs.md:1: the code in backticks does not end on this line"),
        ("[a](page.md#nothing)", "leads to no heading of page.md"),
        ("[a](#nothing)", "leads to no heading of docs.md"),
        ("`storage/gone.py`", "there is no file storage/gone.py"),
        ("`storage/wal.py::Gone`", "storage/wal.py defines no Gone"),
        ("`storage/wal.py::Wal.gone`", "storage/wal.py defines no Wal.gone"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(house: Path, text: str, problem: str) -> None:
    """One complaint each, with the line and the problem."""
    (found,) = complaints(house, text)
    assert problem in found


def test_the_lint_says_by_its_exit_code_whether_all_is_well(
    house: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """0 without a complaint, else 1, with the complaints printed."""
    assert (markdown.main(house), capsys.readouterr().out) == (0, "")
    (house / "docs.md").write_text("[a](nowhere.md)")
    assert (markdown.main(house), "nowhere.md" in capsys.readouterr().out) == (1, True)


def test_what_tools_have_built_is_left_out(house: Path) -> None:
    """Documentation that a compiler or a package manager wrote into some folder is nobody's page here."""
    for name in ("build", "node_modules", "target"):
        built = house / "clients" / "some" / name / "doc"
        built.mkdir(parents=True)
        (built / "licence.md").write_text("x" * 200, encoding="utf-8")
    assert markdown.files(house) == [house / "page.md"]


@pytest.mark.parametrize("folder", ["docs/how-to", "docs/decisions"])
def test_an_index_lists_every_page_beside_it(folder: str) -> None:
    """A page that no index lists is not found."""
    pages = {path.name for path in (ROOT / folder).glob("*.md")} - {"index.md"}
    index = (ROOT / folder / "index.md").read_text(encoding="utf-8")
    assert pages
    assert {found["target"] for found in markdown.LINK.finditer(index)} >= pages


def test_the_architecture_names_every_module_of_the_storage() -> None:
    """A module that no table names is found by nobody who looks for what it does."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    modules = {path.name for path in (ROOT / "storage").glob("*.py")} - {"__init__.py"}
    assert modules
    assert sorted(name for name in modules if f"`{name}`" not in text) == []


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_make_conf_writes_the_settings(tmp_path: Path) -> None:
    """The file that `make conf` writes is the defaults, word for word."""
    binaries, file = Path(sys.executable).parent, tmp_path / "ister.toml"
    installed = tmp_path / "installed"
    installed.touch()
    subprocess.run(
        ["make", "-s", "conf", f"BIN={binaries}", f"STAMP={installed}", "-o", str(installed), f"CONF={file}"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=50,
    )
    assert file.read_text(encoding="utf-8") == settings_toml()


@pytest.mark.parametrize("folder", ["node/node_modules", "rust/build", "go/dist", "rust/target"])
def test_the_site_leaves_out_what_tools_put_beside_the_clients(folder: str) -> None:
    """After `npm ci`, say: those pages have links and headings that are not ours to mend."""
    patterns = runpy.run_path(str(ROOT / "docs" / "conf.py"))["exclude_patterns"]
    assert [each for each in patterns if fnmatch.fnmatchcase(f"clients/{folder}", each)] != []


@pytest.mark.process
@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    """As `make docs` builds it; a link to a page outside the site is a warning."""
    pytest.importorskip("sphinx", reason="make docs installs it")
    sphinx = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs"]
    done = subprocess.run(
        [*sphinx, "-d", str(tmp_path / "doctrees"), ".", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=55,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "site" / "docs" / "index.html").exists()
