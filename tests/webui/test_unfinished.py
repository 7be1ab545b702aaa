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

from erasure_core import Concept, domain
from erasure_core.checkpoint import checkpoint_path
from erasure_core.domain import Found
from erasure_core.erasure_file import read_erasure
from erasure_core.errors import InvalidFile, InvalidSettings
from erasure_core.hosts.webui import WebuiModel
from erasure_core.methods import METHODS, find_method
from erasure_core.safe_files import read_tensors, write_tensors


@pytest.fixture
def jobs(a1111: SimpleNamespace, library: Path) -> Any:
    return importlib.import_module("concept_erasure_webui.jobs")


def test_interrupt_then_save_or_discard(
    jobs: Any, a1111: SimpleNamespace, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidSettings, match="no interrupted training"):
        jobs.discard_stopped()
    interrupt_after(jobs, monkeypatch, 3, a1111.shared.state)
    stopped = jobs.run_erase(request(jobs, **SHORT))
    saved = jobs.save_stopped()
    stored = read_erasure(library / saved.file)
    assert stored.manifest is not None and stored.manifest.steps_done == 3
    assert stored.bind(WebuiModel(a1111.model)).changed()
    assert checkpoint_path(Path(stopped.output)).exists()
    jobs.discard_stopped()
    assert not checkpoint_path(Path(stopped.output)).exists()


SEARCH = {"warm_up": 1, "check_every": 2, "check_starts": 2, "check_steps": 2}


def test_an_interrupted_training_keeps_the_words_that_its_method_found(
    jobs: Any, a1111: SimpleNamespace, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [Found("orb", 0.9, True), Found("cat", 0.5, False, True)]  # a pico model finds whatever chance wants
    monkeypatch.setattr(domain, "survey", lambda *_, **__: found)
    interrupt_after(jobs, monkeypatch, 3, a1111.shared.state)
    stopped = jobs.run_erase(request(jobs, "auto", **SHORT, **SEARCH))
    assert stopped.status == "stopped", stopped.message
    manifest = read_erasure(library / jobs.save_stopped().file).manifest
    assert manifest is not None and (manifest.words, manifest.alternative) == (("ball", "orb"), "cat")


def test_an_interrupted_training_keeps_all_that_its_method_completed(
    jobs: Any, a1111: SimpleNamespace, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Concept(("ball", "orb"), "box", ("a red cat", "a dog"), (("orb", "thing"),))
    completing = replace(find_method("esd"), prepare=lambda model, concept, settings, progress: whole)
    monkeypatch.setitem(METHODS, "esd", completing)
    interrupt_after(jobs, monkeypatch, 3, a1111.shared.state)
    jobs.run_erase(request(jobs, **SHORT))
    manifest = read_erasure(library / jobs.save_stopped().file).manifest
    assert manifest is not None
    made = Concept(manifest.words, manifest.alternative, manifest.keep, manifest.instead)
    assert (made.words, made.alternative, made.instead) == (whole.words, whole.alternative, whole.instead)
    assert set(whole.keep) <= set(made.keep)
    for other in (Concept(("cat",)), Concept(("ball",), "cat"), Concept(("ball", "sphere"))):
        jobs.JOBS.request = replace(jobs.JOBS.request, concept=other)
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
