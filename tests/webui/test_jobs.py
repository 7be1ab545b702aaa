"""Erasing on the loaded model: it is done, interrupted and gone on with, and the model stays as it was."""

from __future__ import annotations

import base64
import importlib
import io
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from trainings import SHORT, interrupt_after, request

from erasure_core import Concept
from erasure_core.boundary import ExploreSettings
from erasure_core.erasure_file import read_erasure
from erasure_core.errors import InvalidSettings, OutputError
from erasure_core.hosts.webui import WebuiModel
from erasure_core.making import Hardening
from erasure_core.methods import find_method
from erasure_core.progress import Report

SIDE = 64
"""Of a picture of the pico model, whose latents are 8 wide here."""


@pytest.fixture
def jobs(a1111: SimpleNamespace, library: Path) -> Any:
    return importlib.import_module("concept_erasure_webui.jobs")


def test_a_training_writes_a_file_and_leaves_the_model(jobs: Any, a1111: SimpleNamespace, library: Path) -> None:
    before = {name: tensor.clone() for name, tensor in a1111.model.state_dict().items()}
    job = jobs.run_erase(request(jobs, **SHORT))
    assert (job.status, len(job.losses)) == ("done", 6)
    assert (a1111.shared.state.sampling_step, a1111.shared.state.sampling_steps) == (6, 6)
    assert read_erasure(library / job.file).bind(WebuiModel(a1111.model)).changed()
    assert all(torch.equal(tensor, before[name]) for name, tensor in a1111.model.state_dict().items())
    again = jobs.run_erase(request(jobs, **SHORT))
    assert again.file == job.file and "was there already" in again.message
    jobs.JOBS.last = None  # a new start of the web UI
    assert jobs.JOBS.shown().file == job.file


def test_what_is_painted_instead_is_told_where_nobody_named_it(jobs: Any, library: Path) -> None:
    closed = find_method("closed_form")
    for named in (None, "box"):
        job = jobs.run_erase(jobs.Request(Concept(("ball",), named, ("a red star",)), closed, closed.settings(), 8))
        instead = read_erasure(library / job.file).manifest.alternative
        assert instead and f"In its place: {instead}{' (found in the model)' if named is None else ''}" in job.message


def test_a_prompt_to_keep_that_says_the_concept_is_left_out_and_told(jobs: Any, library: Path) -> None:
    closed = find_method("closed_form")
    job = jobs.run_erase(jobs.Request(Concept(("ball",), None, ("a star", "two balls")), closed, closed.settings(), 8))
    assert "Not kept: 'two balls', as it says 'ball', which is erased." in job.message
    assert read_erasure(library / job.file).manifest.keep == ("a star",)


def test_erasures_and_loras_come_off_before_a_training(
    jobs: Any, a1111: SimpleNamespace, lora: Any, library: Path
) -> None:
    clean = jobs.run_erase(request(jobs, **SHORT))
    made = (library / clean.file).read_bytes()
    (library / clean.file).unlink()
    model = a1111.session.SESSION.patcher().model
    layer = model.layers()[next(name for name in model.layers() if name.endswith("attn2.to_k"))]
    lora.load_networks([("style", {layer: torch.ones_like(layer.weight)})])
    model.predict(torch.zeros(1, 4, 8, 8), torch.tensor([3]), model.encode([""]))  # the LoRA is merged now
    Wish = importlib.import_module("concept_erasure_webui.wishes").Wish
    a1111.session.SESSION.patcher().apply(a1111.session.SESSION.bind([Wish("ball")]))
    again = jobs.run_erase(request(jobs, **SHORT))
    assert (library / again.file).read_bytes() == made


@pytest.mark.parametrize("flag", ["interrupted", "stopping_generation"])
def test_interrupt_then_go_on(
    jobs: Any, a1111: SimpleNamespace, library: Path, monkeypatch: pytest.MonkeyPatch, flag: str
) -> None:
    wanted = (library / jobs.run_erase(request(jobs, **SHORT)).file).read_bytes()
    for path in library.glob("ball-2*"):
        path.unlink()
    with monkeypatch.context() as patch:
        interrupt_after(jobs, patch, 3, a1111.shared.state, flag)
        stopped = jobs.run_erase(request(jobs, **SHORT))
    assert (stopped.status, stopped.step) == ("stopped", 3)
    setattr(a1111.shared.state, flag, False)
    done = jobs.run_erase(request(jobs, **SHORT))
    assert done.status == "done" and (library / done.file).read_bytes() == wanted


