"""One row for each method and published loop: seconds, share of each part, network calls, memory, and the floor."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from erasure_core import METHODS, Concept, Report, Silent, applied, erase, read_erasure, write_erasure
from erasure_core.delta import DeltaSet
from erasure_core.erasure_file import Erasure
from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.methods import Method, SolverSettings, TrainingSettings
from erasure_core.trainer import PLAIN
from erasure_core.trajectory import TRAINING

from . import published
from .floor import Work, count
from .gpu_check import prediction
from .machine import Rates, clock
from .meter import Meter
from .parts import PARTS, STUDENT, TRAJECTORY
from .report import PUBLISHED

CONCEPT = Concept(("ball",), None, ("a red box", "a photo of a cat", "a dog in a park"))
POOLED = {"cpu": {"trajectories": 5, "trajectory_steps": 2}, "cuda": {"trajectories": 32, "trajectory_steps": 2}}
"""The pools that are really drawn. Their cost is proportional to their size: the row is reckoned for the settings'.
On a GPU they fill the largest call, where a latent costs least."""


@dataclass(frozen=True)
class Setup:
    """Where and at which size to measure.

    Args:
        family: one of ``architectures.FAMILIES``.
        side: pixels along each side of the pictures.
        device: ``cpu``, ``cuda``, …
        dtype: of the weights.
        tiny: the shrunk architecture.
        steps: optimiser steps that are timed, after one to warm up.
        settings: of the methods, where not their defaults.
    """

    family: str
    side: int
    device: str
    dtype: torch.dtype
    tiny: bool
    steps: int
    settings: dict[str, Any]


@dataclass(frozen=True)
class Row:
    """Figures of one method; bytes, seconds, and shares of one.

    Args:
        name: the method, or "published <loop>".
        seconds: of one optimiser step, its part of the drawing of the pools included.
        shares: of the seconds, by part.
        settings: what was run.
        students: latents that the student predicts in one step, with gradients.
        pooled: latents through the network for the pools, for each step.
        peak: bytes at the peak: measured on a GPU, counted elsewhere.
        file, load, apply: bytes of the file, seconds to read and check it, and to hang it on the model.
        floor: the least seconds that its network calls take on this machine; this and the rest is counted.
        calls: latents through the network in one step, a backward pass counted by its operations.
        least: bytes at the peak with activations computed again and text encoders away.
    """

    name: str
    seconds: float
    shares: dict[str, float]
    settings: dict[str, Any]
    students: int = 0
    pooled: float = 0.0
    peak: int | None = None
    file: int | None = None
    load: float | None = None
    apply: float | None = None
    floor: float | None = None
    calls: float | None = None
    least: int | None = None


class StepsAlone(Silent):
    """Forgets what the first training step cost, in which memory and kernels are prepared, and stops the meter after
    the last one: what a training does once is not in a step."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.pools: tuple[float, int] = (0.0, 0)
        self.seconds: Counter[str] = Counter()

    def update(self, report: Report) -> None:
        if report.stage != "training":
            return
        if report.step == 1:
            self.pools = self.meter.seconds[TRAJECTORY], self.meter.latents[TRAJECTORY, False]
            self.meter.reset()
        if report.step == report.total:
            self.seconds = self.meter.until_now()


