"""Training pictures with their scenes, and captions that differ at each visit."""

from __future__ import annotations

import random
from functools import cache

import numpy as np
import torch
from torch import Tensor

from ..captions import caption
from ..render import render
from ..scene import Scene, sample_scene
from ..tokens import token_ids


@cache
def scenes(seed: int, count: int) -> tuple[list[Scene], Tensor]:
    """``count`` random scenes and their pictures, uint8 [count, 3, 64, 64]."""
    rng = random.Random(seed)
    drawn = [sample_scene(rng) for _ in range(count)]
    pictures = np.stack([render(scene) for scene in drawn])
    return drawn, torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()


def to_model_range(pictures: Tensor) -> Tensor:
    """uint8 pictures to float in [-1, 1]."""
    return pictures.float() / 127.5 - 1


def pick(step: int, batch: int, count: int) -> list[int]:
    """The indices of one step's batch: epochs of shuffled indices, a function of the step alone."""
    per_epoch = count // batch
    epoch, place = divmod(step, per_epoch)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(epoch))
    return order[place * batch : (place + 1) * batch].tolist()


def captions_for(chosen: list[Scene], rng: random.Random, drop: float = 0.0, trim: bool = False) -> Tensor:
    """Token ids of fresh captions. One batch in eight has long captions; ``drop`` of them are empty."""
    long = rng.random() < 0.125
    texts = [caption(scene, rng, rng.randrange(1, 40) if long else 0) for scene in chosen]
    return token_ids(["" if rng.random() < drop else text for text in texts], trim=trim)
