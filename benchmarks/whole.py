"""One whole erasure with a method's own settings, as a user makes it: seconds by stage, and the peak.

Weights are random, so what is erased means nothing; which words are found, and with that how many prompts there are,
differs a little from a trained model's.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch

from erasure_core import METHODS, Report, Silent, erase
from erasure_core.effort import plan
from erasure_core.errors import Cancelled
from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.methods import TrainingSettings

from .machine import wall
from .report import Result
from .rows import CONCEPT

TRAINING = "training"


@dataclass(frozen=True)
class Whole:
    """What an erasure took.

    Args:
        method: its name.
        effort: how much work it was told to do.
        seconds: stage to seconds of the wall clock.
        steps: optimiser steps of the whole training.
        done: those that were made before the time was up.
        peak: bytes at the peak, the model included; ``None`` where the device does not count them.
    """

    method: str
    effort: str
    seconds: dict[str, float]
    steps: int
    done: int
    peak: int | None


def all_seconds(result: Result) -> float | None:
    """Seconds of a whole erasure; of one that was stopped, those of the steps it lacks reckoned from those it made.
    ``None`` where it made none."""
    if not result["done"]:
        return None
    seconds: dict[str, float] = result["seconds"]
    return sum(seconds.values()) + seconds[TRAINING] * (result["steps"] / result["done"] - 1)


class Stages(Silent):
    """Notes how long each stage takes, up to a second, and stops the work after a time.

    A stage's first report comes before its work, or after a first piece of it, which then counts for what came before.
    """

    def __init__(self, device: str, most: float | None = None) -> None:
        self.device, self.most = device, most
        self.seconds: Counter[str] = Counter()
        self.done = 0
        self.started = self._since = wall(device)
        self._stage = ""

    def update(self, report: Report) -> None:
        self._stage = self._stage or report.stage
        self.close()
        self._stage = report.stage
        if report.stage == TRAINING:
            self.done = report.step

    def close(self) -> None:
        """The time until now is that of the stage last reported."""
        now = wall(self.device)
        self.seconds[self._stage] += now - self._since
        self._since = now

    def cancelled(self) -> bool:
        # By the last report's time: a GPU must not be waited for whenever somebody asks.
        return self.most is not None and self._since - self.started >= self.most


def whole(model: DiffusersModel, method: str, effort: str, device: str, most: float | None = None) -> Whole:
    """Erase with a method's defaults.

    Args:
        model: what is erased from.
        method: a registered method that trains.
        effort: one of ``effort.EFFORTS``.
        device: where the model is.
        most: seconds after which it is stopped.
    """
    settings = METHODS[method].settings()
    assert isinstance(settings, TrainingSettings)
    chosen = plan(effort, settings, model).settings
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
    watch = Stages(device, most)
    try:
        erase(model, CONCEPT, method, chosen, watch)
    except Cancelled as stopped:
        print(stopped, flush=True)
    watch.close()
    peak = torch.cuda.max_memory_allocated(device) if device.startswith("cuda") else None
    return Whole(method, effort, dict(watch.seconds), chosen.steps, watch.done, peak)
