"""RECE: the closed form, and then again for the embeddings that would bring the concept back, also in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..concept import Concept
from ..delta import DeltaSet
from ..errors import Cancelled
from ..model import LoadedModel
from ..progress import Progress, Report
from .closed_form import ClosedFormSettings, change_of, edited_layers, solved_change, vectors
from .registry import option, solver


@dataclass(frozen=True)
class ReceSettings(ClosedFormSettings):
    """Settings of RECE."""

    rounds: int = option(2, "rounds of finding embeddings that bring the concept back", low=1, high=20, basic=True)
    search_damping: float = option(0.1, "lambda of that search: pull towards small embeddings", low=1e-8, high=1e4)


def returning(gram: Tensor, change: Tensor, concept: Tensor, damping: float) -> Tensor:
    """The embeddings that the changed layers read as the original ones read the concept.

    c' = (lambda I + sum W'^T W')^-1 (sum W'^T W) c for each row of ``concept`` [P, D], over all layers, with lambda
    relative to the mean diagonal of the first sum. All layers change by the same matrix, W' = W M, so that one sum is
    enough: sum W'^T W' = M^T (sum W^T W) M.

    Args:
        gram: sum W^T W, [D, D].
        change: M, [D, D].
        concept: [P, D].
        damping: lambda.
    """
    mixed = change.T @ gram
    moment = mixed @ change
    scale = moment.diagonal().mean()
    found: Tensor = torch.linalg.solve(moment + damping * scale * torch.eye(len(gram)).to(gram), mixed @ concept.T)
    return found.T


@solver(
    "rece",
    "RECE (closed form, repeated)",
    "Gong et al. 2024, Reliable and Efficient Concept Erasure, arXiv 2407.12383",
    "reimplementation; all rounds are solved together from the original weights",
    ReceSettings,
    check=edited_layers,
)
@torch.no_grad()
def rece(model: LoadedModel, concept: Concept, settings: ReceSettings, progress: Progress) -> DeltaSet:
    """The change of every layer that reads the prompt; raises as ``closed_form``."""
    names = list(edited_layers(model, settings))
    subject, instead, kept = vectors(model, concept, settings)
    same = torch.eye(subject.shape[1], dtype=subject.dtype)
    gram = torch.zeros_like(same)
    for name in names:  # one layer at a time: those of SDXL are gigabytes in float64
        weight = model.weight(name).cpu().double()
        gram += weight.T @ weight
    erased, goals = subject, instead
    for step in range(settings.rounds + 1):
        if progress.cancelled():
            raise Cancelled("Stopped while solving.")
        up, down = solved_change(erased, goals, kept, settings.damping, settings.rank, settings.tolerance)
        if step < settings.rounds:
            erased = torch.cat([erased, returning(gram, same + up @ down, subject, settings.search_damping)])
            goals = torch.cat([goals, instead])
        progress.update(Report("solving", step + 1, settings.rounds + 1))
    narrow = up.to(model.device, torch.float32)
    return DeltaSet({name: change_of(model, name, narrow, down) for name in names})
