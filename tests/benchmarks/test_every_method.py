"""Every method on every family's layout in small, and at true size where asked for (TRUE_SIZE=1, minutes to hours)."""

from __future__ import annotations

import os

import pytest
import torch

from benchmarks.architectures import FAMILIES, build
from benchmarks.every_method import check
from erasure_core import METHODS
from erasure_core.hosts.diffusers import DiffusersModel


@pytest.fixture(scope="module", params=FAMILIES)
def small(request: pytest.FixtureRequest) -> DiffusersModel:
    return build(request.param, 64, tiny=True)


@pytest.mark.parametrize("method", METHODS)
def test_trained_saved_loaded_and_switched_off(small: DiffusersModel, method: str) -> None:
    verdict = check(small, METHODS[method])
    assert verdict.moved > 1e-6, "the prediction changed"
    assert verdict.loaded < 1e-2, "diffusers' LoRA loader makes the same change"
    assert verdict.restored, "switched off, every bit is as before"


@pytest.mark.skipif(not os.environ.get("TRUE_SIZE"), reason="set TRUE_SIZE=1 to run every method at true size")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_at_true_size(family: str, method: str) -> None:
    verdict = check(build(family, 64, dtype=torch.bfloat16), METHODS[method])
    assert verdict.moved > 1e-6 and verdict.restored
