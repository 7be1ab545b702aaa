"""The closed form at true size: seconds, error, and how both grow with the number of concepts; and files on a model.

The text encoders' work is timed apart: it is the same for every method and grows with the number of prompts alone.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from erasure_core import Concept, Silent, applied, erase, read_erasure, write_erasure
from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.layers import select
from erasure_core.methods.closed_form import ClosedFormSettings, closed_form, kept_rows, subject_rows
from erasure_core.model import Conditioning
from erasure_core.trajectory import encode_each

from .machine import clock

KEPT = 20


@dataclass(frozen=True)
class Solved:
    """One solve.

    Args:
        concepts: how many at once.
        encoding, solving: seconds of the text encoders and of all the rest.
        rank: of the change.
        error: largest entry of the difference from the formula in float64, relative to the layer's largest weight.
    """

    concepts: int
    encoding: float
    solving: float
    rank: int
    error: float


class Encoded:
    """A model whose prompts are encoded already; everything else is the model's own."""

    def __init__(self, model: DiffusersModel, prompts: list[str]) -> None:
        self.model, self.known = model, {prompt: i for i, prompt in enumerate(prompts)}
        self.rows = Conditioning.cat([encode_each(model, prompts[i : i + 16]) for i in range(0, len(prompts), 16)])

    def encode(self, prompts: list[str]) -> Conditioning:
        return self.rows[[self.known[prompt] for prompt in prompts]]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)


def concept_of(count: int) -> Concept:
    """``count`` concepts to erase at once, and twenty prompts to keep."""
    words = tuple(f"thing number {i}" for i in range(count))
    return Concept(words, None, tuple(f"a picture of a house with {i} windows" for i in range(KEPT)))


@torch.no_grad()
def solve(model: DiffusersModel, count: int, device: str) -> Solved:
    """Erase ``count`` concepts by closed form."""
    concept, settings = concept_of(count), ClosedFormSettings()
    pairs = concept.prompts()
    started = clock(device)
    prompts = dict.fromkeys([*(text for pair in pairs for text in pair), *concept.kept_prompts])
    encoded: Any = Encoded(model, list(prompts))
    between = clock(device)
    deltas = closed_form(encoded, concept, settings, Silent())
    solving = clock(device) - between
    ranks = {deltas[name].rank for name in deltas}  # type: ignore[attr-defined]
    return Solved(count, between - started, solving, max(ranks), _error(encoded, concept, deltas, settings))


def _error(model: Any, concept: Concept, deltas: Any, settings: ClosedFormSettings) -> float:
    """Against UCE's own formula, W' = (lambda W + sum W a c^T + sum W r r^T) (lambda I + sum c c^T + sum r r^T)^-1, in
    float64, for the first and the last layer."""
    pairs = concept.prompts()
    said, goals = subject_rows(*(model.encode([pair[i] for pair in pairs]) for i in (0, 1)))
    kept = kept_rows(model.encode(list(concept.kept_prompts))) * settings.keep_weight**0.5
    identity = settings.damping * torch.eye(said.shape[1], dtype=torch.float64)
    moment = identity + said.T @ said + kept.T @ kept
    worst = 0.0
    names = list(select(model.layers(), settings.layers))
    for name in (names[0], names[-1]):
        weight = model.weight(name).double().cpu()
        left = weight @ (identity + goals.T @ said + kept.T @ kept)
        exact: Tensor = torch.linalg.solve(moment, left.T).T - weight
        found = deltas[name].change().double()
        worst = max(worst, float((found - exact).abs().max() / weight.abs().max()))
    return worst


@dataclass(frozen=True)
class Applied:
    """Seconds to use a file.

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
    erasure, _ = erase(model, concept_of(1), "closed_form", ClosedFormSettings())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "erasure.safetensors"
        write_erasure(path, erasure, model)
        times = [clock(device)]
        path.read_bytes()
        times.append(clock(device))
        sum(float(model.base_weight(name).sum()) for name in erasure.deltas)
        times.append(clock(device))
        deltas = read_erasure(path).bind(model)
        times.append(clock(device))
        with applied(model, [(deltas, 1.0)]):
            pass
        times.append(clock(device))
        reading, touching, binding, applying = (later - now for now, later in pairwise(times))
        return Applied(path.stat().st_size, reading, touching, binding, applying)
