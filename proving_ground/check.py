"""The benchmark in small, for CI: a minute that tells a working eraser from a broken one."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from erasure_core import DeltaSet, PictureModel, Silent, erase
from erasure_core.methods import Method, find_method
from erasure_core.trainer import Step, train

from .bench import concept_of
from .evaluation import Evaluation, evaluate
from .figures import Figure
from .judge import Judge
from .lexicon import CONCEPTS

CONCEPT = "ball"
COUNT = 16
"""Pictures in each group."""
GROUPS = ("named", "kept")
MOST_LEAK, LEAST_INTACT, LEAST_RETAINED = 0.5, 0.65, 0.65
"""Bounds of the named words' leak, and of sound pictures and retention as shares of the untouched model's.

Wide enough for the chance in so few pictures, of which each is 6 %: they tell a working eraser from a broken one, not a
good one from a better.
"""
FLIPS = ("erase", "keep", "guidance")
"""Signs that can be turned round to see the bounds fail: of a loss term, or of the guidance that is erased."""
ERASING = ("erase", "surgical")
"""What methods call the loss term that erases."""
SHORT = {"steps": 80, "batch": 4, "trajectories": 12, "trajectory_steps": 8}
"""Settings of what is trained: enough to erase."""
SOONER = {"auto": {"steps": 40}}
"""For methods that need less; CI waits for it."""
WRONG_STEPS = 40
"""Optimiser steps with a wrong sign, which shows long before the end."""


def measured(
    model: PictureModel, judge: Judge, deltas: DeltaSet | None = None, groups: Sequence[str] = GROUPS
) -> Evaluation:
    """A few pictures of the untouched model, or with a change."""
    return evaluate(model, judge, CONCEPTS[CONCEPT], [(deltas, 1.0)] if deltas else [], COUNT, groups=groups)


def bounded(found: Evaluation, untouched: Evaluation) -> list[Figure]:
    """The figures, of the groups that were measured, with the bounds that a working eraser holds."""
    bounds = []
    if "named" in found.shares:
        bounds.append(replace(found.shares["named"], target=MOST_LEAK, error=True))
        bounds.append(replace(found.intact, target=LEAST_INTACT * untouched.intact.share))
    if "kept" in found.shares:
        bounds.append(replace(found.shares["kept"], target=LEAST_RETAINED * untouched.shares["kept"].share))
    return bounds


def erased(model: PictureModel, method: str, flip: str | None = None) -> DeltaSet:
    """The concept erased in a short run, if wanted with one sign wrong."""
    chosen, concept = find_method(method), concept_of(CONCEPTS[CONCEPT])
    short = SHORT | SOONER.get(method, {}) if chosen.loss is not None else {}
    settings = chosen.settings(**short)
    if flip is None:
        return erase(model, concept, method, settings)[0].deltas
    settings = replace(settings, steps=WRONG_STEPS)  # type: ignore[call-arg]
    return train(model, concept, flipped(chosen, flip), settings, Silent())[0]  # type: ignore[arg-type]


def flipped(method: Method, flip: str) -> Method:
    """A trained method with one sign turned round, as a slip in its code would do it."""
    loss = method.loss
    assert loss is not None

    def wrong(settings: Any, step: Step) -> dict[str, Tensor]:
        if flip == "guidance":
            settings = copy.copy(settings)
            object.__setattr__(settings, "negative", -settings.negative)  # no user may ask for that
        turned = ERASING if flip == "erase" else (flip,)
        return {name: -term if name in turned else term for name, term in loss(settings, step).items()}

    return replace(method, loss=wrong)


def report(model: PictureModel, judge: Judge, methods: tuple[str, ...], flip: str | None = None) -> Iterator[Figure]:
    """The untouched model's figures, then each method's with its bounds."""
    untouched = measured(model, judge)
    for figure in (*untouched.shares.values(), untouched.intact):
        yield replace(figure, name=f"untouched: {figure.name}")
    for method in methods:
        found = measured(model, judge, erased(model, method, flip))
        for figure in bounded(found, untouched):
            yield replace(figure, name=f"{method}{f' with {flip} flipped' if flip else ''}: {figure.name}")
