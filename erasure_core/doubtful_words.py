"""Whether a model reads a word as a concept, where the directions that a survey compares leave that in doubt: it paints
pictures, and looks at them.

A diffusion model sees in a picture what explains the picture's noise best (Li et al. 2023, Your Diffusion Model is
Secretly a Zero-Shot Classifier). Two looks, at pictures by the model itself:

1. At pictures of the concept. A word for it explains them nearly as well as the concept's own words do; a word for
   another thing explains them worse than no word at all.
2. At pictures of the word, which cost more and are painted only for words that are still in doubt. The concept explains
   them nearly as well as anything that is kept.

Measured in a third picture world, on seven concepts: of 89 words in doubt, 31 of which are painted as the concept in
seven of ten pictures, looks like these found 16, and one that is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .batches import Batches
from .concept import Frame
from .model import Conditioning, PromptModel, encode_each
from .progress import Progress
from .sampling import denoised, missed_noise, seeded_noise

PICTURES = 2
"""In each frame."""
STEPS, GUIDANCE = 12, 3.0
"""Of these pictures; the scale is that of trainings."""
LEAST_NOISE, MOST_NOISE, LEVELS = 0.43, 0.82, 4
"""Shares of the timesteps at which pictures are noised to be explained, and how many."""
EXPLAINING = 0.35
"""Share of what the concept's own words explain of its pictures, from which a word may mean it."""
NEARLY = -0.3
"""So much worse than what is kept may the concept explain a word's pictures, in units of the spread of what the words
asked for explain: with a word's own pictures in doubt, the look at the concept's has said that it may belong."""
MOST_OWN = 3
"""Words of the concept that are asked for: each takes as long as a word in doubt."""


@dataclass
class PictureLooks:
    """Looks at a model's own pictures.

    Args:
        model: the loaded model, untouched.
        own: the concept's words.
        frames: prompts with room for a word.
        shape: of the pictures' latents, [C, H, W].
        at_once: most latents in one call.
        seed: of all noise.
        progress: asked whether the user stopped.
    """

    model: PromptModel
    own: Sequence[str]
    frames: Sequence[Frame]
    shape: tuple[int, int, int]
    at_once: int
    seed: int
    progress: Progress

    def __post_init__(self) -> None:
        self.own = self.own[:MOST_OWN]
        self.batches = Batches(self.at_once)
        share = torch.linspace(LEAST_NOISE, MOST_NOISE, LEVELS, dtype=torch.float64)
        self.t = (share * (len(self.model.schedule) - 1)).long().to(self.model.device)
        self.noise = seeded_noise(self.shape, [self.seed + 7000 + i for i in range(LEVELS)]).to(self.model.device)

    def explained(self, words: Sequence[str]) -> list[float]:
        """How much of pictures of the concept each word explains, as a share of what the concept's own words do.

        1 where it does as well, below 0 where it does worse than no word; 0 for all where those words explain nothing.
        """
        gained = torch.zeros(len(self.own) + len(words))
        best = 0.0
        for room in self.frames:
            latents = self._painted([room.say(self.own[i % len(self.own)]) for i in range(PICTURES)])
            missed = self._missed(latents, [room.say(word) for word in ("", *self.own, *words)]).mean(2)
            gained += (missed[0] - missed[1:]).sum(1)
            best += float((missed[0] - missed[1 : 1 + len(self.own)].amin(0)).sum())
        if best <= 0:
            return [0.0] * len(words)
        shares: list[float] = (gained[len(self.own) :] / best).tolist()
        return shares

    def sees(self, word: str, rivals: Sequence[str]) -> float:
        """How much better the concept explains pictures of a word than any of its rivals, or no word, does; below 0
        where it does worse. The unit is the spread of what all of them explain."""
        found = []
        for room in self.frames:
            latents = self._painted([room.say(word)] * PICTURES)
            missed = self._missed(latents, [room.say(said) for said in (word, *self.own, "", *rivals)])
            gains = (-missed / missed.std(0, keepdim=True, unbiased=False).clamp_min(1e-12)).mean(2)
            own, others = torch.split(gains[1:], [len(self.own), 1 + len(rivals)])
            found.append(own.amax(0) - others.amax(0))
        return float(torch.cat(found).mean())

    def _painted(self, prompts: Sequence[str]) -> Tensor:
        """One clean latent for each prompt, [B, *shape]."""
        model = self.model
        both = encode_each(model, [""] * len(prompts) + list(prompts))
        z = seeded_noise(self.shape, [self.seed + 100 + i for i in range(len(prompts))]).to(model.device)
        return denoised(model.schedule, self._predict, z, STEPS, both, GUIDANCE)

    def _predict(self, z: Tensor, t: Tensor, prompts: Conditioning, places: Sequence[int] | None = None) -> Tensor:
        return self.batches.predict(self.model, z, t, prompts, self.progress, prompts=places)

    def _missed(self, latents: Tensor, prompts: Sequence[str]) -> Tensor:
        """What each of P prompts misses of latents [B, C, H, W] at each level, [P, B, LEVELS]."""
        asked = encode_each(self.model, prompts)
        return missed_noise(self.model.schedule, self._predict, latents, self.noise, self.t, asked).float().cpu()
