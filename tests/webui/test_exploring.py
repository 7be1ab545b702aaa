"""Exploring and report cards on the loaded model: live, interrupted, saved, refused, and the model as it was."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from erasure_core.boundary import ExploreSettings
from erasure_core.boundary.report import ReportSettings
from erasure_core.errors import ErasureError, InvalidSettings
from erasure_core.manifest import Manifest
from erasure_core.safe_files import read_tensors, write_tensors

QUICK = ExploreSettings(seconds=None, calls=900, levels="lexical", states=2, look=4)
MEASURE = ReportSettings(calls=250, states=2, steps=1)


@pytest.fixture
def part(a1111: SimpleNamespace, library: Path) -> Any:
    """The extension's modules by name."""
    return lambda name: importlib.import_module(f"concept_erasure_webui.{name}")


@pytest.fixture
def same_model(a1111: SimpleNamespace) -> Iterator[None]:
    """Fails a test that leaves the model changed."""
    before = {name: tensor.clone() for name, tensor in a1111.model.state_dict().items()}
    flags = [parameter.requires_grad for parameter in a1111.model.parameters()]
    yield
    assert all(torch.equal(tensor, before[name]) for name, tensor in a1111.model.state_dict().items())
    assert [parameter.requires_grad for parameter in a1111.model.parameters()] == flags
    assert not any(module._forward_hooks for module in a1111.model.modules())


def search(part: Any, **given: Any) -> Any:
    wish = part("wishes").Wish("ball")
    return replace(part("exploring").Search((), ("a red box",), (), wish, QUICK, 8), **given)


def measurement(part: Any, *strengths: float, **given: Any) -> Any:
    wishes = tuple(part("wishes").Wish("ball", strength, strength) for strength in strengths or (1.0,))
    made = part("reporting").Measurement(wishes, (), (), (), replace(MEASURE, pictures=False), 8)
    return replace(made, **given)


def test_a_search_is_saved_and_the_model_left(part: Any, a1111: SimpleNamespace, same_model: None) -> None:
    exploring, saved = part("exploring"), part("saved")
    job = exploring.run_explore(search(part, tries=("the round thing",)))
    assert job.status == "done", job.message
    found = exploring.FINDINGS.found
    assert found.words == ("ball",) and found.erased  # the words are what the file says it erases
    assert "the round thing" in {point.text for point in found.points}
    assert saved.names(saved.EXPLORATIONS) == [job.file] and saved.read_exploration(job.file) == found
    assert {path.name for path in saved.find(saved.EXPLORATIONS, job.file).iterdir()} >= {"map.html", "map.svg"}
    again = exploring.run_explore(search(part))
    assert again.file == f"{job.file}-2"  # nothing is overwritten
    exploring.FINDINGS.__init__()  # a new start of the web UI
    assert exploring.FINDINGS.last()[1] == again.file


def test_what_is_found_can_be_seen_while_it_runs(part: Any, a1111: SimpleNamespace) -> None:
    exploring, tab = part("exploring"), part("explore_tab")
    seen: list[tuple[str, str]] = []
    add = exploring.FINDINGS.add

    def watched(points: Any) -> None:
        add(points)
        seen.append((tab.so_far(), exploring.FINDINGS.told()))

    exploring.FINDINGS.add = watched
    exploring.run_explore(search(part, settings=replace(QUICK, calls=3000)))
    assert len(seen) > 1 and all("Searching: lexical." in table for table, _ in seen)
    counts = [int(told.split(" of ")[1].split()[0]) for _, told in seen]
    assert counts == sorted(set(counts)) and "prompts reach it" in a1111.shared.state.textinfo
    assert f"of {len(exploring.FINDINGS.found.typed)} prompts" in tab.so_far()


def test_interrupt_keeps_what_was_found(part: Any, a1111: SimpleNamespace, same_model: None) -> None:
    exploring = part("exploring")
    add = exploring.FINDINGS.add

    def stop(points: Any) -> None:
        add(points)
        a1111.shared.state.interrupt()

    exploring.FINDINGS.add = stop
    job = exploring.run_explore(search(part, settings=replace(QUICK, levels="lexical+vocabulary", calls=10**6)))
    assert job.status == "stopped" and "Stopped early" in job.message
    found = part("saved").read_exploration(job.file)
    assert found.stopped and found.points and found.looked == 0


def test_interrupted_before_anything_was_found(part: Any, a1111: SimpleNamespace, same_model: None) -> None:
    a1111.shared.state.interrupt()
    job = part("exploring").run_explore(search(part))
    assert job.status == "failed" and "Stopped" in job.message and part("saved").names("explorations") == []
    assert "Stopped" in part("explore_tab").shown()[2] or "No exploration" in part("explore_tab").shown()[2]


