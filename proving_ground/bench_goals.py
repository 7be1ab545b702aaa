"""The benchmark's goals, each with what was measured: reached, or missed by how much."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .bench import ALTERNATIVE, DRIFT, INTACT, UNASKED, UNTOUCHED
from .evaluation import LEAKS, RETENTION

Result = dict[str, Any]

_SAGE = {"named": 1, "unnamed": 5, "descriptions": 10, INTACT: 95, "look-alikes": 95, "kept": 98, "attributes": 95}
GOALS: dict[str, dict[str, float]] = {
    "closed_form": {"named": 5, INTACT: 90, "kept": 93},
    "esd": {"named": 5, INTACT: 90, "kept": 93},
    "sage (text encoder)": _SAGE,
    "sage (cross-attention)": _SAGE,
    "all_but_one (alternative)": {
        "named": 2, INTACT: 97, "look-alikes": 97, "kept": 99, "attributes": 97, ALTERNATIVE: 90, DRIFT: 1,
    },
    "co_erasing": {"named": 1, INTACT: 95, "look-alikes": 93, "kept": 97, "attributes": 93},
    "auto": {"named": 1, "unnamed": 3, "descriptions": 5, INTACT: 95, "look-alikes": 95, "kept": 98, "attributes": 96},
}  # fmt: skip
"""In per cent. Leak and drift at most so much, leak above the floor; all else at least so much, retention as a share of
the untouched model's."""
AT_MOST = (*LEAKS, DRIFT)


def measured(rows: Sequence[Result], untouched: dict[str, Result], name: str) -> float | None:
    """One method's figure in per cent, mean over concepts and seeds, as the goals mean it; ``None`` where it was not
    measured."""
    values = []
    for row in rows:
        own = row["figures"].get(name)
        before = untouched.get(row["concept"], {"figures": {}})["figures"]
        if own is None:
            continue
        if name in LEAKS:
            values.append(max(0.0, own["value"] - before[UNASKED]["value"]) if UNASKED in before else own["value"])
        elif name in RETENTION:
            if before.get(name, {}).get("value"):
                values.append(own["value"] / before[name]["value"])
        else:
            values.append(own["value"])
    return 100 * float(np.mean(values)) if values else None


def goal_rows(results: Sequence[Result]) -> list[list[str]]:
    """Rows of cells: method, figure, goal, measured, verdict. Methods without any result are left out."""
    untouched = {row["concept"]: row for row in results if row["method"] == UNTOUCHED}
    lines = []
    for method, goals in GOALS.items():
        rows = [row for row in results if row["method"] == method]
        for name, goal in goals.items():
            found = measured(rows, untouched, name)
            if found is None:
                continue
            at_most = name in AT_MOST
            short = found - goal if at_most else goal - found
            verdict = "reached" if short <= 0 else f"missed by {short:.1f}"
            lines.append([method, name, f"{'≤' if at_most else '≥'} {goal:g} %", f"{found:.1f} %", verdict])
    return lines
