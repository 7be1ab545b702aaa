"""``--harden`` of the erase command."""

from __future__ import annotations

import argparse

from ..boundary.exploration import Exploration
from ..boundary.explore import ExploreSettings
from ..boundary.subject import GUIDANCE
from ..errors import InvalidSettings
from .explore import search_range, seconds
from .terminal import printable, say

BUDGET = 60.0
"""Seconds of each search."""


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
        help=f"how long each of these searches may take, such as 5m (default {BUDGET:g}s)",
    )
    parser.add_argument(
        "--harden-guidance",
        type=float,
        help=f"guidance scale of the pictures that these searches look at (default {GUIDANCE:g})",
    )


def search_settings(options: argparse.Namespace) -> ExploreSettings:
    """How each round searches.

    Raises:
        InvalidSettings: the guidance scale is none that pictures are made at, or there is no round to search in.
    """
    given = {"budget": options.harden_budget, "guidance": options.harden_guidance}
    unused = [name for name, value in given.items() if value is not None and not options.harden]
    if unused:
        raise InvalidSettings(f"--harden-{unused[0]} is for rounds of searching; give their number with --harden.")
    guidance = GUIDANCE if options.harden_guidance is None else options.harden_guidance
    low, high = search_range("guidance")
    if not low <= guidance <= high:  # the settings' own message would name the training's flag
        raise InvalidSettings(f"--harden-guidance is {guidance:g}; it must lie between {low:g} and {high:g}.")
    budget = BUDGET if options.harden_budget is None else options.harden_budget
    return ExploreSettings(seconds=budget, guidance=guidance, seed=options.seed or 0)


def tell_round(number: int, found: Exploration) -> None:
    """Say on standard error what a round found."""
    say(f"Round {number}: {printable(found.summary())}")
