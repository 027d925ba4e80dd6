"""Tests of files of results: what they have, what is refused, what got slower, and the page that is drawn of them."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ister.bench import plot, svg
from ister.bench.about import about
from ister.bench.compare import changes, judge, machines_differ, only_in, too_short
from ister.bench.page import page
from ister.bench.results import curve_of, document, figure, in_figures, parse, result
from ister.cli.bench import bench
from ister.errors import UsageError


def entry(
    name: str = "message-1k", rates: tuple[float, ...] = (100.0, 101.0, 102.0), **more: Any
) -> dict[str, Any]:
    """Return the result of a workload with rates round by round."""
    rounds = [{"messages_per_second": rate, "cpu_worker_us": 1000 / rate} for rate in rates]
    return result(
        name, "1 KiB, one call each", rounds, **({"group": "throughput", "durability": "fsync"} | more)
    )


def written(folder: Path, name: str, *results: dict[str, Any]) -> str:
    """Write a file of results, and return its path."""
    path = folder / name
    path.write_text(json.dumps(document({"machine": "m", "cores": 2}, results)), encoding="utf-8")
    return str(path)


# ---- the file ---------------------------------------------------------------------------------------------------


def test_a_file_of_results_comes_back_as_it_was_written() -> None:
    """What is measured today can be compared and drawn tomorrow."""
    made = document(about("ext4"), [entry()])
    assert parse(json.dumps(made), "a.json") == made


def test_the_machine_and_the_versions_are_in_it() -> None:
    """A figure without its machine, its Python and how that was built says little."""
    told = about("ext4", workers=2)
    assert {
        "ister",
        "python",
        "profile_guided",
        "libzmq",
        "pyzmq",
        "machine",
        "cores",
        "memory_mb",
    } <= told.keys()
    assert told["workers"] == 2
    assert told["file_system"] == "ext4"


@pytest.mark.parametrize(
    ("name", "better", "unit"),
    [
        ("messages_per_second", "higher", "/s"),
        ("delivered_p99_us", "lower", "us"),
        ("cpu_worker_us", "lower", "us"),
        ("cpu_seconds_per_million", "lower", "s"),
        ("disk_mb", "lower", "MB"),
        ("worker_cpu_percent", "lower", "%"),
    ],
)
def test_a_figures_name_says_its_unit_and_what_is_better(name: str, better: str, unit: str) -> None:
    """Compare knows which direction is worse without being told for each figure."""
    made = figure(name, [1.0])
    assert (made["better"], made["unit"]) == (better, unit)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda d: d.update(format="other"), "format"),
        (lambda d: d.pop("about"), "about"),
        (lambda d: d.pop("results"), "results"),
        (lambda d: d["results"].append(d["results"][0]), "two results"),
        (lambda d: d["results"][0].pop("durability"), "durability"),
        (lambda d: d["results"][0]["figures"]["cpu_worker_us"].update(rounds=[]), "cpu_worker_us"),
        (lambda d: d["results"][0]["figures"]["cpu_worker_us"].update(rounds=["1"]), "cpu_worker_us"),
        (lambda d: d["results"][0]["figures"]["cpu_worker_us"].update(better="more"), "better"),
        (lambda d: d["results"][0].update(figures=[]), "figures"),
        (lambda d: d["results"].insert(0, 7), "not an object"),
    ],
)
def test_a_file_that_is_not_one_is_refused_with_what_is_wrong(change: Any, word: str) -> None:
    """The error names the file and the part of it."""
    made = document({"machine": "m"}, [entry()])
    change(made)
    with pytest.raises(UsageError, match=re.escape(word)) as caught:
        parse(json.dumps(made), "a.json")
    assert "a.json" in caught.value.text


def test_a_file_that_is_no_json_is_refused() -> None:
    """So is the log that somebody named by mistake."""
    with pytest.raises(UsageError, match=r"a\.log is not JSON"):
        parse("1,000 messages", "a.log")


def test_a_percentile_curve_has_values_that_were_measured() -> None:
    """It begins with the least and ends with the largest, and never goes down."""
    curve = curve_of([1000 * each for each in range(1, 1001)])
    assert curve[0] == (0, 1.0)
    assert curve[-1] == (100, 1000.0)
    assert dict(curve)[50] == 500.0
    assert dict(curve)[99.9] == 999.0
    assert [value for _, value in curve] == sorted(value for _, value in curve)
    assert curve_of([]) == []


# ---- compare ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        ([100, 101, 102], [90, 91, 92], "slower"),  # 10 %, rounds 2 apart
        ([100, 101, 102], [97, 98, 99], "same"),  # 3 %
        ([80, 100, 120], [70, 90, 110], "same"),  # 10 %, but rounds are 40 apart
        ([100, 101, 102], [60, 90, 120], "same"),  # the noise of either file counts
        ([100, 101, 102], [110, 112, 114], "faster"),
        ([100], [94], "same"),  # nothing is known about the noise: 6 % is not enough
        ([100], [89], "slower"),
        ([100, 101, 102], [89], "slower"),
        ([0, 0, 0], [0, 0, 0], "same"),
    ],
)
def test_slower_is_what_is_further_apart_than_the_noise_and_five_percent(
    before: list[float], after: list[float], verdict: str
) -> None:
    """Both conditions must hold; with one round alone, ten percent."""
    name = "messages_per_second"
    assert judge(figure(name, before), figure(name, after))[1] == verdict


def test_more_microseconds_are_slower_and_more_messages_faster() -> None:
    """The direction comes from the figure."""
    assert judge(figure("x_us", [10, 10]), figure("x_us", [20, 20]))[1] == "slower"
    assert judge(figure("x_us", [20, 20]), figure("x_us", [10, 10]))[1] == "faster"
    # what cost nothing and costs something now has no ratio, and is still found
    assert judge(figure("x_us", [0, 0]), figure("x_us", [20, 20]))[1] == "slower"


def test_workloads_are_matched_by_system_and_name() -> None:
    """A peer's workload of the same name is another one, and what one file lacks is named."""
    first = document({}, [entry(), entry(system="Redis"), entry("gone")])
    second = document({}, [entry(rates=(50.0, 51.0)), entry(system="Redis"), entry("new")])
    found = {(each.system, each.figure): each.verdict for each in changes(first, second)}
    assert found["Ister", "messages_per_second"] == "slower"
    assert found["Ister", "cpu_worker_us"] == "slower"
    assert found["Redis", "messages_per_second"] == "same"
    assert only_in(first, second) == ["Ister gone"]
    assert only_in(second, first) == ["Ister new"]


