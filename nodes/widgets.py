"""Widgets generated from the settings of a method: its dataclass is the schema."""

from __future__ import annotations

import math
from dataclasses import Field, fields
from typing import Any, get_args, get_type_hints

from comfy_api.latest import io

from ..erasure_core.boundary.subject import GUIDANCE
from ..erasure_core.methods import SolverSettings

NONE = "none"
"""The choice in a list that chooses nothing."""
TOGETHER = "text-encoder+cross-attention-kv"
"""The one combination of layer groups that is worth a place in the list."""


def guidance_input(name: str, tooltip: str) -> Any:
    """A widget for the guidance scale of pictures that searches look at."""
    return io.Float.Input(name, default=GUIDANCE, min=1.0, max=30.0, step=0.5, tooltip=tooltip)


def inputs_of(settings: type[SolverSettings]) -> list[Any]:
    """One widget for each setting, in the order of the dataclass."""
    hints = get_type_hints(settings)
    return [_widget(setting, hints[setting.name]) for setting in fields(settings)]


def settings_from(settings: type[SolverSettings], values: dict[str, Any]) -> SolverSettings:
    """The settings that widgets stand for.

    Raises:
        InvalidSettings: a value outside its range, as an API client may send it.
    """
    chosen: dict[str, Any] = {}
    for setting in fields(settings):
        if setting.name in values:
            value = values[setting.name]
            is_off = _is_optional(get_type_hints(settings)[setting.name]) and value <= setting.metadata["low"]
            chosen[setting.name] = None if is_off else value
    return settings(**chosen)


def _is_optional(hint: Any) -> bool:
    return type(None) in get_args(hint)


def _widget(setting: Field[Any], hint: Any) -> Any:
    meta = setting.metadata
    plain = next((t for t in get_args(hint) if t is not type(None)), hint)
    help_text = f"{meta['help'][:1].upper()}{meta['help'][1:]}."
    if meta["choices"]:
        options = [*meta["choices"], TOGETHER] if meta["combine"] else list(meta["choices"])
        options += [] if setting.default in options else [setting.default]
        return io.Combo.Input(setting.name, options=options, default=setting.default, tooltip=help_text)
    if plain is bool:
        return io.Boolean.Input(setting.name, default=setting.default, tooltip=help_text)
    if plain is str:
        return io.String.Input(setting.name, default=setting.default, tooltip=help_text)
    default = setting.default
    if _is_optional(hint):
        help_text += f" {meta['low']:g} switches it off."
        default = meta["low"] if default is None else default
    kind = "d" if plain is int else "g"
    help_text += f" From {plain(meta['low']):{kind}} to {plain(meta['high']):{kind}}."
    if plain is int:
        return io.Int.Input(
            setting.name,
            default=default,
            min=int(meta["low"]),
            max=int(meta["high"]),
            step=1,
            # A seed that the front end changes after each run would train anew each time.
            control_after_generate=False,
            tooltip=help_text,
        )
    step = _step(default if default and default != meta["low"] else meta["high"])
    return io.Float.Input(
        setting.name,
        default=default,
        min=meta["low"],
        max=meta["high"],
        step=step,
        round=step / 1000,
        tooltip=help_text,
    )


def _step(value: float) -> float:
    """A step of which about ten lead to a value."""
    exponent = math.floor(math.log10(abs(value))) - 1
    return float(f"1e{min(exponent, -1)}")
