"""Every method on every family's layout in small, and at true size where asked for (TRUE_SIZE=1, minutes to hours)."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import every_method
from benchmarks.__main__ import main
from benchmarks.architectures import FAMILIES, build
from benchmarks.documents import every_table
from benchmarks.every_method import Verdict, check
from benchmarks.gpu_check import prediction
from erasure_core import METHODS
from erasure_core.hosts.diffusers import DiffusersModel


@pytest.fixture(scope="module", params=FAMILIES)
def small(request: pytest.FixtureRequest) -> DiffusersModel:
    return build(request.param, 64, tiny=True)


@pytest.mark.parametrize("method", METHODS)
def test_trained_saved_loaded_and_switched_off(small: DiffusersModel, method: str) -> None:
    verdict = check(small, METHODS[method])
    assert verdict.moved > 1e-6 and verdict.bound == 1e-2 and not verdict.faults


def test_a_fault_is_told() -> None:
    good = Verdict("esd", 0.1, 0.001, True, 0.01)
    assert good.faults == []
    for change, told in (
        ({"moved": 0.0}, "did not change"),
        ({"loaded": 0.02}, "2.0e-02 of the change away, more than 0.01"),
        ({"loaded": float("nan")}, "away"),
        ({"restored": False}, "not as it was"),
    ):
        (fault,) = replace(good, **change).faults
        assert told in fault


def test_the_command_fails_when_the_loaded_file_changes_something_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As if diffusers skipped the file: the prediction is that of the untouched model."""
    monkeypatch.setattr(every_method, "through_diffusers", lambda model, path: prediction(model))
    out = tmp_path / "every.json"
    asked = ["every", "--family", "sd15", "--tiny", "--method", "closed_form", "--seed", "3", "--out", str(out)]
    with pytest.raises(SystemExit, match="sd15 closed_form: loaded as a LoRA"):
        main(asked)
    (written,) = json.loads(out.read_text())["runs"]
    assert (written["family"], written["side"], written["dtype"], written["seed"]) == ("sd15", 64, "float32", 3)
    assert written["machine"] and written["verdicts"][0]["loaded"] > 0.5
    assert "away" in every_table({"command": "x", "runs": [written]})


@pytest.mark.skipif(not os.environ.get("TRUE_SIZE"), reason="set TRUE_SIZE=1 to run every method at true size")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_at_true_size(family: str, method: str) -> None:
    verdict = check(build(family, 64, dtype=torch.bfloat16), METHODS[method])
    assert verdict.moved > 1e-6 and not verdict.faults
