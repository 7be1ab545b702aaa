"""The bench's searches on the bundled model, and what shows several methods or concepts together."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch

from proving_ground import bench, bench_searches, strips
from proving_ground.bench import Cell, concept_of, erasure_of
from proving_ground.bench_searches import INVERTED, SEARCHED, search_figures
from proving_ground.evaluation import LEAKS
from proving_ground.judge import load_judge
from proving_ground.lexicon import CONCEPTS
from proving_ground.painting import load_model
from proving_ground.several import KEPT, judged, together


def test_what_is_searched_for_shows_the_concept(monkeypatch: pytest.MonkeyPatch) -> None:
    for search, name, few in (("prefix", "STEPS", 2), ("inversion", "STEPS", 4), ("self_check", "ROUNDS", 1)):
        monkeypatch.setattr(import_module(f"erasure_core.boundary.searches.{search}"), name, few)
    monkeypatch.setattr(bench_searches, "STEPS", 10)
    found = search_figures(load_model(), load_judge(), concept_of(CONCEPTS["ball"]), [], count=8)
    assert list(found) == [SEARCHED, INVERTED] and {figure.count for figure in found.values()} == {8}
    assert found[SEARCHED].share >= 0.6, "nothing is erased"


def test_erasures_that_the_bench_left_are_taken_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "ERASURES", tmp_path)
    model, cell = load_model(), Cell("closed_form", "ball", 0)
    made = erasure_of(cell, model)
    assert cell.erasure_path.is_file()
    monkeypatch.setattr(bench, "erase", None)  # it would fail
    again = erasure_of(cell, model)
    assert again.deltas.keys() == made.deltas.keys()
    with pytest.raises(TypeError):
        erasure_of(replace(cell, seed=1), model)


def test_several_concepts_keep_no_prompt_that_says_one_of_them() -> None:
    joined = together("auto", ["ball", "star"])
    assert set(CONCEPTS["ball"].named + CONCEPTS["star"].named) == set(joined.words)
    assert joined.keep and not any("ball" in prompt or "star" in prompt for prompt in joined.keep)
    figures = judged(load_model(), load_judge(), ["ball", "star"], [], 1)
    assert [figure.name for figure in figures] == [*LEAKS, KEPT]
    assert [figure.count for figure in figures[:3]] == [2] * 3 and figures[0].share >= 0.5


def test_a_row_for_each_method_and_a_column_for_each_prompt() -> None:
    columns = strips.asked("fish")  # which has no look-alike
    assert "look-alikes" not in [group for group, _ in columns] and len(columns) == len(strips.GROUPS) - 1
    painted = torch.zeros(len(columns), 3, 64, 64, dtype=torch.uint8)
    image = strips.sheet(columns, [("untouched", painted), ("one", painted + 255)])
    side = strips.SCALE * 64 + strips.GAP
    assert image.size == (strips.NAME + len(columns) * side, strips.HEAD + 2 * side)
    assert image.getpixel((strips.NAME + 5, strips.HEAD + 5)) == (0, 0, 0)
    assert image.getpixel((strips.NAME + 5, strips.HEAD + side + 5)) == (255, 255, 255)
