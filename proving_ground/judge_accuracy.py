"""How often the judge is right where the truth is known: fresh renders, reconstructions, ruined pictures."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from torch import Tensor

from .figures import Figure, share_of
from .judge import Judge, Verdict
from .lexicon import OBJECT_NAMES
from .scene import Scene
from .training.data import to_model_range
from .training.garbage import ruin
from .training.judge import judged_scenes
from .training.latents import decode, encode

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

SEED = 1001
"""Not a seed of any training."""
FRESH = 1000
RECONSTRUCTED = 300


def _named(kind: str, scenes: list[Scene], verdicts: list[Verdict]) -> list[bool]:
    """For each thing, whether it was found with the right name of one kind."""
    return [
        any(seen.object == thing.object and getattr(seen, kind) == getattr(thing, kind) for seen in verdict.things)
        for scene, verdict in zip(scenes, verdicts, strict=True)
        for thing in scene.things
    ]


def _false_presences(scenes: list[Scene], verdicts: list[Verdict]) -> list[bool]:
    """For each object that is not in a picture, whether it was seen."""
    return [
        name in {seen.object for seen in verdict.things}
        for scene, verdict in zip(scenes, verdicts, strict=True)
        for name in OBJECT_NAMES
        if name not in {thing.object for thing in scene.things}
    ]


def sound_figures(where: str, scenes: list[Scene], verdicts: list[Verdict], target: float | None) -> list[Figure]:
    """The judge on sound pictures."""
    pairs = list(zip(scenes, verdicts, strict=True))
    exact = (not v.garbage and {s.object for s in v.things} == {t.object for t in scene.things} for scene, v in pairs)
    return [
        share_of(f"{where}: objects exact and sound", exact, target),
        share_of(f"{where}: colour", _named("colour", scenes, verdicts), target),
        share_of(f"{where}: style", _named("style", scenes, verdicts), target),
        share_of(f"{where}: background", (v.background == scene.background for scene, v in pairs), target),
        share_of(f"{where}: object seen that is not there", _false_presences(scenes, verdicts), 0.003, error=True),
    ]


def ruined_figure(where: str, judge: Judge, scenes: list[Scene], pictures: Tensor) -> Figure:
    """How often ruined pictures are refused, as garbage or as empty."""
    shown = [i for i, scene in enumerate(scenes) if scene.things]
    ruined = ruin(to_model_range(pictures[shown]), [scenes[i] for i in shown], random.Random(SEED))
    verdicts = judge(((ruined + 1) * 127.5).round().byte())
    return share_of(f"{where}: ruined pictures refused", (not verdict.intact for verdict in verdicts))


def judge_figures(judge: Judge, vae: AutoencoderKL | None = None) -> list[Figure]:
    """The judge on unseen renders and, with an autoencoder, on their reconstructions."""
    scenes, pictures = judged_scenes(SEED, FRESH)
    figures = sound_figures("fresh", scenes, judge(pictures), 0.99)
    figures.append(ruined_figure("fresh", judge, scenes, pictures))
    if vae is None:
        return figures
    rebuilt = decode(vae, encode(vae, pictures[:RECONSTRUCTED]))
    figures += sound_figures("rebuilt", scenes[:RECONSTRUCTED], judge(rebuilt), None)
    return [*figures, ruined_figure("rebuilt", judge, scenes[:RECONSTRUCTED], rebuilt)]
