"""Reads what the training loop has saved: how far a part is, and the running average of its weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from . import loop


def saved_state(name: str) -> dict[str, Any] | None:
    """The saved state of one part, memory-mapped, or None before its first save."""
    path = loop.STATE_DIR / f"{name}.pt"
    return torch.load(path, weights_only=True, mmap=True) if path.exists() else None


def steps_done(name: str) -> int:
    """Optimiser steps that one part has behind it."""
    state = saved_state(name)
    return 0 if state is None else int(state["step"])


def load_average(name: str, model: nn.Module) -> int:
    """Put the running average of one part's weights into its model, frozen and in evaluation mode.

    Returns:
        The optimiser steps behind it.
    """
    state = saved_state(name)
    if state is None:
        raise FileNotFoundError(f"'{name}' has not been trained yet: there is no {name}.pt in {loop.STATE_DIR}")
    with torch.no_grad():
        torch._foreach_copy_([p for p in model.parameters() if p.requires_grad], state["average"])
    model.requires_grad_(False).eval()
    return int(state["step"])