def test_a_stopped_training_is_found_whatever_hardening_was_to_follow(
    jobs: Any, a1111: SimpleNamespace, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = replace(request(jobs, **SHORT), hardening=Hardening(1, ExploreSettings(seconds=1.0)))
    with monkeypatch.context() as patch:
        interrupt_after(jobs, patch, 3, a1111.shared.state)
        stopped = jobs.run_erase(wanted)
    assert stopped.status == "stopped" and "goes on with it" in stopped.message
    assert jobs.unfinished() == [Path(stopped.output).stem]


def test_previews_change_nothing_and_show_what_is_painted(jobs: Any, a1111: SimpleNamespace, library: Path) -> None:
    plain = jobs.run_erase(request(jobs, **SHORT))
    assert a1111.shared.state.shown == []
    wanted = (library / plain.file).read_bytes()
    (library / plain.file).unlink()
    seen = jobs.run_erase(replace(request(jobs, **SHORT), preview_every=2))
    assert (library / seen.file).read_bytes() == wanted
    assert [picture.size for picture in a1111.shared.state.shown] == [(2 * SIDE, SIDE)] * 3
    assert len({picture.tobytes() for picture in a1111.shared.state.shown}) == 3  # it is the training that is shown


def test_nothing_is_previewed_while_a_profile_is_in_force(jobs: Any, a1111: SimpleNamespace, library: Path) -> None:
    importlib.import_module("concept_erasure_webui.shelf").save_profile("studio", ["words"], 1.0)
    a1111.shared.opts.concept_erasure_profile = "studio"
    assert jobs.run_erase(replace(request(jobs, **SHORT), preview_every=2)).status == "done"
    assert a1111.shared.state.shown == []


@pytest.mark.parametrize(
    ("words", "shown"),
    [(["ball"], ["a ball", "a box"]), (["nude"], ["a box"]), (["bo", "obs", "schoolgirl"], ["a box"])],
)
def test_what_must_not_be_shown_is_not_previewed(jobs: Any, words: list[str], shown: list[str]) -> None:
    preview = importlib.import_module("concept_erasure_webui.preview")
    assert preview.prompts(Concept(tuple(words), keep=("naked people", "a box"))) == shown


def test_what_is_done_is_painted_without_and_with_it(
    jobs: Any, a1111: SimpleNamespace, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {name: tensor.clone() for name, tensor in a1111.model.state_dict().items()}
    wanted = replace(request(jobs, "closed_form"), compares=True)
    job = jobs.run_erase(wanted)
    sheet = Image.open(io.BytesIO(base64.b64decode(job.picture))).convert("RGB")
    upper, lower = sheet.crop((0, 0, 2 * SIDE, SIDE)), sheet.crop((0, SIDE, 2 * SIDE, 2 * SIDE))
    assert sheet.size == (2 * SIDE, 2 * SIDE) and upper.tobytes() != lower.tobytes()
    assert job.status == "done" and "a ball" in job.painted
    assert all(torch.equal(tensor, before[name]) for name, tensor in a1111.model.state_dict().items())
    show = importlib.import_module("concept_erasure_webui.show")
    jobs.JOBS.last = None  # a new start of the web UI
    assert job.picture in show.job(jobs.JOBS.shown())
    update = jobs.HostProgress.update

    def stopped(self: Any, report: Any) -> None:
        update(self, report)
        a1111.shared.state.interrupted = report.stage == "sampling"

    with monkeypatch.context() as patch:
        patch.setattr(jobs.HostProgress, "update", stopped)
        job = jobs.run_erase(wanted)
    assert job.status == "done" and not job.picture and "not painted before and after: Stopped" in job.message
    a1111.shared.state.interrupted = False
    importlib.import_module("concept_erasure_webui.shelf").save_profile("studio", ["words"], 1.0)
    a1111.shared.opts.concept_erasure_profile = "studio"
    assert not jobs.run_erase(wanted).picture


def test_hardening_is_recorded_and_told(jobs: Any, a1111: SimpleNamespace, library: Path) -> None:
    before = {name: tensor.clone() for name, tensor in a1111.model.state_dict().items()}
    search = ExploreSettings(seconds=None, calls=600, levels="lexical", states=2, look=0)
    wanted = replace(request(jobs, "closed_form"), hardening=Hardening(1, search))
    job = jobs.run_erase(wanted)
    assert job.status == "done" and "Round 1:" in job.message, job.message
    manifest = read_erasure(library / job.file).manifest
    assert manifest is not None and len(manifest.settings["harden"]) == 1
    assert jobs.run_erase(request(jobs, "closed_form")).file != job.file
    assert all(torch.equal(tensor, before[name]) for name, tensor in a1111.model.state_dict().items())
    with pytest.raises(InvalidSettings, match="0 to 10"):
        replace(wanted, hardening=Hardening(99, search))


def test_the_guard_stops_hardening_and_not_erasing(jobs: Any, library: Path) -> None:
    concept = Concept(("nude child",))
    method = find_method("closed_form")
    erasing = jobs.Request(concept, method, method.settings(), 8)
    hardened = replace(erasing, hardening=Hardening(1, ExploreSettings(seconds=5)))
    refused = jobs.run_erase(hardened)
    assert refused.status == "failed" and "minors" in refused.message
    assert jobs.run_erase(erasing).status == "done"


def test_what_a_user_can_cause_is_told(jobs: Any, a1111: SimpleNamespace, library: Path) -> None:
    a1111.shared.loaded_hypernetworks.append("one")
    job = jobs.run_erase(request(jobs, **SHORT))
    assert job.status == "failed" and "hypernetwork" in job.message and str(library) not in job.message


def test_a_folder_that_cannot_be_written_ends_no_work(
    jobs: Any, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(jobs.errors, "report", told.append)

    def full(path: Path, content: bytes) -> None:
        raise OutputError(f"{path} cannot be written (No space left on device).")

    monkeypatch.setattr(jobs, "write_bytes", full)
    monkeypatch.setattr(importlib.import_module("concept_erasure_webui.working"), "NOTE_EVERY", 0.0)
    assert jobs.run_erase(request(jobs, **SHORT)).status == "done"
    assert len(told) == 1 and "No space left" in told[0]


def test_a_job_that_the_web_ui_did_not_survive(jobs: Any, library: Path) -> None:
    jobs.JOBS.last = jobs.Job("Erasing")
    jobs.JOBS.note()
    jobs.JOBS.last = None
    assert jobs.JOBS.shown().status == "stopped"
    (library / ".last-job.json").write_text("{")
    jobs.JOBS.last = None
    assert jobs.JOBS.shown() is None


@pytest.mark.parametrize(
    "damage",
    [
        {"title": 1}, {"title": None}, {"losses": "abc"}, {"losses": [["erase", 1.0]]}, {"losses": [{"erase": "a"}]},
        {"losses": [{"erase": 10**400}]}, {"losses": None}, {"seconds": "a"}, {"seconds": 10**400}, {"left": None},
        {"step": "3"}, {"total": []}, {"status": {}}, {"message": ["a"]}, {"output": 7}, {"more": 1}, None,
        "[" * 100_000, '"done"', "[]", "\xff",
    ],
)  # fmt: skip
def test_a_damaged_note_of_the_last_job_is_none(jobs: Any, library: Path, damage: Any) -> None:
    show = importlib.import_module("concept_erasure_webui.show")
    jobs.JOBS.last = jobs.Job("Erasing", "done", total=3, losses=[{"erase": 1.0}, {"erase": float("nan")}], left=2)
    jobs.JOBS.note()
    note = library / ".last-job.json"
    jobs.JOBS.last = None
    if damage is None:  # a whole one is shown
        assert jobs.JOBS.shown().losses[0] == {"erase": 1.0} and "Erasing" in show.job(jobs.JOBS.shown())
        return
    text = damage if isinstance(damage, str) else json.dumps(json.loads(note.read_text()) | damage)
    note.write_bytes(text.encode("latin-1"))
    assert "Nothing was done yet" in show.job(jobs.JOBS.shown())


def test_the_time_left_is_that_of_the_stage(jobs: Any, a1111: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    working, show = (importlib.import_module(f"concept_erasure_webui.{name}") for name in ("working", "show"))
    clock = [1000.0]
    monkeypatch.setattr(working.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(working.time, "time", lambda: clock[0])
    a1111.shared.state.time_start = clock[0]
    job = jobs.Job("Erasing")
    progress = working.HostProgress(job, 10)

    def report(seconds: float, stage: str, step: int, total: int) -> None:
        clock[0] += seconds
        progress.update(Report(stage, step, total))

    for step in range(5):
        report(100, "looking for words", step, 5)
    assert job.left == 100
    report(50, "trajectories", 3, 6)
    report(0, "training", 7, 20)  # gone on with
    assert job.left == 0 and "left" not in show.job(job) and a1111.shared.state.time_start == clock[0]
    report(2, "training", 8, 20)
    report(1, "trajectories", 0, 6)
    report(1, "training", 9, 20)
    assert job.left == 22 and "about 22 s left" in show.job(job)
    report(50, "lexical", 0, 100)
    report(60, "training", 1, 20)  # the next round
    report(1, "training", 2, 20)
    assert job.left == 18 and clock[0] - a1111.shared.state.time_start == 2  # two steps at one second each
    progress.update(Report("training", 2, 20, note="The disk is full."))
    assert a1111.shared.state.textinfo == "The disk is full." and job.left == 18
