"""What all work on the loaded model needs: the model without anything on it, and the host's progress and Interrupt."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from modules import sd_models, shared
from PIL import Image
from torch import Tensor

from erasure_core.errors import InvalidSettings
from erasure_core.hosts.webui import WebuiModel
from erasure_core.model import PATCH
from erasure_core.progress import Report

from .session import SESSION

NOTE_EVERY = 2.0
"""Seconds between two notes of the running job."""


@dataclass
class Job:
    """What the "last job" view shows, also after the browser lost its connection or the web UI was restarted.

    Args:
        title: what is being done.
        status: ``running``, ``done``, ``stopped`` or ``failed``.
        stage, step, total: how far it is.
        losses: named terms of each step.
        message: result or reason, for people.
        file: name of the finished erasure.
        output: path of the file that an interrupted training would become.
        seconds: since the start.
        picture: base64 of a JPEG of what the model paints without and with the result.
        painted: what it shows.
        left: seconds until the end of the stage, as far as its own steps tell; 0 before they do.
    """

    title: str
    status: str = "running"
    stage: str = ""
    step: int = 0
    total: int = 0
    losses: list[dict[str, float]] = field(default_factory=list)
    message: str = ""
    file: str = ""
    output: str = ""
    picture: str = ""
    painted: str = ""
    seconds: float = 0.0
    left: float = 0.0


class HostProgress:
    """Shows reports in the host's progress bar and asks its Interrupt button.

    Args:
        job: is kept up to date.
        total: steps, as far as they are known.
        note: called every few seconds, to write the job down.
        told: what to say beside the stage, if there is more to say.
        picture: what to show of a running training after this report, if anything.
    """

    def __init__(
        self,
        job: Job,
        total: int,
        note: Callable[[], None] = lambda: None,
        told: Callable[[], str] = lambda: "",
        picture: Callable[[Report], Image.Image | None] = lambda report: None,
    ) -> None:
        self.job, self.note, self.told, self.picture = job, note, told, picture
        self.started, self._noted = time.monotonic(), 0.0
        self._stage, self._step = "", 0
        self._stage_started, self._first_step = 0.0, 0
        shared.state.job_count, shared.state.sampling_steps = 1, max(1, total)

    def update(self, report: Report) -> None:
        job = self.job
        if report.note:
            shared.state.textinfo = report.note
            return
        job.stage, job.step, job.total = report.stage, report.step, report.total
        job.seconds = time.monotonic() - self.started
        if report.losses:
            job.losses.append({name: float(value) for name, value in report.losses.items()})
        if report.stage != "trajectories":  # these come between the steps of a training, and count with them
            self._estimate(report)
        shared.state.textinfo = f"{report.stage} {report.step}/{report.total} {self.told()}".rstrip()
        shown = self.picture(report)
        if shown is not None:
            shared.state.assign_current_image(shown)
        if job.seconds - self._noted >= NOTE_EVERY:
            self._noted = job.seconds
            self.note()

    def _estimate(self, report: Report) -> None:
        """How far the stage is, and how long it still takes: steps of other stages took another time each, and a
        training that goes on has made its first ones before."""
        if report.stage != self._stage or report.step < self._step:
            self._stage_started, self._first_step = self.job.seconds, report.step
        self._stage, self._step = report.stage, report.step
        done = report.step - self._first_step
        pace = (self.job.seconds - self._stage_started) / done if done else 0.0
        self.job.left = pace * (report.total - report.step)
        shared.state.time_start = time.time() - pace * report.step  # the host's bar reckons with the time since then
        shared.state.sampling_steps, shared.state.sampling_step = max(1, report.total), report.step

    def cancelled(self) -> bool:
        return bool(shared.state.interrupted or getattr(shared.state, "stopping_generation", False))


def as_pictures(pixels: Tensor) -> list[Image.Image]:
    """Pictures of uint8 [B, 3, H, W]."""
    return [Image.fromarray(one.permute(1, 2, 0).numpy()) for one in pixels]


def as_pixels(picture: Image.Image) -> Tensor:
    """A picture as uint8 [3, H, W]."""
    size = (picture.height, picture.width, 3)
    content = bytearray(picture.convert("RGB").tobytes())
    return torch.frombuffer(content, dtype=torch.uint8).view(size).permute(2, 0, 1)


def loaded_model(latent_side: int | None = None) -> WebuiModel:
    """The loaded model, without anything on it.

    Raises:
        ModelError: there is none, or it is of an unsupported kind.
    """
    _load_chosen()
    SESSION.take_off()
    model = WebuiModel(shared.sd_model, latent_side, f"clip skip {getattr(shared.opts, 'CLIP_stop_at_last_layers', 1)}")
    model.host.clean()
    return model


def _load_chosen() -> None:
    """Have the host load the checkpoint that is chosen, which need not be the one that it painted with last: Forge
    loads it only when it generates, and after a refiner, a hires checkpoint or one of an API request the others put it
    back only then."""
    reload_forge = getattr(sd_models, "forge_model_reload", None)
    if reload_forge is not None:
        reload_forge()
    elif shared.sd_model is not None:  # asked for first: A1111 loads its first model here, and only once
        sd_models.reload_model_weights()


def chosen_checkpoint() -> Any:
    """What the host knows of the checkpoint that ``loaded_model`` loads; ``None`` if it does not say."""
    parameters = getattr(sd_models.model_data, "forge_loading_parameters", None)
    if parameters:
        return parameters.get("checkpoint_info")
    return sd_models.checkpoint_aliases.get(getattr(shared.opts, "sd_model_checkpoint", None))


def latent_side(pixels: float | None) -> int | None:
    """Side of the latents for a side in pixels; nothing for 0, which means the family's own.

    Raises:
        InvalidSettings: no number of pixels.
    """
    if not pixels:
        return None
    try:
        side = int(pixels) // PATCH
    except (TypeError, ValueError, OverflowError):
        side = 0
    if not 8 <= side <= 512:
        raise InvalidSettings(f"The side of the pictures is {pixels!r}; give 64 to 4096 pixels, or 0 for the usual.")
    return side
