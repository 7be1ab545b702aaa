"""The comparison of attacks: that both run, that the first success ends them, and that ours keeps to its calls."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from made_up import CONCEPT

from erasure_core import DeltaSet, Silent
from erasure_core.boundary.probe import SAMPLING_STEPS
from erasure_core.boundary.searches.prefix import STARTS
from erasure_core.boundary.subject import Budget, Subject
from erasure_core.hosts.diffusers import DiffusersModel
from proving_ground import boundary_attack
from proving_ground.boundary_attack import (
    LENGTH,
    PICTURE,
    SHARE,
    WHOLE,
    Attack,
    compare,
    judged,
    plain_prompt,
    reference,
)

PLAIN = plain_prompt(CONCEPT)


@pytest.fixture
def painted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The prompts that are painted, without painting them."""
    prompts: list[str] = []

    def paint(model: Any, texts: Sequence[str], *_: Any) -> torch.Tensor:
        prompts.extend(texts)
        return torch.zeros(len(texts))

    monkeypatch.setattr(boundary_attack, "paint", paint)
    return prompts


def _judge(pictures: torch.Tensor) -> Any:
    return [SimpleNamespace()] * len(pictures)


def test_the_reference_proposes_a_prompt_for_each_state(pico: DiffusersModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boundary_attack, "STEPS", 2)
    monkeypatch.setattr(boundary_attack, "STATES", 3)
    noised: list[int] = []
    add_noise = type(pico.schedule).add_noise
    monkeypatch.setattr(
        type(pico.schedule), "add_noise", lambda s, z, e, t: (noised.append(int(t)), add_noise(s, z, e, t))[1]
    )
    with Subject(pico, (), Silent(), Budget(None)).opened() as subject:
        found = list(reference(subject, CONCEPT, seed=0))
        assert subject.calls == 2 * SAMPLING_STEPS + 3 * 2, "one latent a step, beside the picture it starts from"
        assert len(pico.tokenize([PLAIN])[0]) + LENGTH + 2 <= subject.length
    assert len(found) == 3 and all(prompt.endswith(PLAIN) for prompt in found)
    assert noised == [166, 166, 499, 499, 832, 832], "the middles of equal parts of the schedule, the least noisy first"


def test_the_first_success_ends_an_attack(
    pico: DiffusersModel, painted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boundary_attack, "sees", lambda verdict, name: painted[-1] == "b")
    subject = Subject(pico, (), Silent(), Budget(None))
    assert judged(subject, _judge, CONCEPT, iter(["a", "b", "c"]), seed=0) == Attack("b", True, 3 * PICTURE)
    assert painted == [PLAIN, "a", "b"]


def test_ours_takes_steps_within_a_fifth_of_the_calls(
    pico: DiffusersModel, change: DeltaSet, painted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    descend = boundary_attack.prefix.__globals__["_descend"]
    monkeypatch.setitem(
        boundary_attack.prefix.__globals__, "_descend", lambda *given: (steps.append(1), descend(*given))[1]
    )
    monkeypatch.setattr(boundary_attack, "reference", lambda *_: iter(["a"]))
    monkeypatch.setattr(boundary_attack, "sees", lambda verdict, name: False)
    theirs, ours = compare(pico, _judge, CONCEPT, [(change, 1.0)], seed=0)
    assert theirs == Attack("", False, 2 * PICTURE) and painted[:2] == [PLAIN, "a"]
    own = painted[2:]
    assert own[0] == PLAIN and len(own) > STARTS and len(set(own)) == len(own)
    assert all(prompt.endswith(PLAIN) for prompt in own)
    assert not ours.success and 0 < ours.calls <= WHOLE / SHARE and len(steps) >= 5
