"""The benchmark's tables, made from its result files; documents hold them between two marks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from erasure_core.errors import InvalidFile

from .bench import ALTERNATIVE, DISTANCE, DRIFT, INTACT, UNASKED, UNTOUCHED
from .bench_goals import HARDEST, goal_rows, relative_rows
from .bench_searches import INVERTED, SEARCHED
from .documents import put_between
from .evaluation import LEAKS, RETENTION
from .figures import RESAMPLES, Measure, interval_of, mean_of, resampled_share

Result = dict[str, Any]
BEGIN, END = "<!-- bench tables: begin -->", "<!-- bench tables: end -->"
FLOOR = "judge's floor"
AGAINST = ("method", "goal", "concepts", "leak", "other's", "retention", "other's", "verdict")
LEAK_COLUMNS = (*LEAKS, SEARCHED, INVERTED, INTACT)
SIDE = (DRIFT, DISTANCE, "time", "peak memory", "file")
NOTE = (
    "Each cell: value [95 % bootstrap interval] number of cases (pictures; for time, memory and size: runs). The floor "
    "is how often the judge sees the concept in the untouched model's pictures of prompts that do not ask for it."
)


def _shares(rows: Sequence[Result], name: str) -> Measure | None:
    """The mean of a share over results, every result's cases drawn again by themselves."""
    found = [row["figures"][name] for row in rows if name in row["figures"]]
    if not found:
        return None
    drawn = [resampled_share(f["value"], f["count"], seed) for seed, f in enumerate(found)]
    value = float(np.mean([f["value"] for f in found]))
    return Measure(value, sum(f["count"] for f in found), interval_of(np.mean(drawn, 0)))


def _retained(rows: Sequence[Result], name: str, untouched: dict[str, Result]) -> Measure | None:
    """The mean over results of a share divided by the untouched model's."""
    drawn, values, count = [], [], 0
    for seed, row in enumerate(rows):
        after = row["figures"].get(name)
        before = untouched.get(row["concept"], {"figures": {}})["figures"].get(name)
        if after is None or before is None or not before["value"]:
            continue
        least = 1 / before["count"]
        base = np.maximum(resampled_share(before["value"], before["count"], seed + RESAMPLES), least)
        drawn.append(resampled_share(after["value"], after["count"], seed) / base)
        values.append(after["value"] / before["value"])
        count += after["count"]
    return Measure(float(np.mean(values)), count, interval_of(np.mean(drawn, 0))) if values else None


def _means(rows: Sequence[Result], name: str) -> Measure | None:
    """A figure that is no share: of one result as it is, of several their mean."""
    found = [row["figures"][name] for row in rows if name in row["figures"]]
    if len(found) == 1:
        return Measure(found[0]["value"], found[0]["count"], tuple(found[0]["interval"]))
    return mean_of([f["value"] for f in found]) if found else None


def _costs(rows: Sequence[Result], name: str) -> Measure | None:
    found = [row[name] for row in rows if name in row]
    return mean_of(found) if found else None


def _text(measure: Measure | None, scale: float = 100, unit: str = " %", digits: int = 1) -> str:
    if measure is None:
        return "-"
    low, high = (scale * x for x in measure.interval)
    span = f" [{low:.{digits}f}, {high:.{digits}f}]" if measure.count > 1 else ""
    return f"{scale * measure.value:.{digits}f}{unit}{span} {measure.count}"


def _lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    every = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in every)


def _leaks(rows: Sequence[Result]) -> list[str]:
    return [_text(_shares(rows, name)) for name in LEAK_COLUMNS]


def _floor(rows: Sequence[Result]) -> list[str]:
    return [*[_text(_shares(rows, UNASKED))] * (len(LEAK_COLUMNS) - 1), "-"]


