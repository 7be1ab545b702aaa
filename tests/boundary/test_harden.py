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
from erasure_core.boundary import Exploration, ExploreSettings
from erasure_core.boundary import harden as loop
from erasure_core.cli.main import main
from erasure_core.effort import Effort
from erasure_core.errors import Cancelled, ErasureError, InvalidConcept, OutOfMemory
from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.library import Library
from erasure_core.making import Hardening, Made, make_erasure
from erasure_core.methods import find_method
from erasure_core.methods.esd import EsdSettings
from erasure_core.progress import Silent

SHORT = EsdSettings(replace=False, steps=3, trajectories=4, trajectory_steps=2)


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
    wider = replace(CONCEPT, words=(*CONCEPT.words, "orb"), found=("orb",))
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


def _searches_fail(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def failing(*_: Any, **__: Any) -> Exploration:
        raise error

    monkeypatch.setattr(loop, "explore", failing)


@pytest.mark.parametrize("error", [InvalidConcept("It is refused."), OutOfMemory("The device is full.")])
def test_a_finished_erasing_is_not_lost_to_a_search_that_fails(
    pico_folders: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: ErasureError,
) -> None:
    _searches_fail(monkeypatch, error)
    out = tmp_path / "ball.safetensors"
    asked = ["erase", "--model", str(pico_folders["sd1"]), "--concept", "ball", "--method", "closed_form"]
    assert main([*asked, "--harden", "1", "--out", str(out)]) == error.exit_code
    told = capsys.readouterr().err
    assert f"{error} {out} holds the erasure as it was before." in told and read_erasure(out).changes


def test_no_words_are_added_that_are_refused_together() -> None:
    """Each alone is harmless; the next search would be refused, and the round with it."""
    wider = loop.widened(Concept(("woman",)), [("girl", "woman"), ("nude", "woman"), ("lady", "woman")])
    assert wider.words == ("woman", "girl", "lady") and wider.named == ("woman",)


SEARCH = ExploreSettings(seconds=1.0)
BALL = Concept(("ball",), keep=("a red box",))


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The words of each erasing, as they are begun."""
    words: list[tuple[str, ...]] = []
    erase = loop.erase

    def noted(model: Any, concept: Concept, *rest: Any, **named: Any) -> Any:
        words.append(concept.words)
        return erase(model, concept, *rest, **named)

    monkeypatch.setattr(loop, "erase", noted)
    return words


def test_every_round_is_trained_with_the_effort(
    pico: DiffusersModel, tmp_path: Path, searches: list[Exploration]
) -> None:
    searches += [_found("orb")]
    library, esd, small = Library([tmp_path]), find_method("esd"), replace(SHORT, batch=1)
    work, rounds = Effort("thorough", frozenset({"trajectories"})), Hardening(1, SEARCH)
    made = make_erasure(library, pico, BALL, esd, small, Silent(), hardening=rounds, effort=work)
    settings = made.erasure.manifest.settings
    assert len(made.history.losses) == 6, "of the first training"
    assert [settings[name] for name in ("steps", "batch", "trajectories")] == [2, 2, 4], "of the round's"


def _made(model: DiffusersModel, folder: Path, rounds: int) -> Made:
    hardening = Hardening(rounds, SEARCH) if rounds else None
    return make_erasure(Library([folder]), model, BALL, find_method("esd"), SHORT, Silent(), hardening=hardening)


@pytest.mark.parametrize("error", [InvalidConcept("It is refused."), torch.OutOfMemoryError("CUDA out of memory")])
def test_a_search_that_fails_leaves_the_training_as_a_file(
    pico: DiffusersModel,
    tmp_path: Path,
    trained: list[tuple[str, ...]],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
) -> None:
    _searches_fail(monkeypatch, error)
    for _ in range(2):
        made = _made(pico, tmp_path, 2)
        (note,) = made.history.notes
        assert note.startswith("The hardening ended early: ") and "CUDA" not in note
        assert f"{made.path.name} holds the erasure as it was before the first round" in note
    plain = _made(pico, tmp_path, 0)
    assert plain.reused and plain.path == made.path and not plain.history.notes and trained == [("ball",)]


def test_a_mistake_of_a_search_is_no_note(
    pico: DiffusersModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*_: Any, **__: Any) -> Exploration:
        raise ZeroDivisionError

    monkeypatch.setattr(loop, "explore", wrong)
    with pytest.raises(ZeroDivisionError):
        _made(pico, tmp_path, 1)
    assert _made(pico, tmp_path, 0).reused, "the training is kept all the same"


def test_a_stopped_hardening_goes_on_behind_the_last_whole_round(
    pico: DiffusersModel, tmp_path: Path, searches: list[Exploration], trained: list[tuple[str, ...]]
) -> None:
    searches += [_found("orb"), _found("globe"), replace(_found(), stopped=True)]
    with pytest.raises(Cancelled, match=r"in round 3. .* holds the erasure as it was after round 2; the same") as told:
        _made(pico, tmp_path, 4)
    assert trained == [("ball",), ("ball", "orb"), ("ball", "orb", "globe")]
    kept = next(tmp_path.glob(str(told.value).split()[6]))
    manifest = read_erasure(kept).manifest
    assert manifest is not None and manifest.words == ("ball", "orb", "globe")
    searches += [_found("marble"), _found()]
    made = _made(pico, tmp_path, 4)
    assert trained[3:] == [("ball", "orb", "globe", "marble")] and not searches
    rounds = loop.rounds_of(made.erasure.manifest.settings)
    assert [one.added for one in rounds] == [("orb",), ("globe",), ("marble",), ()]
    assert len(made.history.losses) == 3, "of the first training"
    assert _made(pico, tmp_path, 4).reused


def test_a_whole_hardening_leaves_the_training_and_itself(
    pico: DiffusersModel, tmp_path: Path, searches: list[Exploration]
) -> None:
    searches += [_found("orb"), _found("globe"), _found("marble")]
    made = _made(pico, tmp_path, 3)
    plain = _made(pico, tmp_path, 0)
    assert plain.reused and plain.erasure.manifest.words == ("ball",) and not made.reused
    assert set(Library([tmp_path]).names()) == {made.path.name, plain.path.name}
    assert len(list(tmp_path.iterdir())) == 4, "each with its history"


def test_a_round_that_found_nothing_is_not_searched_again(
    pico: DiffusersModel, tmp_path: Path, searches: list[Exploration], trained: list[tuple[str, ...]]
) -> None:
    searches += [_found()]
    once = _made(pico, tmp_path, 1)
    longer = _made(pico, tmp_path, 3)
    assert trained == [("ball",)] and longer.path != once.path
    assert longer.erasure.manifest.settings == once.erasure.manifest.settings


BALL_AND_CAT = Concept.joined([Concept(("ball",), "box", ("a tree",)), Concept(("cat",), "dog")])


def test_what_leaks_takes_the_place_of_the_word_that_it_is_near_to(
    pico: DiffusersModel, tmp_path: Path, searches: list[Exploration], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pushed to nothing beside words that have something in their place, and of no concept, it would be forgotten by
    whatever draws from each of them; also where a stopped loop goes on."""
    concepts: list[Concept] = []
    erase = loop.erase

    def noted(model: Any, concept: Concept, *rest: Any, **named: Any) -> Any:
        concepts.append(concept)
        return erase(model, concept, *rest, **named)

    def near(found: Exploration, words: tuple[str, ...], of: str) -> Exploration:
        points = tuple(replace(point, near=of if point.leaks else "") for point in found.points)
        return replace(found, words=words, points=points)

    monkeypatch.setattr(loop, "erase", noted)
    esd, rounds = find_method("esd"), Hardening(2, SEARCH)
    searches += [near(_found("kitten"), BALL_AND_CAT.words, "cat"), replace(_found(), stopped=True)]
    with pytest.raises(Cancelled):
        make_erasure(Library([tmp_path]), pico, BALL_AND_CAT, esd, SHORT, Silent(), hardening=rounds)
    wider = concepts[-1]
    assert wider.each == (("ball",), ("cat", "kitten")) and dict(wider.instead)["kitten"] == "dog"
    searches += [near(_found("sphere"), (*BALL_AND_CAT.words, "kitten"), "ball")]
    make_erasure(Library([tmp_path]), pico, BALL_AND_CAT, esd, SHORT, Silent(), hardening=rounds)
    wider = concepts[-1]
    assert wider.each == (("ball", "sphere"), ("cat", "kitten")) and wider.found == ("kitten", "sphere")
    assert dict(wider.instead) == {"ball": "box", "cat": "dog", "kitten": "dog", "sphere": "box"}


@pytest.mark.parametrize("strange", [3, [3], [{}], [{"leaking": 1, "tried": 2, "added": 5}],
                                     [{"leaking": "x", "tried": 2, "added": []}],
                                     [{"leaking": 1, "tried": 2, "added": [3]}], {"leaking": 1}])  # fmt: skip
def test_what_a_stranger_writes_as_rounds_is_none(strange: Any) -> None:
    assert loop.rounds_of({"harden": strange}) == ()
