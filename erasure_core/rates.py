"""Learning rates that move layers of every width equally far."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from .delta import Delta, DeltaSet, LowRankDelta, fan_in, weight_of
from .layers import is_text, reads_context

CONTEXT_WIDTH, FEATURE_WIDTH = 768, 320
"""Layer widths of SD1.5, for which learning rates are given."""


def learning_rates(name: str, layer: nn.Module, delta: Delta, base: float) -> Iterator[tuple[nn.Parameter, float]]:
    """Each parameter of a delta with its Adam learning rate.

    Adam moves every entry by about the learning rate, so the output of a layer moves by fan-in times as much. Scaling
    with 1/fan-in makes one setting move a wide and a narrow layer equally far. ``up`` of a low-rank delta reads the
    normalised output of ``down``, whose scale does not depend on the width, so its rate stays as it is.
    """
    reference = CONTEXT_WIDTH if reads_context(name) or is_text(name) else FEATURE_WIDTH
    relative = base * reference / fan_in(weight_of(layer).shape)
    if isinstance(delta, LowRankDelta):
        yield delta.down, relative
        yield delta.up, base
    else:
        for parameter in delta.parameters():
            yield parameter, relative


def rate_groups(layers: Mapping[str, nn.Module], deltas: DeltaSet, base: float) -> list[dict[str, Any]]:
    """Parameter groups for an optimiser, one for each learning rate: it then updates many tensors in one call."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, layer in layers.items():
        for parameter, rate in learning_rates(name, layer, deltas[name], base):
            groups.setdefault(rate, []).append(parameter)
    return [{"params": parameters, "lr": rate, "full_lr": rate} for rate, parameters in groups.items()]
