"""Diffusion-classifier evidence: what the original model sees in a picture that the erased model made.

A diffusion model that explains a picture's noise better with a prompt than with another sees that prompt in it (Li et
al. 2023, Your Diffusion Model is Secretly a Zero-Shot Classifier). So the loaded model judges its own pictures.

A thing is asked for by itself: "a photo of a ball". A colour, a pattern or a style is asked for of several things, "a
red house", "a red tree", against the same things in other colours, and the mean over the things counts: "a photo of a
red" alone stands for whatever scene the model happens to paint for it, and pictures that look like this scene passed
for red though they were yellow.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from ..concept import worded
from ..kinds import describes
from ..sampling import missed_noise, seeded_noise
from .candidate import Candidate
from .probe import denoised
from .scores import Scorer
from .searches.lexical import of_things
from .subject import Subject, derived
from .wording import with_room

STEPS = 12
"""Sampling steps of the pictures that are looked at."""
PAINTING = 2 * STEPS
"""Predictions that one of these pictures takes."""
LEAST_NOISE, MOST_NOISE = 0.25, 0.9
LOOKS = 6
"""Noisy versions of a picture that are compared."""
SURELY_NOT = -0.5
"""What half of the looks say of a picture so far from the concept that the others need not be asked: most pictures of a
search show nothing of it, and a look costs more than the painting."""
MOST_WORDS = 3
"""Words of the concept that are asked for: one of many words would make every look many times as long."""
THINGS = 3
"""Things that a colour is asked for of."""

Meaning = Sequence[str]
"""What a picture may show, said in one prompt for each of the scenes that are compared."""


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
        concept: meanings that are the concept, such as one for each of its words.
        others: what it could be taken for, nothing in its place among them; as many prompts each as the concept's.
        seed: of the noise.
    """

    @torch.no_grad()
    def __init__(self, subject: Subject, concept: Sequence[Meaning], others: Sequence[Meaning], seed: int = 0) -> None:
        self.subject, self.inside = subject, len(concept)
        meanings, model = [*concept, *others], subject.model
        self.scenes = len(meanings[0])
        with subject.original():
            self.prompts = subject.encode_texts(
                [meaning[scene] for scene in range(self.scenes) for meaning in meanings]
            )
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

        Above 0 the original model sees the concept. The unit is the spread of what the prompts of a scene explain.
        """
        return [self._one(latent) for latent in latents]

    def _one(self, latent: Tensor) -> float:
        gains = self._gains(latent, range(0, LOOKS, 2))
        if self._seen(gains) > SURELY_NOT:
            gains = torch.cat([gains, self._gains(latent, range(1, LOOKS, 2))], dim=2)
        return self._seen(gains)

    def _seen(self, gains: Tensor) -> float:
        means = gains.mean((0, 2))
        return float(means[: self.inside].max() - means[self.inside :].max())

    def _gains(self, latent: Tensor, looks: Sequence[int]) -> Tensor:
        """How well each meaning explains a latent in some of the looks, [scenes, meanings, len(looks)]."""
        schedule, predict, some = self.subject.model.schedule, self.subject.predict, list(looks)
        with self.subject.original():
            told = missed_noise(schedule, predict, latent[None], self.noise[some], self.t[some], self.prompts)
        missed = told.reshape(self.scenes, -1, len(looks))
        # Each look in units of how much prompts differ in it: the noisiest would drown the others.
        return -missed / missed.std(1, keepdim=True, unbiased=False).clamp_min(1e-12)


@torch.no_grad()
def of_concept(subject: Subject, scorer: Scorer, seed: int = 0) -> Evidence:
    """Looks for a concept: against what steers most like it, or, of a colour and its like, of things against the same
    things in other colours."""
    words = scorer.concept.words[:MOST_WORDS]
    if describes(scorer.concept.words) and (meanings := _of_things(subject, scorer)):
        return Evidence(subject, *meanings, seed)
    (template,) = with_room(subject.model, ["a photo of a {}"], words)
    others = ["", *scorer.rivals()]
    return Evidence(subject, [(worded(template, word),) for word in words], [(other,) for other in others], seed)


@torch.no_grad()
def of_thing(subject: Subject, scorer: Scorer, candidate: Candidate, seed: int = 0) -> Evidence:
    """Looks whether a picture shows the concept of a thing, rather than that thing alone or as another word of the kind
    says: red, and not blue or of any colour."""
    others = scorer.rivals_of(candidate)
    return Evidence(subject, [(candidate.text,)], [(other,) for other in others], seed)


def _of_things(subject: Subject, scorer: Scorer) -> tuple[list[Meaning], list[Meaning]] | None:
    """The concept's words, and what could stand in their place, said of the same things; first nothing. ``None`` where
    the model knows no thing of which they make a difference."""
    said = scorer.telling(of_things(subject.model, scorer.concept))
    things = [thing for thing, _ in Counter(one.against[0] for one in said).most_common(THINGS)]
    by_word: dict[str, list[Candidate]] = {one.word: [] for one in said}
    for one in said:
        if one.against[0] in things:
            by_word[one.word].append(one)
    concept = [of_word for of_word in by_word.values() if len(of_word) == len(things)][:MOST_WORDS]
    if not concept:
        return None
    others: dict[Meaning, bool] = {}
    for of_word in concept:
        far = [set(scorer.rivals_of(one)) for one in of_word]
        for meaning in zip(*(one.against for one in of_word), strict=False):
            is_far = 2 * sum(text in texts for text, texts in zip(meaning, far, strict=True)) > len(things)
            others[meaning] = others.get(meaning, True) and is_far  # what one word reads as its own is no rival at all
    return [[one.text for one in of_word] for of_word in concept], [other for other, is_far in others.items() if is_far]
