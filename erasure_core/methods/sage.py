"""SAGE: erase the whole domain of a concept, by finding its boundary and unlearning what is found, in turns."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import InvalidSettings
from ..layers import LAYER_GROUPS, is_text, select
from ..model import Conditioning, LoadedModel
from ..self_check import Reader, similarity
from ..trajectory import PROMPT
from .boundary_points import Boundary, Bounding, CheckSettings, check_self_checks
from .esd import TargetSettings, target
from .registry import method, option
from .text_space import TextSpaceSettings, text_terms
from .vocabulary import with_own_words

if TYPE_CHECKING:
    from ..trainer import Step

TEMPERATURE = 0.07
RELATED = 128
"""Most kept prompts whose relations are looked at in one step."""


@dataclass(frozen=True)
class SageSettings(TargetSettings, TextSpaceSettings, CheckSettings):
    """Settings of SAGE."""

    steps: int = option(200, "optimiser steps", low=1, high=100_000, basic=True)
    keep_weight: float = option(4.0, "weight of the retention of kept prompts", low=0.0, high=1000.0, basic=True)
    layers: str = option("text-encoder", "layers that change", choices=tuple(LAYER_GROUPS), combine=True, basic=True)
    erase_in: str = option("noise", "where the erasing term is: predicted noise, or text", choices=("noise", "text"))
    boundary_weight: float = option(1.0, "weight of found boundary points against the concept", low=0.0, high=100.0)
    global_weight: float = option(1.0, "weight of keeping how kept prompts relate to each other", low=0.0, high=1000.0)


def relations(features: Tensor) -> Tensor:
    """log softmax of S_ij = cos(f_i, f_j) / 0.07 over all other prompts j, [N, N] with 0 on the diagonal.

    The features f [N, F] are what the text encoder makes of the prompts, relative to the empty one.
    """
    scores: Tensor = similarity(features, features) / TEMPERATURE
    itself = torch.eye(len(features), dtype=torch.bool, device=features.device)
    logs: Tensor = torch.log_softmax(scores.masked_fill(itself, float("-inf")), dim=-1)
    return logs.masked_fill(itself, 0.0)


def relation_change(before: Tensor, after: Tensor) -> Tensor:
    """Mean KL(softmax S0 || softmax S) of the relations of kept prompts, from log softmaxes [N, N]."""
    itself = torch.eye(len(before), dtype=torch.bool, device=before.device)
    terms = before.exp() * (before - after)
    return terms.masked_fill(itself, 0.0).sum(dim=-1).mean()


class SageState(Boundary):
    """Boundary points, and what the frozen model makes of the prompts to keep."""

    @property
    def kept(self) -> list[str]:
        """The prompts to keep, without the empty one, to which all others are relative."""
        return [prompt for prompt in self.trainer.concept.kept_prompts if prompt]

    @cached_property
    def kept_before(self) -> Tensor:
        """The frozen model's features of them, [N, F]."""
        trainer = self.trainer
        with torch.no_grad(), trainer.deltas.off():
            reader = Reader(self.model, trainer.deltas)
            pieces = range(0, len(self.kept), RELATED)
            return torch.cat([reader(trainer.model.encode(self.kept[i : i + RELATED])) for i in pieces])


def check_sage(model: LoadedModel, settings: SageSettings) -> None:
    """Refuse before the work.

    Raises:
        InvalidSettings: as ``check_self_checks``, or the text encoder is to erase and is not trained.
    """
    check_self_checks(model, settings)
    if settings.erase_in == "text" and not any(map(is_text, select(model.layers(), settings.layers))):
        raise InvalidSettings('Erasing in text changes the text encoder; choose layers "text-encoder".')


