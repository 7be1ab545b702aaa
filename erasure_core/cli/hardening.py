"""``--harden`` of the erase command."""

from __future__ import annotations

import argparse

from ..boundary.exploration import Exploration
from ..boundary.explore import ExploreSettings
from ..boundary.subject import GUIDANCE
from ..errors import InvalidSettings
from .explore import search_range, seconds
from .terminal import printable, say


def add_harden_arguments(parser: argparse.ArgumentParser) -> None:
    """Read by ``search_settings``."""
    parser.add_argument(
        "--harden",
        type=int,
        default=0,
        metavar="N",
        help="after erasing, up to N times: search for what still leaks, erase it too, stop when nothing is found "
        "(default 0)",
    )
    parser.add_argument(
        "--harden-budget",
        type=seconds,
        default=60.0,
        help="how long each of these searches may take, such as 5m (default 60s)",
    )
    parser.add_argument(
        "--harden-guidance",
        type=float,
        default=GUIDANCE,
        help=f"guidance scale of the pictures that these searches look at (default {GUIDANCE:g})",
    )


def search_settings(options: argparse.Namespace) -> ExploreSettings:
    """How each round searches.

    Raises:
        InvalidSettings: the guidance scale is none that pictures are made at.
    """
    low, high = search_range("guidance")
    if not low <= options.harden_guidance <= high:  # the settings' own message would name the training's flag
        raise InvalidSettings(
            f"--harden-guidance is {options.harden_guidance:g}; it must lie between {low:g} and {high:g}."
        )
    return ExploreSettings(seconds=options.harden_budget, guidance=options.harden_guidance, seed=options.seed or 0)


def tell_round(number: int, found: Exploration) -> None:
    """Say on standard error what a round found."""
    say(f"Round {number}: {printable(found.summary())}")
