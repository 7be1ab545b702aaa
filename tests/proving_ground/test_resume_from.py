"""An exported model is a resumable state: its training can go on from the committed folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from proving_ground.training import loop, resume, state, unet


def test_an_exported_unet_goes_on_where_it_stood(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "STATE_DIR", tmp_path / "states")
    stated = json.loads((model_dir / resume.STEPS_FILE).read_text())

    taken = resume.resume_from(model_dir)

    assert taken == {part: steps for part, steps in stated.items() if steps}
    model = unet.new_unet()
    assert state.load_average("unet", model) == stated["unet"]
    exported = load_file(model_dir / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(tensor, exported[name].float()) for name, tensor in model.state_dict().items())
    assert resume.resume_from(model_dir) == {}, "a state that exists is not replaced"


def test_training_goes_on_from_the_step_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "STATE_DIR", tmp_path)
    model = torch.nn.Linear(2, 1)
    weights = list(model.parameters())
    loop.save_state(
        tmp_path / "toy.pt", 7, weights, [w.detach().clone() for w in weights], loop.new_optimizer(weights, 0)
    )
    seen = []

    def loss_at(step: int) -> torch.Tensor:
        seen.append(step)
        return model(torch.ones(1, 2)).square().sum()

    assert loop.train("toy", model, loss_at, steps=10, peak_rate=1e-3)
    assert seen == [7, 8, 9]
