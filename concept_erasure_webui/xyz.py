"""An axis for the host's XYZ plot: erasures by name and strength. Cells of every plot are told apart."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

from modules import scripts

from . import wishes
from .panel import listed
from .running import RUNNING

LABEL = "[Concept Erasure] name:strength"


def register() -> None:
    """Add the axis once, and listen for cells; a reload of the UI loads the plot's module anew."""
    for module in _plots():
        drawn = getattr(module, "draw_xyz_grid", None)
        if drawn is not None and not hasattr(drawn, "__wrapped__"):
            module.draw_xyz_grid = _telling_cells_apart(drawn)
        if not any(option.label == LABEL for option in module.axis_options):
            module.axis_options.append(module.AxisOption(LABEL, str, _apply, confirm=_confirm, choices=listed))


def _plots() -> list[Any]:
    loaded = [data.module for data in scripts.scripts_data]
    loaded += [module for name, module in sys.modules.items() if name.endswith("xyz_grid")]
    return [module for module in loaded if hasattr(module, "axis_options") and hasattr(module, "AxisOption")]


def _telling_cells_apart(draw: Callable[..., Any]) -> Callable[..., Any]:
    """A plot goes on where a cell has failed, and its next one is no part of that."""

    @functools.wraps(draw)
    def drawn(*values: Any, cell: Callable[..., Any], **given: Any) -> Any:
        def fresh(*place: Any) -> Any:
            RUNNING.forget()
            return cell(*place)

        return draw(*values, cell=fresh, **given)

    return drawn


def _apply(p: Any, value: str, values: Any) -> None:
    # A plot can have this axis twice or thrice; each cell has a new copy of the generation.
    both = (getattr(p, "concept_erasure_xyz", ""), "" if value == wishes.NONE else value)
    p.concept_erasure_xyz = ", ".join(filter(None, both))


def _confirm(p: Any, values: list[str]) -> None:
    """Say before the whole plot that a value cannot be read."""
    for value in values:
        if value != wishes.NONE:
            wishes.from_text(value)
