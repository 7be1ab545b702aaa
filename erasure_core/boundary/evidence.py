"""Diffusion-classifier evidence: what the original model sees in a picture that the erased model made.

A diffusion model that explains a picture's noise better with a prompt than with another sees that prompt in it (Li et
al. 2023, Your Diffusion Model is Secretly a Zero-Shot Classifier). So the loaded model judges its own pictures.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..sampling import seeded_noise
from .candidate import Candidate
from .probe import denoised
from .subject import Subject, derived

STEPS = 12
"""Sampling steps of the pictures that are looked at."""
PAINTING = 2 * STEPS
"""Predictions that one of these pictures takes."""
LEAST_NOISE, MOST_NOISE = 0.25, 0.9
LOOKS = 6
"""Noisy versions of a picture that are compared."""


@torch.no_grad()
def paint(subject: Subject, candidates: Sequence[Candidate], seed: int, steps: int = STEPS) -> Tensor:
    """One clean latent for each candidate by the model as it is, [B, C, H, W]; all from the same starting noise."""
    model = subject.model
    z = seeded_noise(model.latent_shape, [seed]).repeat(len(candidates), 1, 1, 1).to(model.device)
    return denoised(subject, subject.encode(candidates), z, steps)


class Evidence:
    """Looks at latents with the original model.

    Args:
        subject: the opened model.
        concept: prompts that say the concept.
        others: prompts of what it could be taken for; the empty prompt is always among them.
        seed: of the noise.
    """

    @torch.no_grad()
    def __init__(self, subject: Subject, concept: Sequence[str], others: Sequence[str], seed: int = 0) -> None:
        self.subject, self.inside = subject, len(concept)
        model = subject.model
        with subject.original():
            self.prompts = subject.encode_texts([*concept, "", *others])
        share = torch.linspace(LEAST_NOISE, MOST_NOISE, LOOKS)
        self.t = (share * (len(model.schedule) - 1)).long().to(model.device)
        seeds = [derived(seed, 900_000 + i) for i in range(LOOKS)]
        self.noise = seeded_noise(model.latent_shape, seeds).to(model.device)

    @property
    def cost(self) -> int:
        """Predictions that looking at one picture takes."""
        return len(self.prompts) * LOOKS

    @torch.no_grad()
    def __call__(self, latents: Tensor) -> list[float]:
        """For each clean latent [B, C, H, W] how much better the concept explains it than anything else does.

        Above 0 the original model sees the concept. The unit is the mean gain of a prompt over the empty one.
        """
        return [self._one(latent) for latent in latents]

    def _one(self, latent: Tensor) -> float:
        model, count = self.subject.model, len(self.prompts)
        noisy = model.schedule.add_noise(latent.expand_as(self.noise), self.noise, self.t)
        rows = self.prompts[[i for i in range(count) for _ in range(LOOKS)]]
        with self.subject.original():
            predicted = self.subject.predict(noisy.repeat(count, 1, 1, 1), self.t.repeat(count), rows)
        times = self.t.repeat(count)
        _, noise = model.schedule.split(noisy.repeat(count, 1, 1, 1), times, predicted)
        missed = (noise - self.noise.repeat(count, 1, 1, 1)).pow(2).flatten(1).mean(1).reshape(count, LOOKS)
        # Each look in units of how much prompts differ in it: the noisiest would drown the others.
        gain = (missed[self.inside] - missed) / missed.std(0, unbiased=False).clamp_min(1e-12)
        means = gain.mean(1)
        return float(means[: self.inside].max() - means[self.inside :].max())
