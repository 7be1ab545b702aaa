"""Tables from the results that ``run`` writes as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .parts import PARTS

GIB = 2**30
PUBLISHED = "published "
"""In front of a published loop's name."""
ESD = f"{PUBLISHED}esd"
"""The loop that others are compared with."""
Result = dict[str, Any]


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    rows = ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *lines)]
    return "\n".join(rows)


def time(seconds: float | None) -> str:
    """Seconds with three digits; nothing for ``None``."""
    return "" if seconds is None else f"{seconds:.3g} s"


def size(count: int | None) -> str:
    """Bytes in GiB or MiB; nothing for ``None``."""
    if count is None:
        return ""
    return f"{count / GIB:.2f} GiB" if count >= GIB / 10 else f"{count / 2**20:.2f} MiB"


def _ratio(row: Result, reference: Result | None) -> str:
    return "" if reference is None or not row["calls"] else f"{reference['seconds'] / row['seconds']:.1f}"


def rows_table(result: Result) -> str:
    """All rows of one run, with their speed against the published ESD loop of the same run."""
    reference = next((row for row in result["rows"] if row["name"] == ESD), None)
    head = ["method", "s/step", "× ESD", "floor", "× floor", "calls", *PARTS, "peak", "least", "file", "load", "apply"]
    lines = []
    for row in result["rows"]:
        over = f"{row['seconds'] / row['floor']:.2f}" if row["floor"] else ""
        shares = [f"{row['shares'][part]:.0%}" if row["shares"] else "" for part in PARTS]
        lines.append(
            [
                row["name"],
                time(row["seconds"]),
                _ratio(row, reference),
                time(row["floor"]) if row["floor"] else "",
                over,
                f"{row['calls']:.1f}" if row["calls"] else "",
                *shares,
                size(row["peak"]),
                size(row["least"]),
                size(row["file"]),
                time(row["load"]),
                time(row["apply"]),
            ]
        )
    return f"{heading(result)}\n\n{table(head, lines)}"


def heading(result: Result) -> str:
    """What was run, where."""
    size = "tiny " if result["tiny"] else ""
    rates = result["rates"]
    return (
        f"{size}{result['family']}, {result['side']} px, {result['dtype']}, seed {result['seed']}, "
        f"{result['steps']} steps timed; {result['machine']}: {rates['flops'] / 1e9:.0f} GFLOP/s, "
        f"{rates['bandwidth'] / 1e9:.1f} GB/s. `{result['command']}`{_note(result)}"
    )


def _note(result: Result) -> str:
    """What a reader has to know of this one run."""
    return f" ({result['note']})" if "note" in result else ""


def compare(first: Path, second: Path) -> str:
    """Each row of two result files that both have, with the ratio of their seconds and peaks."""
    before, after = (
        {(result["family"], result["side"], row["name"]): row for result in read(path) for row in result["rows"]}
        for path in (first, second)
    )
    shared = [key for key in before if key in after]
    if not shared:
        return f"{first} and {second} have no row in common."
    head = ["family", "pixels", "method", str(first), str(second), "faster", "peak"]
    lines = []
    for key in shared:
        a, b = before[key], after[key]
        faster = a["seconds"] / b["seconds"]
        # On a CPU the peak is counted with the floor, and missing without it.
        peak = f"{b['peak'] / a['peak']:.2f}×" if a["peak"] and b["peak"] else ""
        lines.append([key[0], str(key[1]), key[2], time(a["seconds"]), time(b["seconds"]), f"{faster:.2f}×", peak])
    return table(head, lines)


def read(path: Path) -> list[Result]:
    """The results in a file that ``run`` wrote."""
    results: list[Result] = json.loads(path.read_text(encoding="utf-8"))
    return results
