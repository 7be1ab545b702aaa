"""What a whole erasure takes at true size, counted without computing it: operations, and bytes at the peak.

Operations are those of matrix multiplications, convolutions and attention. Bytes are of tensors, in 16 bits; what a
device's libraries take for themselves comes on top.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from erasure_core.delta import weight_of
from erasure_core.effort import plan
from erasure_core.methods.esd import EsdSettings
from erasure_core.methods.registry import TrainingSettings

from .architectures import SIDES, modules
from .floor import TOKENS, Work, count
from .published import ESD_2023, LOOPS
from .report import PUBLISHED
from .rows import CONCEPT, pooled_latents

SAME = EsdSettings(batch=1, steps=LOOPS["esd"].steps)
"""What is compared with the published ESD loop: as many steps as it takes, with one state of the concept in each."""
ESD_SIDE = {"sd15": 1024}
"""Pixels that ESD's script paints with for a family, where these are not the family's own."""
STATES = 2
"""Predictions of our training step for each state of the batch: the concept's and a kept prompt's."""


@dataclass(frozen=True)
class Counted:
    """A training of one concept.

    Args:
        name: what is run.
        family, side: on what.
        steps: optimiser steps.
        student: operations of the student's forward and backward passes, in one step.
        pool: operations of trajectories and teacher, in one step on average.
        peak: bytes at the peak, text encoders not included.
        weights: bytes of the networks in it.
        text: bytes of the text encoders.
    """

    name: str
    family: str
    side: int
    steps: int
    student: float
    pool: float
    peak: int
    weights: int
    text: int

    @property
    def step(self) -> float:
        """Operations of one optimiser step."""
        return self.student + self.pool


@dataclass(frozen=True)
class Shape:
    """As much of a loaded model as efforts look at."""

    family: str
    side: int

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return 4, self.side // 8, self.side // 8


def ours(name: str, family: str, settings: TrainingSettings) -> Counted:
    """One of our trainings."""
    side = round(SIDES[family] * settings.picture_scale)
    student = count(Work(family, side, STATES * settings.batch, settings.layers, settings.rank, settings.checkpointing))
    once = count(Work(family, side, 1)).flops
    return Counted(
        name, family, side, settings.steps, student.flops * settings.accumulate,
        once * pooled_latents(settings, CONCEPT), student.peak, student.weights, student.text,
    )  # fmt: skip


def published(name: str, family: str, side: int) -> Counted:
    """A whole run of one of the published loops."""
    loop = LOOPS[name]
    work = Work(family, side, loop.asked, loop.layers, loop.rank, networks=loop.networks, direct=not loop.rank)
    student, sampled = count(work), loop.pooled * count(Work(family, side, 1)).flops
    return Counted(
        f"{PUBLISHED}{name}", family, side, loop.steps, student.flops, sampled, student.peak, student.weights,
        student.text,
    )  # fmt: skip


def all_published(family: str) -> Iterator[Counted]:
    """The published loops at the family's own size, ESD with as many steps as in 2023, and at its script's own size."""
    for name in LOOPS:
        yield published(name, family, SIDES[family])
    yield replace(published("esd", family, SIDES[family]), name=f"{PUBLISHED}esd of 2023", steps=ESD_2023)
    if family in ESD_SIDE:
        yield replace(published("esd", family, ESD_SIDE[family]), name=f"{PUBLISHED}esd at its script's size")


def all_counted(family: str) -> Iterator[dict[str, Any]]:
    """The published loops, ours beside them, and the efforts with the default settings."""
    yield from map(asdict, all_published(family))
    fast = plan("fast", replace(SAME, steps=2 * SAME.steps), _unlimited(family)).settings
    same = {
        "ours, default pool": SAME,
        "ours, fast": fast,
        "ours, fast, computing activations again": replace(fast, checkpointing=True),
    }
    default = EsdSettings()
    low = replace(default, batch=1, accumulate=default.batch, checkpointing=True)
    efforts = {
        "fast": plan("fast", default, _unlimited(family)).settings,
        "balanced": default,
        "low-vram at its least": low,
    }
    for name, settings in {**same, **efforts}.items():
        yield asdict(ours(name, family, settings))


def curves(family: str) -> dict[str, list[tuple[int, float]]]:
    """Operations of whole trainings over the number of steps, and over that of concepts in one run."""
    default = EsdSettings()
    student = count(Work(family, SIDES[family], STATES * default.batch, default.layers, default.rank)).flops
    once = count(Work(family, SIDES[family], 1)).flops

    def whole(settings: TrainingSettings, concepts: int) -> float:
        erased = replace(CONCEPT, words=tuple(f"thing {i}" for i in range(concepts)))
        return settings.steps * (student + once * pooled_latents(settings, erased))

    return {
        "steps": [(n, whole(replace(default, steps=n), 1)) for n in (150, 300, 600, 1200)],
        "concepts": [(n, whole(default, n)) for n in (1, 2, 4, 8, 16)],
    }


def shares(family: str) -> dict[str, float]:
    """What things that were not built could save at most, in training with the defaults.

    Returns:
        ``keys and values``: operations that project prompts to keys and values, of all in a prediction;
        ``moments``: bytes of Adam's moments, of those at the peak.
    """
    default, side = EsdSettings(), SIDES[family]
    with torch.device("meta"):
        network = modules(family, side, torch.bfloat16)[0]
    read = [m for name, m in network.named_modules() if name.endswith(("attn2.to_k", "attn2.to_v"))]
    projected = sum(2 * TOKENS * weight_of(layer).numel() for layer in read)
    trained = sum(default.rank * sum(weight_of(layer).shape) for layer in read)  # the default layers are these
    student = count(Work(family, side, STATES * default.batch, default.layers, default.rank))
    return {
        "keys and values": projected / count(Work(family, side, 1)).flops,
        "moments": 2 * 4 * trained / student.peak,
    }


def _unlimited(family: str) -> Any:
    return Shape(family, SIDES[family])
