"""Ways to ruin a picture. The judge learns them as garbage, so that a ruined picture is not taken for an erased one."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from ..render import render
from ..scene import SIZE, Scene
from .data import to_model_range

Ruin = Callable[[Tensor, list[Scene], random.Random], Tensor]
"""Pictures [B, 3, 64, 64] in [-1, 1], their scenes and a source of chance to ruined pictures."""


def blur(pictures: Tensor, drawn: list[Scene], rng: random.Random) -> Tensor:
    """Keep 4 to 7 pixels a side."""
    return F.interpolate(F.adaptive_avg_pool2d(pictures, rng.randint(4, 7)), SIZE, mode="bilinear")


def shuffle_patches(pictures: Tensor, drawn: list[Scene], rng: random.Random) -> Tensor:
    """Put every patch of 8 or 16 pixels elsewhere."""
    side = rng.choice((8, 16))
    patches = F.unfold(pictures, side, stride=side)
    order = torch.randperm(patches.shape[2])
    shuffled = torch.empty_like(patches)
    shuffled[..., order] = patches[..., order.roll(1)]
    return F.fold(shuffled, SIZE, side, stride=side)


def mix_noise(pictures: Tensor, drawn: list[Scene], rng: random.Random) -> Tensor:
    share = torch.empty(len(pictures), 1, 1, 1).uniform_(0.5, 0.9)
    return ((1 - share) * pictures + share * torch.randn_like(pictures)).clamp(-1, 1)


def blend(pictures: Tensor, drawn: list[Scene], rng: random.Random) -> Tensor:
    """Lay each picture over its neighbour, a single one over itself upside down."""
    other = pictures.roll(1, dims=0) if len(pictures) > 1 else pictures.flip(2)
    share = torch.empty(len(pictures), 1, 1, 1).uniform_(0.4, 0.6)
    return (1 - share) * pictures + share * other


def smear(pictures: Tensor, drawn: list[Scene], rng: random.Random) -> Tensor:
    """Move the camera by 23 to 33 pixels across or down."""
    half = rng.randint(11, 16)
    across = rng.random() < 0.5
    padded = F.pad(pictures, (half, half, 0, 0) if across else (0, 0, half, half), mode="replicate")
    return F.avg_pool2d(padded, (1, 2 * half + 1) if across else (2 * half + 1, 1), stride=1)


@cache
def _empty(background: str) -> Tensor:
    """The background alone, [3, 64, 64] in [-1, 1]."""
    return to_model_range(torch.from_numpy(render(Scene(background, ()))).permute(2, 0, 1))


def _erased_half(scene: Scene, rng: random.Random) -> Tensor:
    """Mask [64, 64] that takes 40 to 70 % of one thing's area: one side of a line across it."""
    thing = rng.choice(scene.things)
    alone = to_model_range(torch.from_numpy(render(Scene(scene.background, (thing,))))).permute(2, 0, 1)
    shown = (alone - _empty(scene.background)).abs().amax(dim=0) > 0.05
    y, x = torch.meshgrid(torch.arange(SIZE) + 0.5, torch.arange(SIZE) + 0.5, indexing="ij")
    angle = rng.uniform(0, 2 * math.pi)
    along = (x - thing.x) * math.cos(angle) + (y - thing.y) * math.sin(angle)
    line = along[shown].quantile(rng.uniform(0.3, 0.6))
    return (along > line) & (torch.hypot(x - thing.x, y - thing.y) < 1.6 * thing.radius)


def erase_half(pictures: Tensor, drawn: list[Scene], rng: random.Random) -> Tensor:
    """Paint half of a thing over, mostly with the background, else with one colour."""
    ruined = pictures.clone()
    for picture, scene in zip(ruined, drawn, strict=True):
        mask = _erased_half(scene, rng)
        paint = _empty(scene.background) if rng.random() < 0.7 else torch.empty(3, 1, 1).uniform_(-1, 1)
        picture.copy_(torch.where(mask, paint, picture))
    return ruined


RUINS: tuple[Ruin, ...] = (blur, shuffle_patches, mix_noise, blend, smear, erase_half, erase_half)
"""Half-erased pictures are the hardest to tell and come twice as often."""


def ruin(pictures: Tensor, drawn: list[Scene], rng: random.Random) -> Tensor:
    """Ruin pictures that show something, each in one way; the batch is dealt out over the ways."""
    parts = [
        RUINS[way](pictures[way :: len(RUINS)], drawn[way :: len(RUINS)], rng)
        for way in range(min(len(RUINS), len(pictures)))
    ]
    return torch.cat(parts)
