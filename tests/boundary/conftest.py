"""A pico model, a change of it that stands for an erasure, and one exploration of both, made once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # pytest's importlib mode does not make helpers importable

from made_up import CONCEPT, QUICK, TRIES

from erasure_core import DeltaSet, erase
from erasure_core.boundary import Exploration, ExploreSettings, explore
from erasure_core.hosts.diffusers import DiffusersModel


@pytest.fixture(scope="session")
def change(pico_models: dict[str, DiffusersModel]) -> DeltaSet:
    return erase(pico_models["sd1"], CONCEPT, "closed_form")[0].deltas


@pytest.fixture(scope="session")
def explored(pico_models: dict[str, DiffusersModel], change: DeltaSet) -> Exploration:
    settings = ExploreSettings(**QUICK, pictures=True)
    return explore(pico_models["sd1"], CONCEPT, [(change, 1.0)], settings, tries=TRIES)