def test_another_machine_is_said_to_be_another() -> None:
    """Figures of two machines are compared, but nobody should be misled."""
    assert machines_differ({"about": {"cores": 2}}, {"about": {"cores": 4}}) == ["cores: 2 and 4"]
    assert machines_differ({"about": {"cores": 2}}, {"about": {"cores": 2}}) == []
    assert machines_differ({"about": {}}, {"about": {"compiled": False}}) == []
    assert machines_differ({"about": {}}, {"about": {"compiled": True}}) == ["compiled: False and True"]


def test_the_command_exits_with_1_when_something_got_slower(tmp_path: Path) -> None:
    """A script can stop on it; what did not change is not in the way."""
    before = written(tmp_path, "a.json", entry(), entry("other"))
    after = written(tmp_path, "b.json", entry(rates=(50.0, 51.0, 52.0)), entry("other"))
    worse = CliRunner().invoke(bench, ["compare", before, after])
    assert worse.exit_code == 1
    assert "slower" in worse.output
    assert "message-1k" in worse.output
    assert "other" not in worse.output
    same = CliRunner().invoke(bench, ["compare", before, before])
    assert same.exit_code == 0
    assert "0 of 4 figures got slower" in same.output


def test_rounds_too_short_to_decide_anything_are_named(tmp_path: Path) -> None:
    """A fifth of a second measures its beginning and the scheduler, however far apart its rounds are."""
    brief, long, unknown = entry("a", seconds=(1.2, 0.2)), entry("b", seconds=(1.2, 1.3)), entry("c")
    assert too_short(document({}, [brief, long, unknown])) == [("Ister a", 0.2)]
    file = written(tmp_path, "a.json", brief, long, unknown)
    done = CliRunner().invoke(bench, ["compare", file, file])
    assert done.exit_code == 0
    assert f"too short to decide anything, {file}: Ister a has a round of 0.20 s" in done.output
    assert "Ister b" not in done.output


def test_files_that_share_no_workload_are_not_called_equal(tmp_path: Path) -> None:
    """Nothing compared is no good news."""
    before, after = written(tmp_path, "a.json", entry()), written(tmp_path, "b.json", entry("other"))
    done = CliRunner().invoke(bench, ["compare", before, after])
    assert done.exit_code == 1
    assert "only in" in done.output


# ---- the page ---------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Collects tags and addresses, and checks that tags are closed in order."""

    EMPTY = ("meta",)

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def drawn() -> str:
    """Return the page of one of everything."""
    growth = [
        entry(f"keys-{n}", group="consumers", x=n, series="Key-Shared", rates=(1e5 / n, 1e5 / n))
        for n in (1, 8, 64)
    ]
    latency = result(
        "latency",
        "1,000 a second",
        [{"delivered_p50_us": 1.0}],
        group="latency",
        durability="fsync",
        curves={"delivered": curve_of(list(range(1000, 90_000, 7))), "receipt": [(0, 0.0), (50, 2.0)]},
    )
    evil = entry("evil") | {"what": "<script>alert(1)</script> & co"}
    return page(document(about("ext4"), [entry(), entry(system="Redis"), evil, latency, *growth]))


def test_the_page_needs_nothing_but_itself() -> None:
    """It can be sent by mail and opened without a network: no script, no address."""
    text = drawn()
    reader = Page()
    reader.feed(text)
    assert reader.open == []
    assert reader.addresses == []
    assert "script" not in reader.seen
    assert "http" not in text
    assert reader.seen.count("svg") == 5  # throughput, two latencies, rate and cost over consumers


