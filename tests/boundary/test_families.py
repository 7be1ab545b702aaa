"""Exploring, the report card, the loop and purifying on the other families' layouts; the rest is tested on SD1.x."""

from __future__ import annotations

import pytest
import torch
from made_up import CONCEPT

from erasure_core import DeltaSet, erase
from erasure_core.boundary import ExploreSettings
from erasure_core.boundary.harden import harden
from erasure_core.boundary.report import ReportSettings, Subjected, report
from erasure_core.boundary.report_page import report_page
from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.methods.closed_form import ClosedFormSettings
from erasure_core.methods.esd import EsdSettings
from erasure_core.purify import purify

Erased = tuple[DiffusersModel, DeltaSet]


@pytest.fixture(scope="module", params=["sd2", "sdxl"])
def erased(request: pytest.FixtureRequest, pico_models: dict[str, DiffusersModel]) -> Erased:
    model = pico_models[request.param]
    return model, erase(model, CONCEPT, "closed_form", ClosedFormSettings(neighbours=0))[0].deltas


def weights_of(model: DiffusersModel) -> list[torch.Tensor]:
    return [parameter.detach().clone() for _, parameter in model.every_parameter()]


def test_a_report_card_with_its_search(erased: Erased) -> None:
    model, deltas = erased
    before = weights_of(model)
    card = report(model, CONCEPT, [Subjected("ball", deltas)], ReportSettings(calls=1500, states=2, steps=2))
    (file,), (exploration,) = card.files, card.explorations
    assert exploration.erased and {"named", "vocabulary"} <= {point.origin for point in exploration.points}
    assert {"closed-form", "prefix", "inversion"} <= set(exploration.levels), "also those that need gradients"
    assert file.sweep[0][2] == 1.0 and file.change["kept prompts"] > 0, "at strength 0 all is kept"
    assert card.strips and all(len(set(strip.pictures)) == 2 for strip in card.strips if strip.kind == "erased")
    assert "<h2>Leak" in report_page(card)
    assert all(map(torch.equal, weights_of(model), before)), "the model is as it was"


def test_a_round_of_hardening(erased: Erased) -> None:
    model, _ = erased
    search = ExploreSettings(seconds=None, calls=300, states=2, look=0, levels="lexical")
    settings = EsdSettings(replace=False, steps=2, trajectories=2, trajectory_steps=2, batch=1, rank=2, neighbours=0)
    erasure, _, (only,) = harden(model, CONCEPT, 1, "esd", settings, search)
    assert only.tried > len(CONCEPT.words) and erasure.manifest.family == model.family
    assert erasure.manifest.words == (*CONCEPT.words, *only.added)


def test_purifying(erased: Erased) -> None:
    model, deltas = erased
    latents = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    plain, off, on = (
        purify(model, latents, ["a ball"], erasures, steps=4) for erasures in ([], [(deltas, 0.0)], [(deltas, 1.0)])
    )
    assert torch.equal(plain, off) and not torch.allclose(plain, on) and bool(on.isfinite().all())
