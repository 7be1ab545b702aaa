"""The benchmark's goals, each with what was measured: reached, or missed by how much."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .bench import ALTERNATIVE, DRIFT, INTACT, UNASKED, UNTOUCHED
from .bench_searches import SEARCHED
from .evaluation import LEAKS, RETENTION

Result = dict[str, Any]

_SAGE = {
    "named": 1, "unnamed": 5, "descriptions": 10, SEARCHED: 10,
    INTACT: 95, "look-alikes": 95, "kept": 98, "attributes": 95,
}  # fmt: skip
_CO_ERASING = {"named": 1, INTACT: 95, "look-alikes": 93, "kept": 97, "attributes": 93}
GOALS: dict[str, dict[str, float]] = {
    "closed_form": {"named": 5, INTACT: 90, "kept": 93},
    "esd": {"named": 5, INTACT: 90, "kept": 93},
    "sage (text encoder)": _SAGE,
    "sage (cross-attention)": _SAGE,
    "all_but_one (alternative)": {
        "named": 2, INTACT: 97, "look-alikes": 97, "kept": 99, "attributes": 97, ALTERNATIVE: 90, DRIFT: 1,
    },
    "co_erasing": _CO_ERASING,
    "co_erasing (IP-Adapter)": _CO_ERASING,
    "auto": {
        "named": 1, "unnamed": 3, "descriptions": 5, SEARCHED: 5,
        INTACT: 95, "look-alikes": 95, "kept": 98, "attributes": 96,
    },
}  # fmt: skip
"""In per cent. Leak and drift at most so much, leak above the floor; all else at least so much, retention as a share of
the untouched model's."""
ALL_LEAKS = (*LEAKS, SEARCHED)
AT_MOST = (*ALL_LEAKS, DRIFT)
HARDEST = "striped"
"""The concept that is erased with most trouble. What is missed beside it is told in a column of its own."""
BASELINE = "esd"
"""No method may be worse than this one both in leak and in retention; its own variants are not held against it."""
HALVED = ("co_erasing", "co_erasing without pictures")
"""The first one leaks at most half as much as the second, by each of ``BY_PICTURES``."""
BY_PICTURES = ("unnamed", "descriptions", SEARCHED)


def measured(rows: Sequence[Result], untouched: dict[str, Result], name: str) -> float | None:
    """One method's figure in per cent, mean over concepts and seeds, as the goals mean it; ``None`` where it was not
    measured."""
    values = []
    for row in rows:
        own = row["figures"].get(name)
        before = untouched.get(row["concept"], {"figures": {}})["figures"]
        if own is None:
            continue
        if name in ALL_LEAKS:
            values.append(max(0.0, own["value"] - before[UNASKED]["value"]) if UNASKED in before else own["value"])
        elif name in RETENTION:
            if before.get(name, {}).get("value"):
                values.append(own["value"] / before[name]["value"])
        else:
            values.append(own["value"])
    return 100 * float(np.mean(values)) if values else None


def _mean(rows: Sequence[Result], untouched: dict[str, Result], names: Sequence[str]) -> float | None:
    """The mean of several figures that are told by ``measured``."""
    found = [value for name in names if (value := measured(rows, untouched, name)) is not None]
    return float(np.mean(found)) if found else None


def _told(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} %"


def _pair(results: Sequence[Result], method: str, other: str) -> tuple[list[Result], list[Result]]:
    """The results of two methods on the concepts that both were measured on."""
    concepts = [{row["concept"] for row in results if row["method"] == name} for name in (method, other)]
    both = [row for row in results if row["concept"] in concepts[0] & concepts[1]]
    one, two = ([row for row in both if row["method"] == name] for name in (method, other))
    return one, two


def goal_rows(results: Sequence[Result]) -> list[list[str]]:
    """Rows of cells: method, figure, goal, measured, measured without ``HARDEST``, verdict. Methods without any result
    are left out."""
    untouched = {row["concept"]: row for row in results if row["method"] == UNTOUCHED}
    lines = []
    for method, goals in GOALS.items():
        rows = [row for row in results if row["method"] == method]
        for name, goal in goals.items():
            found = measured(rows, untouched, name)
            if found is None:
                continue
            at_most = name in AT_MOST
            others = measured([row for row in rows if row["concept"] != HARDEST], untouched, name)
            short = found - goal if at_most else goal - found
            verdict = "reached" if short <= 0 else f"missed by {short:.1f}"
            lines.append([method, name, f"{'≤' if at_most else '≥'} {goal:g} %", _told(found), _told(others), verdict])
    return lines


def relative_rows(results: Sequence[Result]) -> list[list[str]]:
    """Rows of cells: method, goal, number of concepts, leak, the other's leak, retention, the other's, verdict; of
    methods that are held against another one, over the concepts that both were measured on."""
    untouched = {row["concept"]: row for row in results if row["method"] == UNTOUCHED}
    measured_ones = dict.fromkeys(row["method"] for row in results)
    others = [method for method in measured_ones if method != UNTOUCHED and not method.startswith(BASELINE)]
    pairs = [(method, BASELINE, LEAKS) for method in others]
    lines = []
    for method, other, leaks in [*pairs, *((*HALVED, (name,)) for name in BY_PICTURES)]:
        one, two = _pair(results, method, other)
        (leak, kept), (leak_two, kept_two) = (
            [_mean(rows, untouched, names) for names in (leaks, RETENTION)] for rows in (one, two)
        )
        if None in (leak, kept, leak_two, kept_two):
            continue
        if other == BASELINE:
            goal, met = f"not worse than {other} in both", not (leak > leak_two and kept < kept_two)
        else:
            goal, met = f"{leaks[0]}: at most half as much as {other}", leak <= leak_two / 2
        shown = [_told(value) for value in (leak, leak_two, kept, kept_two)]
        lines.append([method, goal, str(len({row["concept"] for row in one})), *shown, "reached" if met else "missed"])
    return lines
