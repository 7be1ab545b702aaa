"""Start a training from a finished change, such as the closed form, instead of from nothing."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from .delta import Delta, DeltaSet, DenseDelta, LowRankDelta
from .errors import InvalidSettings
from .layers import reads_context

NOTHING_SHARED = (
    "The change to start from is in none of the layers that are trained; a closed form changes cross-attention keys "
    "and values. Choose layers with those, or start from nothing."
)


def check_closed_form_start(trained: Iterable[str]) -> None:
    """Refuse a start that ``start_from`` would refuse, before the closed form is solved.

    Args:
        trained: names of the layers that are trained.

    Raises:
        InvalidSettings: a closed form changes none of them.
    """
    if not any(map(reads_context, trained)):
        raise InvalidSettings(NOTHING_SHARED)


@torch.no_grad()
def start_from(deltas: DeltaSet, start: DeltaSet) -> None:
    """Write ``start`` into fresh ``deltas``; layers without a counterpart stay at nothing.

    A low-rank change must have at most the rank of the delta that takes it, else its smallest parts are left out.

    Raises:
        InvalidSettings: the two have no layer in common, or the start is dense and a delta that takes it is not.
    """
    shared = [name for name in deltas if name in start.deltas]
    if not shared:
        raise InvalidSettings(NOTHING_SHARED)
    for name in shared:
        _take(deltas[name], start[name])


def _take(delta: Delta, start: Delta) -> None:
    if isinstance(delta, DenseDelta):
        delta.weight.copy_(start.change())
        return
    assert isinstance(delta, LowRankDelta)
    if not isinstance(start, LowRankDelta):
        raise InvalidSettings(
            f"The change to start from is full-size (dense), and what is trained has rank {delta.rank}; "
            "choose rank 0, or start from a change of low rank."
        )
    rank = min(delta.rank, start.rank)
    # Rows of unit length, as those of a fresh delta: one learning rate suits both.
    down, up = start.down[:rank].flatten(1), start.up[:, :rank].flatten(1)
    length = down.norm(dim=1).clamp_min(1e-12)
    delta.down[:rank] = (down / length[:, None]).view_as(delta.down[:rank])
    delta.up[:, :rank] = (up * length).view_as(delta.up[:, :rank])
