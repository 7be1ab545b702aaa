"""How much of a change is in a weight that ComfyUI patches: counted through every model that was merged into it.

Nodes that merge models put a whole model behind another one's patches, as a list: its weight and its own patches. They
scale what came before, and may subtract. Whether a patch is on a weight says nothing then; how often it counts does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import ModelError

TOLERANCE = 1e-3
"""Of a change's wanted strength: less than this is never missing."""
LOOKED_AT = 64
"""Values of a tensor that are compared before all of them are."""


class Share(NamedTuple):
    """How often the unpatched weight and a patch's change count in a weight."""

    base: float
    change: float


def share(held: Sequence[Any], patch: Any) -> Share:
    """The share of a patch in a weight, by the patches that a host's model has on it: as the host adds them up.

    Args:
        held: the patches in their order, each as the host keeps it: strength, value, scale of what came before, and
            what limits it to a part of the weight.
        patch: the change that is looked for; one with the same content is the same.

    Raises:
        ModelError: it cannot be told.
    """
    base, change = 1.0, 0.0
    for strength, value, scale, *limits in held:
        base, change = base * scale, change * scale
        more = _share_of(value, patch)
        # What limits a patch is an offset, or a function of the change; the rest of the weight is as it was.
        if any(limit is not None for limit in limits) and (scale != 1.0 or _sets(value) or more != (0.0, 0.0)):
            raise ModelError(
                "a node has merged models in a part of a weight only, so that what is left of the erasure cannot be "
                "told; remove that node."
            )
        if _sets(value):
            base, change = 1.0, 0.0
        else:
            base, change = base + strength * more.base, change + strength * more.change
    if not math.isfinite(base) or not math.isfinite(change):
        raise ModelError("a node has merged models with a factor that is no number; correct its ratio or strength.")
    return Share(base, change)


def missing(held: Sequence[Any], patch: Any, strength: float) -> float:
    """At which strength a patch has to be added so that every share of the base has it at this ``strength``; 0 where
    there is enough of it or more. Raises as ``share``."""
    found = share(held, patch)
    # A plain difference of others may be a whole weight, which some nodes put in the place of the one that was there.
    others = any(_is_difference(value) and not times(value, patch) for value in values_of(held))
    lacking = strength * max(found.base, float(others)) - found.change
    return lacking if lacking > TOLERANCE * strength else 0.0


def values_of(held: Sequence[Any]) -> Iterator[Any]:
    """The changes among patches, those of merged models included."""
    for _, value, *_ in held:
        if isinstance(value, list):
            yield from values_of(value[1:])
        else:
            yield value


def times(value: Any, patch: Any) -> float:
    """How often a patch is another one: 1 where both hold the same, by content; 0 for another change."""
    if value is patch:
        return 1.0
    theirs, ours = _tensors(value), _tensors(patch)
    if not ours or len(theirs) != len(ours) or not all(map(_equal, theirs, ours)):
        return 0.0
    return _alpha(value) / _alpha(patch)


def _share_of(value: Any, patch: Any) -> Share:
    return share(value[1:], patch) if isinstance(value, list) else Share(0.0, times(value, patch))


def _sets(value: Any) -> bool:
    return isinstance(value, tuple) and bool(value) and value[0] == "set"


def _is_difference(value: Any) -> bool:
    return isinstance(value, tuple) and not _sets(value) and bool(_tensors(value))


def _tensors(patch: Any) -> list[Tensor]:
    """The tensors of a patch: of a LoRA adapter, or of a difference."""
    values = getattr(patch, "weights", None) or (patch[-1] if isinstance(patch, tuple) and len(patch) > 1 else patch)
    return [value for value in values if isinstance(value, Tensor)] if isinstance(values, (tuple, list)) else []


def _alpha(patch: Any) -> float:
    """The factor that a LoRA adapter has of its own."""
    weights = getattr(patch, "weights", None)
    if not weights or len(weights) < 3 or not isinstance(weights[2], (int, float)):
        return 1.0
    return float(weights[2]) / len(weights[1])


def _equal(one: Tensor, other: Tensor) -> bool:
    if one is other:
        return True
    if one.shape != other.shape:
        return False
    few = slice(None, None, max(1, one.numel() // LOOKED_AT))
    return _same(one.flatten()[few], other.flatten()[few]) and _same(one, other)


def _same(one: Tensor, other: Tensor) -> bool:
    return bool(torch.equal(one.to("cpu", other.dtype), other))
