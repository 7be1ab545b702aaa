"""Co-Erasing: erase by text, then by text and pictures together, so that other words for the concept go too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from ..concept_pictures import own_latents
from ..image_prompt import ImageAdapter, ImageBranch, ImagePrompted, invert_pictures, refined
from ..layers import LAYER_GROUPS
from ..model import Conditioning
from ..run_state import RunState
from ..trajectory import PROMPT, encode_each
from .esd import target
from .registry import TrainingSettings, method, option

if TYPE_CHECKING:
    from ..trainer import Step, Trainer
    from ..trajectory import Draw


@dataclass(frozen=True)
class CoErasingSettings(TrainingSettings):
    """Settings of Co-Erasing."""

    layers: str = option("full", "layers that change", choices=tuple(LAYER_GROUPS), combine=True)
    negative: float = option(1.0, "negative guidance eta: how far to push away from the concept", low=0.0, high=10.0)
    towards: float = option(1.0, "guidance towards the alternative, if one is given", low=0.0, high=10.0)
    text_share: float = option(0.4, "share of the steps that erase by text alone, first", low=0.0, high=1.0)
    picture_share: float = option(0.75, "share of the second stage's trajectories with pictures", low=0.0, high=1.0)
    pictures: int = option(8, "pictures the model makes of the concept, where none are given", low=1, high=1024)
    picture_tokens: int = option(4, "tokens learned for each picture, where there is no adapter", low=1, high=64)
    inversion_steps: int = option(120, "steps in which they are learned", low=1, high=10_000)
    refine: bool = option(True, "rebuild the picture tokens from the concept's text tokens")
    blur: float = option(0.0, "Gaussian blur of the noisy latents in the loss, in latent pixels", low=0.0, high=16.0)


class TwoStages(RunState):
    """Picture tokens, the trajectories they belong to, and the change of stages.

    The second stage's teacher is the model at the end of the first. Its predictions are drawn into the pool once, when
    the stage begins, so no second copy of the change is needed.
    """

    def __init__(self, trainer: Trainer) -> None:
        super().__init__(trainer)
        assert isinstance(trainer.settings, CoErasingSettings)
        self.settings = trainer.settings
        given = trainer.pictures
        adapter = given.adapter if given is not None else None
        self.branch = ImageBranch(adapter or ImageAdapter.of_model(trainer.model), trainer.model.family)

    @property
    def second_stage(self) -> int:
        """The step at which it begins."""
        return round(self.settings.text_share * self.settings.steps)

    @property
    def shows_pictures(self) -> bool:
        return self.trainer.step >= self.second_stage and self.settings.picture_share > 0

    @contextmanager
    def attached(self) -> Iterator[None]:
        plain = self.trainer.model
        self.trainer.model = ImagePrompted(plain, self.branch)
        try:
            with self.branch.attached(plain.layers()):
                yield
        finally:
            self.trainer.model = plain

    def begin(self) -> dict[str, Tensor]:
        """Picture tokens [N, T, D], and for each trajectory its picture or -1."""
        s, count = self.settings, max(self.settings.trajectories, len(self.trainer.concept.prompts()))
        chance = self.trainer.chance(900_000_011)
        tokens = self._tokens(chance)
        which = torch.randint(len(tokens), (count,), generator=chance)
        which[torch.rand(count, generator=chance) >= s.picture_share] = -1
        return {"tokens": tokens, "which": which}

    def _tokens(self, chance: torch.Generator) -> Tensor:
        trainer, s = self.trainer, self.settings
        given = trainer.pictures
        if given is not None and given.tokens is not None:
            return given.tokens.to(trainer.model.device)
        with trainer.deltas.off():
            latents = given.latents if given is not None else None
            if latents is None:
                latents = own_latents(
                    trainer.model, trainer.concept.name, s.pictures, s.seed, s.trajectory_steps, trainer.progress
                )
            assert isinstance(trainer.model, ImagePrompted)
            return invert_pictures(
                trainer.model, latents, chance, s.picture_tokens, s.inversion_steps, progress=trainer.progress
            )

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
            return self._with_pictures(encoded, torch.arange(len(prompts)))
        return encoded

    def conditioning(self, draw: Draw) -> Conditioning | list[str]:
        """The draw's prompts, in the second stage with their trajectories' pictures."""
        if not self.shows_pictures:
            return draw.prompts
        return self._with_pictures(self.trainer.encoded(draw.prompts), draw.which)

    def _with_pictures(self, text: Conditioning, trajectories: Tensor) -> Conditioning:
        tokens, which = self.tensors["tokens"], self.tensors["which"].cpu()[trajectories]
        rows = []
        for row, picture in enumerate(which.tolist()):
            shown = tokens[picture] if picture >= 0 else torch.zeros_like(tokens[0])
            if picture >= 0 and self.settings.refine:
                shown = refined(shown, text.context[row, 1 : text.ends[row] + 1])
            rows.append(shown)
        return Conditioning(text.context, text.ends, text.pooled, torch.stack(rows))


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
    TwoStages,
)
def co_erasing(settings: CoErasingSettings, step: Step) -> dict[str, Tensor]:
    """||eps(z, [text, picture]) - (e0 - eta (e_c - e0))||^2 + ||eps(z_r, r) - eps0(z_r, r)||^2.

    In the first stage there is no picture and e_c, e0 are the original's, which is ESD; in the second they are those of
    the model at the end of the first.
    """
    assert isinstance(step.state, TwoStages)
    concept, kept = step.concept, step.kept
    erased, same = step.trainer.predict([(concept, step.state.conditioning(concept)), (kept, kept.prompts)])
    missed = blurred(erased - target(settings, concept), settings.blur)
    return {
        "erase": missed.pow(2).mean(),
        "keep": settings.keep_weight * F.mse_loss(same, kept.teacher[PROMPT]),
    }