@method(
    "sage",
    "SAGE (semantic-augment erasing)",
    "SAGE: Exploring the Boundaries of Unsafe Concept Domain with Semantic-Augment Erasing, 2025, arXiv 2506.09363",
    "reconstruction from the published description",
    SageSettings,
    state=SageState,
    prepare=with_own_words,
    goal=target,
    check=check_sage,
)
def sage(settings: SageSettings, step: Step) -> dict[str, Tensor]:
    """Self-erasure of the concept and of boundary points, with local (noise) and global (relations) retention.

    ||eps(z, E(tau_c)) - T||^2 + ||eps(z, E(tau_p)) - T||^2 + KL(S0 || S) + ||eps(z_r, E(r)) - eps0(z_r, E0(r))||^2
    + the two terms of ``text_space``
    """
    assert isinstance(step.state, Boundary)
    bounding = step.state.drawn(step) if settings.boundary_weight else None
    terms = (_erase_text if settings.erase_in == "text" else _erase_noise)(step, bounding, settings)
    if settings.global_weight:
        terms["relations"] = settings.global_weight * _relations_term(step)
    return terms | text_terms(step, settings)


def _erase_noise(step: Step, bounding: Bounding | None, settings: SageSettings) -> dict[str, Tensor]:
    concept, kept = step.concept, step.kept
    wanted: list[Any] = [(concept, concept.prompts), (kept, kept.prompts)]
    if bounding is not None:
        wanted.append((bounding.draw, bounding.points))
    erased, same, *found = step.trainer.predict(wanted)
    terms = {
        "erase": F.mse_loss(erased, target(settings, concept)),
        "keep": settings.keep_weight * F.mse_loss(same, kept.teacher[PROMPT]),
    }
    if bounding is not None:
        terms["boundary"] = settings.boundary_weight * F.mse_loss(found[0], target(settings, bounding.draw))
    return terms


def _erase_text(step: Step, bounding: Bounding | None, settings: SageSettings) -> dict[str, Tensor]:
    """||E(tau) - E0(anchor)||^2 from the concept's last token on, where tau and anchor are aligned at their ends."""
    trainer, kept = step.trainer, step.kept
    instead = {saying.prompt: saying.instead for saying in trainer.sayings.values()}
    with torch.no_grad(), trainer.deltas.off():
        anchors = trainer.model.encode([instead[prompt] for prompt in step.concept.prompts])
    said = trainer.model.encode(step.concept.prompts)
    (same,) = step.predict(kept)
    terms = {
        "erase": text_distance(said, anchors),
        "keep": settings.keep_weight * F.mse_loss(same, kept.teacher[PROMPT]),
    }
    if bounding is not None:
        terms["boundary"] = settings.boundary_weight * text_distance(bounding.points, bounding.instead)
    return terms


def text_distance(said: Conditioning, anchors: Conditioning) -> Tensor:
    """Mean squared distance of states, each prompt aligned with its anchor by the distance from the last token, and of
    pooled vectors where the model reads them as well."""
    parts = []
    for i in range(len(said)):
        ours = said.context[i, said.ends[i] - 1 :]
        theirs = anchors.context[i, max(anchors.ends[i] - 1, 0) :]
        shared = min(len(ours), len(theirs))
        parts.append(F.mse_loss(ours[:shared].float(), theirs[:shared].float()))
    if said.pooled is not None and anchors.pooled is not None:
        parts += list(F.mse_loss(said.pooled.float(), anchors.pooled.float(), reduction="none").flatten(1).mean(dim=1))
    return torch.stack(parts).mean()


def _relations_term(step: Step) -> Tensor:
    trainer, state = step.trainer, step.state
    assert isinstance(state, SageState)
    prompts = state.kept
    if len(prompts) < 3:
        return torch.zeros((), device=trainer.model.device)
    chosen = list(range(len(prompts)))
    if len(prompts) > RELATED:
        chosen = torch.randperm(len(prompts), generator=step.generator)[:RELATED].tolist()
    now = Reader(state.model, trainer.deltas)(trainer.model.encode([prompts[i] for i in chosen]))
    return relation_change(relations(state.kept_before[chosen]), relations(now))
