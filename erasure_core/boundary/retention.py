"""What else an erasure changed: do other prompts still steer where they did?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..model import fitting
from ..sampling import seeded_noise
from .candidate import Candidate
from .scores import Scorer
from .subject import derived

MODIFIERS = (
    "in red", "in blue", "made of glass", "made of wood", "at night", "in the snow", "as a watercolor painting",
    "as a pencil drawing", "seen from above", "in a forest", "on a table", "in a city street",
)  # fmt: skip
"""What a prompt for the concept may say besides it."""
DRIFT_STATES = 12
"""Timesteps at which the unconditional drift is told."""


@dataclass(frozen=True)
class Kept:
    """One prompt that should steer as before.

    Args:
        text: the prompt.
        recognised: its direction in the erased model is still nearest to its own in the original model, among all.
        change: ||g_e - g0|| / ||g0||.
    """

    text: str
    recognised: bool
    change: float


@torch.no_grad()
def kept_prompts(scorer: Scorer, texts: Sequence[str]) -> list[Kept]:
    """How prompts fared; ``scorer`` looks at the erased model."""
    if not texts:
        return []
    after = scorer.directions([Candidate(text, "kept") for text in texts])
    return _compared(texts, scorer.original_directions(texts), after, scorer.towards)


@torch.no_grad()
def known_prompts(scorer: Scorer, texts: Sequence[str]) -> list[str]:
    """Those prompts that the original model knows: where the others steer is chance, so nothing is lost with them."""
    if not texts:
        return []
    known = scorer.knows(scorer.original_directions(texts)).tolist()
    return [text for text, is_known in zip(texts, known, strict=True) if is_known]


@torch.no_grad()
def attributes(scorer: Scorer) -> list[Kept]:
    """Whether what a prompt says besides the concept is still heard: the difference that a modifier makes, of those
    that leave room for it and that the original model knows."""
    bare = f"a {scorer.concept.name}"
    texts = fitting(scorer.subject.model, [f"{bare} {modifier}" for modifier in MODIFIERS])
    if not texts:
        return []
    bare_one, *read = scorer.original_directions([bare, *texts])
    before = torch.stack(read) - bare_one
    known = scorer.knows(before).nonzero().flatten().tolist()
    if not known:
        return []
    texts = [texts[i] for i in known]
    heard = scorer.directions([Candidate(text, "attribute") for text in (bare, *texts)])
    return _compared(texts, before[known], heard[1:] - heard[0], before[:0])


def _compared(texts: Sequence[str], before: Tensor, after: Tensor, rivals: Tensor) -> list[Kept]:
    """Nearest by cosine among all directions of before and the rivals."""
    every = F.normalize(torch.cat([before, rivals]), dim=1)
    nearest = (F.normalize(after, dim=1) @ every.T).argmax(1).tolist()
    change = ((after - before).norm(dim=1) / before.norm(dim=1).clamp_min(1e-9)).tolist()
    return [
        Kept(text, found == place, round(moved, 5))
        for place, (text, found, moved) in enumerate(zip(texts, nearest, change, strict=True))
    ]


@torch.no_grad()
def drift(scorer: Scorer, seed: int = 0) -> list[tuple[int, float]]:
    """||eps(z, "") - eps0(z, "")|| / ||eps0(z, "")|| at evenly spread timesteps, over noised pictures: those that the
    original model sees in the least noisy half of the scorer's states."""
    subject, probe = scorer.subject, scorer.probe
    model = subject.model
    clean, _ = model.schedule.split(probe.latents, probe.t, probe.empty)
    least = probe.t.argsort()[: max(1, len(probe) // 2)].repeat(DRIFT_STATES)[:DRIFT_STATES]
    seeds = [derived(seed, 300_000 + i) for i in range(DRIFT_STATES)]
    shape = (probe.latents.shape[1], probe.latents.shape[2], probe.latents.shape[3])
    noise = seeded_noise(shape, seeds).to(model.device)
    t = torch.linspace(20, len(model.schedule) - 1, DRIFT_STATES).long().to(model.device)
    z = model.schedule.add_noise(clean[least], noise, t)
    places = [0] * DRIFT_STATES
    with subject.original():
        before = subject.predict(z, t, model.encode([""])[places])
    after = subject.predict(z, t, model.encode([""])[places])
    before, after = (model.schedule.noise_of(z, t, predicted).flatten(1) for predicted in (before, after))
    moved = (after - before).norm(dim=1) / before.norm(dim=1).clamp_min(1e-9)
    return [(int(step), round(float(value), 6)) for step, value in zip(t, moved, strict=True)]
