"""Groups of prompts that are alike in text, each named by its most typical member."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

NEIGHBOURS = 4
ALIKE = 0.5
"""Least cosine between neighbours."""
SMALLEST, MOST = 3, 12
OTHERS = "others"


def clusters(features: Tensor, texts: Sequence[str]) -> tuple[list[int], tuple[str, ...]]:
    """Connect each point with those of its nearest neighbours that also count it among theirs.

    Args:
        features: [N, F], anything in which alike prompts have a high cosine.
        texts: the prompts.

    Returns:
        For each point its cluster, and the clusters' names, largest first; the last one holds what is left over.
    """
    if len(texts) <= SMALLEST:
        return [0] * len(texts), (OTHERS,)
    unit = F.normalize(features - features.mean(0), dim=1)
    groups = _components(_mutual_neighbours(unit))
    large = sorted((group for group in groups if len(group) >= SMALLEST), key=lambda group: (-len(group), group))[:MOST]
    place = [len(large)] * len(texts)
    names = []
    for number, group in enumerate(large):
        for member in group:
            place[member] = number
        middle = unit[group].mean(0)
        names.append(texts[group[int((unit[group] @ middle).argmax())]])
    return place, (*names, OTHERS)


def _mutual_neighbours(unit: Tensor) -> list[list[int]]:
    """For each point the neighbours that it is linked with; in pieces, so that memory stays small."""
    near: list[set[int]] = []
    for start in range(0, len(unit), 512):
        similar = unit[start : start + 512] @ unit.T
        similar[torch.arange(len(similar)), torch.arange(start, start + len(similar))] = -1
        values, places = similar.topk(min(NEIGHBOURS, len(unit) - 1), dim=1)
        near += [
            {p for v, p in zip(vs, ps, strict=True) if v > ALIKE}
            for vs, ps in zip(values.tolist(), places.tolist(), strict=True)
        ]
    return [[other for other in sorted(mine) if place in near[other]] for place, mine in enumerate(near)]


def _components(links: Sequence[Sequence[int]]) -> list[list[int]]:
    """The connected groups."""
    seen: set[int] = set()
    groups = []
    for start in range(len(links)):
        if start in seen:
            continue
        seen.add(start)
        group, waiting = [], [start]
        while waiting:
            point = waiting.pop()
            group.append(point)
            fresh = [other for other in links[point] if other not in seen]
            seen.update(fresh)
            waiting += fresh
        groups.append(sorted(group))
    return groups
