"""A pico model, a change of it that stands for an erasure, and one exploration of both, made once."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # pytest's importlib mode does not make helpers importable

from made_up import CONCEPT, QUICK

from erasure_core import DeltaSet, erase
from erasure_core.boundary import Exploration, ExploreSettings, explore
from erasure_core.hosts.diffusers import DiffusersModel


@pytest.fixture(scope="session", autouse=True)
def short_searches() -> Iterator[None]:
    """Searches of a few steps: what they find on random weights means nothing, that they run does."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name, value in (
            ("genetic", "GENERATIONS", 10),
            ("genetic", "POPULATION", 60),
            ("genetic", "SURVIVORS", 20),
            ("prefix", "STEPS", 10),
            ("inversion", "STEPS", 10),
            ("self_check", "ROUNDS", 1),
            ("self_check", "STEPS", 4),
        ):
            patch.setattr(sys.modules[f"erasure_core.boundary.searches.{module}"], name, value)
        yield


@pytest.fixture(scope="session")
def change(pico_models: dict[str, DiffusersModel]) -> DeltaSet:
    return erase(pico_models["sd1"], CONCEPT, "closed_form")[0].deltas


@pytest.fixture(scope="session")
def explored(pico_models: dict[str, DiffusersModel], change: DeltaSet) -> Exploration:
    settings = ExploreSettings(**QUICK, pictures=True)
    return explore(pico_models["sd1"], CONCEPT, [(change, 1.0)], settings, tries=["the round thing that rolls"])
