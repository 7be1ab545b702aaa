"""What the trajectory pool buys: ESD with it, over pool sizes and refresh intervals, against ESD that samples afresh.

The reference is the loop of ESD's first script, of 2023: for every optimiser step it draws z_t by partial sampling of
the training model from pure noise (guidance 3, 50 steps), then asks the teacher and the student there. (In the present
script the frozen model draws, at the same cost.)
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch.nn import functional as F

from erasure_core import Concept, DeltaSet, PictureModel
from erasure_core.delta import new_deltas
from erasure_core.layers import select
from erasure_core.methods.esd import EsdSettings
from erasure_core.methods.registry import find_method
from erasure_core.progress import Silent
from erasure_core.rates import learning_rates
from erasure_core.trainer import train

from . import lexicon
from .bench import concept_of
from .evaluation import evaluate
from .judge import Judge

SAMPLING_STEPS = 50
POOLS = ((6, 300), (12, 300), (24, 50), (24, 150), (24, 300), (48, 300))
"""(trajectories, refresh interval) of the curve."""
GROUPS = ("named", "unnamed", "kept")


@dataclass(frozen=True)
class Row:
    """One way of training and what came of it."""

    name: str
    steps_per_second: float
    shares: dict[str, float]

    def line(self, reference: float) -> str:
        shares = " | ".join(f"{self.shares[group]:.1%}" for group in GROUPS)
        return f"| {self.name} | {self.steps_per_second:.2f} | {self.steps_per_second / reference:.1f} | {shares} |"


def _fresh_state(
    model: PictureModel, prompt: str, settings: EsdSettings, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """z_t and t of one partial sampling of the training model towards a prompt."""
    timesteps = model.schedule.timesteps(SAMPLING_STEPS)
    stop = int(torch.randint(len(timesteps), (1,), generator=generator))
    both = model.encode(["", prompt])
    z = torch.randn(1, *model.latent_shape, generator=generator)
    for now, following in pairwise(timesteps[: stop + 1]):
        empty, towards = model.predict(z.repeat(2, 1, 1, 1), torch.tensor([now, now]), both).chunk(2)
        guided = empty + settings.guidance * (towards - empty)
        z = model.schedule.step(z, torch.tensor([now]), torch.tensor([following]), guided)
    return z, torch.tensor([timesteps[stop]])


def published_loop(model: PictureModel, concept: Concept, settings: EsdSettings) -> tuple[DeltaSet, float]:
    """ESD as published, with the same retention term; returns the deltas and the seconds per step."""
    layers = select(model.layers(), settings.layers)
    deltas = new_deltas(layers, settings.rank, settings.seed)
    rates = [
        {"params": [parameter], "lr": rate}
        for name, layer in layers.items()
        for parameter, rate in learning_rates(name, layer, deltas[name], settings.learning_rate)
    ]
    optimizer = torch.optim.AdamW(rates, weight_decay=0.0, betas=(0.9, 0.99))
    generator = torch.Generator().manual_seed(settings.seed)
    prompts, kept = [saying.prompt for saying in concept.sayings()], concept.kept_prompts
    with model.trainable(), deltas.attached(layers):
        started = time.monotonic()
        for step in range(settings.steps):
            prompt, keep = prompts[step % len(prompts)], kept[step % len(kept)]
            with torch.no_grad():
                z, t = _fresh_state(model, prompt, settings, generator)
                z_kept, t_kept = _fresh_state(model, keep, settings, generator)
                with deltas.off():
                    states, times = torch.cat([z, z, z_kept]), torch.cat([t, t, t_kept])
                    empty, towards, same = model.predict(states, times, model.encode(["", prompt, keep])).chunk(3)
                target = empty - settings.negative * (towards - empty)
            both = model.predict(torch.cat([z, z_kept]), torch.cat([t, t_kept]), model.encode([prompt, keep]))
            erased, kept_now = both.chunk(2)
            loss = F.mse_loss(erased, target) + settings.keep_weight * F.mse_loss(kept_now, same)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
        seconds = time.monotonic() - started
    return deltas, seconds / settings.steps


def compare(model: PictureModel, judge: Judge, erased: lexicon.Concept, steps: int, count: int) -> Iterator[Row]:
    """The published loop first, then pools of several sizes; all with the same steps, batch 1 and seed, in one run."""
    concept, base = concept_of(erased), EsdSettings(steps=steps, batch=1)

    def measured(name: str, deltas: DeltaSet, seconds: float) -> Row:
        found = evaluate(model, judge, erased, [(deltas, 1.0)], count, groups=GROUPS)
        return Row(name, 1 / seconds, {group: found.shares[group].share for group in GROUPS})

    yield measured("published loop", *published_loop(model, concept, base))
    for trajectories, refresh in POOLS:
        settings = replace(base, trajectories=trajectories, refresh=refresh)
        started = time.monotonic()
        deltas, _ = train(model, concept, find_method("esd"), settings, Silent())
        seconds = (time.monotonic() - started) / steps
        yield measured(f"pool of {trajectories}, drawn anew every {refresh}", deltas, seconds)


def report(rows: Sequence[Row]) -> str:
    """A Markdown table; the first row is the reference of the ratio."""
    head = ["| trajectories | steps/s | ratio | " + " | ".join(GROUPS) + " |", "|" + "---|" * (3 + len(GROUPS))]
    return "\n".join(head + [row.line(rows[0].steps_per_second) for row in rows])
