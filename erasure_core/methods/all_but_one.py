"""All but One: change nothing but the guidance towards the concept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..layers import LAYER_GROUPS
from ..run_state import RunState
from ..trajectory import EMPTY, PROMPT
from .registry import method, option
from .text_space import TextSpaceSettings, text_terms
from .vocabulary import VocabularySettings, with_own_words

if TYPE_CHECKING:
    from ..trainer import Step, Trainer
    from ..trajectory import Draw

BINS = 5


@dataclass(frozen=True)
class AllButOneSettings(TextSpaceSettings, VocabularySettings):
    """Settings of All but One."""

    without: str = option(
        "neutralise",
        "what the guidance becomes where nothing takes the concept's place: none, or the opposite of the concept's",
        choices=("neutralise", "hard"),
    )
    negative: float = option(1.0, "hard: how far to push away from the concept", low=0.0, high=10.0, basic=True)
    layers: str = option("text-encoder", "layers that change", choices=tuple(LAYER_GROUPS), combine=True, basic=True)
    steps: int = option(200, "optimiser steps", low=1, high=100_000, basic=True)
    trajectory_steps: int = option(10, "sampling steps of each of them", low=1, high=1000)
    keep_weight: float = option(4.0, "weight of the retention of kept prompts", low=0.0, high=1000.0, basic=True)
    drift_weight: float = option(8.0, "lambda: weight of the unconditional constraint", low=0.0, high=1000.0)


def guidance_goal(settings: Any, concept: Draw) -> Tensor:
    """G: g0(z, a) where an alternative is given, else 0 (neutralise) or -eta g0(z, c) (hard)."""
    pushed = -settings.negative if settings.without == "hard" else 0.0
    return concept.answered_or(pushed * concept.guidance, lambda towards: towards)


def beside(concept: Draw) -> Tensor:
    """g0(z, b): the guidance towards what the prompts say beside the concept, nothing for the word alone."""
    return concept.base - concept.teacher[EMPTY]


def wanted_instead(settings: Any, concept: Draw) -> Tensor:
    """eps0(z, b) + G: what the model is to predict for the concept's prompts."""
    wanted: Tensor = concept.base + guidance_goal(settings, concept)
    return wanted


class Diagnostics(RunState):
    """Keeps the last states' drift and residual guidance for each part of the schedule, for the history."""

    def closing(self) -> dict[str, float]:
        return diagnose(self.trainer)


@torch.no_grad()
def diagnose(trainer: Trainer, count: int = 64) -> dict[str, float]:
    """For each fifth of the schedule, from clean to noisy, over ``count`` states of the concept's pool:

    ``drift``: ||eps(z, "") - eps0(z, "")|| / ||eps0(z, "")||, and ``residual``: ||g(z, c) - G|| / ||g0(z, c)||.
    """
    draw = trainer.pools["concept"].draw(count, trainer.chance(700_000_001))
    prompt, empty = trainer.predict_in_pieces([(draw, draw.prompts), (draw, [""] * count)])
    assert isinstance(trainer.settings, AllButOneSettings)
    missed = prompt - empty - beside(draw) - guidance_goal(trainer.settings, draw)
    found = {}
    for part in range(BINS):
        rows = (draw.t * BINS // len(trainer.model.schedule)) == part
        if rows.any():
            drift = (empty - draw.teacher[EMPTY])[rows].norm() / draw.teacher[EMPTY][rows].norm()
            found[f"drift {part + 1}/{BINS}"] = float(drift)
            found[f"residual {part + 1}/{BINS}"] = float(
                missed[rows].norm() / draw.guidance[rows].norm().clamp_min(1e-12)
            )
    return found


@method(
    "all_but_one",
    "All but One (surgical guidance)",
    "All but One: Surgical Concept Erasing with Model Preservation, AAAI 2024, arXiv 2312.12807",
    "reconstruction from the published description",
    AllButOneSettings,
    state=Diagnostics,
    prepare=with_own_words,
    goal=wanted_instead,
    erasing="surgical",
)
def all_but_one(settings: AllButOneSettings, step: Step) -> dict[str, Tensor]:
    """||[eps(z, c) - sg eps(z, "")] - [g0(z, b) + G]||^2 + lambda ||eps(z, "") - eps0(z, "")||^2
    + ||eps(z_r, r) - eps0(z_r, r)||^2 + the two terms of ``text_space``"""
    concept, kept = step.concept, step.kept
    guided, empty, same = step.trainer.predict(
        [(concept, concept.prompts), (concept, [""] * len(concept.prompts)), (kept, kept.prompts)]
    )
    terms = {
        "surgical": F.mse_loss(guided - empty.detach(), beside(concept) + guidance_goal(settings, concept)),
        "drift": settings.drift_weight * F.mse_loss(empty, concept.teacher[EMPTY]),
        "keep": settings.keep_weight * F.mse_loss(same, kept.teacher[PROMPT]),
    }
    return terms | text_terms(step, settings, nothing=settings.without == "neutralise")
