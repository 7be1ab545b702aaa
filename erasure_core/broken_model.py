"""Whose fault it is when numbers are not finite: a damaged model's, not that of what was asked of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from .errors import ModelError
from .finite import all_finite
from .model import LoadedModel


def broken_weight(model: LoadedModel) -> str | None:
    """The first of a model's own weights that are not all finite; slow, so only asked after a failure. Most hosts tell
    of the layers alone, some of every parameter."""
    layers = ((f"{name}.weight", model.base_weight(name)) for name in model.layers())
    every: Any = getattr(model, "every_parameter", None)
    held: Iterable[tuple[str, Tensor]] = layers if every is None else every()
    return next((name for name, weight in held if not all_finite(weight)), None)


def check_model(model: LoadedModel) -> None:
    """Called where a result is not finite, before anything else is blamed for it.

    Raises:
        ModelError: the model's own weights are not.
    """
    broken = broken_weight(model)
    if broken is not None:
        raise ModelError(f"The model's own weights are not all finite numbers ({broken}); get a fresh copy of it.")
