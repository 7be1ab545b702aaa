"""Guidance directions at a few noisy latents: what a model steers towards when it reads a prompt.

The states are noised pictures of neutral prompts, made by the original model itself. Of three times as many drawn,
those are kept that tell the concept best from everything else on the original model (Fisher's ratio), so the probe
adapts to whether a concept shows early (shapes) or late (surfaces) in sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .. import sampling
from ..model import Conditioning, encode_each
from ..sampling import at_most, seeded_noise
from .subject import Subject, derived

SAMPLING_STEPS = 8
LEAST_NOISE, MOST_NOISE = 0.30, 0.98
"""Timesteps of the states as a share of the schedule."""
OVERSAMPLED = 3
"""States drawn for each that is kept. To draw fewer, to noise a picture twice, or to choose by some of the prompts
alone was tried, and made the posterior much worse."""
LARGEST_SIDE = 64
"""Latent pixels along a side of the states: which way a prompt steers shows in smaller pictures too, and
for SDXL at less than a quarter of the cost."""


@dataclass(frozen=True)
class Probe:
    """States at which prompts are compared.

    Args:
        latents: z_t, [S, C, H, W].
        t: [S].
        empty: the original model's prediction for the empty prompt, [S, C, H, W].
        empty_erased: the erased model's.
        scale: [S], what makes a unit of squared distance of a state worth as much as one of another.
    """

    latents: Tensor
    t: Tensor
    empty: Tensor
    empty_erased: Tensor
    scale: Tensor

    def __len__(self) -> int:
        return len(self.t)

    def take(self, places: Sequence[int]) -> Probe:
        """The probe with these states alone."""
        rows = list(places)
        return Probe(self.latents[rows], self.t[rows], self.empty[rows], self.empty_erased[rows], self.scale[rows])

    @torch.no_grad()
    def seen_by(self, subject: Subject) -> Probe:
        """The same states for a model with other erasures on it."""
        return replace(self, empty_erased=empty_predictions(subject, self.latents, self.t))

    def directions(self, subject: Subject, prompts: Conditioning, erased: bool) -> Tensor:
        """g(z, p) = eps(z, p) - eps(z, "") for prompts [N], scaled and laid out flat: float32 [N, S * C * H * W].

        Squared distances between rows are mean squared differences over states, each in units of that state's usual
        guidance. ``erased`` says which empty prediction is subtracted; the caller switches the erasures.
        """
        count, states = len(prompts), len(self)
        latents, places = self.latents.repeat(count, 1, 1, 1), [i for i in range(count) for _ in range(states)]
        predicted = subject.predict(latents, self.t.repeat(count), prompts, places)
        empty = self.empty_erased if erased else self.empty
        return self.weighed(predicted.reshape(count, states, -1) - empty.flatten(1))

    def weighed(self, guided: Tensor) -> Tensor:
        """Bare differences [N, S, C * H * W], scaled and laid out flat."""
        return (guided * (self.scale / len(self)).sqrt()[:, None]).flatten(1)


@torch.no_grad()
def neutral_latents(
    subject: Subject, prompts: Sequence[str], count: int, seed: int, shape: tuple[int, int, int] | None = None
) -> Tensor:
    """Clean latents of neutral pictures by the original model, [count, *shape]; of its own shape if none is given."""
    noise = seeded_noise(shape or subject.model.latent_shape, [derived(seed, i) for i in range(count)])
    with subject.original():
        read = encode_each(subject.model, [prompts[i % len(prompts)] for i in range(count)])
        return denoised(subject, read, noise.to(subject.model.device), SAMPLING_STEPS)


@torch.no_grad()
def denoised(subject: Subject, prompts: Conditioning, z: Tensor, steps: int) -> Tensor:
    """Clean latents by the model as it is, from noise z [B, C, H, W] and as many prompts, in as many calls as the
    memory asks for."""
    model = subject.model
    both = Conditioning.cat([model.encode([""])[[0] * len(z)], prompts])
    return sampling.denoised(model.schedule, subject.predict, z, steps, both, subject.guidance)


@torch.no_grad()
def make_probe(
    subject: Subject, concept: Conditioning, others: Conditioning, neutral: Sequence[str], states: int, seed: int
) -> tuple[Probe, Tensor, Tensor]:
    """Draw states and keep the ``states`` best ones.

    Args:
        subject: the opened model.
        concept: prompts that say the concept, as the original model reads them.
        others: prompts that say something else.
        neutral: prompts of the pictures.
        states: how many are kept.
        seed: of pictures, noise and timesteps.

    Returns:
        The probe with the original model's directions of ``concept`` and of ``others`` there.
    """
    drawn, model = OVERSAMPLED * states, subject.model
    shape = at_most(model.latent_shape, LARGEST_SIDE)
    clean = neutral_latents(subject, neutral, drawn, seed, shape)
    noise = seeded_noise(shape, [derived(seed, 500_000 + i) for i in range(drawn)]).to(model.device)
    share = torch.linspace(LEAST_NOISE, MOST_NOISE, drawn)
    t = (share * (len(model.schedule) - 1)).long().to(model.device)
    latents = model.schedule.add_noise(clean, noise, t)
    with subject.original():
        empty = empty_predictions(subject, latents, t)
    bare = Probe(latents, t, empty, empty, torch.full((drawn,), float(drawn), device=model.device))
    with subject.original():
        inside = bare.directions(subject, concept, erased=False).reshape(len(concept), drawn, -1)
        outside = bare.directions(subject, others, erased=False).reshape(len(others), drawn, -1)
    usual = outside.pow(2).sum(-1).mean(0).clamp_min(1e-12)
    chosen = fisher_ratio(inside, outside).topk(states).indices.sort().values.tolist()
    probe = replace(bare, scale=1 / usual).take(chosen)
    return probe.seen_by(subject), probe.weighed(inside[:, chosen]), probe.weighed(outside[:, chosen])


def probe_calls(prompts: int, states: int) -> int:
    """Predictions that ``make_probe`` takes for so many prompts in all."""
    return OVERSAMPLED * states * (2 * SAMPLING_STEPS + 1 + prompts) + states


def empty_predictions(subject: Subject, latents: Tensor, t: Tensor) -> Tensor:
    """The model's prediction for the empty prompt, as it is now."""
    return subject.predict(latents, t, subject.model.encode([""])[[0] * len(t)])


def fisher_ratio(inside: Tensor, outside: Tensor) -> Tensor:
    """How well each state tells two sets of directions [N, S, D] apart: squared distance of means over the spread."""
    between = (inside.mean(0) - outside.mean(0)).pow(2).sum(-1)
    within = inside.var(0, unbiased=False).sum(-1) + outside.var(0, unbiased=False).sum(-1)
    return between / within.clamp_min(1e-12)
