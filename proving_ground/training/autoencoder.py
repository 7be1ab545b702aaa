"""The picture autoencoder: 64x64x3 to 8x8x4 and back."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from ..lexicon import BACKGROUND_NAMES
from ..render import render
from ..scene import Scene
from .data import pick, scenes, to_model_range
from .loop import mixed_precision, train

STEPS = 9_000
BATCH = 16
SCENES = 30_000
KL_WEIGHT = 1e-6
SQUARED_FROM = 878
"""Step from which the squared error joins: without it, shapes come first and colours very late."""
FOREGROUND_FROM = 4000
FOREGROUND_WEIGHT = 6.0
"""From that step a pixel of a thing counts so much more than one of the background, which is learnt by then: stripes,
dots and small parts are few pixels."""


def new_autoencoder(seed: int = 0) -> AutoencoderKL:
    """Untrained. 64 channels or more wherever there are 32 norm groups: one channel a group would lose the mean."""
    torch.manual_seed(seed)
    return AutoencoderKL(
        block_out_channels=(64, 64, 128, 128), layers_per_block=1, norm_num_groups=32, latent_channels=4,
        sample_size=64,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip


def _edges(x: Tensor) -> Tensor:
    """Differences of neighbouring pixels, down and right, [B, 2, 3, H-1, W-1]."""
    down, right = x[..., 1:, :-1] - x[..., :-1, :-1], x[..., :-1, 1:] - x[..., :-1, :-1]
    return torch.stack([down, right], dim=1)


def _weights(chosen: list[Scene], pictures: Tensor, backgrounds: dict[str, Tensor], foreground: bool) -> Tensor:
    """Weight of each pixel, [B, 1, H, W]: 1, or more where the picture is not its bare background."""
    bare = torch.stack([backgrounds[scene.background] for scene in chosen])
    return 1 + (FOREGROUND_WEIGHT if foreground else 0.0) * (pictures != bare).any(dim=1, keepdim=True).float()


def train_autoencoder(deadline: float | None = None, steps: int = STEPS) -> tuple[AutoencoderKL, bool]:
    """Train on errors of pixels and of their differences (thin lines), with a slight pull to N(0, 1)."""
    model = new_autoencoder()
    drawn, pictures = scenes(1, SCENES)
    backgrounds = {name: torch.from_numpy(render(Scene(name, ()))).permute(2, 0, 1) for name in BACKGROUND_NAMES}

    def loss_at(step: int) -> Tensor:
        rows = pick(step, BATCH, SCENES)
        x = to_model_range(pictures[rows])
        weight = _weights([drawn[i] for i in rows], pictures[rows], backgrounds, step >= FOREGROUND_FROM)
        with mixed_precision():
            posterior = model.encode(x).latent_dist
            y = model.decode(posterior.sample()).sample.float()
        error = (y - x).abs()
        pixels = (weight * (error + 4 * error.square() if step >= SQUARED_FROM else error)).mean()
        edges = (weight[:, None, :, :-1, :-1] * (_edges(y) - _edges(x)).abs()).mean()
        return pixels + edges + KL_WEIGHT * posterior.kl().float().mean()

    complete = train("autoencoder", model, loss_at, steps, peak_rate=1e-3, deadline=deadline)
    return model.eval(), complete
