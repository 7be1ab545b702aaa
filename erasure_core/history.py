"""What is kept of a training beside its change, and whether that went where it should."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import fmean

COMPARED = 10
"""Steps at the end of a training that are compared with the first one, where nothing was changed yet."""
GROWN = 10.0
"""So many times its first value no loss reaches by the chance of what a batch holds."""


@dataclass
class History:
    """What happened in training: loss terms per step, the residual guidance where it was measured, and figures that
    the method itself took, each with its step; and sentences on the concept that its user should read."""

    losses: list[dict[str, float]] = field(default_factory=list)
    residual_guidance: list[tuple[int, float]] = field(default_factory=list)
    figures: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def moved_away(history: History, erasing: str) -> bool:
    """Whether what a training erases was further from its target at the end than where nothing was changed yet: numbers
    that stay finite may be a wrecked model all the same.

    Args:
        history: of the training.
        erasing: the loss term to look at; of a loss that has no such it is not known.
    """
    losses = history.losses
    if len(losses) < 2 * COMPARED or erasing not in losses[0]:
        return False
    return fmean(terms[erasing] for terms in losses[-COMPARED:]) > GROWN * losses[0][erasing]
