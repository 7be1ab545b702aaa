"""The settings page. What protects others cannot be changed through the API, nor while the operator has pinned it."""

from __future__ import annotations

import sys
from types import FrameType

import gradio as gr
from modules import shared

from erasure_core.errors import ErasureError

from . import places

API = "modules.api.api"
SECTION = ("concept_erasure", "Concept Erasure")


def refuse_api() -> None:
    """For ``onchange``: the host takes a change back whose callback raises. Forge's API needs it, which changes
    restricted settings all the same.

    Raises:
        ErasureError: the change comes from an API request.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_globals.get("__name__") == API:
            raise ErasureError("Settings of Concept Erasure cannot be changed through the API; use the Settings page.")
        frame = frame.f_back


def register() -> None:
    pinned = places.locked_profile()
    always = "no picture is made when it cannot be applied"
    note = always if pinned is None else f"pinned to {pinned!r} on the command line"
    profile = shared.OptionInfo(
        places.NO_PROFILE,
        "Safety profile applied to every generation of every user",
        gr.Dropdown,
        lambda: {"choices": places.profile_choices(), "interactive": places.locked_profile() is None},
        refresh=lambda: None,  # the button beside the list, which is read anew
        onchange=refuse_api,
        section=SECTION,
        restrict_api=True,
    )
    shared.opts.add_option(places.PROFILE_OPTION, profile.info(note))
    other = shared.OptionInfo(
        False,
        "Allow erasures that were made on another base model of the same kind",
        onchange=refuse_api,
        section=SECTION,
        restrict_api=True,
    )
    shared.opts.add_option(places.OTHER_BASE_OPTION, other.info("then judge the pictures yourself"))
