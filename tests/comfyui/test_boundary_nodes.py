"""Exploring, the map, the report card, hardening and purifying on the fake host."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import fake_comfy
import pytest
import torch
from fake_comfy import Interrupted, Switches
from pack_nodes import PACK, Nodes, concept, instant

FEW: dict[str, Any] = {"states": 2, "resolution": 64, "seconds": 20}
QUICK: dict[str, Any] = {**FEW, "searches": "lexical", "look": 0}


def ends(graph: dict[str, Any]) -> dict[str, Any]:
    return {"model": graph["model"], "clip": graph["clip"]}


def weights(graph: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {key: w.clone() for key, w in graph["model"].model.state_dict().items()}


def results(base: Path) -> list[Path]:
    return sorted((base / "output" / "concept_erasure").glob("*"))


def test_exploring_hands_on_a_map_a_list_and_a_wider_concept(
    nodes: Nodes, graph: dict[str, Any], fake_host: Path
) -> None:
    before = weights(graph)
    erasure = instant(nodes, graph).args[2]
    done = nodes.run("Explore", **ends(graph), concept=concept(nodes), erasure=erasure, **QUICK)
    boundary, wider, picture, text, exported = done.args
    assert all(torch.equal(w, before[key]) for key, w in weights(graph).items())
    assert picture.shape == (1, 620, 900, 3) and 0 <= picture.min() < picture.max() <= 1
    assert boundary.found.summary() in text and "not a proof" in text and done.ui["text"] == [text]
    assert json.loads(exported)["words"] == ["ball"] and boundary.found.erased
    assert wider.concept.words == ("ball", *boundary.found.leaking_words(12))
    (folder,) = results(fake_host)
    assert {"map.html", "exploration.json", "leaking.txt"} <= {path.name for path in folder.iterdir()}


def test_without_an_erasure_it_explores_the_untouched_model(nodes: Nodes, graph: dict[str, Any]) -> None:
    done = nodes.run("Explore", **ends(graph), concept=concept(nodes), tries="a round toy", **QUICK)
    found = done.args[0].found
    assert not found.erased and "untouched model" in found.summary()
    assert "a round toy" in {point.text for point in found.points if point.origin == "yours"}


def test_searches_that_encode_short_rows_work_on_this_host(nodes: Nodes, graph: dict[str, Any]) -> None:
    """The host's text encoder adds 77 position rows to whatever it is given; words of the vocabulary take a few."""
    inputs = {**ends(graph), "concept": concept(nodes), **QUICK, "searches": "vocabulary"}
    found = nodes.run("Explore", **inputs).args[0].found
    assert {point.origin for point in found.points} == {"vocabulary"}


