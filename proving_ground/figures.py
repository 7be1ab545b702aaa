"""Measured shares, each with the target it must reach, and other measured values with their uncertainty."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000


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
        return interval_of(resampled_share(self.share, self.count))

    def line(self) -> str:
        """One row of a table."""
        sign = "" if self.target is None else f"{'<=' if self.error else '>='} {self.target:.1%}"
        mark = "" if self.reached else "MISSED"
        return f"{self.name:<44}{self.share:>8.1%} of {self.count:<6}{sign:<11}{mark}"


def share_of(name: str, hits: Iterable[bool], target: float | None = None, error: bool = False) -> Figure:
    """The share of cases that hold."""
    cases = list(hits)
    return Figure(name, sum(cases) / max(1, len(cases)), len(cases), target, error)


@dataclass(frozen=True)
class Measure:
    """A value measured over ``count`` cases, with its 95 % bootstrap interval."""

    value: float
    count: int
    interval: tuple[float, float]


def resampled_share(share: float, count: int, seed: int = 0) -> np.ndarray:
    """What the share would be if its cases were drawn again: [10000]."""
    drawn: np.ndarray = np.random.default_rng(seed).binomial(count, share, RESAMPLES) / max(1, count)
    return drawn


def interval_of(resampled: np.ndarray) -> tuple[float, float]:
    """The middle 95 %."""
    low, high = np.percentile(resampled, (2.5, 97.5))
    return float(low), float(high)


def _redrawn(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, count, (RESAMPLES, count))


def mean_of(values: Sequence[float]) -> Measure:
    """The mean of at least one value."""
    cases = np.asarray(values, dtype=float)
    return Measure(float(cases.mean()), len(cases), interval_of(cases[_redrawn(len(cases))].mean(1)))


def norm_ratio_of(parts: Sequence[float], wholes: Sequence[float]) -> Measure:
    """sqrt(sum(parts) / sum(wholes)) of squared norms, case by case."""
    part, whole, redrawn = np.asarray(parts, dtype=float), np.asarray(wholes, dtype=float), _redrawn(len(parts))
    resampled = np.sqrt(part[redrawn].sum(1) / whole[redrawn].sum(1))
    return Measure(float(np.sqrt(part.sum() / whole.sum())), len(part), interval_of(resampled))
