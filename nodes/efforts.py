"""Efforts in the Erase nodes: how much work a training takes, and how it fits into the memory there is."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..erasure_core.effort import BALANCED, EFFORTS


def effort_widget() -> Any:
    """Optional, so that graphs without it go on working: hosts put such inputs behind all others, where it moves no
    value of a saved workflow, and do not ask API clients for them."""
    kinds = " ".join(f"{name}: {what}." for name, what in EFFORTS.items())
    return io.Combo.Input(
        "effort",
        options=list(EFFORTS),
        default=BALANCED,
        optional=True,
        tooltip="How much work the training takes, and how much memory. It replaces settings that are at their "
        "defaults; what you changed stays, unless memory is short. The node says what it picked. "
        f"{kinds}",
    )
