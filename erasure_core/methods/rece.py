"""RECE: the closed form, and then again for the embeddings that would bring the concept back, also in closed form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..concept import Concept
from ..delta import DeltaSet, LowRankDelta
from ..errors import Cancelled, InvalidSettings
from ..layers import reads_context, select
from ..model import LoadedModel
from ..progress import Progress, Report
from .closed_form import ClosedFormSettings, low_rank_product, shared_factor, vectors
from .registry import option, solver


@dataclass(frozen=True)
class ReceSettings(ClosedFormSettings):
    """Settings of RECE."""

    rounds: int = option(2, "rounds of finding embeddings that bring the concept back", low=1, high=20)
    search_damping: float = option(0.1, "lambda of that search: pull towards small embeddings", low=1e-8, high=1e4)


def returning(weights: Mapping[str, Tensor], changed: Mapping[str, Tensor], concept: Tensor, damping: float) -> Tensor:
    """The embeddings that the changed layers read as the original ones read the concept.

    c' = (lambda I + sum W'^T W')^-1 (sum W'^T W) c for each row of ``concept`` [P, D], over all layers, with lambda
    relative to the mean diagonal of the sum.
    """
    width = concept.shape[1]
    moment, mixed = concept.new_zeros(width, width), concept.new_zeros(width, width)
    for name, weight in weights.items():
        moment += changed[name].T @ changed[name]
        mixed += changed[name].T @ weight
    scale = moment.diagonal().mean()
    found: Tensor = torch.linalg.solve(moment + damping * scale * torch.eye(width).to(moment), mixed @ concept.T)
    return found.T


@solver(
    "rece",
    "RECE (closed form, repeated)",
    "Gong et al. 2024, Reliable and Efficient Concept Erasure, arXiv 2407.12383",
    "reimplementation; all rounds are solved together from the original weights",
    ReceSettings,
)
@torch.no_grad()
def rece(model: LoadedModel, concept: Concept, settings: ReceSettings, progress: Progress) -> DeltaSet:
    """The change of every layer that reads the prompt."""
    names = [name for name in select(model.layers(), settings.layers) if reads_context(name)]
    if not names:
        raise InvalidSettings("RECE edits keys and values of cross-attention; choose layers with them.")
    weights = {name: model.weight(name).cpu().double() for name in names}
    subject, instead, kept = vectors(model, concept, settings)
    erased, goals = subject, instead
    for step in range(settings.rounds + 1):
        if progress.cancelled():
            raise Cancelled("Stopped while solving.")
        factor = shared_factor(erased, kept, settings.damping)
        up, down = low_rank_product(goals - erased, factor, settings.rank, settings.tolerance)
        if step < settings.rounds:
            changed = {name: weight + weight @ up @ down for name, weight in weights.items()}
            erased = torch.cat([erased, returning(weights, changed, subject, settings.search_damping)])
            goals = torch.cat([goals, instead])
        progress.update(Report("solving", step + 1, settings.rounds + 1))
    return DeltaSet({name: LowRankDelta(down.float(), (weight @ up).float()) for name, weight in weights.items()})
