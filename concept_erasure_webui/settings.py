"""The settings page. What protects others cannot be changed through the API, nor while the operator has pinned it."""

from __future__ import annotations

import gradio as gr
from modules import shared

from . import places

SECTION = ("concept_erasure", "Concept Erasure")


def register() -> None:
    pinned = places.locked_profile()
    note = f"pinned to {pinned!r} on the command line" if pinned else "no picture is made when it cannot be applied"
    profile = shared.OptionInfo(
        places.NO_PROFILE,
        "Safety profile applied to every generation of every user",
        gr.Dropdown,
        lambda: {"choices": places.profile_choices(), "interactive": not places.locked_profile()},
        section=SECTION,
        restrict_api=True,
    )
    shared.opts.add_option("concept_erasure_profile", profile.info(note))
    other = shared.OptionInfo(
        False,
        "Allow erasures that were made on another base model of the same kind",
        section=SECTION,
        restrict_api=True,
    )
    shared.opts.add_option("concept_erasure_other_base", other.info("then judge the pictures yourself"))
