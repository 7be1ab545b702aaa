"""The comparison of attacks: that both run, and that ours keeps to a fifth of the reference's calls."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from made_up import CONCEPT

from erasure_core import DeltaSet, Silent
from erasure_core.boundary.subject import Budget, Subject
from erasure_core.hosts.diffusers import DiffusersModel
from proving_ground import boundary_attack
from proving_ground.boundary_attack import SHARE, STATES, STEPS, compare, reference


def test_the_reference_runs(pico: DiffusersModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boundary_attack, "STEPS", 2)
    with Subject(pico, (), Silent(), Budget(None)).opened() as subject:
        assert reference(subject, CONCEPT, 2, seed=0).endswith("a photo of a ball")


def test_ours_takes_steps_within_a_fifth_of_the_calls(
    pico: DiffusersModel, change: DeltaSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    descend = boundary_attack.prefix.__globals__["_descend"]

    def plain_loop(subject: Subject, *_: Any) -> str:
        subject.calls += STATES * STEPS  # its steps alone
        return "a ball"

    monkeypatch.setitem(
        boundary_attack.prefix.__globals__, "_descend", lambda *given: (steps.append(1), descend(*given))[1]
    )
    monkeypatch.setattr(boundary_attack, "reference", plain_loop)
    monkeypatch.setattr(boundary_attack, "sees", lambda verdict, name: True)
    monkeypatch.setattr(boundary_attack, "paint", lambda model, prompts, *_: torch.zeros(len(prompts)))
    judge: Any = lambda pictures: [SimpleNamespace()] * len(pictures)  # noqa: E731
    theirs, ours = compare(pico, judge, CONCEPT, [(change, 1.0)], seed=0)
    assert 0 < ours.calls <= theirs.calls / SHARE and len(steps) >= 5
    assert ours.prompt.endswith("a photo of a ball") and ours.success == 1.0
