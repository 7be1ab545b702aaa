"""The closed form at true size: seconds, error, and how both grow with the number of concepts.

The text encoders' work is timed apart: it is the same for every method and grows with the number of prompts alone.
Seconds are those of the wall clock: a goal in seconds is not met by an idle core.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from erasure_core import Concept, DeltaSet, Silent
from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.methods.closed_form import ClosedFormSettings, closed_form, vectors
from erasure_core.model import Conditioning

from .machine import wall, wall_medians

KEPT = 20
REPEATS = 3
TOGETHER = 16
"""Prompts that are encoded in one call."""


@dataclass(frozen=True)
class Solved:
    """One solve.

    Args:
        concepts: how many at once.
        encoding, solving: seconds of the text encoders and of all the rest.
        rank: of the change.
        given_up: share of what the formula's change achieves that this one does not: their distance in UCE's own
            objective, over all layers.
        error: largest entry of the difference from the formula in float64, over all layers, relative to the layer's
            largest weight.
        exact_rank, exact_error: the same where the rank is not cut (tolerance 0).
    """

    concepts: int
    encoding: float
    solving: float
    rank: int
    given_up: float
    error: float
    exact_rank: int
    exact_error: float


class Encoded:
    """A model that encodes each prompt once and counts the seconds that takes; everything else is the model's own."""

    def __init__(self, model: DiffusersModel, device: str) -> None:
        self.model, self.device, self.seconds = model, device, 0.0
        self.known: dict[str, Conditioning] = {}

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        fresh = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.known]
        started = wall(self.device)
        for start in range(0, len(fresh), TOGETHER):
            piece = fresh[start : start + TOGETHER]
            rows = self.model.encode(piece)
            self.known |= {prompt: rows[[i]] for i, prompt in enumerate(piece)}
        self.seconds += wall(self.device) - started
        return Conditioning.cat([self.known[prompt] for prompt in prompts])

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)


def concept_of(count: int) -> Concept:
    """``count`` concepts to erase at once, and twenty prompts to keep."""
    words = tuple(f"thing number {i}" for i in range(count))
    return Concept(words, None, tuple(f"a picture of a house with {i} windows" for i in range(KEPT)))


@torch.no_grad()
def solve(model: DiffusersModel, count: int, device: str) -> Solved:
    """Erase ``count`` concepts by closed form."""
    concept, settings = concept_of(count), ClosedFormSettings()
    encoded: Any = Encoded(model, device)
    exact = closed_form(encoded, concept, replace(settings, tolerance=0.0), Silent())
    encoding = encoded.seconds
    solving = wall_medians({"solve": lambda: closed_form(encoded, concept, settings, Silent())}, device, REPEATS)
    cut = closed_form(encoded, concept, settings, Silent())
    (error, given_up), (exact_error, _) = errors(encoded, concept, settings, (cut, exact))
    return Solved(count, encoding, solving["solve"], _rank(cut), given_up, error, _rank(exact), exact_error)


def _rank(deltas: DeltaSet) -> int:
    return max(deltas[name].rank for name in deltas)  # type: ignore[attr-defined]


@torch.no_grad()
def errors(
    model: Any, concept: Concept, settings: ClosedFormSettings, found: Sequence[DeltaSet]
) -> list[tuple[float, float]]:
    """How far each set of changes is from UCE's own formula, W' = (lambda W + sum W a c^T + sum W r r^T)
    (lambda I + sum c c^T + sum r r^T)^-1, computed in float64 for one layer after the other.

    Returns:
        For each set ``error`` and ``given_up`` of ``Solved``.
    """
    said, goals, kept = vectors(model, concept, settings)
    identity = settings.damping * torch.eye(said.shape[1], dtype=torch.float64)
    moment = identity + said.T @ said + kept.T @ kept
    factors = torch.linalg.lu_factor(moment)
    wanted = identity + goals.T @ said + kept.T @ kept
    worst, missed, whole = [0.0] * len(found), [0.0] * len(found), 0.0
    for name in found[0]:
        weight = model.weight(name).double().cpu()
        exact: Tensor = torch.linalg.lu_solve(*factors, (weight @ wanted).T).T - weight
        whole += _in_objective(exact, moment)
        for place, deltas in enumerate(found):
            apart = deltas[name].change().double().cpu() - exact
            worst[place] = max(worst[place], float(apart.abs().max() / weight.abs().max()))
            missed[place] += _in_objective(apart, moment)
    return [(error, one / whole) for error, one in zip(worst, missed, strict=True)]


def _in_objective(change: Tensor, moment: Tensor) -> float:
    """||change M^(1/2)||^2, by which UCE's objective grows with the distance from its least."""
    return float(((change @ moment) * change).sum())
