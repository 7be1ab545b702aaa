"""The latents that the UNet trains on: encoded once by the trained autoencoder, kept on disk."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from tqdm import tqdm

from ..render import render
from ..scene import Scene, sample_scene
from . import loop
from .data import to_model_range
from .loop import mixed_precision

Kept = dict[str, Any]

SEED = 2
SCENES = 40_000
BATCH = 50


def training_scenes(count: int = SCENES) -> list[Scene]:
    """The scenes behind the latents: those of ``data.scenes(SEED, count)``, without their pictures."""
    rng = random.Random(SEED)
    return [sample_scene(rng) for _ in range(count)]


def _picture_batches(drawn: list[Scene]) -> Iterator[Tensor]:
    for start in tqdm(range(0, len(drawn), BATCH), desc="encoding", mininterval=15):
        pictures = np.stack([render(scene) for scene in drawn[start : start + BATCH]])
        yield torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()


@torch.inference_mode()
def encode(autoencoder: AutoencoderKL, pictures: Tensor) -> Tensor:
    """Posterior means [B, 4, 8, 8], not scaled, of uint8 pictures [B, 3, 64, 64]."""
    with mixed_precision():
        return autoencoder.encode(to_model_range(pictures)).latent_dist.mean.float()


@torch.inference_mode()
def decode(autoencoder: AutoencoderKL, latents: Tensor) -> Tensor:
    """uint8 pictures [B, 3, 64, 64] of latents [B, 4, 8, 8] that are not scaled."""
    with mixed_precision():
        pictures = autoencoder.decode(latents).sample.float()
    return ((pictures.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def _identity(autoencoder: AutoencoderKL) -> list[float]:
    """A few numbers that change whenever the autoencoder does, so that stale files are noticed."""
    return [float(p.detach().double().abs().sum()) for p in autoencoder.encoder.conv_in.parameters()]


def kept_on_disk(name: str, autoencoder: AutoencoderKL, count: int, make: Callable[[], Kept]) -> Kept:
    """What the autoencoder makes of ``count`` pictures: read from ``name``.pt if that is still true, else made."""
    path = loop.STATE_DIR / f"{name}.pt"
    identity = [*_identity(autoencoder), float(count)]
    if path.exists():
        kept = torch.load(path, weights_only=True)
        if kept["identity"] == identity:
            return dict(kept)
    made = {"identity": identity, **make()}
    part = path.with_suffix(".part")
    torch.save(made, part)
    os.replace(part, path)
    return made


def encoded_scenes(autoencoder: AutoencoderKL, drawn: list[Scene]) -> Tensor:
    """Latents of the scenes scaled to unit deviation, fp16 [len(drawn), 4, 8, 8]."""

    def make() -> Kept:
        latents = torch.cat([encode(autoencoder, pictures) for pictures in _picture_batches(drawn)])
        scale = 1 / float(latents.std())
        return {"latents": (latents * scale).half(), "scale": scale}

    return kept_on_disk("latents", autoencoder, len(drawn), make)["latents"]


def latent_scale() -> float:
    """The factor of the kept latents: the autoencoder's ``scaling_factor``."""
    path = loop.STATE_DIR / "latents.pt"
    if not path.exists():
        raise FileNotFoundError(f"the scenes have not been encoded yet: there is no latents.pt in {loop.STATE_DIR}")
    return float(torch.load(path, weights_only=True, mmap=True)["scale"])
