"""The goals' verdicts come from the results, and the committed results are of the methods as they are now."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import RESULTS
from benchmarks.architectures import FAMILIES
from benchmarks.goals import COUNTED, Goal, goals
from benchmarks.published import LOOPS
from benchmarks.report import PUBLISHED
from benchmarks.tried import NOT_MEASURED, tried_table
from erasure_core import METHODS
from erasure_core.effort import plan
from erasure_core.methods.esd import EsdSettings

AGAIN = "the defaults have changed since; run: python -m benchmarks count --out benchmarks/results/counted.json"


def test_verdicts() -> None:
    assert Goal("", 10, False).verdict == "not measured"
    assert Goal("", 10, False, (25.0, 10.0), " times").verdict == "reached"
    assert Goal("", 10, False, (25.0, 4.0)).verdict == "missed by a factor of 2.5", "the worst one counts"
    assert Goal("", 2, True, (1.0, 3.0)).verdict == "missed by a factor of 1.5"
    assert Goal("", 0, True, (0.0,)).verdict == "reached" and Goal("", 0, True, (3.0,)).verdict == "missed by 3"
    assert Goal("", 2, True, (1.0,), kind=COUNTED).verdict == "reached (counted)"
    assert Goal("what", 2, True, (1.0,), " s").row == ["what", "at most 2 s", "1 s", "reached"]


def _write(folder: Path, name: str, content: Any) -> None:
    (folder / name).write_text(json.dumps(content))


def test_without_results_nothing_is_said_to_be_reached(tmp_path: Path) -> None:
    assert {goal.verdict for goal in goals(tmp_path)} == {"not measured"}
    assert tried_table(tmp_path).count(NOT_MEASURED) >= 8


def _run(machine: str, seconds: float, tiny: bool = False, batch: int = 8) -> dict[str, Any]:
    row = {"peak": 10, "floor": 1.0, "settings": {"batch": batch}}
    esd, ours = ({**row, "name": name, "seconds": s} for name, s in (("published esd", 30.0), ("esd", seconds)))
    return {"machine": machine, "family": "sd15", "side": 512, "tiny": tiny, "rows": [esd, ours]}


def test_measured_figures_go_to_their_goals(tmp_path: Path) -> None:
    on_cpu, on_gpu = _run("x86_64 CPU (AVX2), 2 thread(s)", 2.0), _run("NVIDIA X", 5.0)
    _write(tmp_path, "run_a.json", [on_cpu, _run("x86_64 CPU", 90.0, tiny=True)])
    _write(tmp_path, "run_b.json", [on_gpu, _run("NVIDIA X", 1.5, batch=1)])
    solved = {"concepts": 1, "encoding": 5.0, "solving": 2.0, "error": 2e-5, "exact_error": 1e-9}
    used = {"binding": 3.0, "applying": 1.0, "reading": 1.0, "touching": 1.5}
    stacked = [{"files": n, "none": 1.0, "stacked": n, "merged": 1 + n / 10, "baked": 1.0} for n in (1, 2, 4, 8)]
    content = {"family": "sdxl", "tiny": False, "solved": [solved], "applied": used, "stacked": stacked}
    _write(tmp_path, "solve_sdxl.json", content)
    verdict = {"method": "esd", "faults": ["the prediction did not change"]}
    _write(tmp_path, "every_all.json", {"runs": [{"family": "sd15", "tiny": False, "verdicts": [verdict]}]})
    (tmp_path / "gpu_check.txt").write_text(
        "SDXL on a card of 10 GiB 9.0 s  ok      peak 9.50 GiB of 10; low-vram: …\n"
    )
    done = {"method": "auto", "effort": "balanced", "seconds": {"trajectories": 10.0, "training": 30.0}, "steps": 200}
    wholes = [{**done, "done": 150}, {**done, "effort": "fast", "done": 10}, {**done, "done": 0}]
    whole = {"family": "sd15", "machine": "NVIDIA X", "tiny": False, "runs": wholes}
    _write(tmp_path, "whole_sd15.json", whole)
    said = {goal.text: (goal.value, goal.verdict) for goal in goals(tmp_path)}

    def of(start: str) -> tuple[float | None, str]:
        (found,) = (figures for text, figures in said.items() if text.startswith(start))
        return found

    assert of("steps per second, of the published ESD loop's, SD1.5, 512 px, CPU") == (15, "reached")
    assert of("steps per second, of the published ESD loop's, SD1.5, 512 px, GPU")[0] == 6
    assert of("a step, of the floor, GPU") == (5, "missed by a factor of 2.5"), "of batch 8 alone"
    assert of("a step, of the floor, CPU") == (2, "reached")
    assert of("one concept with the recommended method's defaults, sd15") == (50, "reached (extrapolated)"), (
        "10 + 30 * 200 / 150"
    )
    assert of("the same of method esd, sd15, 512 px, GPU")[1].endswith("(extrapolated)"), "one step's seconds times 400"
    assert of("closed form, sdxl, 20 kept prompts, 1 concept, text encoders left out") == (2, "reached")
    assert of("closed form, sdxl, 20 kept prompts, 1 concept, with")[1] == "missed by a factor of 2.33"
    assert of("its error at the default") == (2e-5, "missed by a factor of 2")
    assert of("its error at tolerance 0")[1] == "reached"
    assert of("to read, check and apply")[0] == pytest.approx(1.6)
    assert of("a prediction with 8 files merged")[0] == pytest.approx(1.8 / 1.1)
    assert of("a prediction with 8 files baked") == (1, "reached")
    assert of("faults of any method") == (1, "missed by 1")
    assert of("the same with what libraries and fragments take, sdxl") == (9.5, "reached")
    assert of("the same with what libraries and fragments take, sd15")[1] == "not measured"
    assert of("closed form, sdxl, 20 kept prompts, 100 concepts, with")[1] == "not measured"


def test_ways_that_were_measured_are_told_with_their_figures(tmp_path: Path) -> None:
    ways = [{"name": name, "predicting": seconds} for name, seconds in (("as it is", 2.0), ("CUDA graph", 3.0))]
    _write(tmp_path, "execution_x.json", {"ways": ways})
    rows = {line.split(" | ")[0]: line for line in tried_table(tmp_path).splitlines()}
    assert "takes 1.50 times as long" in rows["| CUDA graphs"]
    assert all(NOT_MEASURED in rows[f"| {name}"] for name in ("channels_last", "torch.compile"))


def test_pairs_that_nobody_measured_are_no_success(tmp_path: Path) -> None:
    def said(runs: dict[str, list[str]]) -> str:
        found = [
            {"family": family, "tiny": False, "verdicts": [{"method": name, "faults": []} for name in names]}
            for family, names in runs.items()
        ]
        _write(tmp_path, "every_all.json", {"runs": found})
        (verdict,) = (goal.verdict for goal in goals(tmp_path) if goal.text.startswith("faults of any method"))
        return verdict

    every = list(METHODS)
    whole = dict.fromkeys(FAMILIES, every)
    assert said(whole) == "reached"
    number = len(FAMILIES) * len(METHODS)
    assert said(whole | {"sdxl": every[2:]}) == (f"held so far; not measured: 2 of {number} pairs of family and method")


def test_the_counted_trainings_are_the_present_ones() -> None:
    """The figures in docs/speed.md are of the methods' defaults: whoever changes these counts again."""
    content = json.loads((RESULTS / "counted.json").read_text(encoding="utf-8"))
    model: Any = None  # the efforts asked for here do not look at it
    wanted = {effort: plan(effort, EsdSettings(), model).settings.steps for effort in ("fast", "balanced")}
    rows = [row for row in content["rows"] if row["name"] in wanted]
    assert rows and {row["name"]: row["steps"] for row in rows} == wanted, AGAIN
    for name, loop in LOOPS.items():
        assert {row["steps"] for row in content["rows"] if row["name"] == f"{PUBLISHED}{name}"} == {loop.steps}, AGAIN
    assert {"machine", "seed", "shares"} <= content.keys(), AGAIN
