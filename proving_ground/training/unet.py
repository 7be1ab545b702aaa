"""The denoising UNet: predicts the noise in 8x8x4 latents from the frozen text encoder's states."""

from __future__ import annotations

import random

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn

from .autoencoder import new_autoencoder
from .clip import load_clip
from .data import captions_for, pick
from .latents import SCENES, encoded_scenes, training_scenes
from .loop import mixed_precision, train
from .state import load_average

STEPS = 19_000
BATCH = 64
PEAK_RATE = 1e-3
DROPPED_CAPTIONS = 0.1
PLAIN_FROM = 10_000
"""Step from which every noise level counts alike. Before, min-SNR weights let shapes come first; kept to the end, they
leave colours and styles, which are settled where noise is faint, at nine and eight of ten right."""
MIN_SNR_GAMMA = 5.0
SCHEDULE = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def new_unet(seed: int = 0) -> UNet2DConditionModel:
    """Untrained. 8 heads (diffusers calls them ``attention_head_dim``), two or more channels in each norm group."""
    torch.manual_seed(seed)
    return UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=2, block_out_channels=(64, 128),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=64, attention_head_dim=8, norm_num_groups=32, freq_shift=0, flip_sin_to_cos=True,
    )  # fmt: skip


def alphas_cumprod() -> Tensor:
    """Share of signal left at each timestep, [1000]."""
    return DDPMScheduler(**SCHEDULE).alphas_cumprod


def add_noise(latents: Tensor, noise: Tensor, alpha: Tensor) -> Tensor:
    """Latents [B, 4, 8, 8] mixed with noise by the cumulated alphas [B]."""
    alpha = alpha.view(-1, 1, 1, 1)
    return alpha.sqrt() * latents + (1 - alpha).sqrt() * noise


def min_snr_weight(alpha: Tensor, gamma: float = MIN_SNR_GAMMA) -> Tensor:
    """Weight of the noise error at cumulated alphas [B]: least where noise is faint (Hang et al. 2023)."""
    snr = alpha / (1 - alpha)
    return snr.clamp(max=gamma) / snr


def _frozen_text_encoder() -> nn.Module:
    return load_clip().text_model


def train_unet(
    deadline: float | None = None, steps: int = STEPS, count: int = SCENES
) -> tuple[UNet2DConditionModel, bool]:
    """Train on the kept latents of ``count`` scenes. Returns the model and whether training is complete."""
    text_encoder = _frozen_text_encoder()
    autoencoder = new_autoencoder()
    load_average("autoencoder", autoencoder)
    drawn = training_scenes(count)
    latents = encoded_scenes(autoencoder, drawn)
    model = new_unet()
    # Measured: bfloat16 needs three quarters of float32's time where the processor has it, but only without the fused
    # attention, whose backward is slow in it.
    model.set_attn_processor(AttnProcessor())
    alphas = alphas_cumprod()

    def loss_at(step: int) -> Tensor:
        chosen = pick(step, BATCH, count)
        ids = captions_for([drawn[i] for i in chosen], random.Random(step), drop=DROPPED_CAPTIONS)
        with torch.no_grad():
            text = text_encoder(ids).last_hidden_state
        clean = latents[chosen].float()
        noise, t = torch.randn_like(clean), torch.randint(len(alphas), (BATCH,))
        noisy = add_noise(clean, noise, alphas[t])
        with mixed_precision():
            predicted = model(noisy, t, encoder_hidden_states=text).sample
        errors = (predicted.float() - noise).square().mean(dim=(1, 2, 3))
        weights = min_snr_weight(alphas[t]) if step < PLAIN_FROM else 1.0
        return (weights * errors).mean()

    complete = train("unet", model, loss_at, steps, peak_rate=PEAK_RATE, decay=0.9995, deadline=deadline)
    return model.eval(), complete


@torch.no_grad()
def unpredicted_mean_share(
    unet: UNet2DConditionModel, latents: Tensor, text: Tensor, timesteps: tuple[int, ...] = (500, 600, 700, 800, 900)
) -> float:
    """Share of the noise's per-picture channel means that the UNet fails to predict where noise prevails.

    The mean over a latent's channel carries the picture's colour and background. A UNet whose normalised layers have
    one channel a group cannot express it, and scores 0.9 to 1.0.

    Args:
        unet: the model under test.
        latents: scaled clean latents [B, 4, 8, 8].
        text: text states of their captions, [B, 77, 64].
        timesteps: noise levels to average over.

    Returns:
        ``|mean(eps_hat) - mean(eps)|^2 / |mean(eps)|^2``, means over height and width.
    """
    generator = torch.Generator().manual_seed(0)
    missed = total = 0.0
    for t in timesteps:
        noise = torch.randn(latents.shape, generator=generator)
        noisy = add_noise(latents, noise, alphas_cumprod()[t].expand(len(latents)))
        mean = noise.mean(dim=(2, 3))
        predicted = unet(noisy, t, encoder_hidden_states=text).sample.mean(dim=(2, 3))
        missed += float((predicted - mean).square().sum())
        total += float(mean.square().sum())
    return missed / total
