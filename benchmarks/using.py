"""Files on a model at true size: to read, check and hang them on, and what a prediction costs with several of them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from erasure_core import DeltaSet, applied, erase, read_erasure, write_erasure
from erasure_core.algebra import merged
from erasure_core.delta import LowRankDelta, new_deltas, weight_of
from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.layers import select
from erasure_core.methods import TrainingSettings
from erasure_core.methods.closed_form import ClosedFormSettings

from .machine import wall, wall_medians
from .solving import concept_of

FILES = (1, 2, 4, 8)
REPEATS = 3
WAYS = ("stacked", "merged", "baked")
"""Each file with a product of its own in each layer; all files added up in one; the change added to the weights."""


@dataclass(frozen=True)
class Applied:
    """Seconds to use a file, medians of the wall clock.

    Args:
        size: bytes of the file.
        reading: only the bytes.
        touching: one pass over the weights that the change touches.
        binding: read, checked, matched to the model and its base recognised.
        applying: hung on the model and taken off again.
    """

    size: int
    reading: float
    touching: float
    binding: float
    applying: float


@torch.no_grad()
def apply(model: DiffusersModel, device: str) -> Applied:
    """Write an erasure of the closed form, then use it as a host does."""
    erasure, _ = erase(model, concept_of(1), "closed_form", ClosedFormSettings(replace=False, neighbours=0))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "erasure.safetensors"
        write_erasure(path, erasure, model)
        deltas = read_erasure(path).bind(model)

        def hang() -> None:
            with applied(model, [(deltas, 1.0)]):
                pass

        times = wall_medians(
            {
                "reading": path.read_bytes,
                "touching": lambda: sum(float(model.base_weight(name).sum()) for name in erasure.deltas),
                "binding": lambda: read_erasure(path).bind(model),
                "applying": hang,
            },
            device,
        )
        return Applied(path.stat().st_size, **times)


def files(model: DiffusersModel, count: int) -> list[DeltaSet]:
    """``count`` changes such as trainings with the default settings make, their numbers random."""
    settings, made = TrainingSettings(), []
    for seed in range(count):
        deltas = new_deltas(select(model.layers(), settings.layers), settings.rank, seed)
        chance = torch.Generator().manual_seed(seed)
        for delta in deltas.deltas.values():
            assert isinstance(delta, LowRankDelta)
            delta.up.data = 1e-3 * torch.randn(delta.up.shape, generator=chance)
        made.append(deltas.to(model.device))
    return made


@contextmanager
def _stacked(model: DiffusersModel, parts: Sequence[DeltaSet]) -> Iterator[None]:
    with ExitStack() as stack:
        for part in parts:
            stack.enter_context(part.attached(model.layers()))
        yield


@contextmanager
def _baked(model: DiffusersModel, parts: Sequence[DeltaSet]) -> Iterator[None]:
    """The changes are in the weights, which are as before, to the bit, on leaving."""
    layers = {name: weight_of(layer) for name, layer in model.layers().items() if name in parts[0].deltas}
    before = {name: weight.detach().clone() for name, weight in layers.items()}
    try:
        for name, weight in layers.items():
            weight.add_(sum(part[name].change() for part in parts).to(weight.dtype))  # type: ignore[union-attr]
        yield
    finally:
        for name, weight in layers.items():
            weight.copy_(before[name])


def contexts(model: DiffusersModel, parts: Sequence[DeltaSet]) -> dict[str, Callable[[], AbstractContextManager[Any]]]:
    """For each of ``WAYS`` what puts the files on the model."""
    one = merged([(part, 1.0) for part in parts])
    return dict(
        zip(WAYS, (partial(_stacked, model, parts), partial(_stacked, model, [one]), partial(_baked, model, parts)),
            strict=True)
    )  # fmt: skip


@torch.no_grad()
def predictions(model: DiffusersModel, device: str, counts: Sequence[int] = FILES) -> list[dict[str, float]]:
    """Seconds of one prediction with so many files: rows of ``files``, ``none`` (without any) and ``WAYS``.

    All take turns, so that whatever else the machine does meets all of them alike; medians of the wall clock.
    """
    every = files(model, max(counts))
    tried: dict[tuple[int, str], Callable[[], AbstractContextManager[Any]]] = {(0, "none"): nullcontext}
    for count in counts:
        tried |= {(count, way): context for way, context in contexts(model, every[:count]).items()}
    z = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(0)).to(model.device)
    t, prompt = torch.full((1,), 500, device=model.device), model.encode(["a ball"])
    times: dict[tuple[int, str], list[float]] = {key: [] for key in tried}
    model.predict(z, t, prompt)  # memory and kernels are prepared in the first one
    for _ in range(REPEATS):
        for key, context in tried.items():
            with context():
                started = wall(device)
                model.predict(z, t, prompt)
                times[key].append(wall(device) - started)
    none = median(times[0, "none"])
    return [
        {"files": count, "none": none, **{way: median(times[count, way]) for way in WAYS}} for count in counts
    ]  # fmt: skip
