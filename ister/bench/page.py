"""One self-contained page of a file of results: plots, the table of all figures, machine and versions. Pure.

Nothing is loaded from anywhere: plots are SVG in the page (`svg.py`), there is no script.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any, Final

from ister.bench import svg
from ister.bench.about import in_words
from ister.bench.results import SYSTEM, in_figures, middle

GROUPS: Final = {  # plots of a cost or a rate over something that grows
    "topics": ("Topics", "topics that are active"),
    "consumers": ("Consumers", "consumers of a subscription"),
    "subscriptions": ("Subscriptions", "subscriptions of one topic"),
    "backlog": ("Backlog", "messages that wait"),
    "scaling": ("Workers", "workers"),
}
GROWTH_FIGURES: Final = {
    "messages_per_second": "messages a second",
    "cpu_worker_us": "CPU us of the workers a message",
    "cpu_seconds_per_million": "CPU seconds of all processes for a million messages",
    "worker_rss_mb": "MB resident in a worker",
}
CURVES: Final = {
    "receipt": "From the time a message was due until its receipt",
    "delivered": "From the time a message was due until the consumer had it",
}
MARK: Final = (
    '<meta name="generator" content="ister bench page">'  # a page of ours may be replaced by the next
)
PERCENTS: Final = (0, 50, 90, 99, 99.9, 99.99)
STYLE: Final = """
:root { color-scheme: light dark; --rule: #d4d4d8; --muted: #71717a; }
@media (prefers-color-scheme: dark) { :root { --rule: #3f3f46; --muted: #a1a1aa; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; }
svg { width: 100%; height: auto; font: 12px system-ui, sans-serif; } svg text { fill: currentColor; }
.rule { stroke: var(--rule); } p.about { color: var(--muted); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 13px; }
th, td { text-align: left; padding: 3px 8px; border-bottom: 1px solid var(--rule); }
td.n, th.n { text-align: right; white-space: nowrap; } h2 { margin-top: 2em; }
"""


def page(document: Mapping[str, Any], title: str = "Ister, measured") -> str:
    """Return the page of a file of results, as HTML."""
    results = document["results"]
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        MARK,
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        f'<p class="about">{escape(_about(document["about"]))}</p>',
        *_throughput(results),
        *_latency(results),
        *_growth(results),
        "<h2>All figures</h2>",
        "<p>Medians, with the lowest and the highest round. The durability is what a receipt promises.</p>",
        _table(results),
        _versions(document["about"]),
        "</body></html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _about(about: Mapping[str, Any]) -> str:
    try:
        words = in_words(dict(about))
    except KeyError:
        words = ", ".join(f"{name} {value}" for name, value in about.items())
    return f"{words}. {about.get('began', '')}".strip()


def _label(result: Mapping[str, Any]) -> str:
    who = "" if result["system"] == SYSTEM else f"{result['system']}: "
    return f"{who}{result['what']}"


def _colour(results: Sequence[Mapping[str, Any]], result: Mapping[str, Any]) -> str:
    systems = list(dict.fromkeys([SYSTEM, *(each["system"] for each in results)]))
    return svg.COLOURS[systems.index(result["system"]) % len(svg.COLOURS)]


def _throughput(results: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    rows = []
    alone = {each["system"] for each in results} == {SYSTEM}
    for each in results:
        figure = each["figures"].get("messages_per_second")
        if each["group"] == "throughput" and figure is not None:
            low, high = min(figure["rounds"]), max(figure["rounds"])
            who = f"{SYSTEM}: " if each["system"] == SYSTEM and not alone else ""
            label = f"{who}{_label(each)} ({each['durability']})"
            rows.append(svg.Span(label, low, middle(figure), high, _colour(results, each)))
    if rows:
        yield "<h2>Throughput</h2><p>The dot is the median, the line reaches from the lowest to the highest round.</p>"
        yield svg.spans(rows, "messages a second")


def _latency(results: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    ticks = [(_rest(percent), f"{percent:g} %") for percent in PERCENTS]
    for name, words in CURVES.items():
        drawn = [
            svg.Line(
                each.get("series") or _label(each),
                [(_rest(percent), value) for percent, value in each["curves"][name] if percent < 100],
            )
            for each in results
            if each.get("curves", {}).get(name)
        ]
        if drawn:
            yield f"<h2>Latency: {escape(words[0].lower() + words[1:])}</h2>"
            yield svg.lines(drawn, "percentile of the messages", "us", x_ticks=ticks, x_words=_percent)


def _rest(percent: float) -> float:
    """Return where a percentile lies on its axis: the inverse of the part of messages that take longer."""
    return 100 / (100 - percent)


def _percent(place: float) -> str:
    return f"{100 - 100 / place:.4g} %"


def _growth(results: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for group, (title, x_name) in GROUPS.items():
        inside = [each for each in results if each["group"] == group and each.get("x") is not None]
        for figure, y_name in GROWTH_FIGURES.items():
            series: dict[str, list[tuple[float, float]]] = {}
            for each in inside:
                if figure in each["figures"]:
                    label = each.get("series") or each["system"]
                    series.setdefault(label, []).append((each["x"], middle(each["figures"][figure])))
            if series:
                yield f"<h2>{escape(title)}: {escape(y_name)}</h2>"
                yield svg.lines(
                    [svg.Line(label, sorted(points)) for label, points in series.items()], x_name, y_name
                )


def _table(results: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for each in results:
        for name, figure in each["figures"].items():
            low, high = min(figure["rounds"]), max(figure["rounds"])
            cells = (each["system"], each["what"], each["durability"], name)
            rows.append(
                "<tr>"
                + "".join(f"<td>{escape(str(cell))}</td>" for cell in cells)
                + f'<td class="n">{in_figures(middle(figure))}</td>'
                + f'<td class="n">{in_figures(low)} to {in_figures(high)}</td></tr>'
            )
    head = "<th>system</th><th>workload</th><th>durability</th><th>figure</th>"
    return (
        f'<table><thead><tr>{head}<th class="n">median</th><th class="n">rounds</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _versions(about: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{escape(str(name))}</td><td>{escape(str(value))}</td></tr>" for name, value in about.items()
    )
    return f"<h2>Machine and versions</h2><table><tbody>{rows}</tbody></table>"
