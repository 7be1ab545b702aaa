"""Where the extension keeps its files, and what the operator of this web UI allows."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from modules import paths, shared

from erasure_core.errors import ErasureError
from erasure_core.library import Library
from erasure_core.profile import ProfileFailed, SafetyProfile, profile_names, profile_path, read_profile

NO_PROFILE = "None"
PROFILE_OPTION, OTHER_BASE_OPTION = "concept_erasure_profile", "concept_erasure_other_base"
"""The host's settings of ours."""


def options() -> Any:
    """The host's command-line options; ours are missing if the extension was enabled without a restart."""
    return shared.cmd_opts


def folder() -> Path:
    """Where erasures and profiles are kept."""
    chosen = getattr(options(), "concept_erasure_dir", None)
    return Path(chosen) if chosen else Path(paths.models_path) / "erasures"


def told(error: object) -> str:
    """A message without the folder's path: who uses the web UI need not know where it lies."""
    return str(error).replace(f"{folder()}{os.sep}", "").replace(f" in {folder()}", "")


def library() -> Library:
    return Library([folder()])


def locked_profile() -> str | None:
    """The profile that the operator has pinned on the command line; an empty name is pinned too, but not applicable."""
    return getattr(options(), "concept_erasure_profile", None)


def profile_name() -> str:
    """The profile in force, or ``NO_PROFILE``."""
    locked = locked_profile()
    if locked is not None:
        return locked
    return str(getattr(shared.opts, PROFILE_OPTION, NO_PROFILE) or NO_PROFILE)


def is_in_force() -> bool:
    """Whether a profile must be applied to all that is painted, also one that cannot be read."""
    return locked_profile() is not None or profile_name() != NO_PROFILE


def profile() -> SafetyProfile | None:
    """The profile in force.

    Raises:
        ProfileFailed: it has no name, is missing or damaged: then nothing may be generated.
    """
    if not is_in_force():
        return None
    name = profile_name()
    if not name.strip() and locked_profile() is not None:
        raise ProfileFailed("--concept-erasure-profile names no safety profile; start the web UI with one's name.")
    if not name.strip():
        raise ProfileFailed(
            "The safety profile under Settings, Concept Erasure, is blank; choose one there, or None for no profile."
        )
    return read_profile(profile_path(folder(), name))


def profile_choices() -> list[str]:
    return [NO_PROFILE, *profile_names(folder())]


def allows_other_bases() -> bool:
    return bool(getattr(shared.opts, OTHER_BASE_OPTION, False))


def is_open_to_others() -> bool:
    """Whether people beyond this machine use the web UI: then nobody deletes files or names paths."""
    given = options()
    return bool(getattr(given, "webui_is_non_local", False) or getattr(given, "hide_ui_dir_config", False))


def refuse_if_open_to_others(what: str) -> None:
    """Raises:
    ErasureError: others use this web UI.
    """
    if is_open_to_others():
        raise ErasureError(
            f"{what} is switched off, because this web UI is open to others; do it on the machine itself."
        )
