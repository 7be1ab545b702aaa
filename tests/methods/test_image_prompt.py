"""The image branch against diffusers' own IP-Adapter, and what it leaves alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from erasure_core.errors import InvalidFile
from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.image_prompt import ImageAdapter, ImageBranch, ImagePrompted, attention_names, invert_pictures
from erasure_core.model import Conditioning

WIDTHS = {"sd1": 64, "sd2": 64, "sdxl": 128}
EMBEDDING = 24


def state_dict(model: DiffusersModel) -> dict[str, Tensor]:
    """A random IP-Adapter in the published layout."""
    generator = torch.Generator().manual_seed(0)
    width = WIDTHS[model.family]
    tensors = {
        "image_proj.proj.weight": torch.randn(4 * width, EMBEDDING, generator=generator) / EMBEDDING**0.5,
        "image_proj.proj.bias": torch.randn(4 * width, generator=generator) / 5,
        "image_proj.norm.weight": 1 + torch.randn(width, generator=generator) / 5,
        "image_proj.norm.bias": torch.randn(width, generator=generator) / 5,
    }
    for number, name in enumerate(attention_names(model.layers())):
        for kind in ("to_k", "to_v"):
            shape = model.layers()[f"{name}.{kind}"].weight.shape
            key = f"ip_adapter.{2 * number + 1}.{kind}_ip.weight"
            tensors[key] = torch.randn(shape, generator=generator) / width**0.5
    return tensors


def nested(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    parts: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for key, tensor in tensors.items():
        part, _, rest = key.partition(".")
        parts[part][rest] = tensor
    return parts


def inputs(model: DiffusersModel) -> tuple[Tensor, Tensor, Conditioning, Tensor]:
    generator = torch.Generator().manual_seed(1)
    z, t = torch.randn(2, *model.latent_shape, generator=generator), torch.tensor([100, 800])
    return z, t, model.encode(["a red ball", "a cat"]), torch.randn(2, EMBEDDING, generator=generator)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@torch.no_grad()
def test_equals_diffusers_own_ip_adapter(
    pico_folders: dict[str, Path], pico_models: dict[str, DiffusersModel], tmp_path: Path, family: str
) -> None:
    model = pico_models[family]
    tensors = state_dict(model)
    save_file(tensors, tmp_path / "adapter.safetensors")
    z, t, text, embedded = inputs(model)
    adapter = ImageAdapter.read(tmp_path / "adapter.safetensors", model)
    assert adapter.projector is not None
    branch = ImageBranch(adapter, model)
    with branch.attached(model.layers()):
        prompt = Conditioning(text.context, text.ends, text.pooled, adapter.projector(embedded))
        ours = ImagePrompted(model, branch).predict(z, t, prompt)
    other = DiffusersModel.load(pico_folders[family])
    unet: Any = other.unet
    unet._load_ip_adapter_weights([nested(tensors)], low_cpu_mem_usage=False)
    added: dict[str, Any] = {"image_embeds": [embedded[:, None]]}
    if family == "sdxl":
        sizes = z.new_tensor([64, 64, 0, 0, 64, 64])
        added |= {"text_embeds": text.pooled, "time_ids": sizes.expand(2, -1)}
    theirs = unet(z, t, text.context, added_cond_kwargs=added, return_dict=False)[0]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    assert (ours - model.predict(z, t, text)).abs().max() > 1e-3, "the pictures must matter"


@torch.no_grad()
def test_without_pictures_the_prediction_is_the_same_bits(pico: DiffusersModel) -> None:
    z, t, text, _ = inputs(pico)
    plain = pico.predict(z, t, text)
    branch = ImageBranch(ImageAdapter.of_model(pico), pico)
    with branch.attached(pico.layers()):
        prompted = ImagePrompted(pico, branch)
        assert torch.equal(prompted.predict(z, t, text), plain)
        nothing = Conditioning(text.context, text.ends, text.pooled, torch.zeros(2, 4, 64))
        assert torch.equal(prompted.predict(z, t, nothing), plain)
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in pico.layers().values())


def test_conditionings_with_and_without_pictures_join(pico: DiffusersModel) -> None:
    text = pico.encode(["a red ball", "a cat"])
    shown = Conditioning(text.context, text.ends, text.pooled, torch.ones(2, 4, 64))
    both = Conditioning.cat([text, shown])
    assert both.image is not None and both.image[:2].abs().sum() == 0 and both.image[2:].min() == 1
    assert both[[3, 0]].image is not None


def test_other_kinds_and_other_models_are_refused(pico_models: dict[str, DiffusersModel]) -> None:
    tensors = state_dict(pico_models["sd1"])
    with pytest.raises(InvalidFile, match="made for another model"):
        ImageAdapter.from_tensors(tensors, pico_models["sdxl"], "adapter")
    with pytest.raises(InvalidFile, match="not a basic IP-Adapter"):
        ImageAdapter.from_tensors({"image_proj.latents": torch.zeros(1)}, pico_models["sd1"], "adapter")
    adapter = ImageAdapter.from_tensors(tensors, pico_models["sd1"], "adapter")
    assert adapter.projector is not None
    with pytest.raises(InvalidFile, match="embeddings of width 24"):
        adapter.projector(torch.zeros(1, 8))


@pytest.mark.parametrize(
    ("part", "shape", "says"),
    [
        ("proj.weight", (4 * 64,), "do not fit together"),
        ("proj.weight", (0, EMBEDDING), "do not fit together"),
        ("proj.weight", (4 * 64 + 1, EMBEDDING), "do not fit together"),
        ("proj.bias", (64,), "do not fit together"),
        ("norm.weight", (), "do not fit together"),
        ("norm.weight", (32,), "do not fit together"),
        ("norm.bias", (32,), "do not fit together"),
        ("norm.both", (32,), "another width than its to_k_ip weights read"),
    ],
)
def test_tensors_that_do_not_fit_together_are_refused(
    pico: DiffusersModel, part: str, shape: tuple[int, ...], says: str
) -> None:
    wrong = ("norm.weight", "norm.bias") if part == "norm.both" else (part,)
    tensors = state_dict(pico) | {f"image_proj.{name}": torch.ones(shape) for name in wrong}
    with pytest.raises(InvalidFile, match=f"adapter is damaged: .*{says}.*; get a fresh copy"):
        ImageAdapter.from_tensors(tensors, pico, "adapter")


def test_learned_tokens_lower_the_error_on_their_pictures(pico: DiffusersModel) -> None:
    latents = torch.randn(2, *pico.latent_shape, generator=torch.Generator().manual_seed(0))
    branch = ImageBranch(ImageAdapter.of_model(pico), pico)
    with pico.trainable(), branch.attached(pico.layers()):
        prompted = ImagePrompted(pico, branch)

        def learned(steps: int) -> Tensor:
            return invert_pictures(prompted, latents, torch.Generator().manual_seed(1), steps=steps)

        tokens = learned(40)
        assert torch.equal(tokens, learned(40))
        errors = []
        with torch.no_grad():
            noise = torch.randn(32, *pico.latent_shape, generator=torch.Generator().manual_seed(2))
            t, which = torch.arange(10, 970, 30), torch.arange(32) % 2
            z = pico.schedule.add_noise(latents[which], noise, t)
            text = pico.encode([""])[[0] * 32]
            for shown in (torch.zeros_like(tokens), tokens):
                prompt = Conditioning(text.context, text.ends, text.pooled, shown[which])
                errors.append(float((prompted.predict(z, t, prompt) - noise).pow(2).mean()))
    assert errors[1] < errors[0]
