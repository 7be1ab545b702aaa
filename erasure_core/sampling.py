"""Pictures from a loaded model: deterministic DDIM with classifier-free guidance."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .batches import Batches
from .broken_model import check_model
from .errors import Cancelled, ModelError
from .model import Conditioning, LoadedModel, each_once
from .progress import Progress, Report, Silent
from .schedule import NoiseSchedule


def seeded_noise(shape: Sequence[int], seeds: Sequence[int]) -> Tensor:
    """Unit noise [B, *shape] on the CPU; each picture depends on its own seed only, not on the batch it is in."""
    return torch.stack([torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def scaled_sides(shape: tuple[int, int, int], scale: float) -> tuple[int, int]:
    """Height and width of latents of a ``shape`` [C, H, W] with sides ``scale`` times as long: in whole multiples of 8,
    as the networks halve them up to three times, and never longer than they were."""
    height, width = (side if scale == 1.0 else min(side, max(8, round(side * scale / 8) * 8)) for side in shape[1:])
    return height, width


def at_most(shape: tuple[int, int, int], side: int) -> tuple[int, int, int]:
    """The shape of latents [C, H, W] with no side longer than ``side``."""
    channels, height, width = shape
    return channels, min(height, side), min(width, side)


@torch.no_grad()
def sample(
    model: LoadedModel,
    prompts: Sequence[str],
    seeds: Sequence[int],
    steps: int = 30,
    guidance: float = 5.0,
    negative: str = "",
    progress: Progress | None = None,
) -> Tensor:
    """Sample one latent for each prompt.

    Args:
        model: the loaded model, with or without deltas hanging on it.
        prompts: one for each picture.
        seeds: one for each picture.
        steps: DDIM steps.
        guidance: classifier-free guidance scale; 1 uses the prompt's prediction alone.
        negative: prompt in the place of the empty one.
        progress: reports and cancellation.

    Returns:
        Clean latents [B, C, H, W] on the model's device.

    Raises:
        Cancelled: the user stopped.
        ModelError: the picture is made of no finite numbers.
        PromptTooLong: a prompt has more tokens than the text encoder reads.
    """
    progress = progress or Silent()
    distinct, places = each_once(prompts)
    positive = model.encode(distinct)[places]
    both = Conditioning.cat([model.encode([negative])[[0] * len(prompts)], positive])
    z = seeded_noise(model.latent_shape, seeds).to(model.device)
    predict = Batches(2 * len(z)).predictor(model)  # all at once, where they fit
    for i, now_and_next in enumerate(onwards(model.schedule.timesteps(steps))):
        if progress.cancelled():
            raise Cancelled("Stopped while sampling pictures.")
        asked = positive if guidance == 1.0 else both
        z = guided_step(model.schedule, predict, z, now_and_next, asked, guidance)
        progress.update(Report("sampling", i + 1, steps))
    return finite(z, model)


def onwards(timesteps: Sequence[int]) -> list[tuple[int, int]]:
    """Each timestep with the one that follows it, which behind the last is -1: clean."""
    return list(zip(timesteps, [*timesteps[1:], -1], strict=True))


def guided_step(
    schedule: NoiseSchedule,
    predict: Callable[[Tensor, Tensor, Conditioning], Tensor],
    z: Tensor,
    now_and_next: tuple[int, int],
    prompts: Conditioning,
    guidance: float,
) -> Tensor:
    """One step of DDIM with classifier-free guidance.

    Args:
        schedule: the model's.
        predict: as ``LoadedModel.predict``.
        z: latents [B, C, H, W] at the first of two timesteps.
        now_and_next: those timesteps; -1 is clean.
        prompts: B prompts, which are followed without guidance, or before them B prompts that guidance leads away from.
        guidance: the scale.

    Returns:
        Latents [B, C, H, W] at the second timestep.
    """
    now, following = now_and_next
    t = torch.full((len(z),), now, device=z.device)
    if len(prompts) == len(z):
        predicted = predict(z, t, prompts)
    else:
        without, within = predict(z.repeat(2, 1, 1, 1), t.repeat(2), prompts).chunk(2)
        predicted = without + guidance * (within - without)
    return schedule.step(z, t, torch.full_like(t, following), predicted)


def denoised(
    schedule: NoiseSchedule,
    predict: Callable[[Tensor, Tensor, Conditioning], Tensor],
    z: Tensor,
    steps: int,
    prompts: Conditioning,
    guidance: float,
) -> Tensor:
    """Clean latents [B, C, H, W] from noise z; all else as of ``guided_step``, of which so many are made."""
    for now_and_next in onwards(schedule.timesteps(steps)):
        z = guided_step(schedule, predict, z, now_and_next, prompts, guidance)
    return z


def missed_noise(
    schedule: NoiseSchedule,
    predict: Callable[[Tensor, Tensor, Conditioning, Sequence[int]], Tensor],
    latents: Tensor,
    noise: Tensor,
    t: Tensor,
    prompts: Conditioning,
) -> Tensor:
    """How much of the noise in pictures a model misses with each of some prompts: what explains a picture misses least
    (Li et al. 2023, Your Diffusion Model is Secretly a Zero-Shot Classifier).

    Args:
        schedule: the model's.
        predict: from noisy latents [N, C, H, W], timesteps [N], prompts and for each latent the place of its prompt.
        latents: clean ones, [B, C, H, W].
        noise: [L, C, H, W], added to each of them at the timesteps ``t`` [L].
        prompts: P of them.

    Returns:
        Mean squared differences, [P, B, L].
    """
    looks, count, many = len(noise), len(latents), len(prompts)
    noisy = schedule.add_noise(latents.repeat_interleave(looks, 0), noise.repeat(count, 1, 1, 1), t.repeat(count))
    z, times = noisy.repeat(many, 1, 1, 1), t.repeat(many * count)
    rows = [prompt for prompt in range(many) for _ in range(len(noisy))]
    told = schedule.noise_of(z, times, predict(z, times, prompts, rows))
    missed: Tensor = (told - noise.repeat(many * count, 1, 1, 1)).pow(2).flatten(1).mean(1)
    return missed.reshape(many, count, looks)


def finite(latents: Tensor, model: LoadedModel | None = None) -> Tensor:
    """Latents as they are; of a ``model`` that painted them its own weights are looked at first.

    Raises:
        ModelError: they are no finite numbers, so no picture.
    """
    if not torch.isfinite(latents).all():
        if model is not None:
            check_model(model)
        raise ModelError(
            "The model paints no finite numbers. Lower the strength of its erasures; if it paints none without them "
            "either, its weights hold numbers that are too large: get a fresh copy of it, or load it in float32."
        )
    return latents
