"""Boundary exploration against the judge: ``python -m proving_ground boundary``. Runs the parts, and writes the tables.

Each part, method (or other row of the benchmark) and concept has a result file of its own, with the conditions it was
measured under.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from erasure_core.safe_files import write_bytes

from .bench import ROUND, Cell, model_mark
from .boundary_parts import CHECKED, ROUNDS, SCALES, SCORES, SEARCH_SEEDS, SEEDS, TOP, Bench
from .documents import DOCS, put_between
from .painting import GUIDANCE

RESULTS = Path(__file__).parent / "boundary_results"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
PARTS = ("scores", "search", "attack", "harden", "speed")
SEARCHING = ("search", "harden")
"""The parts that search for as long as the budget says."""


def run_boundary(
    parts: Sequence[str], concepts: Sequence[str], methods: Sequence[str], budget: float, missing: bool
) -> None:
    """Measure and write one result file for each part, method and concept, each at once.

    With ``missing`` only what has no file, or one of another model, of other settings or of another search.
    """
    bench = Bench(budget)
    for part in parts:
        for method in methods:
            for name in concepts:
                path = RESULTS / part / f"{Cell(method, name, 0).path.parent.name}_{name}.json"
                known = conditions(part, method, budget)
                if missing and path.exists() and _load(path).get("conditions") == known:
                    continue
                result = {"part": part, "method": method, "concept": name, "conditions": known}
                result |= getattr(bench, part)(name, method)
                write_bytes(path, (json.dumps(result, indent=1, ensure_ascii=False) + "\n").encode())
                print(json.dumps(result, ensure_ascii=False), flush=True)


def conditions(part: str, method: str, budget: float) -> dict[str, Any]:
    """All that a result hangs on: the model, the erasing, and how it is searched."""
    settings = asdict(Cell(method, "", 0).settings)
    known: dict[str, Any] = {"model": model_mark(), "round": ROUND, "settings": settings, "guidance": GUIDANCE}
    if part in SEARCHING:
        known |= {"budget": budget, "pictures": len(SEEDS), "checked": CHECKED}
    if part == "harden":
        known |= {"rounds": ROUNDS, "seeds": SEARCH_SEEDS}
    return known


def _load(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def is_current(result: dict[str, Any]) -> bool:
    """Whether a result is of the bundled model and of the settings as they are now; the budget is what it was."""
    known = result.get("conditions", {})
    return bool(known == conditions(result["part"], result["method"], known.get("budget", 0.0)))


def read_part(part: str) -> list[dict[str, Any]]:
    """All results of one part that are of the model and the settings as they are now."""
    return [result for path in sorted((RESULTS / part).glob("*.json")) if is_current(result := _load(path))]


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _share(value: float | None, form: str = ".2f") -> str:
    return "–" if value is None else format(value, form)


def figures() -> str:
    """The tables of ``docs/boundary.md``, of the results that there are."""
    makers = {"scores": _scores, "search": _search, "attack": _attack, "harden": _harden, "speed": _speed}
    tables = [makers[part](rows) for part in PARTS if (rows := read_part(part))]
    return "\n\n".join(tables) or "Nothing has been measured yet."


def _scores(rows: list[dict[str, Any]]) -> str:
    lines = ["| score | AUC overall, mean | lowest | AUC against look-alikes, mean | lowest |", "|---|---|---|---|---|"]
    for score in SCORES:
        cells = []
        for kind in ("overall", "look-alikes"):
            values = [row[score][kind] for row in rows if row[score][kind] is not None]
            cells += [_share(_mean(values)), _share(min(values, default=None))]
        lines.append(f"| {score} | {' | '.join(cells)} |")
    leaking = sum(row["leaking"] for row in rows)
    return f"{len(rows)} erasures, {sum(r['prompts'] for r in rows)} prompts, {leaking} leak.\n\n" + "\n".join(lines)


def _search(rows: list[dict[str, Any]]) -> str:
    with_leak = [row for row in rows if row["unnamed_leaking"]]
    words, recalled = (sum(len(row[key]) for row in rows) for key in ("unnamed_leaking", "recalled"))
    verdicts, right = (sum(row[key] for row in rows) for key in ("verdicts", "right"))
    budget = ", ".join(sorted({f"{row['conditions']['budget']:g}" for row in rows}))
    return "\n".join(
        [
            "| figure | value |",
            "|---|---|",
            f"| erasures with unnamed words that leak | {len(with_leak)} of {len(rows)} |",
            f"| of these, a leaking prompt was found | {sum(row['found_any'] for row in with_leak)} |",
            f"| unnamed leaking words in the top {TOP} | {recalled} of {words} |",
            f"| verdicts “leaks” that the judge confirms | {right} of {verdicts} |",
            f"| seconds, mean | {_share(_mean(row['seconds'] for row in rows), '.0f')} |",
            f"| of them the search's budget | {budget} |",
        ]
    )


def _attack(rows: list[dict[str, Any]]) -> str:
    lines = ["| attack | success, mean | network calls, mean |", "|---|---|---|"]
    for which, label in (("reference", "UnlearnDiffAtk, plain loop"), ("ours", "prefix search")):
        success = _mean(row[which]["success"] for row in rows)
        lines.append(
            f"| {label} | {_share(success, '.0%')} | {_share(_mean(r[which]['calls'] for r in rows), '.0f')} |"
        )
    return "\n".join(lines)


def _harden(rows: list[dict[str, Any]]) -> str:
    groups = [group for group in rows[0]["plain"]]
    budget = rows[0]["conditions"]["budget"]
    lines = [
        f"{len(rows)} erasures, up to {ROUNDS} rounds, {budget:g} s for each search; the {CHECKED} worst prompts of a "
        "search were judged.\n",
        "| erasure | " + " | ".join(groups) + " |",
        "|---" * (len(groups) + 1) + "|",
    ]
    for which in ("plain", "hardened"):
        cells = [_share(_mean(row[which].get(group) for row in rows), ".1%") for group in groups]
        lines.append(f"| {which} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _speed(rows: list[dict[str, Any]]) -> str:
    row = rows[0]
    lines = [
        f"Speed, {row['threads']} thread(s):\n",
        "| latents | states | prompts scored a minute | read by text alone | more memory for 1,500 than for 500 |",
        "|---|---|---|---|---|",
    ]
    for scale in SCALES:
        at = row[f"x{scale}"]
        size, memory = "x".join(map(str, at["latent"][1:])), f"{at['memory_growth_mb']} MB"
        cells = [size, at["states"], at["scored_per_minute"], at["read_per_minute"], memory]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def write_figures() -> None:
    """Put the tables into the docs, between the two markers."""
    put_between(DOCS / "boundary.md", BEGIN, END, figures())