def _side_effects(rows: Sequence[Result]) -> list[str]:
    return [_text(_means(rows, name)) for name in (DRIFT, DISTANCE)] + [
        _text(_costs(rows, "seconds"), 1, " s"),
        _text(_costs(rows, "peak_memory"), 1e-6, " MB", 0),
        _text(_costs(rows, "file_bytes"), 1e-3, " kB", 0),
    ]


def _by_method(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Results by method, the untouched model's first."""
    methods = dict.fromkeys([UNTOUCHED, *(result["method"] for result in results)])
    return {method: [result for result in results if result["method"] == method] for method in methods}


def _retention(rows: Sequence[Result]) -> list[str]:
    return [_text(_shares(rows, name)) for name in RETENTION]


def cell_table(results: Sequence[Result]) -> list[str]:
    """Lines of one table with all that ``tables`` tells of single results: two of its head, then one for each."""
    rows = [
        [one["method"], one["concept"], *_leaks([one]), *_retention([one]), *_side_effects([one])] for one in results
    ]
    return _lines(["method", "concept", *LEAK_COLUMNS, *RETENTION, *SIDE], rows).splitlines()


def _table(
    results: Sequence[Result], names: Sequence[str], row: Callable[[list[Result]], list[str]], floor: bool = False
) -> str:
    """One row for each method and concept, means over seeds."""
    lines = []
    for method, found in _by_method(results).items():
        for concept in dict.fromkeys(result["concept"] for result in found):
            own = [result for result in found if result["concept"] == concept]
            lines.append([method, concept, *row(own)])
            if floor and method == UNTOUCHED:
                lines.append([FLOOR, concept, *_floor(own)])
    return _lines(["method", "concept", *names], lines)


def summary(results: Sequence[Result]) -> str:
    """One row for each method, means over concepts and seeds; retention as a share of the untouched model's."""
    methods = _by_method(results)
    untouched = {result["concept"]: result for result in methods[UNTOUCHED]}
    lines = []
    for method, rows in methods.items():
        if method == UNTOUCHED:
            kept = _retention(rows)
        else:
            kept = [_text(_retained(rows, name, untouched)) for name in RETENTION]
        put = _text(_shares(rows, ALTERNATIVE))
        lines.append([method, str(len(rows)), *_leaks(rows), *kept, put, *_side_effects(rows)])
        if method == UNTOUCHED:
            lines.append([FLOOR, str(len(rows)), *_floor(rows), *["-"] * (len(RETENTION) + 6)])
    return _lines(["method", "runs", *LEAK_COLUMNS, *RETENTION, ALTERNATIVE, *SIDE], lines)


def tables(results: Sequence[Result]) -> str:
    """All tables, in Markdown.

    Raises:
        InvalidFile: there is no result.
    """
    if not results:
        raise InvalidFile("There are no results; make some with: python -m proving_ground bench.")
    parts = [
        NOTE,
        "### Means over concepts",
        "Retention (from look-alikes to two objects) is a share of the untouched model's.",
        summary(results),
        "### The goals",
        "Means over concepts and seeds: leak above the floor, retention as a share of the untouched model's.",
        _lines(["method", "figure", "goal", "measured", f"without {HARDEST}", "verdict"], goal_rows(results)),
        "Each method against another, over the concepts that both were measured on: means of the three leaks above the "
        "floor, and of the retentions.",
        _lines(AGAINST, relative_rows(results)),
        "### Leak: the concept is still seen",
        _table(results, LEAK_COLUMNS, _leaks, floor=True),
        "### Retention: what was asked for is seen",
        _table(results, RETENTION, _retention),
        "### Side effects and cost",
        _table(results, SIDE, _side_effects),
    ]
    return "\n\n".join(parts)


def write_tables(document: Path, results: Sequence[Result]) -> None:
    """Put the tables between the marks of a Markdown file.

    Raises:
        InvalidFile: the file cannot be read or lacks the marks, or there is no result.
        OutputError: it cannot be written.
    """
    put_between(document, BEGIN, END, tables(results))