def test_the_page_has_the_plots_the_figures_and_the_machine() -> None:
    """What was measured is all there, also as numbers."""
    text = drawn()
    for words in (
        "Throughput",
        "percentile",
        "Consumers",
        "Redis",
        "Key-Shared",
        "libzmq",
        "cores",
        "fsync",
        "polyline",
    ):
        assert words in text
    assert "&lt;script&gt;" in text
    assert "NaN" not in text
    assert "inf" not in text.replace("information", "")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (1_267_308, "1,267,308"),
        (1234.5, "1,234"),
        (999.94, "999.9"),
        (0.4872, "0.4872"),
        (0, "0"),
        (0.00004, "0.000040"),
    ],
)
def test_numbers_are_written_as_people_write_them(value: float, words: str) -> None:
    """A million messages are not 1e+06."""
    assert in_figures(value) == words


def test_with_peers_on_the_page_ister_is_named_too(tmp_path: Path) -> None:
    """A line without a name would be anybody's."""
    ours, theirs = entry(), entry(system="Redis")
    assert "Ister: 1 KiB" not in page(document({}, [ours]))
    drawn = page(document({}, [ours, theirs]))
    assert "Ister: 1 KiB" in drawn
    assert "Redis: 1 KiB" in drawn
    assert "e+" not in page(document({}, [entry(rates=(1_500_000.0, 2_000_000.0))]))


def test_a_page_of_no_results_is_a_page() -> None:
    """So is one whose values are 0: a logarithmic axis has no 0."""
    assert "All figures" in page(document({}, []))
    assert "svg" in page(document({}, [entry(rates=(0.1, 0.1)) | {"group": "throughput"}]))
    assert svg.spans([svg.Span("nothing", 0, 0, 0)], "s")


def test_the_command_writes_the_page_of_several_files(tmp_path: Path) -> None:
    """Ister's results and those of its peers are drawn together."""
    ours = written(tmp_path, "a.json", entry())
    theirs = written(tmp_path, "b.json", entry(system="Redis"))
    out = tmp_path / "page.html"
    done = CliRunner().invoke(bench, ["page", ours, theirs, "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "Redis" in out.read_text(encoding="utf-8")


def test_a_page_replaces_a_page_and_says_so_and_nothing_else(tmp_path: Path) -> None:
    """A misspelt name must not cost the results of an hour."""
    results, out = written(tmp_path, "a.json", entry()), tmp_path / "page.html"
    before = Path(results).read_text(encoding="utf-8")
    done = CliRunner().invoke(bench, ["page", results, "--out", results])
    assert isinstance(done.exception, UsageError) or done.exit_code == 2
    assert Path(results).read_text(encoding="utf-8") == before
    for replaced in (False, True):
        done = CliRunner().invoke(bench, ["page", results, "--out", str(out)])
        assert done.exit_code == 0, done.output
        assert (f"{out} exists and is replaced" in done.output) is replaced
    out.write_text("a letter", encoding="utf-8")
    assert CliRunner().invoke(bench, ["page", results, "--out", str(out)]).exit_code != 0
    assert out.read_text(encoding="utf-8") == "a letter"
    assert CliRunner().invoke(bench, ["page", results, "--out", str(out), "--force"]).exit_code == 0
    assert out.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_long_labels_widen_the_plot_and_many_lines_are_told_apart() -> None:
    """A peer's name with its durability is not cut off, and the ninth line is not drawn like the first."""
    short, long = (svg.spans([svg.Span("x" * length, 1, 2, 3)], "s") for length in (5, 90))
    widths = [int(re.search(r'viewBox="0 0 (\d+)', each)[1]) for each in (short, long)]  # type: ignore[index]
    assert widths[1] - widths[0] > 85 * 6
    drawn = svg.lines([svg.Line(str(number), [(1, 1), (2, number + 1)]) for number in range(10)], "x", "y")
    styles = re.findall(r"<polyline[^>]*(stroke=[^>]*)/>", drawn)
    assert len(set(styles)) == 10


def test_an_axis_ends_at_powers_of_ten_around_the_values() -> None:
    """Values lie between its ends in their order."""
    made = svg.axis([3, 40, 900], 0, 300)
    assert (made.low, made.high) == (0, 3)
    assert [made.at(value) for value in (1, 10, 1000, 0)] == [0, 100, 300, 0]
    assert list(made.ticks()) == [1, 10, 100, 1000]


def test_bars_are_as_long_as_their_part_of_the_largest() -> None:
    """Something small is still something; nothing is nothing."""
    assert plot.bar(10, 10, 8) == "█" * 8
    assert plot.bar(5, 10, 8) == "█" * 4
    assert plot.bar(0.001, 10, 8) == "▏"
    assert plot.bar(0, 10, 8) == ""
    lines = plot.bars([("a", 10, "10/s"), ("long", 5, "5/s")], 8)
    assert lines[0].endswith("10/s")
    assert lines[0].index("█") == lines[1].index("█")
    assert plot.bars([]) == []
