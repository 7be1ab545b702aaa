"""The bundled IP-Adapter: its training, its file, that diffusers reads it, and that pictures say what they show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from erasure_core import Concept
from erasure_core.image_prompt import ImageAdapter, ImageBranch, ImagePrompted
from erasure_core.model import Conditioning
from proving_ground.adapter_quality import ADAPTER, adapter_figures, embedded
from proving_ground.bench import Cell, shown_by_adapter
from proving_ground.judge import load_judge
from proving_ground.painting import load_model
from proving_ground.training import loop
from proving_ground.training.data import scenes
from proving_ground.training.image_adapter import train_image_adapter


def test_training_goes_on_and_writes_the_published_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "STATE_DIR", tmp_path / "state")
    assert not train_image_adapter(deadline=0.0, steps=2, count=64, folder=tmp_path)  # saved after its first step
    assert not (tmp_path / ADAPTER.name).exists()
    assert train_image_adapter(steps=2, count=64, folder=tmp_path)
    made, bundled = load_file(tmp_path / ADAPTER.name), load_file(ADAPTER)
    assert {key: t.shape for key, t in made.items()} == {key: t.shape for key, t in bundled.items()}
    assert {t.dtype for t in made.values()} == {torch.float16} and "ip_adapter.1.to_k_ip.weight" in made
    assert ADAPTER.name in (tmp_path / "SHA256SUMS").read_text(encoding="utf-8")


@torch.no_grad()
def test_diffusers_reads_the_bundled_adapter_as_we_do(model_dir: Path) -> None:
    from diffusers import StableDiffusionPipeline

    model, pictures = load_model(model_dir), scenes(7, 2)[1]
    adapter = ImageAdapter.read(ADAPTER, model)
    assert adapter.projector is not None
    z, t, text = torch.randn(2, *model.latent_shape), torch.tensor([100, 800]), model.encode(["a red ball", ""])
    branch = ImageBranch(adapter, model)
    with branch.attached(model.layers()):
        shown = Conditioning(text.context, text.ends, None, adapter.projector(embedded(pictures)))
        ours = ImagePrompted(model, branch).predict(z, t, shown)
    pipe: Any = StableDiffusionPipeline.from_pretrained(model_dir)
    pipe.load_ip_adapter(str(model_dir), subfolder="", weight_name=ADAPTER.name, image_encoder_folder="image_encoder")
    added = {"image_embeds": [embedded(pictures)[:, None]]}
    theirs = pipe.unet(z, t, text.context, added_cond_kwargs=added, return_dict=False)[0]
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)
    assert (ours - model.predict(z, t, text)).abs().max() > 1e-2


def test_pictures_say_what_they_show(model_dir: Path) -> None:
    drawn, pictures = scenes(8, 60)
    single = [i for i, scene in enumerate(drawn) if len(scene.things) == 1][:24]
    model = load_model(model_dir)
    shown, colour, _, background, _ = adapter_figures(
        model, load_judge(), ImageAdapter.read(ADAPTER, model), [drawn[i] for i in single], pictures[single]
    )
    # By chance: 1 of 14 objects, 1 of 6 colours, 1 of 4 backgrounds.
    assert shown.share >= 0.4 and colour.share >= 0.7 and background.share >= 0.9


def test_the_benchmark_shows_the_models_own_pictures_by_the_adapter(model_dir: Path) -> None:
    cell = Cell("co_erasing (IP-Adapter)", "ball", 0)
    settings = cell.settings
    pictures = shown_by_adapter(load_model(model_dir), Concept(("ball",)), settings)
    assert pictures.tokens is not None and len(pictures.tokens) == settings.own_pictures
    assert pictures.adapter is not None and pictures.adapter.projector is not None
