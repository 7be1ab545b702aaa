"""How much work a training takes, and how it fits into the memory there is: fast, balanced, thorough, low-vram."""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from .delta import weight_of
from .errors import InvalidSettings, OtherTraining, OutOfMemory
from .layers import select
from .memory import PREDICTING, USABLE, free_memory
from .methods.registry import MOST_ACCUMULATED, Method, SolverSettings, TrainingSettings
from .model import LoadedModel
from .progress import Progress, Report
from .sampling import scaled_sides

BALANCED, LOW_VRAM = "balanced", "low-vram"
EFFORTS = {
    "fast": "half the optimiser steps, all trajectories of a training drawn at once, in ten steps each",
    BALANCED: "the method's defaults",
    "thorough": "twice the optimiser steps, trajectories and batch",
    LOW_VRAM: "the method's defaults, in pieces that fit the free memory of the device",
}
KEPT = {"sd1": (190_000, 62_000), "sd2": (190_000, 62_000), "sdxl": (330_000, 40_000)}
"""Bytes that training keeps for each latent pixel of a picture, in 16 bits: with all activations, and with those of
each block computed again. Counted at true size by ``benchmarks.floor``, to which a test compares them."""
FULL_WIDTH = 320
"""Channels behind the first layer of all these families' UNets."""
TRAINED = 16
"""Bytes for each number that is trained: itself, its gradient and two moments, in 32 bits."""
PICTURES = 3
"""Most predictions of one step for each picture of the batch: the concept's, a kept prompt's, and one of the method."""
SHORT = "memory is short, going on with smaller pieces"
"""The stage of a training that is told where it is stepped down."""
SURELY = 2 / 3
"""Share of the estimated need that any training has: not every method predicts for three ``PICTURES``."""
FAST_STEPS = 10
T = TypeVar("T")


