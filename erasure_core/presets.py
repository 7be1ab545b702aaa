"""Presets: settings for kinds of concepts, each with its reason."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any

from .errors import InvalidSettings
from .methods import Method


@dataclass(frozen=True)
class Preset:
    """Settings for one kind of concept.

    Args:
        name: on the command line.
        title: for people.
        reason: why these settings.
        settings: what differs from the method's defaults, as far as the method has such settings.
    """

    name: str
    title: str
    reason: str
    settings: Mapping[str, Any]


def _preset(name: str, title: str, reason: str, **settings: Any) -> Preset:
    return Preset(name, title, reason, MappingProxyType(settings))


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        _preset(
            "object",
            "Object",
            "The method's own defaults, which were tuned mostly on objects, in the small picture world.",
        ),
        _preset(
            "style",
            "Style or artist",
            "A style is painted in the late, less noisy steps; the steps that lay the picture out are spared.",
            spare_layout=0.2,
        ),
        _preset(
            "person",
            "Person or character",
            "A name is one narrow spot among many alike: more words around what is kept are kept too, and weigh more.",
            neighbours=4,
            keep_weight=6.0,
        ),
        _preset(
            "pervasive",
            "Pervasive (explicit content)",
            "Some content appears without any word for it, so the layers that do not read the prompt change as well.",
            layers="all-but-cross-attention",
        ),
    )
}


def preset_settings(name: str, method: Method) -> dict[str, Any]:
    """A preset's settings for a method; those that the method does not have are left out.

    Raises:
        InvalidSettings: there is no such preset.
    """
    if name not in PRESETS:
        raise InvalidSettings(f"There is no preset {name!r}; choose from {', '.join(PRESETS)}.")
    own = {f.name: f.default for f in fields(method.settings)}
    chosen = {key: value for key, value in PRESETS[name].settings.items() if key in own}
    if "layers" in chosen and "text-encoder" in str(own["layers"]).split("+"):
        # Without it the terms that ask the text encoder would have nothing to change, and self-checks nothing to see.
        chosen["layers"] = f"text-encoder+{chosen['layers']}"
    if method.solve is not None and "cross" not in str(chosen.get("layers", "")).replace("all-but-cross", ""):
        chosen.pop("layers", None)  # closed forms only edit what reads the prompt
    return chosen


def about_preset(name: str, method: Method, given: Collection[str] = ()) -> str:
    """One sentence on what a preset sets for a method, and on what it cannot.

    Args:
        name: the preset.
        method: whose settings are set.
        given: settings that the user gave, which stay as they are.

    Raises:
        InvalidSettings: as ``preset_settings``.
    """
    sets = preset_settings(name, method)
    parts = [
        (", ".join(f"{key} {value}" for key, value in sets.items() if key not in given) or "nothing", "sets {}"),
        (", ".join(key for key in sets if key in given), "leaves {} as you gave it"),
        (", ".join(key for key in PRESETS[name].settings if key not in sets), f"cannot set {{}} with {method.name}"),
    ]
    return f"The preset {name} {'; '.join(how.format(what) for what, how in parts if what)}."
