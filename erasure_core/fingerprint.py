"""Recognising a base model by the weights that an erasure touches, whatever file and number format they came from."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from .model import LoadedModel

BUCKETS = 64
SAMPLES = 65_536
"""Most entries of a layer in a sketch. Of larger layers stretches of ``BUCKETS`` entries are read, at even distances:
single entries would take as long as all of them."""
TOLERANCE = 0.005
"""Relative distance of one base in two number formats: bfloat16 rounds by 0.2 %. Fine-tuned models are further away."""
FLOAT8_TOLERANCE = 0.1


def fingerprint(model: LoadedModel, names: Iterable[str]) -> str:
    """SHA-256 over names, shapes and float16 values of layers: equal for one checkpoint in float32 and float16."""
    digest = hashlib.sha256()
    for name in sorted(names):
        weight = model.base_weight(name).detach()
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        digest.update(weight.to("cpu", torch.float16).contiguous().numpy().tobytes())
    return digest.hexdigest()


def sketch(model: LoadedModel, names: Iterable[str]) -> list[float]:
    """Random signed sums of the layers' entries, [64]: distances between sketches estimate distances between weights.

    Other number formats change a hash altogether but a sketch only by their rounding (count sketch, Charikar et al.
    2002).
    """
    sums = np.zeros(BUCKETS)
    for name in sorted(names):
        entries = model.base_weight(name).detach().flatten()
        if len(entries) > SAMPLES:
            stretches = entries[: len(entries) // BUCKETS * BUCKETS].view(-1, BUCKETS)
            entries = stretches[:: -(-len(stretches) * BUCKETS // SAMPLES)].flatten()
        values = entries.to("cpu", torch.float32).numpy()
        signed = np.zeros(-(-len(values) // BUCKETS) * BUCKETS, np.float32)
        np.multiply(values, _signs(name, len(values)), out=signed[: len(values)])
        sums += signed.reshape(-1, BUCKETS).sum(axis=0, dtype=np.float64)
    return [float(f"{value:.6g}") for value in sums]


def _signs(name: str, count: int) -> NDArray[np.float32]:
    """-1 or 1 for each entry of a layer, [count]: the top bits of the 32-bit halves of PCG64's numbers, the lower half
    first. NumPy keeps that stream for ever, but not what its distributions make of it (NEP 19)."""
    drawn = np.random.PCG64(zlib.crc32(name.encode())).random_raw(-(-count // 2))
    halves = drawn.astype("<u8").view("<u4")[:count]
    return 2 * (halves >> 31).astype(np.float32) - 1


def distance(first: Sequence[float], second: Sequence[float]) -> float:
    """Estimated ||W - W'|| / ||W|| of two models' weights; infinite for sketches that cannot be compared."""
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if a.shape != b.shape or not np.any(a):
        return float("inf")
    with np.errstate(over="ignore", invalid="ignore"):
        apart = float(np.linalg.norm(a - b) / np.linalg.norm(a))
    return apart if np.isfinite(apart) else float("inf")


def tolerance_of(model: LoadedModel, names: Iterable[str]) -> float:
    """The distance up to which a base counts as the same, given how coarsely the host stores it."""
    quantised = getattr(model, "is_quantised", lambda name: False)  # such weights arrive expanded
    coarse = any(quantised(name) or "float8" in str(model.base_weight(name).dtype) for name in names)
    return FLOAT8_TOLERANCE if coarse else TOLERANCE