@dataclass(frozen=True)
class Effort:
    """The work that a training was asked to take.

    Args:
        name: one of ``EFFORTS``.
        asked: names of settings that the user gave, which only a lack of memory changes.

    Raises:
        InvalidSettings: there is no such effort.
    """

    name: str = BALANCED
    asked: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.name not in EFFORTS:
            raise InvalidSettings(f"There is no effort {self.name!r}; choose from {', '.join(EFFORTS)}.")

    def settings(self, settings: SolverSettings) -> SolverSettings:
        """The settings as far as what was asked decides them, which is all but what low-vram finds in the memory."""
        if not isinstance(settings, TrainingSettings):
            return settings
        changed: dict[str, Any] = {}
        if self.name == "fast":
            steps = settings.steps if "steps" in self.asked else max(1, settings.steps // 2)
            # Drawn once, a pool has to hold what all the others would: what it lacks is not protected.
            draws = -(-settings.steps // settings.refresh)
            short, many = min(settings.trajectory_steps, FAST_STEPS), _times(draws, settings, "trajectories")
            changed = {"steps": steps, "refresh": steps, "trajectories": many, "trajectory_steps": short}
        if self.name == "thorough":
            changed = {name: _times(2, settings, name) for name in ("steps", "trajectories", "batch")}
        return replace(settings, **{name: value for name, value in changed.items() if name not in self.asked})

    @property
    def rest(self) -> Effort:
        """What ``settings`` leaves to be picked when the memory is looked at."""
        return self if self.name == LOW_VRAM else Effort()


def effort_of(name: str | None, method: Method, asked: Collection[str] = (), called: str = "effort") -> Effort:
    """The effort that a user has chosen for a method.

    Args:
        name: one of ``EFFORTS``; ``None`` where none was chosen.
        method: what it is for.
        asked: as of ``Effort``.
        called: what the front end calls the choice.

    Raises:
        InvalidSettings: there is no such effort, or the method solves at once.
    """
    if name is None:
        return Effort()
    if method.solve is not None:
        raise InvalidSettings(
            f"{called} is for methods that train, and {method.name} solves its equations at once; leave it out."
        )
    return Effort(name, frozenset(asked))


def not_defaults(settings: SolverSettings) -> frozenset[str]:
    """Names of the settings that are not at their defaults: what a form shows unchanged was not chosen by its user."""
    return frozenset(f.name for f in fields(settings) if getattr(settings, f.name) != f.default)


@dataclass(frozen=True)
class Plan:
    """Settings, and one sentence that says what was picked."""

    settings: TrainingSettings
    sentence: str


def plan(
    effort: str,
    settings: TrainingSettings,
    model: LoadedModel,
    free: int | None = None,
    asked: Collection[str] = (),
    goes_on: bool = False,
) -> Plan:
    """Settings of an effort, from a method's settings.

    Args:
        effort: one of ``EFFORTS``.
        settings: what would be run otherwise.
        model: the loaded model.
        free: bytes of free memory; measured if not given.
        asked: names of settings that the user gave, which only a lack of memory changes.
        goes_on: as of ``foreseen``.

    Raises:
        InvalidSettings: there is no such effort.
    """
    wanted = Effort(effort, frozenset(asked))
    if effort == LOW_VRAM:
        return _fitting(settings, model, free_memory(model.device) if free is None else free, goes_on)
    chosen = wanted.settings(settings)
    assert isinstance(chosen, TrainingSettings)
    return Plan(chosen, f"{effort}: {chosen.steps} steps of {chosen.batch}, {EFFORTS[effort]}.")


def _times(factor: int, settings: TrainingSettings, name: str) -> Any:
    """A multiple of a setting, at most what is allowed."""
    (most,) = (one.metadata["high"] for one in fields(settings) if one.name == name)
    return min(factor * getattr(settings, name), most)


def _pixels(model: LoadedModel, scale: float) -> int:
    height, width = scaled_sides(model.latent_shape, scale)
    return height * width


def needed(settings: TrainingSettings, model: LoadedModel) -> int:
    """Bytes that a training takes beside the loaded model, estimated: activations, and what is trained with its
    gradients and moments."""
    kept = KEPT.get(model.family, KEPT["sdxl"])[settings.checkpointing] * model.dtype.itemsize / 2
    activations = PICTURES * settings.batch * _pixels(model, settings.picture_scale) * kept * _width(model)
    return int(activations) + TRAINED * _trained(settings, model)


def _width(model: LoadedModel) -> float:
    """How wide the UNet is, as a share of the family's own: activations grow with it."""
    first = model.layers().get("unet.conv_in")
    return 1.0 if first is None else len(weight_of(first)) / FULL_WIDTH


def _trained(settings: TrainingSettings, model: LoadedModel) -> int:
    """Numbers that are trained."""
    shapes = [weight_of(layer).shape for layer in select(model.layers(), settings.layers).values()]
    if not settings.rank:
        return sum(shape.numel() for shape in shapes)
    return sum(settings.rank * (shape[0] + shape[1:].numel()) for shape in shapes)


def _smaller(settings: TrainingSettings) -> TrainingSettings | None:
    """The next setting that needs less memory: what costs only time first, and the pictures' size last."""
    if not settings.checkpointing:
        return replace(settings, checkpointing=True)
    if settings.batch > 1:
        accumulate = min(MOST_ACCUMULATED, 2 * settings.accumulate)
        return replace(settings, batch=-(-settings.batch // 2), accumulate=accumulate)
    if settings.picture_scale > 0.5:
        return replace(settings, picture_scale=settings.picture_scale - 0.25)
    return None


def _fitting(settings: TrainingSettings, model: LoadedModel, free: int | None, goes_on: bool) -> Plan:
    usable, asked = int(USABLE * free) if free is not None else 0, settings
    while needed(settings, model) > usable and (smaller := _smaller(settings)) is not None:
        settings = smaller
    pieces = (
        f"{settings.batch} at a time ({settings.accumulate} batches a step), pictures at {settings.picture_scale:.0%} "
        "of their sides"
    )
    if goes_on:
        settings = replace(asked, checkpointing=settings.checkpointing)
        pieces = "batches and pictures as in the training that is gone on with"
    each = PREDICTING * model.dtype.itemsize // 2 * _pixels(model, settings.picture_scale)
    settings = replace(settings, max_batch=max(1, min(settings.max_batch, usable // each)))
    found = "an unknown amount of" if free is None else f"{free / 2**30:.1f} GiB of"
    again = "activations computed again" if settings.checkpointing else "all activations kept"
    return Plan(settings, f"low-vram: with {found} free memory, {pieces}, {again}.")


def foreseen(
    settings: TrainingSettings, model: LoadedModel, goes_on: bool, progress: Progress, free: int | None = None
) -> TrainingSettings:
    """Settings that are stepped down before the training where its memory surely does not suffice.

    A device that runs out says so only after the trajectories are drawn, and a computer's main memory not at all: the
    system ends the program.

    Args:
        settings: what was asked for.
        model: the loaded model.
        goes_on: whether a stopped training is gone on with. Its batch and its pictures' size stay as they were.
        progress: is told.
        free: bytes of free memory; measured if not given.
    """
    free = free_memory(model.device) if free is None else free
    chosen = settings
    while free is not None and SURELY * needed(chosen, model) > free and (smaller := _smaller(chosen)) is not None:
        chosen = smaller
    if goes_on:
        chosen = replace(settings, checkpointing=chosen.checkpointing)
    if chosen != settings:
        progress.update(Report(SHORT, 0, chosen.steps))
    return chosen


def within_memory(
    work: Callable[[TrainingSettings], T], settings: TrainingSettings, progress: Progress, checkpoint: Path | None
) -> tuple[T, TrainingSettings]:
    """Do a training; as long as the memory does not suffice, once more with settings that need less.

    Computing activations again leaves the result alone, so the training goes on where it stopped. A smaller batch is
    another training and starts anew. A training that was stepped down and then interrupted is gone on with as it was.

    Returns:
        What ``work`` returned, and the settings it was done with.

    Raises:
        OtherTraining: the checkpoint is of none of these settings.
        OutOfMemory: nothing smaller is left.
    """
    refusal: OtherTraining | None = None
    while True:
        try:
            return work(settings), settings
        except OtherTraining as error:
            refusal, smaller = refusal or error, _smaller(settings)
            if smaller is None:
                raise refusal from None
            settings = smaller
            continue
        except OutOfMemory:
            smaller = _smaller(settings)
            if smaller is None:
                raise
        progress.update(Report(SHORT, 0, smaller.steps))
        if checkpoint is not None and replace(smaller, checkpointing=settings.checkpointing) != settings:
            checkpoint.unlink(missing_ok=True)
        _give_back()
        settings = smaller


def _give_back() -> None:
    """Free what a training that was broken off has left on the device: the next one needs it in other pieces."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if hasattr(torch, "xpu") and torch.xpu.is_available():
        torch.xpu.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()
