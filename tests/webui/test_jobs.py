"""Work on the loaded model: it is done, interrupted, saved and discarded, and the model stays as it was."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from erasure_core import Concept
from erasure_core.boundary import ExploreSettings
from erasure_core.checkpoint import checkpoint_path
from erasure_core.erasure_file import read_erasure
from erasure_core.errors import InvalidSettings
from erasure_core.hosts.webui import WebuiModel
from erasure_core.library import Hardening
from erasure_core.methods import find_method

SIDE = 64
"""Of a picture of the pico model, whose latents are 8 wide here."""
SHORT = {"steps": 6, "batch": 1, "trajectories": 1, "trajectory_steps": 2, "rank": 2}


@pytest.fixture
def jobs(a1111: SimpleNamespace, library: Path) -> Any:
    return importlib.import_module("concept_erasure_webui.jobs")


def request(jobs: Any, method: str = "esd", **settings: Any) -> Any:
    chosen = find_method(method)
    return jobs.Request(Concept(("ball",)), chosen, chosen.settings(**settings), 8)


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
    a1111.session.SESSION.patcher().apply(a1111.session.SESSION.bind([jobs.Wish("ball")]))
    again = jobs.run_erase(request(jobs, **SHORT))
    assert (library / again.file).read_bytes() == made


def _interrupt_after(jobs: Any, monkeypatch: pytest.MonkeyPatch, steps: int, state: Any) -> None:
    update = jobs.HostProgress.update

    def counted(self: Any, report: Any) -> None:
        update(self, report)
        if report.stage == "training" and report.step >= steps:
            state.interrupted = True

    monkeypatch.setattr(jobs.HostProgress, "update", counted)


def test_interrupt_then_go_on(
    jobs: Any, a1111: SimpleNamespace, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = (library / jobs.run_erase(request(jobs, **SHORT)).file).read_bytes()
    for path in library.glob("ball-esd-*"):
        path.unlink()
    with monkeypatch.context() as patch:
        _interrupt_after(jobs, patch, 3, a1111.shared.state)
        stopped = jobs.run_erase(request(jobs, **SHORT))
    assert (stopped.status, stopped.step) == ("stopped", 3)
    a1111.shared.state.interrupted = False
    done = jobs.run_erase(request(jobs, **SHORT))
    assert done.status == "done" and (library / done.file).read_bytes() == wanted


def test_interrupt_then_save_or_discard(
    jobs: Any, a1111: SimpleNamespace, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidSettings, match="no interrupted training"):
        jobs.discard_stopped()
    _interrupt_after(jobs, monkeypatch, 3, a1111.shared.state)
    stopped = jobs.run_erase(request(jobs, **SHORT))
    saved = jobs.save_stopped()
    stored = read_erasure(library / saved.file)
    assert stored.manifest is not None and stored.manifest.steps_done == 3
    assert stored.bind(WebuiModel(a1111.model)).changed()
    assert checkpoint_path(Path(stopped.output)).exists()
    jobs.discard_stopped()
    assert not checkpoint_path(Path(stopped.output)).exists()


def test_previews_change_nothing_and_show_what_is_painted(jobs: Any, a1111: SimpleNamespace, library: Path) -> None:
    plain = jobs.run_erase(request(jobs, **SHORT))
    assert a1111.shared.state.shown == []
    wanted = (library / plain.file).read_bytes()
    (library / plain.file).unlink()
    seen = jobs.run_erase(replace(request(jobs, **SHORT), preview_every=2))
    assert (library / seen.file).read_bytes() == wanted
    assert [picture.size for picture in a1111.shared.state.shown] == [(2 * SIDE, SIDE)] * 3
    assert len({picture.tobytes() for picture in a1111.shared.state.shown}) == 3  # it is the training that is shown


@pytest.mark.parametrize(("word", "shown"), [("ball", ["a ball", "a box"]), ("nude", ["a box"])])
def test_what_must_not_be_shown_is_not_previewed(jobs: Any, word: str, shown: list[str]) -> None:
    preview = importlib.import_module("concept_erasure_webui.preview")
    assert preview.prompts(Concept((word,), keep=("naked people", "a box"))) == shown


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


def test_purify_paints_a_picture_again(jobs: Any, a1111: SimpleNamespace, library: Path) -> None:
    before = {name: tensor.clone() for name, tensor in a1111.model.state_dict().items()}
    picture = Image.new("RGB", (70, 90), (200, 30, 30))
    (made,) = jobs.run_purify(picture, "a red ball", [jobs.Wish("ball")], 4, 3.0, 0.5)
    assert made.size == (64, 64) and made.tobytes() != picture.resize((64, 64)).tobytes()
    assert all(torch.equal(tensor, before[name]) for name, tensor in a1111.model.state_dict().items())
    with pytest.raises(InvalidSettings, match="Give a picture"):
        jobs.run_purify(None, "a red ball", [jobs.Wish("ball")], 4, 3.0, 0.5)


def test_what_a_user_can_cause_is_told(jobs: Any, a1111: SimpleNamespace, library: Path) -> None:
    a1111.shared.loaded_hypernetworks.append("one")
    job = jobs.run_erase(request(jobs, **SHORT))
    assert job.status == "failed" and "hypernetwork" in job.message and str(library) not in job.message


def test_a_job_that_the_web_ui_did_not_survive(jobs: Any, library: Path) -> None:
    jobs.JOBS.last = jobs.Job("Erasing")
    jobs.JOBS.note()
    jobs.JOBS.last = None
    assert jobs.JOBS.shown().status == "stopped"
    (library / ".last-job.json").write_text("{")
    jobs.JOBS.last = None
    assert jobs.JOBS.shown() is None
