"""A pico model, a change of it that stands for an erasure, and one exploration of both, made once."""

from __future__ import annotations

import pytest

from erasure_core import Concept, DeltaSet, erase
from erasure_core.boundary import Exploration, ExploreSettings, explore
from erasure_core.hosts.diffusers import DiffusersModel

CONCEPT = Concept(("ball", "sphere"), None, ("a red box", "a cat"))
QUICK = {"seconds": None, "calls": 6000, "states": 2, "look": 4}


@pytest.fixture(scope="session")
def change(pico_models: dict[str, DiffusersModel]) -> DeltaSet:
    return erase(pico_models["sd1"], CONCEPT, "closed_form")[0].deltas


@pytest.fixture(scope="session")
def explored(pico_models: dict[str, DiffusersModel], change: DeltaSet) -> Exploration:
    settings = ExploreSettings(**QUICK, pictures=True)
    return explore(pico_models["sd1"], CONCEPT, [(change, 1.0)], settings, tries=["the round thing that rolls"])
