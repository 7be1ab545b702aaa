"""What becomes of an interrupted training: saved as it is with all that its method found, or discarded."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from trainings import SHORT, interrupt_after, request

from erasure_core import Concept
from erasure_core import effort as efforts
from erasure_core import survey as surveying
from erasure_core.checkpoint import checkpoint_path
from erasure_core.effort import Effort
from erasure_core.erasure_file import read_erasure
from erasure_core.errors import InvalidFile, InvalidSettings, OutOfMemory
from erasure_core.hosts.webui import WebuiModel
from erasure_core.methods import METHODS, find_method
from erasure_core.safe_files import read_tensors, write_tensors
from erasure_core.survey import NearWord


@pytest.fixture
def jobs(a1111: SimpleNamespace, library: Path) -> Any:
    return importlib.import_module("concept_erasure_webui.jobs")


def test_interrupt_then_save_or_discard(
    jobs: Any, a1111: SimpleNamespace, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidSettings, match="no such interrupted training"):
        jobs.discard_stopped()
    interrupt_after(jobs, monkeypatch, 3, a1111.shared.state)
    stopped = jobs.run_erase(request(jobs, **SHORT))
    stored = read_erasure(library / file_in(jobs.save_stopped()))
    assert stored.manifest is not None and stored.manifest.steps_done == 3
    assert stored.bind(WebuiModel(a1111.model)).changed()
    assert checkpoint_path(Path(stopped.output)).exists()
    jobs.discard_stopped()
    assert not checkpoint_path(Path(stopped.output)).exists() and jobs.unfinished() == [] and not jobs.JOBS.stopped


def file_in(message: str) -> str:
    return message.split()[1]


def test_another_training_or_a_new_start_takes_no_interrupted_one_away(
    jobs: Any, a1111: SimpleNamespace, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_after(jobs, patch, 3, a1111.shared.state)
        first = jobs.run_erase(request(jobs, **SHORT))
        a1111.shared.state.interrupted = False
        second = jobs.run_erase(request(jobs, **SHORT, seed=1))
    a1111.shared.state.interrupted = False
    assert jobs.run_erase(request(jobs, "closed_form")).status == "done"
    names = [Path(job.output).stem for job in (second, first)]
    assert jobs.unfinished() == names
    assert "after 3 steps" in jobs.save_stopped(names[1])
    jobs.discard_stopped(names[0])
    assert jobs.unfinished() == names[1:]
    jobs.JOBS.__init__()  # a new start of the web UI
    assert jobs.unfinished() == names[1:]
    with pytest.raises(InvalidSettings, match="goes on with it"):
        jobs.save_stopped()
    a1111.shared.cmd_opts.webui_is_non_local = True
    assert jobs.unfinished() == []  # strangers throw nothing of others away
    a1111.shared.cmd_opts.webui_is_non_local = False
    for name in ("../secret", "missing", "ball"):
        with pytest.raises(InvalidSettings, match="no such"):
            jobs.discard_stopped(name)
    jobs.JOBS.last = jobs.Job("Erasing", output=first.output)
    assert jobs.unfinished() == []  # it runs
    jobs.JOBS.last = None
    jobs.discard_stopped()
    assert not list(library.glob("*.partial"))


@pytest.mark.parametrize(("effort", "steps"), [("fast", 4), ("low-vram", 8)])
def test_an_interrupted_training_keeps_its_effort(
    jobs: Any, a1111: SimpleNamespace, library: Path, monkeypatch: pytest.MonkeyPatch, effort: str, steps: int
) -> None:
    """Saved as it is, and gone on with: also where other memory is free by then."""
    wanted = replace(request(jobs, **{**SHORT, "steps": 8, "batch": 2}), effort=Effort(effort))
    with monkeypatch.context() as patch:
        patch.setattr(efforts, "free_memory", lambda device: 0)
        interrupt_after(jobs, patch, 3, a1111.shared.state)
        stopped = jobs.run_erase(wanted)
    a1111.shared.state.interrupted = False
    assert stopped.status == "stopped" and stopped.total == steps, stopped.message
    saved = read_erasure(library / file_in(jobs.save_stopped())).manifest
    assert saved is not None and (saved.steps_done, saved.settings["steps"]) == (3, steps)
    done = jobs.run_erase(wanted)
    assert done.status == "done" and len(done.losses) == steps and f"{effort}: " in done.message
    made = read_erasure(library / done.file).manifest
    assert made is not None and made.settings["batch"] == saved.settings["batch"] == 1
    assert not jobs.unfinished()


def test_what_memory_did_not_suffice_for_can_be_saved(
    jobs: Any, a1111: SimpleNamespace, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = jobs.HostProgress.update

    def short_of_memory(self: Any, report: Any) -> None:
        update(self, report)
        if report.stage == "training" and report.step >= 3:  # with smaller pieces too
            raise OutOfMemory("The device has too little memory.")

    monkeypatch.setattr(jobs.HostProgress, "update", short_of_memory)
    job = jobs.run_erase(request(jobs, **SHORT))
    assert job.status == "failed" and "or save it as it is" in job.message, job.message
    assert file_in(jobs.save_stopped()).endswith("-unfinished.safetensors")


SEARCH = {"warm_up": 1, "check_every": 2, "check_starts": 2, "check_steps": 2}


def test_an_interrupted_training_keeps_the_words_that_its_method_found(
    jobs: Any, a1111: SimpleNamespace, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [NearWord("orb", 0.9, True), NearWord("cat", 0.5, False, True)]  # a pico model finds whatever chance wants
    monkeypatch.setattr(surveying, "survey", lambda *_, **__: found)
    interrupt_after(jobs, monkeypatch, 3, a1111.shared.state)
    stopped = jobs.run_erase(request(jobs, "auto", **SHORT, **SEARCH))
    assert stopped.status == "stopped", stopped.message
    manifest = read_erasure(library / file_in(jobs.save_stopped())).manifest
    assert manifest is not None and (manifest.words, manifest.alternative) == (("ball", "orb"), "cat")


def test_an_interrupted_training_keeps_all_that_its_method_completed(
    jobs: Any, a1111: SimpleNamespace, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Concept(
        ("ball", "orb", "cup"), "box", ("a red cat",), (("orb", "thing"),), ("a dog",), (("ball", "orb"), ("cup",)),
        ("orb",),
    )  # fmt: skip
    completing = replace(find_method("esd"), prepare=lambda model, concept, settings, progress: whole)
    monkeypatch.setitem(METHODS, "esd", completing)
    interrupt_after(jobs, monkeypatch, 3, a1111.shared.state)
    output = Path(jobs.run_erase(request(jobs, **SHORT)).output)
    manifest = read_erasure(library / file_in(jobs.save_stopped())).manifest
    assert manifest is not None
    assert set(whole.kept_prompts) <= {"", *manifest.keep}
    assert manifest.concept == replace(whole, keep=manifest.keep, neighbours=())
    for other in (Concept(("cat",)), Concept(("ball",), "cat"), Concept(("ball", "sphere"))):
        jobs.JOBS.stopped[output] = replace(jobs.JOBS.stopped[output], concept=other)
        with pytest.raises(InvalidFile, match="another concept"):
            jobs.save_stopped()


@pytest.mark.parametrize("damage", ["concept", "tensor", "step"])
def test_a_damaged_state_is_told_as_such(
    damage: str, jobs: Any, a1111: SimpleNamespace, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_after(jobs, monkeypatch, 1, a1111.shared.state)
    state = checkpoint_path(Path(jobs.run_erase(request(jobs, **SHORT)).output))
    tensors, metadata = read_tensors(state, 2**30)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    if damage == "tensor":
        tensors.pop("delta.0")
    else:
        metadata |= {"identity": json.dumps({"concept": {"words": "ball"}})} if damage == "concept" else {"step": "x"}
    write_tensors(state, tensors, metadata)
    with pytest.raises(InvalidFile, match="damaged"):
        jobs.save_stopped()
