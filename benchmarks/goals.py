"""What was aimed at, and what the committed results say of it: a table in docs/speed.md, no figure of which is typed.

A goal about seconds is judged by measurements, or by what is extrapolated from a part of the steps; one about memory by
those of a GPU. Where there is none, the counted figure or the projection is told. Whatever is no measurement is called
what it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from erasure_core.methods import METHODS, RECOMMENDED
from erasure_core.methods.closed_form import ClosedFormSettings
from erasure_core.methods.esd import EsdSettings

from .architectures import FAMILIES
from .report import GIB, Result, read, table
from .whole import all_seconds

PROJECTED = (100e12, 400e12)
"""Sustained operations per second that durations on a GPU are projected with."""
NOISE = 1.1
"""What counts as "not at all": medians of a shared machine differ by some percent."""
COUNTED, PROJECTION, EXTRAPOLATED = "counted", "projected", "extrapolated"


@dataclass(frozen=True)
class Goal:
    """One goal.

    Args:
        text: for people.
        limit: the figure that was aimed at.
        most: whether the figure may be at most that; else at least.
        values: what was found; the worst one counts.
        unit: behind figures.
        kind: empty for measurements, else ``COUNTED``, ``PROJECTION`` or ``EXTRAPOLATED``.
        missing: what of it was not measured, for people: while something is, the goal is not reached.
    """

    text: str
    limit: float
    most: bool
    values: tuple[float, ...] = ()
    unit: str = ""
    kind: str = ""
    missing: str = ""

    @property
    def value(self) -> float | None:
        return None if not self.values else max(self.values) if self.most else min(self.values)

    @property
    def verdict(self) -> str:
        """Reached, missed by how much, or not measured, maybe in part."""
        value = self.value
        if value is None:
            return "not measured"
        is_held = value <= self.limit if self.most else value >= self.limit
        held = f"held so far; not measured: {self.missing}" if self.missing else "reached"
        judged = held if is_held else self._missed(value)
        return f"{judged} ({self.kind})" if self.kind else judged

    def _missed(self, value: float) -> str:
        low, high = sorted((value, self.limit))
        return f"missed by a factor of {high / low:.3g}" if low > 0 else f"missed by {high - low:.3g}{self.unit}"

    @property
    def row(self) -> list[str]:
        value = self.value
        bound = f"at {'most' if self.most else 'least'} {self.limit:g}{self.unit}"
        return [self.text, bound, "" if value is None else f"{value:.3g}{self.unit}", self.verdict]


def _load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


class Results:
    """All results of a folder."""

    def __init__(self, folder: Path) -> None:
        self.runs: list[Result] = [run for path in sorted(folder.glob("run_*.json")) for run in read(path)]
        self.wholes: list[Result] = [_load(path) for path in sorted(folder.glob("whole_*.json"))]
        self.solved: list[Result] = [_load(path) for path in sorted(folder.glob("solve_*.json"))]
        self.every = [run for path in sorted(folder.glob("every_*.json")) for run in _load(path)["runs"]]
        counted = folder / "counted.json"
        self.counted: Result = _load(counted) if counted.exists() else {"rows": [], "curves": {}}
        check = folder / "gpu_check.txt"
        self.checked = check.read_text(encoding="utf-8") if check.exists() else ""

    def rows(self, gpu: bool, family: str, side: int, name: str) -> Iterator[tuple[Result, Result]]:
        """(row, the published ESD loop's row of the same run or nothing) of runs at true size."""
        for run in self.runs:
            is_gpu = "CPU" not in run["machine"]
            if (is_gpu, run["family"], run["side"], run["tiny"]) == (gpu, family, side, False):
                rows = {row["name"]: row for row in run["rows"]}
                if name in rows:
                    yield rows[name], rows.get("published esd", {})

    def whole(self, family: str, method: str, effort: str) -> Iterator[Result]:
        """Whole erasures on a GPU."""
        for result in self.wholes:
            if result["family"] == family and "CPU" not in result["machine"] and not result["tiny"]:
                yield from (run for run in result["runs"] if (run["method"], run["effort"]) == (method, effort))

    def small_card(self, size: int) -> tuple[float, ...]:
        """GiB at the peak of the training that ``gpu_check`` makes on a card of ``size`` GiB."""
        return tuple(float(peak) for peak in re.findall(rf"ok +peak ([\d.]+) GiB of {size};", self.checked))

    def of_training(self, family: str, name: str) -> list[Result]:
        """Counted trainings."""
        return [row for row in self.counted["rows"] if (row["family"], row["name"]) == (family, name)]


def goals(folder: Path) -> list[Goal]:
    """All goals, with what the results in a folder say."""
    results = Results(folder)
    return [*_loops(results), *_floors(results), *_whole(results), *_solves(results), *_growth(results)]


def _loops(results: Results) -> Iterator[Goal]:
    cpu, gpu = (list(results.rows(on_gpu, "sd15", 512, "esd")) for on_gpu in (False, True))
    for where, pairs in (("CPU", cpu), ("GPU", gpu)):
        ratios = tuple(esd["seconds"] / ours["seconds"] for ours, esd in pairs if esd)
        yield Goal(
            f"steps per second, of the published ESD loop's, SD1.5, 512 px, {where}", 10, False, ratios, " times"
        )
    fewer = [(a, b) for a in results.of_training("sd15", "ours, fast")
             for b in results.of_training("sd15", "published esd")]  # fmt: skip
    ratios = tuple((b["student"] + b["pool"]) / (a["student"] + a["pool"]) for a, b in fewer)
    yield Goal("the same in operations, batch 1, effort fast", 10, False, ratios, " times", COUNTED)
    measured = tuple(ours["peak"] / esd["peak"] for ours, esd in gpu if esd)
    yield Goal("peak memory, of the published ESD loop's, SD1.5, 512 px, GPU", 0.5, True, measured, " times")
    name = "ours, fast, computing activations again"
    pairs = [(a, b) for a in results.of_training("sd15", name) for b in results.of_training("sd15", "published esd")]
    counted = tuple((a["peak"] + a["text"]) / (b["peak"] + b["text"]) for a, b in pairs)
    yield Goal("the same with a batch of 1, as that loop has, activations computed again", 0.5, True, counted, " times",
               COUNTED)  # fmt: skip


def _floors(results: Results) -> Iterator[Goal]:
    gpu = tuple(
        row["seconds"] / row["floor"]
        for row, _ in results.rows(True, "sd15", 512, "esd")
        if row["settings"]["batch"] == 8
    )
    yield Goal("a step, of the floor, GPU, bfloat16, SD1.5, 512 px, batch 8", 2, True, gpu, " times")
    cpu = tuple(row["seconds"] / row["floor"] for row, _ in results.rows(False, "sd15", 512, "esd"))
    yield Goal("a step, of the floor, CPU, SD1.5, 512 px", 2, True, cpu, " times")


def _whole(results: Results) -> Iterator[Goal]:
    for family, side, size, duration in (("sd15", 512, 6, 60), ("sdxl", 1024, 10, 180)):
        what = f"{family}, {side} px"
        least = tuple((row["peak"] + row["text"]) / GIB for row in results.of_training(family, "low-vram at its least"))
        yield Goal(
            f"peak memory of a training with low-vram, {what}", size, True, least, " GiB", COUNTED if least else ""
        )
        text = f"the same with what libraries and fragments take, {what}, GPU"
        yield Goal(text, size, True, results.small_card(size), " GiB")
        runs = [run for run in results.whole(family, RECOMMENDED, "balanced") if run["done"]]
        took = tuple(seconds for seconds in map(all_seconds, runs) if seconds is not None)
        kind = EXTRAPOLATED if any(run["done"] < run["steps"] for run in runs) else ""
        text = f"one concept with the recommended method's defaults, {what}, GPU"
        yield Goal(text, duration, True, took, " s", kind)
        steps = EsdSettings().steps
        took = tuple(row["seconds"] * steps for row, _ in results.rows(True, family, side, "esd"))
        text = f"the same of method esd, {what}, GPU"
        yield Goal(text, duration, True, took, " s", EXTRAPOLATED if took else "")
        flops = [row["steps"] * (row["student"] + row["pool"]) for row in results.of_training(family, "balanced")]
        for rate in PROJECTED:
            text, took = f"the same, {what}, at {rate / 1e12:.0f} TFLOP/s", tuple(whole / rate for whole in flops)
            yield Goal(text, duration, True, took, " s", PROJECTION if flops else "")


def _solves(results: Results) -> Iterator[Goal]:
    sdxl = [result for result in results.solved if result["family"] == "sdxl" and not result["tiny"]]
    for concepts, limit in ((1, 3), (100, 30)):
        found = [solved for result in sdxl for solved in result["solved"] if solved["concepts"] == concepts]
        what = f"closed form, sdxl, 20 kept prompts, {concepts} concept{'s' if concepts > 1 else ''}"
        yield Goal(f"{what}, text encoders left out", limit, True, tuple(s["solving"] for s in found), " s")
        whole = tuple(s["solving"] + s["encoding"] for s in found)
        yield Goal(f"{what}, with the text encoders", limit, True, whole, " s")
    every = [solved for result in sdxl for solved in result["solved"]]
    share = f"{100 * ClosedFormSettings().tolerance:g} %"
    text = f"its error at the default tolerance, where it gives up {share} of what it could achieve"
    yield Goal(text, 1e-5, True, tuple(s["error"] for s in every))
    yield Goal("its error at tolerance 0", 1e-5, True, tuple(s["exact_error"] for s in every))
    used = [result["applied"] for result in sdxl]
    ratios = tuple((u["binding"] + u["applying"]) / (u["reading"] + u["touching"]) for u in used)
    yield Goal("to read, check and apply a file, sdxl, of reading its bytes and one pass over the weights", 2, True,
               ratios, " times")  # fmt: skip


def _worst(points: Iterable[Sequence[float]]) -> tuple[float, ...]:
    """Of a curve of (number, cost), the largest cost of a number relative to as many single ones."""
    (first, single), *rest = points
    return tuple(cost / (single * number / first) for number, cost in rest)


def _growth(results: Results) -> Iterator[Goal]:
    curves = results.counted["curves"]
    steps, concepts = (_worst(curves[name]) if name in curves else () for name in ("steps", "concepts"))
    yield Goal("operations, of as many single runs: more steps (linear)", 1.001, True, steps, " times", COUNTED)
    yield Goal("operations, of as many single runs: more concepts (sub-linear)", 1, True, concepts, " times", COUNTED)
    for way in ("merged", "baked"):
        ratios = tuple(r["stacked"][-1][way] / r["stacked"][0][way] for r in results.solved if not r["tiny"])
        yield Goal(f"a prediction with 8 files {way}, of that with 1", NOISE, True, ratios, " times")
    found = {(run["family"], v["method"]): v for run in results.every if not run["tiny"] for v in run["verdicts"]}
    lacking = [pair for pair in product(FAMILIES, METHODS) if pair not in found]
    text = "faults of any method at true shapes: trained, saved, loaded by diffusers, switched off"
    faults = tuple(float(len(verdict["faults"])) for verdict in found.values())
    missing = f"{len(lacking)} of {len(FAMILIES) * len(METHODS)} pairs of family and method" if lacking else ""
    yield Goal(text, 0, True, faults, missing=missing)


def goals_table(folder: Path) -> str:
    """The goals with their verdicts."""
    return table(["goal", "aimed at", "figure", "verdict"], [goal.row for goal in goals(folder)])