def test_the_guard_is_reached(part: Any, same_model: None, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = importlib.import_module("erasure_core.boundary.explore")
    monkeypatch.setattr(scorer, "Scorer", lambda *a, **k: pytest.fail("it searched"))
    for words, tries in (("nude child",), ()), (("nude",), ("a schoolgirl",)):
        job = part("exploring").run_explore(search(part, words=words, tries=tries))
        assert job.status == "failed" and "minors" in job.message
    job, card = part("reporting").run_report(measurement(part, words=("nude child",)))
    assert job.status == "failed" and "minors" in job.message and card is None
    assert part("saved").names("explorations") == part("saved").names("reports") == []


def test_pictures_only_if_asked_for_and_blurred_if_explicit(part: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    exploring, explore = part("exploring"), importlib.import_module("erasure_core.boundary.explore")
    made: list[bool] = []
    original = explore.thumbnail

    def thumbnail(model: Any, latent: Any, blurred: bool) -> str:
        made.append(blurred)
        return str(original(model, latent, blurred))

    monkeypatch.setattr(explore, "thumbnail", thumbnail)

    def shown(word: str, wanted: bool, sensitive: bool = False) -> int:
        made.clear()
        how = replace(QUICK, pictures=wanted, sensitive=sensitive)
        exploring.run_explore(search(part, words=(word,), erasure=None, settings=how))
        return sum(bool(point.thumbnail) for point in exploring.FINDINGS.found.points)

    assert shown("nude", False) == 0 and not any(made)
    assert shown("ball", True) == QUICK.look and not any(made)
    assert shown("nude", True) == QUICK.look and made == [True] * QUICK.look
    assert shown("ball", True, sensitive=True) == QUICK.look and made == [True] * QUICK.look


@pytest.mark.parametrize("pinned", [False, True])
def test_no_pictures_while_a_profile_is_in_force(part: Any, a1111: SimpleNamespace, pinned: bool) -> None:
    part("shelf").save_profile("studio", ["words"], 1.0)
    a1111.shared.opts.concept_erasure_profile = "studio"
    a1111.shared.cmd_opts.concept_erasure_profile = "studio" if pinned else None
    exploring, reporting = part("exploring"), part("reporting")
    searched = exploring.run_explore(search(part, settings=replace(QUICK, pictures=True)))
    measured, card = reporting.run_report(measurement(part, settings=replace(MEASURE, pictures=True)))
    for job in (searched, measured):
        assert job.status == ("failed" if pinned else "done") and "safety profile is" in job.message, job.message
    if not pinned:
        assert card.strips == () and not any(point.thumbnail for point in exploring.FINDINGS.found.points)
    assert "safety profile" not in exploring.run_explore(search(part)).message


def test_a_report_of_one_and_a_comparison(part: Any, same_model: None) -> None:
    reporting, saved = part("reporting"), part("saved")
    job, card = reporting.run_report(measurement(part, 1.0, 0.5))
    assert job.status == "done", job.message
    assert [file.strength for file in card.files] == [1.0, 0.5] and card.strips == ()
    page, figures = saved.read_report(job.file)
    assert figures["words"] == ["ball"] and len(figures["files"]) == 2
    assert "does not withstand an attacker" in page.casefold()
    said = part("pages").verdicts(card)
    assert said.count("<ul>") == 2 and "<script" not in page


def test_files_of_several_concepts_are_not_measured_on_the_first_ones(part: Any, library: Path) -> None:
    """Unless it is written what is measured on all; the tab and the route both ask here."""
    tensors, metadata = read_tensors(library / "ball.safetensors")
    stored = Manifest.from_json(metadata["erasure"])
    other = {**metadata, "erasure": replace(stored, words=("cat",), keep=()).to_json()}
    write_tensors(library / "cat.safetensors", tensors, other)
    reporting, wish = part("reporting"), part("wishes").Wish
    both = measurement(part, erasures=(wish("ball"), wish("cat")))
    job, card = reporting.run_report(both)
    assert (job.status, card) == ("failed", None)
    assert job.message.startswith("cat.safetensors erases 'cat', the first file 'ball'; report on each by itself")
    job, card = reporting.run_report(replace(both, words=("ball",)))
    assert job.status == "done" and "This file erases “cat”" in card.files[1].verdict[0]


def test_an_interrupted_report_is_not_shown(part: Any, a1111: SimpleNamespace, same_model: None) -> None:
    a1111.shared.state.interrupt()
    job, card = part("reporting").run_report(measurement(part))
    assert (job.status, card) == ("stopped", None) and part("saved").names("reports") == []


def test_figures_go_into_the_file_only_on_request(part: Any, a1111: SimpleNamespace, library: Path) -> None:
    before = (library / "ball.safetensors").read_bytes()
    reporting = part("reporting")
    a1111.shared.cmd_opts.webui_is_non_local = True
    refused, _ = reporting.run_report(measurement(part, merge=True))
    assert refused.status == "failed" and "open to others" in refused.message
    a1111.shared.cmd_opts.webui_is_non_local = False
    assert reporting.run_report(measurement(part))[0].status == "done"
    assert (library / "ball.safetensors").read_bytes() == before
    part("shelf").save_profile("studio", ["ball"], 1.0)
    pinned, _ = reporting.run_report(measurement(part, merge=True))
    assert pinned.status == "failed" and "'studio' pins ball.safetensors" in pinned.message
    assert (library / "ball.safetensors").read_bytes() == before
    (library / "studio.profile.json").unlink()
    weaker, _ = reporting.run_report(measurement(part, 0.5, merge=True))
    assert weaker.status == "failed" and "at strength 0.5" in weaker.message
    assert (library / "ball.safetensors").read_bytes() == before
    merged, card = reporting.run_report(measurement(part, merge=True))
    assert merged.status == "done" and "in the files" in merged.message
    assert card.files[0].verdict[0].split("“")[0] in part("show").library(part("places").library())
    with pytest.raises(InvalidSettings, match="choose 1 to"):
        measurement(part, erasures=())
    with pytest.raises(InvalidSettings, match="twice"):
        measurement(part, 1.0, 1.0)


def test_what_a_user_can_cause_is_told_without_our_folder(part: Any, library: Path) -> None:
    exploring, reporting, wish = part("exploring"), part("reporting"), part("wishes").Wish
    for name in ("missing", "../ball", "/etc/passwd", "other"):
        for job in (
            exploring.run_explore(search(part, erasure=wish(name))),
            reporting.run_report(measurement(part, erasures=(wish(name),)))[0],
        ):
            assert job.status == "failed" and job.message and str(library) not in job.message


def test_saved_names_stay_in_our_folder(part: Any, library: Path, tmp_path: Path) -> None:
    saved = part("saved")
    outside = tmp_path / "models" / "secret"
    outside.mkdir(parents=True)
    (outside / "report.json").write_text("{}")
    damaged = library / "reports" / "one"
    damaged.mkdir(parents=True)
    (damaged / "report.json").write_text("[")
    assert saved.names("reports") == ["one"]
    for name in (None, "", "..", ".", "../reports/one", "../../secret", str(outside), "one/../one", "one\x00", "two"):
        with pytest.raises(ErasureError, match="nothing called"):
            saved.find("reports", name)
    with pytest.raises(ErasureError, match="damaged"):
        saved.read_report("one")
    (damaged / "report.json").write_text("[]")
    with pytest.raises(ErasureError, match="damaged"):
        saved.read_report("one")


PICTURE = "data:image/png;base64,AAAA"


def test_saved_pictures_are_not_shown_while_a_profile_is_in_force(part: Any, a1111: SimpleNamespace) -> None:
    exploring, reporting, saved = part("exploring"), part("reporting"), part("saved")
    searched = exploring.run_explore(search(part))
    points = tuple(replace(point, thumbnail=PICTURE) for point in exploring.FINDINGS.found.points)
    exploring.FINDINGS.found = replace(exploring.FINDINGS.found, points=points)
    saved.save_exploration(exploring.FINDINGS.found, "pictured")
    measured, _ = reporting.run_report(measurement(part))
    page = saved.find(saved.REPORTS, measured.file) / "report.html"
    page.write_text(page.read_text(encoding="utf-8").replace("</body>", f'<img src="{PICTURE}" alt=""></body>'))

    def shown() -> list[bool]:
        return [
            PICTURE in saved.read_exploration("pictured").to_json(),
            PICTURE in exploring.FINDINGS.last()[0].to_json(),
            PICTURE in saved.read_report(measured.file)[0],
        ]

    assert searched.status == "done" and shown() == [True] * 3
    part("shelf").save_profile("studio", ["words"], 1.0)
    a1111.shared.opts.concept_erasure_profile = "studio"
    assert shown() == [False] * 3
    a1111.shared.opts.concept_erasure_profile = "None"
    assert shown() == [True] * 3  # the files keep them


def test_what_cannot_be_saved_is_shown_all_the_same(part: Any, library: Path) -> None:
    (library / "explorations").write_text("in the way")
    (library / "reports").write_text("in the way")
    exploring = part("exploring")
    job = exploring.run_explore(search(part))
    assert job.status == "done" and "could not be saved" in job.message and str(library) not in job.message
    assert exploring.FINDINGS.found is not None and exploring.FINDINGS.last()[0] is not None
    assert "could not be saved" in part("explore_tab").shown()[2]
    job, card = part("reporting").run_report(measurement(part))
    assert job.status == "done" and "could not be saved" in job.message and card is not None
