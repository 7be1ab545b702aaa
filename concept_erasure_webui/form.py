"""Widgets of a method's settings, made from its own fields, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import Field, asdict, fields
from typing import Any

import gradio as gr

from erasure_core.effort import BALANCED, EFFORTS
from erasure_core.errors import InvalidSettings
from erasure_core.methods import METHODS, Method, SolverSettings
from erasure_core.presets import PRESETS, preset_settings

LENGTHS = {"As set": 1.0, "A third of the steps": 1 / 3, "Three times the steps": 3.0}
"""Presets for the length of a training."""


def widgets(method: Method) -> list[Any]:
    """One widget for each setting, in the order of the fields. Labels are unique within the tab: the host stores
    defaults by label."""
    return [_widget(method, setting) for setting in fields(method.settings)]


def _widget(method: Method, setting: Field[Any]) -> Any:
    meta, name = setting.metadata, setting.name
    common: dict[str, Any] = {
        "label": f"{method.name}: {name.replace('_', ' ')}",
        "info": _hint(setting),
        "elem_id": f"concept_erasure_{method.name}_{name}",
    }
    if meta["choices"]:
        value = str(setting.default).split("+") if meta["combine"] else setting.default
        return gr.Dropdown(list(meta["choices"]), value=value, multiselect=bool(meta["combine"]), **common)
    if isinstance(setting.default, bool):
        return gr.Checkbox(setting.default, **common)
    return gr.Number(setting.default, **common)


def _hint(setting: Field[Any]) -> str:
    low, high = setting.metadata["low"], setting.metadata["high"]
    return setting.metadata["help"] + (f" ({low:g} to {high:g})" if low is not None and high is not None else "")


def settings_of(
    method: Method, values: Sequence[Any], length: float = 1.0, preset: str | None = None
) -> SolverSettings:
    """The settings that the widgets hold.

    Args:
        method: whose widgets they are.
        values: one for each field, in order.
        length: factor on the steps.
        preset: settings for a kind of concept, which come first.

    Raises:
        InvalidSettings: there is no such preset, or a value is missing, of the wrong kind or out of range.
    """
    known = fields(method.settings)
    if len(values) != len(known):
        raise InvalidSettings(
            f"{method.title} has {len(known)} settings, but {len(values)} were sent; send all of them."
        )
    given = {setting.name: _value(setting, value) for setting, value in zip(known, values, strict=True)}
    if preset is not None:
        defaults = asdict(method.settings())
        # What a widget shows unchanged was not chosen by the user, so the preset may.
        given |= {name: v for name, v in preset_settings(preset, method).items() if given[name] == defaults[name]}
    if "steps" in given:
        given["steps"] = max(1, round(given["steps"] * length))
    return method.settings(**given)


def about_preset(preset: str | None, method: Method) -> str:
    """What a preset does to a method's settings, and why; an empty text for none."""
    if preset not in PRESETS:
        return ""
    sets = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in preset_settings(preset, method).items())
    does = f"Sets {sets}, where you leave the field as it is." if sets else f"Sets nothing for {method.title}."
    return f"{PRESETS[preset].title}: {PRESETS[preset].reason} {does}"


def about_effort(effort: str | None) -> str:
    """What an effort does to the settings; an empty text for the usual one."""
    if effort not in EFFORTS or effort == BALANCED:
        return ""
    return f"Effort {effort}: {EFFORTS[effort]}. Fields that you changed stay as they are, unless memory is short."


def _value(setting: Field[Any], value: Any) -> Any:
    if setting.metadata["choices"]:
        return "+".join(value) if isinstance(value, list) else value
    if isinstance(setting.default, bool):
        return bool(value)
    if value is None or value == "":
        if setting.default is None:
            return None
        raise InvalidSettings(f"{setting.name} is empty; write a number.")
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise InvalidSettings(f"{setting.name} is {value!r}, which is not a number.") from error
    is_whole = isinstance(setting.default, int)
    if is_whole and not number.is_integer():
        raise InvalidSettings(f"{setting.name} is {number:g}; it must be a whole number.")
    return int(number) if is_whole else number


def count() -> int:
    """Values of all methods in a row."""
    return max(stop for _, stop in offsets().values())


def offsets() -> dict[str, tuple[int, int]]:
    """Where each method's values lie among the values of all methods in a row."""
    found, start = {}, 0
    for name, method in METHODS.items():
        stop = start + len(fields(method.settings))
        found[name] = (start, stop)
        start = stop
    return found