@pytest.mark.parametrize("when", ["between two reports", "while the bar is drawn"])
def test_interrupting_writes_what_was_found_and_hands_on_nothing(
    nodes: Nodes, graph: dict[str, Any], fake_host: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    before = weights(graph)
    shown = importlib.import_module(f"{PACK}.nodes.training_progress")
    update, draw = shown.SearchProgress.update, fake_comfy.ProgressBar.update_absolute
    now: list[str] = []

    def report(progress: Any, told: Any) -> None:
        now[:] = [told.stage]
        Switches.interrupt = Switches.interrupt or (told.stage == "vocabulary" and when == "between two reports")
        update(progress, told)

    def bar(progress: Any, value: int, total: int | None = None, preview: Any = None) -> None:
        Switches.interrupt = now == ["vocabulary"] and when == "while the bar is drawn"
        draw(progress, value, total, preview)

    monkeypatch.setattr(shown.SearchProgress, "update", report)
    monkeypatch.setattr(fake_comfy.ProgressBar, "update_absolute", bar)
    with pytest.raises(Interrupted):
        nodes.run("Explore", **ends(graph), concept=concept(nodes), **{**QUICK, "searches": "words"})
    assert all(torch.equal(w, before[key]) for key, w in weights(graph).items())
    (folder,) = results(fake_host)
    found = json.loads((folder / "exploration.json").read_text())
    assert found["stopped"] and found["points"] and not Switches.interrupt


def test_the_host_may_raise_in_any_layer(nodes: Nodes, graph: dict[str, Any], fake_host: Path) -> None:
    before = weights(graph)
    Switches.calls_until_raise = 400
    with pytest.raises(Interrupted):
        nodes.run("Explore", **ends(graph), concept=concept(nodes), **QUICK)
    Switches.reset()
    assert all(torch.equal(w, before[key]) for key, w in weights(graph).items()) and not results(fake_host)


@pytest.mark.parametrize("kind", ["Explore", "Report", "Erase_closed_form", "Purify"])
def test_the_guard_is_reached_from_every_node_that_searches_or_paints(
    nodes: Nodes, graph: dict[str, Any], kind: str, fake_host: Path
) -> None:
    erasure = instant(nodes, graph).args[2]
    inputs: dict[str, Any] = {**ends(graph), "concept": concept(nodes, "naked child"), **FEW}
    if kind == "Explore":
        inputs |= {"searches": "lexical", "look": 0}
    if kind == "Report":
        inputs |= {"erasure": erasure, "pictures": False}
    if kind == "Erase_closed_form":
        inputs = {**ends(graph), "concept": inputs["concept"], "resolution": 64, "harden": 1}
    if kind == "Purify":
        inputs = {**graph, "erasure": erasure, "image": torch.rand(1, 64, 64, 3), "caption": "a naked child"}
    with pytest.raises(nodes.core.InvalidConcept, match="minors"):
        nodes.run(kind, **inputs)
    assert not results(fake_host)


def test_erasing_such_a_concept_without_a_search_is_not_refused(nodes: Nodes, graph: dict[str, Any]) -> None:
    done = nodes.run("Erase_closed_form", **ends(graph), concept=concept(nodes, "naked child"), resolution=64)
    assert done.args[0].patches


def test_explicit_concepts_are_blurred_and_only_shown_if_asked_for(
    nodes: Nodes, graph: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    core = importlib.import_module(f"{PACK}.erasure_core.boundary.explore")
    blurred: list[bool] = []

    def thumbnail(model: Any, latent: Any, hidden: bool) -> str:
        blurred.append(hidden)
        return ""

    monkeypatch.setattr(core, "thumbnail", thumbnail)
    inputs = {**graph, **FEW, "searches": "lexical", "look": 2}
    nodes.run("Explore", concept=concept(nodes, explicit=True), **inputs)
    assert blurred == []
    nodes.run("Explore", concept=concept(nodes, explicit=True), pictures=True, **inputs)
    assert blurred == [True, True]
    nodes.run("Explore", concept=concept(nodes), pictures=True, **inputs)
    assert blurred[2:] == [False, False]


def test_pictures_need_a_vae(nodes: Nodes, graph: dict[str, Any]) -> None:
    with pytest.raises(nodes.core.ModelError, match="connect one"):
        nodes.run("Explore", **ends(graph), concept=concept(nodes), pictures=True, **QUICK)


def test_an_erasure_never_counts_twice(nodes: Nodes, graph: dict[str, Any]) -> None:
    model, clip, erasure = instant(nodes, graph).args[:3]
    with pytest.raises(nodes.core.ModelError, match="would count twice"):
        nodes.run("Explore", model=model, clip=clip, concept=concept(nodes), erasure=erasure, **QUICK)


def test_a_profile_that_carries_the_erasure_is_told_of(nodes: Nodes, graph: dict[str, Any], profile: str) -> None:
    """With a default profile, MODEL carries it wherever it is connected from; another erasure is still the user's."""
    model, clip = nodes.run("SafetyProfile", **ends(graph), profile=profile).args
    inputs = {"concept": concept(nodes), **QUICK}
    with pytest.raises(nodes.core.ModelError, match="Switch that profile off"):
        nodes.run("Explore", model=model, clip=clip, erasure=instant(nodes, graph).args[2], **inputs)
    dog = instant(nodes, graph, "dog").args[2]
    model, clip = nodes.run("Apply", model=model, clip=clip, erasure=dog).args
    with pytest.raises(nodes.core.ModelError, match="from before the Erase or Apply node"):
        nodes.run("Explore", model=model, clip=clip, erasure=dog, **inputs)


def test_what_is_selected_on_the_map_joins_the_concept(nodes: Nodes, graph: dict[str, Any]) -> None:
    asked = concept(nodes, keep="a red box", explicit=True)
    boundary = nodes.run("Explore", **ends(graph), concept=asked, **QUICK).args[0]
    done = nodes.run("BoundaryMap", boundary=boundary, selected="sphere\n\n  bouncy toy \na red box\nball")
    request, words = done.args
    assert request.concept.words == ("ball", "sphere", "bouncy toy") and words == "ball\nsphere\nbouncy toy"
    assert request.explicit and request.concept.keep == ("a red box",)
    shown = done.ui["boundary_map"][0]
    assert shown["filename"] == "map.html" and shown["subfolder"].startswith("concept_erasure/boundary_ball")
    nothing = nodes.run("BoundaryMap", boundary=boundary, selected="").args[0]
    assert nothing.concept == boundary.widened().concept


def test_a_report_is_a_page_a_picture_and_a_verdict(nodes: Nodes, graph: dict[str, Any], fake_host: Path) -> None:
    before = weights(graph)
    erasure = instant(nodes, graph).args[2]
    inputs = {**graph, "concept": concept(nodes, keep="a red box"), "erasure": erasure, **FEW, "seconds": 1}
    done = nodes.run("Report", second=instant(nodes, graph, "cat\nball").args[2], write_into_file=True, **inputs)
    picture, verdict, figures = done.args
    assert picture.shape[0] == 1 and picture.shape[2:] == (900, 3) and picture.std() > 0.01
    assert "Does not withstand an attacker" in verdict and len(json.loads(figures)["files"]) == 2
    assert done.ui["report_card"][0]["filename"] == "report.html"
    (folder,) = results(fake_host)
    assert "data:image/png" in (folder / "report.html").read_text(encoding="utf-8")
    manifest = nodes.run("Load", file=erasure[0].stored.path.name, erases="").args[0][0].stored.manifest
    assert "report_card" in manifest.measured
    assert all(torch.equal(w, before[key]) for key, w in weights(graph).items())


def test_figures_go_into_single_files_only(nodes: Nodes, graph: dict[str, Any], fake_host: Path) -> None:
    erasure = instant(nodes, graph).args[2]
    stack = nodes.run("Stack", first=erasure, second=erasure, strength_second=0.5).args[0]
    with pytest.raises(nodes.core.InvalidSettings, match="Save it first"):
        nodes.run("Report", **graph, concept=concept(nodes), erasure=stack, pictures=False, write_into_file=True, **FEW)
    other = {**graph, "concept": concept(nodes, "cat"), "erasure": erasure, "pictures": False, **FEW}
    with pytest.raises(nodes.core.InvalidSettings, match="does not erase 'cat'"):
        nodes.run("Report", **other, write_into_file=True)
    assert not results(fake_host)


def test_figures_do_not_break_a_profile(nodes: Nodes, graph: dict[str, Any], profile: str, fake_host: Path) -> None:
    """A profile pins its files as they are; with figures in one, no graph with that profile would run."""
    (fake_host / "erasures" / "profiles" / "damaged.profile.json").write_text("{")
    inputs = {**graph, "concept": concept(nodes), "pictures": False, "write_into_file": True, **FEW, "seconds": 1}
    with pytest.raises(nodes.core.InvalidSettings, match="'studio' pins"):
        nodes.run("Report", **inputs, erasure=instant(nodes, graph).args[2])
    assert not results(fake_host)
    nodes.run("SafetyProfile", **ends(graph), profile=profile)
    nodes.run("Report", **inputs, erasure=instant(nodes, graph, "dog\nball").args[2])


def test_hardening_is_recorded_and_makes_a_file_of_its_own(
    nodes: Nodes, graph: dict[str, Any], fake_host: Path
) -> None:
    plain = instant(nodes, graph)
    inputs = {**ends(graph), "concept": concept(nodes), "resolution": 64, "harden": 1, "harden_seconds": 2}
    first, again = nodes.run("Erase_closed_form", **inputs), nodes.run("Erase_closed_form", **inputs)
    manifest = first.args[2][0].stored.manifest
    (done,) = manifest.settings["harden"]
    assert done["tried"] > 0 and manifest.words == ("ball", *done["added"])
    told = first.ui["erasure"][0]
    assert told["hardened"].startswith("Searched 1 times") and plain.ui["erasure"][0]["hardened"] == ""
    assert not told["reused"] and again.ui["erasure"][0] == {**told, "reused": True}, "told alike from the file"
    longer = nodes.run("Erase_closed_form", **{**inputs, "harden_seconds": 3})
    assert not longer.ui["erasure"][0]["reused"]
    files = list((fake_host / "erasures").glob("*.safetensors"))
    assert len(files) == 4, "the plain ones, of other settings and of these, and two hardened ones"


def test_interrupting_a_search_of_hardening_keeps_the_erasing_and_says_so(
    nodes: Nodes, graph: dict[str, Any], fake_host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(nodes.erase, "say", lambda node, text: told.append(text))
    progress = importlib.import_module(f"{PACK}.nodes.training_progress")
    monkeypatch.setattr(progress.NodeProgress, "update", lambda self, report: None)
    written = (fake_host / "erasures").glob
    monkeypatch.setattr(progress.NodeProgress, "cancelled", lambda self: bool(list(written("*.safetensors"))))
    inputs = {**ends(graph), "concept": concept(nodes), "resolution": 64, "harden": 1, "harden_seconds": 4}
    with pytest.raises(Interrupted):
        nodes.run("Erase_closed_form", **inputs)
    (kept,) = (fake_host / "erasures").glob("*.safetensors")
    assert f"{kept.name} holds the erasure as it was before the first round" in told[-1]


def test_a_search_of_hardening_that_fails_is_a_note_on_the_node(
    nodes: Nodes, graph: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(nodes.erase, "say", lambda node, text: told.append(text))

    def failing(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(importlib.import_module(f"{PACK}.erasure_core.boundary.harden"), "explore", failing)
    inputs = {**ends(graph), "concept": concept(nodes), "resolution": 64}
    made = nodes.run("Erase_closed_form", **inputs, harden=1)
    assert made.args[0].patches and "The hardening ended early: The device has too little memory" in told[-1]
    assert nodes.run("Erase_closed_form", **inputs).ui["erasure"][0]["reused"]


@pytest.mark.usefixtures("nodes")
def test_a_bar_that_begins_anew_is_shown() -> None:
    """Of a bar that goes back newer hosts would show nothing till its end."""
    progress = importlib.import_module(f"{PACK}.nodes.training_progress")
    report = importlib.import_module(f"{PACK}.erasure_core.progress").Report
    stages = [("preparing", 0, 9), ("preparing", 9, 9), ("words", 1, 100), ("words", 5, 100), ("words", 2, 100)]
    bar = progress.BarProgress("1")
    fake_comfy.ProgressBar.shown.clear()
    for stage in stages:
        bar.update(report(*stage))
    bar.update(report("words", 2, 100, note="Memory is short."))
    assert fake_comfy.ProgressBar.shown == [stage[1:] for stage in stages], "and news move no bar"


def test_what_a_stranger_writes_as_rounds_is_not_believed(nodes: Nodes, graph: dict[str, Any]) -> None:
    badge = importlib.import_module(f"{PACK}.nodes.badge")
    manifest = instant(nodes, graph).args[2][0].stored.manifest
    for strange in (3, "x", [3], {}, [{"added": "abc", "leaking": None}], [{"added": 5}], [{"added": True}], [{}]):
        manifest.settings["harden"] = strange
        said = badge.hardened(manifest)
        assert isinstance(said, str) and "erased too" not in said


@pytest.mark.parametrize("shape", [(0, 64, 64, 3), (1, 64, 64, 1), (1, 64, 0, 3), (64, 64, 3)])
def test_what_is_no_picture_is_not_purified(nodes: Nodes, graph: dict[str, Any], shape: tuple[int, ...]) -> None:
    inputs = {**graph, "image": torch.zeros(shape), "caption": "a ball", "steps": 2, "resolution": 64}
    with pytest.raises(nodes.core.InvalidSettings, match="no pictures of three colours"):
        nodes.run("Purify", **inputs)


def test_purifying_keeps_the_proportions(nodes: Nodes, graph: dict[str, Any]) -> None:
    before = weights(graph)
    erasure = instant(nodes, graph).args[2]
    image = torch.rand(2, 64, 128, 3)
    inputs = {**graph, "image": image, "caption": "a ball", "steps": 3, "resolution": 128}
    clean = nodes.run("Purify", erasure=erasure, **inputs).args[0]
    assert clean.shape == (2, 96, 176, 3) and 0 <= clean.min() <= clean.max() <= 1
    without = nodes.run("Purify", **inputs).args[0]
    assert not torch.equal(clean, without)
    assert all(torch.equal(w, before[key]) for key, w in weights(graph).items())
