"""ESD: erase by the model's own negative guidance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.nn import functional as F

from ..trajectory import PROMPT
from .registry import TrainingSettings, method, option

if TYPE_CHECKING:
    from ..trainer import Step
    from ..trajectory import Draw


@dataclass(frozen=True)
class TargetSettings(TrainingSettings):
    """Settings of methods that train towards ``target``."""

    negative: float = option(
        0.5,
        "negative guidance eta: how far to push away where nothing takes the concept's place",
        low=0.0,
        high=10.0,
        basic=True,
    )
    negative_beside: float = option(0.0, "the same where there is an alternative to go to", low=0.0, high=10.0)
    towards: float = option(1.0, "guidance towards the alternative, if there is one", low=0.0, high=10.0)


@dataclass(frozen=True)
class EsdSettings(TargetSettings):
    """Settings of ESD."""


def target(settings: Any, concept: Draw) -> Tensor:
    """eps0(z, b) + w g0(z, a) - eta g0(z, c), [B, C, H, W], from settings such as ESD's.

    b is the prompt without the concept: empty, as published, where the concept is all that the prompt says. A perfect
    student paints what this target paints, so eta must not push further than the original model can follow: measured
    with the target itself in the place of a student, 0.5 leaves sound pictures where 2 leaves few. Where there is an
    alternative, going there is enough.
    """
    return concept.answered_or(
        concept.base - settings.negative * concept.guidance,
        lambda towards: concept.base - settings.negative_beside * concept.guidance + settings.towards * towards,
    )


@method(
    "esd",
    "ESD (erased Stable Diffusion)",
    "Gandikota et al. 2023, Erasing Concepts from Diffusion Models, arXiv 2303.07345, eq. 7",
    "reimplementation, with retention of kept prompts and pooled trajectories",
    EsdSettings,
    goal=target,
)
def esd(settings: EsdSettings, step: Step) -> dict[str, Tensor]:
    """||eps(z, c) - [eps0(z, b) + w g0(z, a) - eta g0(z, c)]||^2 + ||eps(z_r, r) - eps0(z_r, r)||^2."""
    concept, kept = step.concept, step.kept
    erased, same = step.predict(concept, kept)
    return {
        "erase": F.mse_loss(erased, target(settings, concept)),
        "keep": settings.keep_weight * F.mse_loss(same, kept.teacher[PROMPT]),
    }
