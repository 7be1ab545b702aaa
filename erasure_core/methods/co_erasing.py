"""Co-Erasing: erase by text, then by text and pictures together, so that other words for the concept go too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from ..layers import LAYER_GROUPS
from ..model import Conditioning, encode_each
from ..trajectory import PROMPT
from .esd import TargetSettings, target
from .picture_tokens import PictureState, with_pictures
from .registry import method, option
from .text_space import TextSpaceSettings, text_terms
from .vocabulary import VocabularySettings, with_own_words

if TYPE_CHECKING:
    from ..trainer import Step
    from ..trajectory import Draw


@dataclass(frozen=True)
class CoErasingSettings(TargetSettings, TextSpaceSettings, VocabularySettings):
    """Settings of Co-Erasing."""

    layers: str = option(
        "text-encoder+cross-attention-kv", "layers that change", choices=tuple(LAYER_GROUPS), combine=True, basic=True
    )
    steps: int = option(250, "optimiser steps", low=1, high=100_000, basic=True)
    trajectory_steps: int = option(10, "sampling steps of each of them", low=1, high=1000)
    keep_weight: float = option(4.0, "weight of the retention of kept prompts", low=0.0, high=1000.0, basic=True)
    text_share: float = option(0.4, "share of the steps that erase by text alone, first", low=0.0, high=1.0)
    picture_share: float = option(0.35, "share of the second stage's trajectories with pictures", low=0.0, high=1.0)
    own_pictures: int = option(8, "pictures the model makes of the concept, where none are given", low=1, high=1024)
    picture_tokens: int = option(4, "tokens learned for each picture, where there is no adapter", low=1, high=64)
    inversion_steps: int = option(120, "steps for learning the picture tokens", low=1, high=10_000)
    refine: bool = option(True, "rebuild the picture tokens from the concept's text tokens")
    blur: float = option(0.0, "Gaussian blur of the noisy latents in the loss, in latent pixels", low=0.0, high=16.0)


class TwoStages(PictureState):
    """Picture tokens, the trajectories they belong to, and the change of stages.

    The second stage's teacher is the model at the end of the first. Its predictions are drawn into the pool once, when
    the stage begins, so no second copy of the change is needed.
    """

    @property
    def settings(self) -> CoErasingSettings:
        settings = self.trainer.settings
        assert isinstance(settings, CoErasingSettings)
        return settings

    @property
    def second_stage(self) -> int:
        """The step at which it begins."""
        return round(self.settings.text_share * self.settings.steps)

    @property
    def shows_pictures(self) -> bool:
        return self.trainer.step >= self.second_stage and self.settings.picture_share > 0

    def begin(self) -> dict[str, Tensor]:
        """Picture tokens [N, T, D], and for each trajectory its picture or -1."""
        s, count = self.settings, self.settings.trajectories
        chance = self.trainer.chance(900_000_011)
        tokens = self.learned_tokens(chance, s.own_pictures, s.picture_tokens, s.inversion_steps)
        which = torch.randint(len(tokens), (count,), generator=chance)
        which[torch.rand(count, generator=chance) >= s.picture_share] = -1
        return {"tokens": tokens, "which": which}

    def pools_are_due(self) -> bool:
        step = self.trainer.step
        if step >= self.second_stage:
            return step == self.second_stage
        return step % self.settings.refresh == 0

    def teacher(self, pool: str) -> str:
        return "training" if pool == "concept" and self.shows_pictures else "original"

    def encode_role(self, pool: str, role: str, prompts: Sequence[str]) -> Conditioning:
        encoded = encode_each(self.trainer.model, prompts)
        if pool == "concept" and role == PROMPT and self.shows_pictures:
            tokens = self.tensors["tokens"]
            shown = self.shown(prompts, self.tensors["which"].tolist(), len(tokens))
            return with_pictures(encoded, tokens, shown, self.settings.refine)
        return encoded

    def conditioning(self, draw: Draw) -> Conditioning | list[str]:
        """The draw's prompts, in the second stage with their trajectories' pictures."""
        if not self.shows_pictures:
            return draw.prompts
        text, tokens = self.trainer.encoded(draw.prompts), self.tensors["tokens"]
        shown = self.shown(draw.prompts, self.tensors["which"].cpu()[draw.which].tolist(), len(tokens))
        return with_pictures(text, tokens, shown, self.settings.refine)


def blurred(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of [B, C, H, W] along both sides, with mirrored edges; ``sigma`` in pixels, 0 leaves it alone."""
    if sigma == 0:
        return x
    reach = min(int(3 * sigma + 0.5), x.shape[-1] - 1, x.shape[-2] - 1)
    distance = torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype)
    kernel = torch.softmax(-(distance**2) / (2 * sigma**2), dim=0)
    padded = F.pad(x, (reach,) * 4, mode="reflect").flatten(0, 1)[:, None]
    return F.conv2d(F.conv2d(padded, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1)).view_as(x)


@method(
    "co_erasing",
    "Co-Erasing (text and pictures)",
    "One Image is Worth a Thousand Words: text-image collaborative erasing, ICML 2025, arXiv 2505.11131",
    "reimplementation with corrections",
    CoErasingSettings,
    state=TwoStages,
    prepare=with_own_words,
    goal=target,
)
def co_erasing(settings: CoErasingSettings, step: Step) -> dict[str, Tensor]:
    """||eps(z, [text, picture]) - (e0 - eta (e_c - e0))||^2 + ||eps(z_r, r) - eps0(z_r, r)||^2 + the two terms of
    ``text_space``.

    In the first stage there is no picture and e_c, e0 are the original's, which is ESD; in the second they are those of
    the model at the end of the first.
    """
    assert isinstance(step.state, TwoStages)
    concept, kept = step.concept, step.kept
    erased, same = step.trainer.predict([(concept, step.state.conditioning(concept)), (kept, kept.prompts)])
    missed = blurred(erased - target(settings, concept), settings.blur)
    terms = {
        "erase": missed.pow(2).mean(),
        "keep": settings.keep_weight * F.mse_loss(same, kept.teacher[PROMPT]),
    }
    return terms | text_terms(step, settings)
