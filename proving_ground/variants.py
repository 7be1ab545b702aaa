"""The benchmark's rows: methods with the settings and the help that they are measured with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from . import lexicon
from .lexicon import COLOURS, OBJECTS, STYLES


@dataclass(frozen=True)
class Variant:
    """One row.

    Args:
        method: registered name.
        settings: what differs from its defaults.
        alternative: whether the eraser is told what to paint instead.
        adapter: whether the bundled IP-Adapter reads the pictures, else their tokens are learned.
    """

    method: str
    settings: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    alternative: bool = False
    adapter: bool = False


def _variant(method: str, alternative: bool = False, adapter: bool = False, **settings: Any) -> Variant:
    return Variant(method, MappingProxyType(settings), alternative, adapter)


ROWS: dict[str, Variant] = {
    "closed_form": _variant("closed_form"),
    "rece": _variant("rece"),
    "esd": _variant("esd"),
    "leco": _variant("leco"),
    "sage (text encoder)": _variant("sage", layers="text-encoder"),
    "sage (cross-attention)": _variant("sage", layers="cross-attention", start="closed_form"),
    "all_but_one (alternative)": _variant("all_but_one", alternative=True, replace=False),
    "all_but_one (neutralise)": _variant("all_but_one", replace=False),
    "co_erasing": _variant("co_erasing"),
    "co_erasing (IP-Adapter)": _variant("co_erasing", adapter=True),
    "auto": _variant("auto"),
    "all_but_one (cross-attention)": _variant("all_but_one", True, layers="cross-attention"),
}
"""Methods side by side."""

LIGHTER = 0.25
"""The weight of boundary points that most ablations of ``auto`` were measured with: compare them with the row of that
weight."""

ABLATIONS: dict[str, Variant] = {
    "esd without replacing": _variant("esd", replace=False),
    "sage without search": _variant("sage", search=False),
    "sage without self-check": _variant("sage", check_every=0),
    "sage without relations": _variant("sage", global_weight=0.0),
    "sage without retention": _variant("sage", keep_weight=0.0),
    "sage without text": _variant("sage", text_weight=0.0, text_erase_weight=0.0),
    "all_but_one without search": _variant("all_but_one", True, search=False),
    "all_but_one without text": _variant("all_but_one", True, text_weight=0.0, text_erase_weight=0.0),
    "all_but_one without drift": _variant("all_but_one", alternative=True, drift_weight=0.0),
    "co_erasing without search": _variant("co_erasing", search=False),
    "co_erasing without text": _variant("co_erasing", text_weight=0.0, text_erase_weight=0.0),
    "co_erasing without pictures": _variant("co_erasing", picture_share=0.0),
    "co_erasing without refinement": _variant("co_erasing", refine=False),
    "co_erasing without retention": _variant("co_erasing", keep_weight=0.0),
    "auto, lighter boundary": _variant("auto", boundary_weight=LIGHTER),
    "auto without search": _variant("auto", search=False, boundary_weight=LIGHTER),
    "auto without replacing": _variant("auto", replace=False, boundary_weight=LIGHTER),
    "auto from the closed form": _variant(
        "auto", start="closed_form", layers="text-encoder+cross-attention-kv", boundary_weight=LIGHTER
    ),
    "auto without boundary": _variant("auto", check_every=0),
    "auto without text": _variant("auto", text_weight=0.0, text_erase_weight=0.0, boundary_weight=LIGHTER),
    "auto, fast": _variant("auto", steps=100, refresh=100),
}
"""Methods without one of their parts or with less work, for a few concepts."""

VARIANTS = ROWS | ABLATIONS


def alternative_of(erased: lexicon.Concept) -> lexicon.Concept:
    """Another concept of its kind that is not its look-alike, the one after it; for a pattern, a plain surface."""
    plain = STYLES["plain"]
    if erased.kind == "style" and erased is not plain:
        return plain
    kind = next(kind for kind in (OBJECTS, COLOURS, STYLES) if erased.name in kind)
    names = [name for name in kind if name != erased.look_alike]
    return kind[names[(names.index(erased.name) + 1) % len(names)]]
