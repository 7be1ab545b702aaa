"""Arithmetic on erasures: merging, scaling, and changing between the dense and the low-rank form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from .delta import Delta, DeltaSet, DenseDelta, LowRankDelta
from .progress import Progress, reporting_each

TOLERANCE = 1e-6
"""Relative error below which a dense change counts as exactly low rank."""


def _scaled(delta: Delta, factor: float) -> Delta:
    """The change times ``factor``; at strength 1 it does what the original does at strength ``factor``."""
    if isinstance(delta, LowRankDelta):
        return LowRankDelta(delta.down.detach(), factor * delta.up.detach())
    return DenseDelta(factor * delta.change().detach())


def merged(parts: Sequence[tuple[DeltaSet, float]], progress: Progress | None = None) -> DeltaSet:
    """The sum of changes at their strengths, exact. Low-rank only if all parts are: their ranks add up.

    Raises:
        Cancelled: the user stopped.
        ValueError: two parts change one layer in different shapes.
    """
    all_low_rank = all(isinstance(delta, LowRankDelta) for deltas, _ in parts for delta in deltas.deltas.values())
    names = list(dict.fromkeys(name for deltas, _ in parts for name in deltas))
    return DeltaSet({name: _sum(name, parts, all_low_rank) for name in reporting_each(names, "adding up", progress)})


def _sum(name: str, parts: Sequence[tuple[DeltaSet, float]], low_rank: bool) -> Delta:
    changes = [_scaled(deltas[name], strength) for deltas, strength in parts if name in deltas.deltas]
    if any(change.shape != changes[0].shape for change in changes):
        raise ValueError(f"{name} is changed in different shapes; the files were made for different models")
    if low_rank:
        lows = [change for change in changes if isinstance(change, LowRankDelta)]
        return LowRankDelta(torch.cat([low.down for low in lows]), torch.cat([low.up for low in lows], dim=1))
    return DenseDelta(torch.stack([change.change() for change in changes]).sum(0))


def dense(deltas: DeltaSet) -> DeltaSet:
    """The same change in full size, exact in float32."""
    return DeltaSet({name: DenseDelta(delta.change().detach()) for name, delta in deltas.deltas.items()})


def low_rank(
    deltas: DeltaSet,
    rank: int = 0,
    noise: Mapping[str, float] = MappingProxyType({}),
    progress: Progress | None = None,
) -> tuple[DeltaSet, float]:
    """The nearest change of limited rank (Eckart & Young 1936), layer by layer.

    Args:
        deltas: what to approximate.
        rank: largest rank of each layer; 0 takes the least rank with a relative error below ``TOLERANCE``.
        noise: for some layers the share of the change that is no more than rounding: that need not be met either.
        progress: reports after each layer, and cancellation.

    Returns:
        The change, in main memory, and its relative error ||approximation - change|| / ||change|| over all layers.

    Raises:
        Cancelled: the user stopped.
    """
    found: dict[str, Delta] = {}
    missed = whole = 0.0
    for name, delta in reporting_each(list(deltas.deltas.items()), "converting", progress):
        change = delta.change().detach().cpu()  # cards are slow in float64, and Apple's have none
        found[name] = _nearest(change, rank, max(TOLERANCE, noise.get(name, 0.0)))
        missed += float((found[name].change().detach() - change).double().pow(2).sum())
        whole += float(change.double().pow(2).sum())
    return DeltaSet(found), (missed / whole) ** 0.5 if whole else 0.0


def _nearest(change: Tensor, rank: int, tolerance: float) -> LowRankDelta:
    u, s, vh = torch.linalg.svd(change.flatten(1).double(), full_matrices=False)
    tail = s.square().flip(0).cumsum(0).flip(0).sqrt()
    needed = int((tail > tolerance * tail[0]).sum()) if tail[0] > 0 else 0
    keep = max(1, min(needed, rank) if rank else needed)
    root = s[:keep].sqrt()
    down = (root[:, None] * vh[:keep]).view(keep, *change.shape[1:])
    up = (u[:, :keep] * root).view(len(change), keep, *[1] * (change.dim() - 2))
    return LowRankDelta(down.float(), up.float())
