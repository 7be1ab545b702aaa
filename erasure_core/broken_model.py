"""Whose fault it is when numbers are not finite: a damaged model's, not that of what was asked of it."""

from __future__ import annotations

import torch

from .errors import ModelError
from .model import LoadedModel


def broken_layer(model: LoadedModel) -> str | None:
    """The first layer of a model whose own weights are not all finite; slow, so only asked after a failure."""
    for name, layer in model.layers().items():
        bias = getattr(layer, "bias", None)
        if not all(bool(torch.isfinite(held).all()) for held in (model.base_weight(name), bias) if held is not None):
            return name
    return None


def check_model(model: LoadedModel) -> None:
    """Called where a result is not finite, before anything else is blamed for it.

    Raises:
        ModelError: the model's own weights are not.
    """
    broken = broken_layer(model)
    if broken is not None:
        raise ModelError(f"The model's own weights are not all finite numbers ({broken}); get a fresh copy of it.")
