"""Fixtures of the bundled model; tests that need a file that is absent say which."""

from __future__ import annotations

from pathlib import Path

import pytest

from erasure_core.hosts.diffusers import DiffusersModel
from proving_ground.judge import Judge, load_judge
from proving_ground.painting import load_model
from proving_ground.tokens import MODEL_DIR


def _needs(name: str) -> Path:
    path = MODEL_DIR / name
    if not path.exists():
        pytest.skip(f"the bundled model is not there: no {path.relative_to(MODEL_DIR.parent.parent)}")
    return path


@pytest.fixture(scope="session")
def model_dir() -> Path:
    return _needs("model_index.json").parent


@pytest.fixture(scope="session")
def world_model(model_dir: Path) -> DiffusersModel:
    return load_model(model_dir)


@pytest.fixture(scope="session")
def judge() -> Judge:
    return load_judge(_needs("judge.safetensors"))
