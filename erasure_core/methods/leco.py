"""LECO: ESD's target trained into a LoRA.

The target is that of the published script's erase action; the training is ours. The script trains all layers of the
transformers at rank 4 with alpha 1, 500 steps at a rate of 1e-4, one state in each, of the one prompt it is given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import functional as F

from ..trajectory import ORIGINAL, PROMPT, TRAINING
from .esd import target
from .registry import TrainingSettings, method, option

if TYPE_CHECKING:
    from ..trainer import Step


@dataclass(frozen=True)
class LecoSettings(TrainingSettings):
    """Settings of LECO. Kept prompts are not looked at: the original has no retention."""

    driver: str = option(TRAINING, "where the trajectories lead", choices=(ORIGINAL, TRAINING))
    contexts: int = option(0, "training prompts that say the concept inside your kept prompts", low=0, high=1000)
    neighbours: int = option(0, "words near each word of the kept prompts that are kept too", low=0, high=100)
    keep_weight: float = option(0.0, "weight of the retention of kept prompts", low=0.0, high=1000.0, basic=True)
    replace: bool = option(
        False, "without an alternative, the likest word of your kept prompts takes the place", basic=True
    )
    negative: float = option(
        1.0, "guidance_scale of a prompt file: how far to push away", low=0.0, high=10.0, basic=True
    )
    negative_beside: float = option(1.0, "the same where a neutral prompt is given", low=0.0, high=10.0)
    towards: float = option(1.0, "guidance towards the neutral prompt, if one is given", low=0.0, high=10.0)


@method(
    "leco",
    "LECO (LoRA from ESD's target)",
    "p1atdev/LECO, 2023: Low-rank adaptation for erasing concepts from diffusion models",
    "the target of the published script's erase action, trained in our way: other layers, rank, rates and prompts",
    LecoSettings,
)
def leco(settings: LecoSettings, step: Step) -> dict[str, Tensor]:
    """||eps(z, c) - [eps0(z, neutral) - eta (eps0(z, c) - eps0(z, ""))]||^2."""
    concept, kept = step.concept, step.kept
    if not settings.keep_weight:
        (erased,) = step.predict(concept)
        return {"erase": F.mse_loss(erased, target(settings, concept))}
    erased, same = step.predict(concept, kept)
    return {
        "erase": F.mse_loss(erased, target(settings, concept)),
        "keep": settings.keep_weight * F.mse_loss(same, kept.teacher[PROMPT]),
    }
