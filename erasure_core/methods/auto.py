"""All together: surgical guidance, the model's own words for the concept, and its boundary.

Made of parts of the other methods, each of which a setting switches off:

1. The model is asked which words near the concept it reads as the concept (``survey``); they are erased too. Words near
   it that it reads otherwise are kept.
2. Where no alternative is given, the word of the prompts to keep that is most like the concept becomes it: a picture
   stays whole when something takes the concept's place. Where nothing is kept either, the model's likest other word.
3. The guidance is changed surgically (All but One), for the words and for boundary points that self-checks find (SAGE).
4. Where pictures of the concept are given, prompts with picture tokens are erased as well (Co-Erasing).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..layers import LAYER_GROUPS
from ..trajectory import EMPTY, PROMPT
from .all_but_one import beside, guidance_goal, wanted_instead
from .boundary_points import Boundary, CheckSettings, check_self_checks
from .picture_tokens import PictureState, with_pictures
from .registry import method, option
from .text_space import TextSpaceSettings, text_terms
from .vocabulary import with_own_words

if TYPE_CHECKING:
    from ..trainer import Step


@dataclass(frozen=True)
class AutoSettings(TextSpaceSettings, CheckSettings):
    """Settings of the combination."""

    layers: str = option("text-encoder", "layers that change", choices=tuple(LAYER_GROUPS), combine=True, basic=True)
    steps: int = option(200, "optimiser steps", low=1, high=100_000, basic=True)
    trajectory_steps: int = option(10, "sampling steps of each of them", low=1, high=1000)
    keep_weight: float = option(4.0, "weight of the retention of kept prompts", low=0.0, high=1000.0, basic=True)
    without: str = option(
        "hard",
        "where nothing takes the concept's place: ignore it (neutralise) or push away from it (hard)",
        choices=("neutralise", "hard"),
    )
    negative: float = option(
        0.5, "hard: how far to push away where nothing takes the concept's place", low=0.0, high=10.0, basic=True
    )
    drift_weight: float = option(1.0, "weight of the unconditional constraint", low=0.0, high=1000.0)
    boundary_weight: float = option(1.0, "weight of found boundary points", low=0.0, high=100.0)
    picture_weight: float = option(0.5, "weight of prompts with pictures, if any are given", low=0.0, high=100.0)
    picture_tokens: int = option(4, "tokens learned for each picture, where there is no adapter", low=1, high=64)
    inversion_steps: int = option(120, "steps for learning the picture tokens", low=1, high=10_000)
    refine: bool = option(True, "rebuild the picture tokens from the concept's text tokens")


class AutoState(Boundary):
    """Boundary points, and where pictures are given their tokens."""

    def __init__(self, trainer: Any) -> None:
        super().__init__(trainer)
        self.pictures = PictureState(trainer) if trainer.pictures is not None else None

    def attached(self) -> AbstractContextManager[None]:
        return nullcontext() if self.pictures is None else self.pictures.attached()

    def after_backward(self) -> None:
        if self.pictures is not None:
            self.pictures.after_backward()

    def begin(self) -> dict[str, Tensor]:
        s = self.trainer.settings
        if self.pictures is None or not isinstance(s, AutoSettings):
            return {}
        chance = self.trainer.chance(900_000_011)
        return {"tokens": self.pictures.learned_tokens(chance, 0, s.picture_tokens, s.inversion_steps)}


@method(
    "auto",
    "Combined (recommended)",
    "parts of All but One (arXiv 2312.12807), SAGE (2506.09363) and Co-Erasing (2505.11131)",
    "a combination of our own",
    AutoSettings,
    state=AutoState,
    prepare=with_own_words,
    goal=wanted_instead,
    check=check_self_checks,
    erasing="surgical",
)
def auto(settings: AutoSettings, step: Step) -> dict[str, Tensor]:
    """All but One's surgical loss for the words, for boundary points p and for pictures x, with its two constraints.

    sum over k in {c, [c, x]} of w_k ||[eps(z, k) - sg eps(z, "")] - [g0(z, b) + G]||^2
    + w_p ||eps(z, p) - [eps0(z, b) + G]||^2 + lambda ||eps(z, "") - eps0(z, "")||^2
    + ||eps(z_r, r) - eps0(z_r, r)||^2 + the two terms of ``text_space``
    """
    concept, kept, state = step.concept, step.kept, step.state
    assert isinstance(state, AutoState)
    wanted: list[Any] = [(concept, concept.prompts), (concept, [""] * len(concept.prompts)), (kept, kept.prompts)]
    goal, said_beside = guidance_goal(settings, concept), beside(concept)
    weights, goals = [1.0], [said_beside + goal]
    bounding = state.drawn(step) if settings.boundary_weight else None
    if state.pictures is not None and settings.picture_weight:
        tokens, text = state.tensors["tokens"], step.trainer.encoded(concept.prompts)
        shown = torch.randint(len(tokens), (len(concept.prompts),), generator=step.generator).tolist()
        shown = state.pictures.shown(concept.prompts, shown, len(tokens))
        wanted.append((concept, with_pictures(text, tokens, shown, settings.refine)))
        weights.append(settings.picture_weight)
        goals.append(said_beside + goal)
    if bounding is not None:
        wanted.append((bounding.draw, bounding.points))
    guided, empty, same, *more = step.trainer.predict(wanted)
    boundary = [] if bounding is None else [(bounding.draw, more.pop())]
    said = zip(weights, goals, [guided, *more], strict=True)
    surgical = [weight * F.mse_loss(one - empty.detach(), wish) for weight, wish, one in said]
    surgical += [settings.boundary_weight * F.mse_loss(one, wanted_instead(settings, draw)) for draw, one in boundary]
    terms = {
        "surgical": torch.stack(surgical).sum(),
        "drift": settings.drift_weight * F.mse_loss(empty, concept.teacher[EMPTY]),
        "keep": settings.keep_weight * F.mse_loss(same, kept.teacher[PROMPT]),
    }
    return terms | text_terms(step, settings)