def pooled_latents(settings: TrainingSettings, concept: Concept) -> float:
    """Latents that drawing the pools sends through the network, for each optimiser step, as they are to be expected.

    The concept's pool asks the teacher for every role that its prompts have, the kept one's for two; what a prompt asks
    as the empty one does is asked once.
    """
    said, count = concept.sayings(settings.contexts), settings.trajectories
    beside = [saying.without for saying in said if saying.without]
    roles = 2 + concept.has_alternative + (2 if settings.driver == TRAINING else 0)
    kept = len(dict.fromkeys([*concept.kept_prompts, *beside]))
    inside = _expected(count, len(said), PLAIN * len(concept.words), 0, len(beside))
    empty = _expected(count, kept, 1 + len(concept.keep), 1, 1)
    once = settings.trajectory_steps * (count * roles + inside + 2 * count - empty)
    draws = -(-settings.steps // settings.refresh)
    return once * draws / settings.steps


def _expected(count: int, prompts: int, always: int, always_special: int, special: int) -> float:
    """How many of ``count`` trajectories are of a special prompt, on average.

    Args:
        count: trajectories of the pool.
        prompts: all of its prompts, of which ``special`` are special.
        always: so many of them come first, of which ``always_special`` are special (see ``trajectory.draw_pool``).
    """
    lead = min(always, count // 2, prompts)
    share = always_special / always
    behind = (special - lead * share) / max(1, prompts - lead)
    rounds, over = divmod(count, prompts)
    return rounds * special + min(over, lead) * share + max(0, over - lead) * behind


def work_of(setup: Setup, batch: int, **more: Any) -> Work:
    return Work(setup.family, setup.side, batch, dtype=setup.dtype, tiny=setup.tiny, **more)


def method_row(model: DiffusersModel, method: Method, setup: Setup) -> Row:
    """Train a few steps; the pools' share is reckoned for the settings' own pools."""
    known = {f.name for f in fields(method.settings)}
    wanted = method.settings(**{name: value for name, value in setup.settings.items() if name in known})
    if not isinstance(wanted, TrainingSettings):
        return _solver_row(model, method, wanted, setup)
    pools = POOLED[setup.device.split(":")[0]]
    few = replace(wanted, steps=setup.steps + 1, refresh=setup.steps + 1, **pools, **_short(known))
    if setup.device.startswith("cuda"):
        prediction(model, wanted.max_batch)  # so that what is prepared once is not counted as drawing
    meter = Meter(setup.device)
    timer = StepsAlone(meter)
    _reset_peak(setup.device)
    with meter.watching():
        erasure, _ = erase(model, CONCEPT, method.name, few, timer)
    drawn_seconds, drawn = timer.pools
    pooled = pooled_latents(wanted, CONCEPT)
    parts = {part: timer.seconds[part] / setup.steps for part in PARTS}
    parts[TRAJECTORY] = drawn_seconds / drawn * pooled
    return Row(
        method.name,
        seconds=sum(parts.values()),
        shares=_shares(parts),
        settings=_differing(wanted),
        students=meter.latents[STUDENT, True] // setup.steps,
        pooled=pooled,
        peak=_peak(setup.device),
        **_file_figures(model, erasure, setup.device),
    )


def _short(known: set[str]) -> dict[str, int]:
    """A method's own preparations, cut short: they are not part of a step."""
    once = {"inversion_steps": 1, "pictures": 1, "search": False}
    return {name: value for name, value in once.items() if name in known}


def published_row(model: DiffusersModel, name: str, setup: Setup, sampling: int) -> Row:
    """Steps of a published loop. ``sampling`` steps are really sampled, and reckoned for the loop's mean."""
    loop, meter = published.LOOPS[name], Meter(setup.device)
    share = setup.family == "sdxl" and setup.device == "cpu" and not setup.tiny
    _reset_peak(setup.device)
    with published.running(name, model, meter, share) as running:
        running.step(1)
        with meter.watching():
            for _ in range(setup.steps):
                running.step(sampling)
    parts = {part: meter.seconds[part] / setup.steps for part in PARTS}
    parts[TRAJECTORY] *= published.MEAN_STEPS / sampling
    return Row(
        f"{PUBLISHED}{name}",
        seconds=sum(parts.values()),
        shares=_shares(parts),
        settings={"layers": loop.layers, "rank": loop.rank, "batch": 1},
        students=loop.asked,
        pooled=loop.pooled,
        peak=_peak(setup.device),
    )


def _solver_row(model: DiffusersModel, method: Method, settings: SolverSettings, setup: Setup) -> Row:
    _reset_peak(setup.device)
    started = clock(setup.device)
    erasure, _ = erase(model, CONCEPT, method.name, settings)
    seconds = clock(setup.device) - started
    figures = _file_figures(model, erasure, setup.device)
    return Row(method.name, seconds, {}, _differing(settings), peak=_peak(setup.device), **figures)


def with_floor(row: Row, setup: Setup, rates: Rates) -> Row:
    """The row with what is counted for it. That takes longer than measuring on a GPU, which needs not stand by."""
    once = count(work_of(setup, 1))
    if not row.students:
        return replace(row, peak=row.peak or once.weights + once.text, least=once.weights)
    student = _student(row, setup)
    kept, again = count(student), count(replace(student, checkpointing=True))
    plain = count(replace(student, checkpointing=False))
    return replace(
        row,
        peak=row.peak or kept.peak + kept.text,
        floor=plain.seconds(rates) + _least_pooling(row, setup, rates),
        calls=plain.flops / once.flops + row.pooled,
        least=again.peak,
    )


def _student(row: Row, setup: Setup) -> Work:
    """One step of the student of a row."""
    more = {name: row.settings[name] for name in ("layers", "rank", "checkpointing") if name in row.settings}
    if row.name.startswith(PUBLISHED):
        loop = published.LOOPS[row.name.removeprefix(PUBLISHED)]
        more |= {"networks": loop.networks, "direct": not loop.rank}
    return work_of(setup, row.students, **more)


def _least_pooling(row: Row, setup: Setup, rates: Rates) -> float:
    """Seconds of drawing a step's states: in large calls, or in those that a published loop makes."""
    if row.name.startswith(PUBLISHED):
        loop = published.LOOPS[row.name.removeprefix(PUBLISHED)]
        asked, sampled = (count(work_of(setup, latents)).seconds(rates) for latents in (loop.asked, loop.sampled))
        return loop.teacher * asked + published.MEAN_STEPS * sampled
    batch = row.settings["max_batch"]
    return row.pooled * count(work_of(setup, batch)).seconds(rates) / batch


def _shares(parts: dict[str, float]) -> dict[str, float]:
    total = sum(parts.values())
    return {part: seconds / total for part, seconds in parts.items()}


def _differing(settings: SolverSettings) -> dict[str, Any]:
    """The settings that a reader of the row wants to see."""
    shown = ("layers", "rank", "batch", "steps", "trajectories", "trajectory_steps", "refresh", "checkpointing")
    shown += ("max_batch",)
    return {name: value for name, value in asdict(settings).items() if name in shown}


def _reset_peak(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: str) -> int | None:
    """Bytes, where the device counts them itself."""
    return torch.cuda.max_memory_allocated(device) if device.startswith("cuda") else None


def _file_figures(model: DiffusersModel, erasure: Erasure, device: str) -> dict[str, Any]:
    """Bytes of the file, seconds to read and check it against the model, and to hang it on."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "erasure.safetensors"
        write_erasure(path, erasure, model)
        started = clock(device)
        deltas: DeltaSet = read_erasure(path).bind(model)
        loaded = clock(device)
        with applied(model, [(deltas, 1.0)]):
            hung = clock(device)
        return {"file": path.stat().st_size, "load": loaded - started, "apply": hung - loaded}


def rows(model: DiffusersModel, names: list[str], setup: Setup, sampling: int) -> Iterator[Row]:
    """A row for each name: a registered method, or "published <loop>"; without what is counted (``with_floor``)."""
    for name in names:
        started = time.monotonic()
        if name.startswith(PUBLISHED):
            row = published_row(model, name.removeprefix(PUBLISHED), setup, sampling)
        else:
            row = method_row(model, METHODS[name], setup)
        print(f"{setup.family} {name}: measured in {time.monotonic() - started:.0f} s", flush=True)
        yield row
