"""The quality benchmark: methods x concepts x seeds, one result file each, so that it can stop and go on."""

from __future__ import annotations

import json
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from erasure_core import Concept, PictureModel, erase, read_erasure, write_erasure
from erasure_core.safe_files import write_bytes

from . import lexicon
from .evaluation import GROUPS, evaluate, picture_distance, unconditional_drift
from .figures import Figure
from .judge import Judge, load_judge
from .lexicon import CONCEPTS, OBJECTS
from .painting import load_model

RESULTS = Path(__file__).parent / "results"
UNTOUCHED = "untouched"
METHODS = ("esd", "closed_form")
BENCH_CONCEPTS = ("ball", "house", "star", "umbrella", "fish", "red", "striped")
COUNT = 96
"""Pictures in each group."""


@dataclass(frozen=True)
class Cell:
    """One method on one concept with one training seed."""

    method: str
    concept: str
    seed: int

    @property
    def path(self) -> Path:
        return RESULTS / self.method / f"{self.concept}_{self.seed}.json"


def cells(methods: Sequence[str], concepts: Sequence[str], seeds: Sequence[int]) -> list[Cell]:
    """All cells, the untouched model's first: it is the yardstick of all others and has no training seed."""
    untouched = [Cell(UNTOUCHED, concept, 0) for concept in concepts]
    return untouched + [Cell(method, concept, seed) for seed in seeds for method in methods for concept in concepts]


def kept_prompts(erased: lexicon.Concept) -> tuple[str, ...]:
    """What a user would ask to keep: the first word of every other object, with colours and styles in turn.

    They name no concept that is erased, and none of the unnamed words and descriptions that are measured.
    """
    colours = [c.name for c in lexicon.COLOURS.values() if c is not erased]
    styles = [s.name for s in lexicon.STYLES.values() if s is not erased]
    objects = [o for o in OBJECTS.values() if o is not erased]
    return tuple(
        f"a {styles[i % len(styles)]} {colours[i % len(colours)]} {objects[i].name}" for i in range(len(objects))
    )


def concept_of(erased: lexicon.Concept) -> Concept:
    """What the eraser is told: the named words and the prompts to keep."""
    return Concept(erased.named, None, kept_prompts(erased))


def run_cell(cell: Cell, model: PictureModel, judge: Judge, count: int = COUNT) -> dict[str, Any]:
    """Erase, write, read back, paint and judge. Returns what goes into the result file."""
    erased = CONCEPTS[cell.concept]
    result: dict[str, Any] = {"method": cell.method, "concept": cell.concept, "seed": cell.seed, "count": count}
    erasures = []
    if cell.method != UNTOUCHED:
        from erasure_core.methods import find_method

        started = time.monotonic()
        settings = find_method(cell.method).settings(seed=cell.seed)
        erasure, _ = erase(model, concept_of(erased), cell.method, settings)
        result["seconds"] = round(time.monotonic() - started, 2)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "erasure.safetensors"
            write_erasure(path, erasure, model)
            result["file_bytes"] = path.stat().st_size
            erasures = [(read_erasure(path).bind(model), 1.0)]
        result["unconditional_drift"] = unconditional_drift(model, erasures)
    found = evaluate(model, judge, erased, erasures, count)
    if erasures:
        before = evaluate(model, judge, erased, (), count, groups=("kept",))
        result["kept_picture_distance"] = picture_distance(before.pictures["kept"], found.pictures["kept"])
    result["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    result["shares"] = {f.name: _figure(f) for f in (*found.shares.values(), found.intact)}
    return result


def _figure(figure: Figure) -> dict[str, Any]:
    return {"share": round(figure.share, 5), "count": figure.count, "interval": [round(x, 5) for x in figure.interval]}


def missing(wanted: Sequence[Cell]) -> list[Cell]:
    """The cells without a result file."""
    return [cell for cell in wanted if not cell.path.exists()]


def run_bench(
    wanted: Sequence[Cell],
    budget: float | None = None,
    notify: Callable[[str], None] = print,
) -> Iterator[dict[str, Any]]:
    """Run cells one after the other and write each result at once; stop when ``budget`` seconds are over."""
    started = time.monotonic()
    model, judge = load_model(), load_judge()
    for place, cell in enumerate(wanted):
        if budget is not None and time.monotonic() - started > budget:
            notify(f"out of time; {len(wanted) - place} cells are left, run again with --missing")
            return
        result = run_cell(cell, model, judge)
        write_bytes(cell.path, (json.dumps(result, indent=1) + "\n").encode())
        yield result


def read_results() -> list[dict[str, Any]]:
    """All committed results."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*/*.json"))]


def table(results: Sequence[dict[str, Any]]) -> str:
    """A Markdown table: one row for each method, means over concepts; retention as a share of the untouched model's."""
    untouched = {r["concept"]: r["shares"] for r in results if r["method"] == UNTOUCHED}
    names = [*GROUPS, "intact"]
    lines = ["| method | concepts | " + " | ".join(names) + " |", "|---" * (len(names) + 2) + "|"]
    for method in dict.fromkeys([UNTOUCHED, *(r["method"] for r in results)]):
        rows = [r for r in results if r["method"] == method]
        cells_text = [_mean(rows, name, untouched) for name in names]
        lines.append(f"| {method} | {len({r['concept'] for r in rows})} | " + " | ".join(cells_text) + " |")
    return "\n".join(lines)


def _mean(rows: Sequence[dict[str, Any]], name: str, untouched: dict[str, Any]) -> str:
    values = []
    for row in rows:
        if name not in row["shares"]:
            continue
        share = row["shares"][name]["share"]
        is_retention = name in GROUPS[3:] and row["method"] != UNTOUCHED
        values.append(share / untouched[row["concept"]][name]["share"] if is_retention else share)
    return f"{sum(values) / len(values):.1%}" if values else "-"
