"""The wide twin computes the same function as the narrow model, and widened erasures change it alike."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from erasure_core import Concept, DeltaSet, Erasure, applied, erase
from erasure_core.delta import LowRankDelta
from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.layers import select
from proving_ground.painting import load_model
from proving_ground.widen import widen_erasure, widen_model, write_twin

PROMPTS = ["a red ball in the sky", "", "two words"]


@pytest.fixture(scope="module")
def both(model_dir: Path) -> tuple[DiffusersModel, DiffusersModel]:
    narrow = load_model(model_dir)
    return narrow, widen_model(narrow)


def latents() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([15, 500, 990])


@torch.no_grad()
def predict(model: DiffusersModel) -> torch.Tensor:
    return model.predict(*latents(), model.encode(PROMPTS))


def test_same_predictions_and_pictures(both: tuple[DiffusersModel, DiffusersModel]) -> None:
    narrow, wide = both
    with torch.no_grad():
        context = narrow.encode(PROMPTS).context
        assert (wide.encode(PROMPTS).context - context.repeat(1, 1, 12)).abs().max() < 1e-4
    assert (predict(wide) - predict(narrow)).abs().max() < 1e-4
    z = latents()[0]
    with torch.no_grad():
        painted = [m.vae.decode(z / m.vae.config.scaling_factor).sample for m in both]  # type: ignore[union-attr]
    assert (painted[1] - painted[0]).abs().max() < 1e-4, "floats: whole levels would hide a small error"
    assert (wide.decode(z).int() - narrow.decode(z).int()).abs().max() <= 1


def test_the_encoder_gives_latents_of_the_hosts_scale(both: tuple[DiffusersModel, DiffusersModel]) -> None:
    narrow, wide = both
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        scaled = [m.vae.encode(picture).latent_dist.mean * m.vae.config.scaling_factor for m in both]  # type: ignore[union-attr]
    torch.testing.assert_close(scaled[1], scaled[0], atol=1e-4, rtol=1e-4)
    assert wide.vae.config.scaling_factor == 0.18215  # type: ignore[union-attr]
    assert narrow.vae is not None


@pytest.mark.parametrize("dense", [False, True])
def test_a_widened_erasure_changes_the_twin_alike(both: tuple[DiffusersModel, DiffusersModel], dense: bool) -> None:
    from erasure_core.algebra import dense as as_dense

    narrow, wide = both
    known, _ = erase(narrow, Concept(("ball",)), "closed_form")
    generator = torch.Generator().manual_seed(0)
    deltas = {}
    for name, layer in select(narrow.layers(), "full+text-encoder").items():
        deltas[name] = LowRankDelta.zero(layer.weight.shape, 2, generator)
        deltas[name].up.data.normal_(0, 0.03, generator=generator)
    change = as_dense(DeltaSet(dict(deltas))) if dense else DeltaSet(dict(deltas))
    widened = widen_erasure(Erasure(change, known.manifest), wide)
    base = predict(narrow)
    with applied(narrow, [(change, 1.0)]):
        expected = predict(narrow)
    with applied(wide, [(widened.deltas, 1.0)]):
        found = predict(wide)
    assert (expected - base).abs().max() > 0.05
    assert (found - expected).abs().max() < 1e-3


def test_the_written_twin_is_read_as_an_sd1_checkpoint(
    both: tuple[DiffusersModel, DiffusersModel], tmp_path: Path
) -> None:
    path = tmp_path / "twin.safetensors"
    write_twin(path, both[1])
    read = DiffusersModel.load(path)
    assert read.family == "sd1" and read.latent_shape == (4, 8, 8)
    assert (predict(read) - predict(both[0])).abs().max() < 1e-4
    assert "channel_mult: [1, 2]" in path.with_suffix(".yaml").read_text()
