"""Stands in for the extension where that cannot be loaded: the host would log a line, forget it, and paint un-erased
what a safety profile or a prompt wants erased. Imports the standard library and the host only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from modules import errors, script_callbacks, scripts, shared

INFOTEXT_REFUSED = "Concept erasure refused"
OPTION, NO_PROFILE = "concept_erasure_profile", "None"
LIKE_TAG = re.compile(r"<\s*erase\b", re.IGNORECASE)


class NotLoaded(Exception):
    """A generation was stopped, because what should erase cannot be loaded."""


class Refusal:
    """Stands in for a latent or a prompt. Whatever the sampler does with it raises the error, outside of the net in
    which hosts catch what hooks raise."""

    def __init__(self, error: Exception) -> None:
        object.__setattr__(self, "error", error)

    def _raise(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise object.__getattribute__(self, "error")

    __getattr__ = __getitem__ = __len__ = __iter__ = _raise
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __neg__ = _raise

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> NoReturn:
        mine = next((a for a in _flat(args) if isinstance(a, Refusal)), None)
        raise NotLoaded("stopped") if mine is None else object.__getattribute__(mine, "error")


def _flat(values: Iterable[Any]) -> list[Any]:
    return [v for value in values for v in (value if isinstance(value, (list, tuple)) else [value])]


def spoil(params: Any, error: Exception) -> None:
    """Make a sampling step fail with this error."""
    # All of them: which one a host goes on with differs (reForge reads the prompts from here, but not the latent).
    for name in ("x", "image_cond", "sigma", "text_cond", "text_uncond"):
        setattr(params, name, Refusal(error))


def stay_enabled() -> None:
    """A pinned profile outlasts "Reload UI": the host reads which extensions are off after this, and anyone who may
    change its settings can have written us there."""
    if getattr(shared.cmd_opts, OPTION, None) is None:
        return
    chosen, ours = shared.opts.data, Path(__file__).parents[1].name
    disabled = chosen.get("disabled_extensions") or []
    if ours in disabled:
        chosen["disabled_extensions"] = [name for name in disabled if name != ours]
    if chosen.get("disable_all_extensions", "none") != "none":
        chosen["disable_all_extensions"] = "none"


def stand_in() -> type:
    """Called where loading has failed: says so in the console, and watches every generation from now on.

    Returns:
        The script that the host is to use.
    """
    errors.report(
        "Concept Erasure could not be loaded, so it erases nothing; install or repair what the last of the following "
        "lines names, then start the web UI anew.",
        exc_info=True,
    )
    script_callbacks.on_cfg_denoiser(check_step)
    script_callbacks.on_script_unloaded(stay_enabled)
    return StandIn


class StandIn(scripts.Script):
    """Its title is not that of the panel, so that a request which asks for that one is refused by the host."""

    def title(self) -> str:
        return "Concept Erasure (not loaded)"

    def show(self, is_img2img: bool) -> Any:
        return scripts.AlwaysVisible

    def ui(self, is_img2img: bool) -> list[Any]:
        return []

    def process(self, p: Any, *values: Any) -> None:
        _refuse(p)

    def before_process_batch(self, p: Any, *values: Any, **kwargs: Any) -> None:
        if _refuse(p):
            p.prompts = []  # the host leaves its loop; interrupted alone it would show the noise that it starts from


def _refuse(p: Any) -> bool:
    told = problem(p)
    if told:
        p.extra_generation_params = {**(getattr(p, "extra_generation_params", None) or {}), INFOTEXT_REFUSED: told}
        if hasattr(p, "comment"):
            p.comment(told)
        shared.state.interrupted = True
    return bool(told)


def check_step(params: Any) -> None:
    """Before every sampling step, also of generations that run without scripts."""
    told = problem(getattr(getattr(params, "denoiser", None), "p", None))
    if told:
        spoil(params, NotLoaded(told))
        shared.state.textinfo = told


def problem(p: Any) -> str:
    """Why this generation may not be painted without the extension, or an empty text."""
    name, listed = _profile_in_force(), ("all_prompts", "all_hr_prompts", "prompts")
    prompts = [prompt for each in listed for prompt in getattr(p, each, None) or []]
    if name is not None:
        wanted = f"The safety profile {name!r} cannot be applied"
    elif any(LIKE_TAG.search(str(prompt)) for prompt in prompts):
        wanted = "The prompt asks for an erasure"
    else:
        return ""
    return (
        f"Concept Erasure: {wanted}, but this extension could not be loaded; whoever runs the web UI reads in its "
        "console what to repair. No picture was made."
    )


def _profile_in_force() -> str | None:
    pinned = getattr(shared.cmd_opts, OPTION, None)
    if pinned is not None:
        return str(pinned)
    chosen = getattr(shared.opts, "data", {}).get(OPTION)
    return None if chosen in (None, "", NO_PROFILE) else str(chosen)
