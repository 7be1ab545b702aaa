"""One and the same model, written as one that predicts noise and as one that predicts v: nothing that is told of it may
differ. Differences of v are 1/a times as long as those of the noise, 15 times where noise is most."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from method_helpers import CONCEPT, randomise
from torch import Tensor

from erasure_core import Silent
from erasure_core.boundary.retention import drift
from erasure_core.boundary.scores import Scorer
from erasure_core.boundary.subject import Budget, Subject
from erasure_core.delta import new_deltas
from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.layers import select
from erasure_core.model import Conditioning
from erasure_core.survey import Survey, survey


class WrittenAsV(DiffusersModel):
    """A model of noise that tells the v of what it predicts."""

    def predict(self, latents: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        a, s = self.schedule.scales(t)
        return (super().predict(latents, t, conditioning) - s * latents) / a


@pytest.fixture(scope="module")
def both(pico_folders: dict[str, Path]) -> tuple[DiffusersModel, DiffusersModel]:
    plain, as_v = DiffusersModel.load(pico_folders["sd1"]), WrittenAsV.load(pico_folders["sd1"])
    as_v.schedule = replace(as_v.schedule, prediction="v_prediction")
    return plain, as_v


def test_the_same_words_are_found(both: tuple[DiffusersModel, DiffusersModel]) -> None:
    ours, theirs = (survey(model, CONCEPT, Survey(candidates=8), everyday=False) for model in both)
    assert [one.word for one in ours] == [one.word for one in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert other.likeness == pytest.approx(one.likeness, abs=1e-3)
        assert other.strength == pytest.approx(one.strength, rel=1e-2) and other.belongs == one.belongs


def test_the_report_tells_the_same_drift(both: tuple[DiffusersModel, DiffusersModel]) -> None:
    """In v, one and the same erasure seemed to shift the whole model several times as much."""
    told = []
    for model in both:
        change = new_deltas(select(model.layers(), "cross-attention-kv"), 2, 0)
        randomise(change)
        with Subject(model, [(change, 1.0)], Silent(), Budget(None)).opened() as subject:
            told.append(drift(Scorer(subject, CONCEPT, states=2)))
    for (t, ours), (also_t, theirs) in zip(*told, strict=True):
        assert t == also_t and theirs == pytest.approx(ours, rel=0.02)
