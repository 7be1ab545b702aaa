"""The picture autoencoder: 64x64x3 to 8x8x4 and back."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from .data import pick, scenes, to_model_range
from .loop import train

STEPS = 4000
BATCH = 16
SCENES = 30_000
KL_WEIGHT = 1e-6
SQUARED_FROM = 878
"""Step from which the squared error joins: without it, shapes come first and colours very late."""


def new_autoencoder(seed: int = 0) -> AutoencoderKL:
    """Untrained. 64 channels or more wherever there are 32 norm groups: one channel a group would lose the mean."""
    torch.manual_seed(seed)
    return AutoencoderKL(
        block_out_channels=(64, 64, 128, 128), layers_per_block=1, norm_num_groups=32, latent_channels=4,
        sample_size=64,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip


def _edges(x: Tensor) -> Tensor:
    return torch.cat([(x[..., 1:, :] - x[..., :-1, :]).flatten(1), (x[..., 1:] - x[..., :-1]).flatten(1)], dim=1)


def train_autoencoder(deadline: float | None = None, steps: int = STEPS) -> tuple[AutoencoderKL, bool]:
    """Train on absolute error of pixels and of their differences (thin lines), with a slight pull to N(0, 1)."""
    model = new_autoencoder()
    _, pictures = scenes(1, SCENES)

    def loss_at(step: int) -> Tensor:
        x = to_model_range(pictures[pick(step, BATCH, SCENES)])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            posterior = model.encode(x).latent_dist
            y = model.decode(posterior.sample()).sample.float()
        pixels = F.l1_loss(y, x)
        if step >= SQUARED_FROM:
            pixels = pixels + 4 * F.mse_loss(y, x)
        edges = F.l1_loss(_edges(y), _edges(x))
        return pixels + edges + KL_WEIGHT * posterior.kl().float().mean()

    complete = train("autoencoder", model, loss_at, steps, peak_rate=1e-3, deadline=deadline)
    return model.eval(), complete
