"""ESD: erase by the model's own negative guidance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.nn import functional as F

from .registry import TrainingSettings, method, option

if TYPE_CHECKING:
    from ..trainer import Step
    from ..trajectory import Draw


@dataclass(frozen=True)
class EsdSettings(TrainingSettings):
    """Settings of ESD."""

    negative: float = option(2.0, "negative guidance eta: how far to push away from the concept", low=0.0, high=10.0)
    towards: float = option(1.0, "guidance towards the alternative, if one is given", low=0.0, high=10.0)


def target(settings: Any, concept: Draw, base: Tensor | None = None) -> Tensor:
    """eps0(z, b) + w g0(z, a) - eta g0(z, c), [B, C, H, W], from settings with ``negative`` and ``towards``.

    b is the prompt without the concept: empty, as published, where the concept is all that the prompt says. ``base``
    takes the place of eps0(z, b) where the student's prompt is another than the draw's.
    """
    wanted: Tensor = (concept.base if base is None else base) - settings.negative * concept.guidance
    return wanted if concept.towards is None else wanted + settings.towards * concept.towards


@method(
    "esd",
    "ESD (erased Stable Diffusion)",
    "Gandikota et al. 2023, Erasing Concepts from Diffusion Models, arXiv 2303.07345, eq. 7",
    "reimplementation, with retention of kept prompts and pooled trajectories",
    EsdSettings,
)
def esd(settings: EsdSettings, step: Step) -> dict[str, Tensor]:
    """||eps(z, c) - [eps0(z, b) + w g0(z, a) - eta g0(z, c)]||^2 + ||eps(z_r, r) - eps0(z_r, r)||^2."""
    concept, kept = step.concept, step.kept
    erased, same = step.predict(concept, kept)
    return {
        "erase": F.mse_loss(erased, target(settings, concept)),
        "keep": settings.keep_weight * F.mse_loss(same, kept.teacher["prompt"]),
    }
