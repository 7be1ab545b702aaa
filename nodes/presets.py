"""Presets in the Erase nodes: settings for a kind of concept, in the place of what the user left as it was."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comfy_api.latest import io

from ..erasure_core.methods import Method, SolverSettings
from ..erasure_core.presets import PRESETS, preset_settings
from .widgets import NONE


def preset_widget() -> Any:
    kinds = " ".join(f"{preset.name}: {preset.reason}" for preset in PRESETS.values())
    return io.Combo.Input(
        "preset",
        options=[NONE, *PRESETS],
        default=NONE,
        tooltip="Settings for a kind of concept. They replace settings that are at their defaults; what you changed "
        f"stays. The node says what it replaced. {kinds}",
    )


def with_preset(method: Method, settings: SolverSettings, preset: str) -> tuple[SolverSettings, str]:
    """The settings with a preset's where they are the method's defaults, and what the node says of it.

    A widget that shows its default was not chosen by the user, so the preset may choose.

    Raises:
        InvalidSettings: there is no such preset.
    """
    if preset == NONE:
        return settings, ""
    defaults = method.settings()
    replaced = {
        name: value
        for name, value in preset_settings(preset, method).items()
        if getattr(settings, name) == getattr(defaults, name) != value
    }
    said = ", ".join(f"{name} {value}" for name, value in replaced.items()) or "nothing to replace here"
    return replace(settings, **replaced), f"Preset {preset}: {said}"
