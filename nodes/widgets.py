"""Widgets generated from the settings of a method: its dataclass is the schema."""

from __future__ import annotations

import math
from dataclasses import Field, fields
from typing import Any, get_args, get_type_hints

from comfy_api.latest import io

from ..erasure_core.boundary.subject import GUIDANCE
from ..erasure_core.errors import InvalidSettings
from ..erasure_core.methods import SolverSettings

NONE = "none"
"""The choice in a list that chooses nothing."""
OFF = "off"
"""What a setting that may be off shows then: a number cannot say it."""
TOGETHER = "text-encoder+cross-attention-kv"
"""The one combination of layer groups that is worth a place in the list."""


def guidance_input(name: str, tooltip: str) -> Any:
    """A widget for the guidance scale of pictures that searches look at."""
    return io.Float.Input(name, default=GUIDANCE, min=1.0, max=30.0, step=0.5, tooltip=tooltip)


def advanced(widget: Any) -> Any:
    """A widget that the front end folds away. Only newer hosts have a keyword for it, but all hand this on."""
    widget.extra_dict["advanced"] = True
    return widget


def inputs_of(settings: type[SolverSettings]) -> list[Any]:
    """One widget for each setting, in the order of the dataclass; those that are not basic are folded away."""
    hints = get_type_hints(settings)
    made = [(setting, _widget(setting, hints[setting.name])) for setting in fields(settings)]
    return [widget if setting.metadata["basic"] else advanced(widget) for setting, widget in made]


def settings_from(settings: type[SolverSettings], values: dict[str, Any]) -> SolverSettings:
    """The settings that widgets stand for.

    Raises:
        InvalidSettings: no number where one is wanted, or a value outside its range, as an API client may send it.
    """
    chosen: dict[str, Any] = {}
    for setting in fields(settings):
        if setting.name in values:
            may_be_off = _is_optional(get_type_hints(settings)[setting.name])
            value = values[setting.name]
            chosen[setting.name] = _number_or_off(setting.name, value) if may_be_off else value
    return settings(**chosen)


def _number_or_off(name: str, value: Any) -> float | None:
    text = str(value).strip()
    if text.casefold() in ("", OFF):
        return None
    try:
        return float(text)
    except ValueError:
        raise InvalidSettings(f"{name} is {text!r}; write a number, or {OFF}.") from None


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
    kind = "d" if plain is int else "g"
    help_text += f" From {plain(meta['low']):{kind}} to {plain(meta['high']):{kind}}."
    if _is_optional(hint):
        said = OFF if default is None else f"{default:g}"
        return io.String.Input(setting.name, default=said, tooltip=f"{help_text[:-1]}, or {OFF}.")
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
    step = _step(default or meta["high"])
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
