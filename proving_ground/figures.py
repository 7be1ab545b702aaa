"""Measured shares, each with the target it must reach."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Figure:
    """A share of ``count`` cases, with the least (or, for errors, the greatest) value that is good enough."""

    name: str
    share: float
    count: int
    target: float | None = None
    error: bool = False

    @property
    def reached(self) -> bool:
        return self.target is None or (self.share <= self.target if self.error else self.share >= self.target)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % bootstrap interval of the share (cases resampled 10,000 times, seed 0)."""
        resampled = np.random.default_rng(0).binomial(self.count, self.share, 10_000) / max(1, self.count)
        low, high = np.percentile(resampled, (2.5, 97.5))
        return float(low), float(high)

    def line(self) -> str:
        """One row of a table."""
        sign = "" if self.target is None else f"{'<=' if self.error else '>='} {self.target:.1%}"
        mark = "" if self.reached else "MISSED"
        return f"{self.name:<44}{self.share:>8.1%} of {self.count:<6}{sign:<11}{mark}"


def share_of(name: str, hits: Iterable[bool], target: float | None = None, error: bool = False) -> Figure:
    """The share of cases that hold."""
    cases = list(hits)
    return Figure(name, sum(cases) / max(1, len(cases)), len(cases), target, error)
