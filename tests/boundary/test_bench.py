"""The measurements of exploration in the picture world: what they search, and when an old result is no result."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from made_up import made_up

from erasure_core.boundary import ExploreSettings
from proving_ground import boundary_bench, boundary_parts
from proving_ground.boundary_parts import CHECKED, REUSED, SEARCHED, Bench
from proving_ground.painting import GUIDANCE


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The concepts that were measured, by a bench that needs no model."""
    done: list[str] = []

    class Quick:
        def __init__(self, budget: float) -> None:
            self.budget = budget

        def search(self, name: str, method: str) -> dict[str, Any]:
            done.append(name)
            return {"points": 1}

    monkeypatch.setattr(boundary_bench, "Bench", Quick)
    monkeypatch.setattr(boundary_bench, "RESULTS", tmp_path)
    return done


def _run(budget: float = 60.0) -> None:
    boundary_bench.run_boundary(["search"], ["ball"], ["closed_form"], budget, missing=True)


def test_only_what_was_measured_as_now_is_not_missing(measured: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    _run()
    _run()
    assert measured == ["ball"]
    _run(budget=5.0)
    assert len(measured) == 2, "another budget is another search"
    monkeypatch.setattr(boundary_bench, "model_mark", lambda: "another model")
    assert boundary_bench.read_part("search") == []
    _run(budget=5.0)
    assert len(measured) == 3 and len(boundary_bench.read_part("search")) == 1
    monkeypatch.setattr(boundary_bench, "ROUND", boundary_bench.ROUND + 1)
    _run(budget=5.0)
    assert len(measured) == 4


def test_results_without_conditions_are_measured_again(measured: list[str], tmp_path: Path) -> None:
    old = tmp_path / "search" / "closed_form_ball.json"
    old.parent.mkdir()
    old.write_text(json.dumps({"part": "search", "method": "closed_form", "concept": "ball"}))
    assert boundary_bench.read_part("search") == []
    _run()
    assert measured == ["ball"]


def test_each_erasure_is_searched_afresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain erasure's prompts say nothing of what a search of the hardened one would find."""
    searched: list[tuple[str, ExploreSettings]] = []
    judged: list[tuple[str, list[str]]] = []
    explorations = {"plain": made_up(60, seed=1), "hard": made_up(60, seed=2)}

    def explore(model: Any, concept: Any, erasures: Any, how: ExploreSettings) -> Any:
        searched.append((erasures[0][0], how))
        return explorations[erasures[0][0]]

    def seen(texts: list[str], name: str, erasures: Any) -> list[float]:
        judged.append((erasures[0][0], list(texts)))
        return [0.5 if erasures[0][0] == "plain" else 0.25] * len(texts)

    bench = Bench.__new__(Bench)
    bench.model = bench.judge = None  # type: ignore[assignment]
    bench.budget = 7.0
    bench.erasures = lambda name, method: [("plain", 1.0)]  # type: ignore[assignment, method-assign, list-item, return-value]
    bench.seen = seen  # type: ignore[method-assign, assignment]
    hardening: list[ExploreSettings] = []
    monkeypatch.setattr(boundary_parts, "explore", explore)
    monkeypatch.setattr(boundary_parts, "evaluate", lambda *_, **__: SimpleNamespace(shares={}))
    monkeypatch.setattr(
        boundary_parts,
        "harden",
        lambda *_, search, **__: (hardening.append(search), (SimpleNamespace(deltas="hard"), None, ()))[1],
    )
    result = bench.harden("ball", "closed_form")
    (first, plainly), (second, hardly) = searched
    assert (first, second) == ("plain", "hard")
    rounds = {hardening[0].seed + number for number in range(boundary_parts.ROUNDS + 1)}
    assert len({plainly.seed, hardly.seed} | rounds) == 2 + len(rounds)
    assert {plainly.guidance, hardly.guidance, hardening[0].guidance} == {GUIDANCE}
    own = {which: [p.text for p in found.points if p.word][:CHECKED] for which, found in explorations.items()}
    assert own["plain"] != own["hard"]
    assert ("hard", own["hard"]) in judged and ("hard", own["plain"]) in judged
    assert (result["plain"][SEARCHED], result["hardened"][SEARCHED], result["hardened"][REUSED]) == (0.5, 0.25, 0.25)


@pytest.mark.parametrize(("origin", "found"), [("named", False), ("vocabulary", True)])
def test_the_words_that_were_given_are_no_find(monkeypatch: pytest.MonkeyPatch, origin: str, found: bool) -> None:
    points = [replace(point, origin=origin) for point in made_up(40).points if point.word]
    monkeypatch.setattr(boundary_parts, "explore", lambda *_: replace(made_up(40), points=tuple(points)))
    bench = Bench.__new__(Bench)
    bench.model, bench.budget = None, 7.0  # type: ignore[assignment]
    bench.erasures = lambda name, method: []  # type: ignore[method-assign]
    bench.seen = lambda texts, name, erasures: [1.0] * len(texts)  # type: ignore[method-assign]
    assert bench.search("ball", "closed_form")["found_any"] is found


def test_the_document_holds_the_figures_of_the_results() -> None:
    text = (boundary_bench.DOCS / "boundary.md").read_text(encoding="utf-8")
    told = text.partition(boundary_bench.BEGIN)[2].partition(boundary_bench.END)[0].strip()
    assert told == boundary_bench.figures(), "run: python -m proving_ground boundary --docs"
