"""What the trajectory pool buys: ESD with it, over pool sizes and refresh intervals, against ESD that samples afresh.

``python -m proving_ground pool`` measures, writes one result file for each concept, and fills docs/quality.md.

The references are the loops of ESD's scripts: for every optimiser step they draw z_t by partial sampling from pure
noise (guidance 3, 50 steps), then ask the teacher and the student there. In 2023 the model in training drew, in the
present script the frozen one does, at the same cost.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from erasure_core import Concept, DeltaSet, PictureModel
from erasure_core.delta import new_deltas
from erasure_core.layers import select
from erasure_core.methods.esd import EsdSettings
from erasure_core.methods.registry import find_method
from erasure_core.progress import Silent
from erasure_core.rates import learning_rates
from erasure_core.safe_files import write_bytes
from erasure_core.trainer import train

from . import lexicon
from .bench import concept_of, model_mark
from .documents import put_between
from .evaluation import evaluate
from .judge import Judge, load_judge
from .painting import load_model

RESULTS = Path(__file__).parent / "pool_results"
BEGIN, END = "<!-- pool: begin -->", "<!-- pool: end -->"

SAMPLING_STEPS = 50
POOLS = ((12, 300), (24, 50), (24, 150), (24, 300), (48, 150), (48, 300))
"""(trajectories, refresh interval) of the curve."""
LOOPS = {"2023: the model in training": False, "present script: the frozen model": True}
"""Who draws in the published loops, and whether that is the frozen model."""
GROUPS = ("named", "unnamed", "kept")


@dataclass(frozen=True)
class Row:
    """One way of training and what came of it; the seconds are of the processor."""

    name: str
    steps_per_second: float
    shares: dict[str, float]

    def line(self, reference: float) -> str:
        shares = " | ".join(f"{self.shares[group]:.1%}" for group in GROUPS)
        return f"| {self.name} | {self.steps_per_second:.2f} | {self.steps_per_second / reference:.1f} | {shares} |"


def _fresh_state(
    model: PictureModel, prompt: str, settings: EsdSettings, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """z_t and t of one partial sampling of the model as it is towards a prompt."""
    timesteps = model.schedule.timesteps(SAMPLING_STEPS)
    stop = int(torch.randint(len(timesteps), (1,), generator=generator))
    both = model.encode(["", prompt])
    z = torch.randn(1, *model.latent_shape, generator=generator)
    for now, following in pairwise(timesteps[: stop + 1]):
        empty, towards = model.predict(z.repeat(2, 1, 1, 1), torch.tensor([now, now]), both).chunk(2)
        guided = empty + settings.guidance * (towards - empty)
        z = model.schedule.step(z, torch.tensor([now]), torch.tensor([following]), guided)
    return z, torch.tensor([timesteps[stop]])


def published_loop(
    model: PictureModel, concept: Concept, settings: EsdSettings, frozen: bool
) -> tuple[DeltaSet, float]:
    """ESD as published, with the same retention term; returns the deltas and the processor seconds per step."""
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
        started = time.process_time()
        for step in range(settings.steps):
            prompt, keep = prompts[step % len(prompts)], kept[step % len(kept)]
            with torch.no_grad():
                with deltas.off() if frozen else nullcontext():
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
        seconds = time.process_time() - started
    return deltas, seconds / settings.steps


def _settings(steps: int) -> EsdSettings:
    """ESD's, without what the published loops lack: prompts inside kept ones, and a rate that falls towards the end."""
    return EsdSettings(steps=steps, batch=1, contexts=0, cool_down=0.0)


def compare(model: PictureModel, judge: Judge, erased: lexicon.Concept, steps: int, count: int) -> Iterator[Row]:
    """The published loops first, then pools of several sizes; all on the same prompts, with the same steps, rate, batch
    and seed, in one run."""
    concept, base = concept_of(erased), _settings(steps)

    def measured(name: str, deltas: DeltaSet, seconds: float) -> Row:
        found = evaluate(model, judge, erased, [(deltas, 1.0)], count, groups=GROUPS)
        return Row(name, 1 / seconds, {group: found.shares[group].share for group in GROUPS})

    for who, frozen in LOOPS.items():
        yield measured(f"one for each step; {who}", *published_loop(model, concept, base, frozen))
    for trajectories, refresh in POOLS:
        settings = replace(base, trajectories=trajectories, refresh=refresh)
        started = time.process_time()
        deltas, _ = train(model, concept, find_method("esd"), settings, Silent())
        seconds = (time.process_time() - started) / steps
        yield measured(f"pool of {trajectories}, drawn anew every {refresh} steps", deltas, seconds)


def run_pool(concepts: Sequence[str], steps: int, count: int) -> None:
    """Measure and write one result file for each concept, each at once, with what it was measured under."""
    model, judge = load_model(), load_judge()
    for name in concepts:
        rows = []
        for row in compare(model, judge, lexicon.CONCEPTS[name], steps, count):
            rows.append(row)
            print(row.line(rows[0].steps_per_second), flush=True)
        known = {"model": model_mark(), "settings": asdict(_settings(steps)), "pictures": count}
        result = {"concept": name, "conditions": known, "rows": [asdict(row) for row in rows]}
        write_bytes(RESULTS / f"{name}.json", (json.dumps(result, indent=1) + "\n").encode())


def figures() -> str:
    """The table of docs/quality.md, of the results that there are: for each way, means over the concepts."""
    results: list[dict[str, Any]] = [json.loads(path.read_text("utf-8")) for path in sorted(RESULTS.glob("*.json"))]
    ways = [[Row(**row) for row in rows] for rows in zip(*(result["rows"] for result in results), strict=True)]
    reference = _mean_of(ways[0]).steps_per_second
    head = [
        "| states | steps per processor second | ratio | " + " | ".join(GROUPS) + " |",
        "|" + "---|" * (3 + len(GROUPS)),
    ]
    lines = [_mean_of(rows).line(reference) for rows in ways]
    concepts = ", ".join(f"`{result['concept']}`" for result in results)
    return "\n".join([f"Means over {concepts}:\n", *head, *lines])


def _mean_of(rows: Sequence[Row]) -> Row:
    shares = {group: sum(row.shares[group] for row in rows) / len(rows) for group in GROUPS}
    return Row(rows[0].name, sum(row.steps_per_second for row in rows) / len(rows), shares)


def write_figures(document: Path) -> None:
    """Put the table between the marks of a Markdown file.

    Raises:
        InvalidFile: the file cannot be read or lacks the marks.
        OutputError: it cannot be written.
    """
    put_between(document, BEGIN, END, figures())
