"""The bundled folder is whole, small, readable by diffusers, and can express the mean of the noise."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from proving_ground.captions import caption
from proving_ground.painting import load_model, paint
from proving_ground.training.data import scenes
from proving_ground.training.latents import encode
from proving_ground.training.unet import min_snr_weight, unpredicted_mean_share

MEGABYTE = 1_000_000


def test_the_folder_is_small(model_dir: Path) -> None:
    assert sum(path.stat().st_size for path in model_dir.rglob("*") if path.is_file()) < 40 * MEGABYTE


def test_hashes_match(model_dir: Path) -> None:
    lines = (model_dir / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    stated = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    for name, digest in stated.items():
        assert hashlib.sha256((model_dir / name).read_bytes()).hexdigest() == digest, name
    weights = {path.relative_to(model_dir).as_posix() for path in model_dir.rglob("*.safetensors")}
    assert weights <= set(stated)


def test_weights_are_half_precision_and_text_keys_are_prefixed(model_dir: Path) -> None:
    for path in model_dir.rglob("*.safetensors"):
        with safe_open(path, "pt") as file:
            assert {file.get_slice(key).get_dtype() for key in file.keys()} == {"F16"}, path.name  # noqa: SIM118
    with safe_open(model_dir / "text_encoder" / "model.safetensors", "pt") as file:
        assert all(key.startswith("text_model.") for key in file.keys())  # noqa: SIM118


def test_transformers_reads_every_text_weight(model_dir: Path) -> None:
    from transformers import CLIPTextModel

    model, info = CLIPTextModel.from_pretrained(model_dir / "text_encoder", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert model.config.eos_token_id == 49407 and model.config.hidden_act == "quick_gelu"


def test_diffusers_agrees_with_our_sampler(model_dir: Path) -> None:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(model_dir)
    pipe.set_progress_bar_config(disable=True)
    ours = paint(load_model(model_dir), ["a red ball"], [5], steps=4, guidance=3.0)[0].float()
    theirs = pipe(
        "a red ball", height=64, width=64, num_inference_steps=4, guidance_scale=3.0, output_type="pt",
        generator=torch.Generator().manual_seed(5),
    ).images[0]  # fmt: skip
    assert (theirs * 255 - ours).abs().max() <= 2


def test_every_norm_group_has_two_channels_or_more(model_dir: Path) -> None:
    """With one, a layer cannot hand on a channel's mean, which carries colour and background."""
    model = load_model(model_dir)
    norms = [part for net in (model.unet, model.vae) for part in net.modules() if isinstance(part, nn.GroupNorm)]
    assert len(norms) > 20 and all(norm.num_channels >= 2 * norm.num_groups for norm in norms)


def test_the_mean_of_the_noise_is_predicted(model_dir: Path) -> None:
    model = load_model(model_dir)
    drawn, pictures = scenes(99, 64)
    rng = random.Random(0)
    latents = encode(model.vae, pictures) * model.vae.config.scaling_factor
    with torch.no_grad():
        text = model.encode([caption(scene, rng) for scene in drawn]).context
    assert unpredicted_mean_share(model.unet, latents, text) < 0.3


def test_min_snr_weight_is_one_where_noise_prevails() -> None:
    weight = min_snr_weight(torch.tensor([0.01, 0.5, 5 / 6, 0.99]))
    assert torch.allclose(weight, torch.tensor([1.0, 1.0, 1.0, 5 / 99]), atol=1e-4)
