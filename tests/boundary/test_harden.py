"""When the loop of erasing and searching goes on, and when it stops."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from made_up import CONCEPT, made_up

from erasure_core import Concept, read_erasure
from erasure_core.boundary import Exploration
from erasure_core.boundary import harden as loop
from erasure_core.cli.main import main
from erasure_core.errors import Cancelled, InvalidConcept, OutOfMemory
from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.methods.esd import EsdSettings

SHORT = EsdSettings(steps=3, trajectories=4, trajectory_steps=2)


def _found(*words: str) -> Exploration:
    """A search in which prompts that add these words leak, and nothing else does."""
    quiet = [replace(point, leaks=False, hidden=False) for point in made_up(20).points]
    worst = [replace(quiet[0], text=f"a {word or 'state no text gives'}", word=word, leaks=True) for word in words]
    return replace(made_up(20), points=(*worst, *quiet))


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Exploration]]:
    """What the searches of the loop find, in turn."""
    results: list[Exploration] = []

    def explore(*_: Any, **__: Any) -> Exploration:
        return results.pop(0)

    monkeypatch.setattr(loop, "explore", explore)
    yield results


def test_a_training_goes_on_while_only_erased_words_leak(
    pico: DiffusersModel, searches: list[Exploration], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[tuple[Concept, bool]] = []
    erase = loop.erase

    def noted(model: Any, concept: Concept, *rest: Any, **named: Any) -> Any:
        trained.append((concept, named.get("start") is not None))
        return erase(model, concept, *rest, **named)

    monkeypatch.setattr(loop, "erase", noted)
    searches += [_found("ball", "Sphere"), _found("ball", "orb"), _found(), _found("globe")]
    _, _, rounds = loop.harden(pico, CONCEPT, 4, "esd", SHORT)
    wider = replace(CONCEPT, words=(*CONCEPT.words, "orb"))
    assert trained == [(CONCEPT, False), (CONCEPT, True), (wider, True)]
    assert [(one.leaking, one.added) for one in rounds] == [(2, ()), (2, ("orb",)), (0, ())]


def test_what_no_prompt_says_does_not_keep_the_loop_going(pico: DiffusersModel, searches: list[Exploration]) -> None:
    searches += [_found(""), _found("globe")]
    _, _, rounds = loop.harden(pico, CONCEPT, 2, "esd", SHORT)
    assert [(one.leaking, one.tried) for one in rounds] == [(0, len(_found().typed))], "no prompt leaks"


def test_a_closed_form_does_not_solve_the_same_twice(pico: DiffusersModel, searches: list[Exploration]) -> None:
    searches += [_found("orb"), _found("ball"), _found("globe")]
    erasure, _, rounds = loop.harden(pico, CONCEPT, 3, "closed_form")
    assert [one.added for one in rounds] == [("orb",), ()] and erasure.manifest.words == (*CONCEPT.words, "orb")


@pytest.mark.parametrize("before", [(), ("orb",)])
def test_a_finished_erasing_is_not_lost_to_a_stopped_search(
    pico_folders: dict[str, Path],
    searches: list[Exploration],
    before: tuple[str, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A closed form has no saved state to go on from."""
    searches += [_found(word) for word in before] + [replace(_found(), stopped=True)]
    out = tmp_path / "ball.safetensors"
    asked = ["erase", "--model", str(pico_folders["sd1"]), "--concept", "ball", "--method", "closed_form"]
    assert main([*asked, "--harden", "3", "--out", str(out)]) == Cancelled.exit_code
    told = capsys.readouterr().err
    assert f"Stopped while searching in round {len(before) + 1}." in told and "saved state" not in told
    assert f"{out} holds the erasure" in told and "repeat the command with --overwrite" in told
    manifest = read_erasure(out).manifest
    assert manifest is not None and manifest.words == ("ball", *before)
    assert [one["added"] for one in manifest.settings.get("harden", [])] == [[word] for word in before]


@pytest.mark.parametrize("error", [InvalidConcept("It is refused."), torch.OutOfMemoryError("acted")])
def test_a_finished_erasing_is_not_lost_to_a_search_that_fails(
    pico_folders: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
) -> None:
    def failing(*_: Any, **__: Any) -> Exploration:
        raise error

    monkeypatch.setattr(loop, "explore", failing)
    out = tmp_path / "ball.safetensors"
    asked = ["erase", "--model", str(pico_folders["sd1"]), "--concept", "ball", "--method", "closed_form"]
    kind = InvalidConcept if isinstance(error, InvalidConcept) else OutOfMemory
    assert main([*asked, "--harden", "1", "--out", str(out)]) == kind.exit_code
    told = capsys.readouterr().err
    assert f"{out} holds the erasure as it was before." in told and read_erasure(out).changes
    assert ("It is refused." if kind is InvalidConcept else "too little memory for the search") in told


def test_no_words_are_added_that_are_refused_together() -> None:
    """Each alone is harmless; the next search would be refused, and the round with it."""
    wider = loop.widened(Concept(("woman",)), ["girl", "nude", "lady"])
    assert wider.words == ("woman", "girl", "lady")
