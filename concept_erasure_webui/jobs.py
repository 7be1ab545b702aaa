"""Work on the loaded model: erasing and purifying, under the host's queue, with its progress and its Interrupt."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from modules import sd_models, shared
from PIL import Image
from torch import Tensor

from erasure_core.checkpoint import checkpoint_path
from erasure_core.concept import Concept
from erasure_core.erasure_file import read_erasure
from erasure_core.errors import Cancelled, ErasureError, InvalidSettings
from erasure_core.hosts.webui import WebuiModel
from erasure_core.library import make_erasure, request_key, safe_stem
from erasure_core.methods import Method, SolverSettings
from erasure_core.progress import Report
from erasure_core.purify import purify
from erasure_core.safe_files import write_bytes

from . import places
from .session import SESSION
from .unfinished import save_unfinished
from .wishes import Wish

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
    seconds: float = 0.0


@dataclass(frozen=True)
class Request:
    """A training that was asked for; kept so that an interrupted one can be saved as it is."""

    concept: Concept
    method: Method
    settings: SolverSettings
    latent_side: int | None = None


class Jobs:
    """The last job of this web UI; the host's queue runs one at a time."""

    def __init__(self) -> None:
        self.last: Job | None = None
        self.request: Request | None = None

    def note(self) -> None:
        """Write the last job beside the library."""
        if self.last is not None:
            write_bytes(_note_path(), json.dumps(asdict(self.last)).encode())

    def shown(self) -> Job | None:
        """The last job, of an earlier start of the web UI if there was none since."""
        if self.last is None:
            try:
                job = Job(**json.loads(_note_path().read_text(encoding="utf-8")))
            except (OSError, ValueError, TypeError):
                return None
            if job.status == "running":
                job.status = "stopped"
                job.message = "The web UI ended during this work. The same request goes on with it."
            self.last = job
        return self.last


JOBS = Jobs()


def _note_path() -> Path:
    return places.folder() / ".last-job.json"


class HostProgress:
    """Shows reports in the host's progress bar and asks its Interrupt button."""

    def __init__(self, job: Job, total: int) -> None:
        self.job, self.started, self._noted = job, time.monotonic(), 0.0
        shared.state.job_count, shared.state.sampling_steps = 1, max(1, total)

    def update(self, report: Report) -> None:
        job = self.job
        job.stage, job.step, job.total = report.stage, report.step, report.total
        job.seconds = time.monotonic() - self.started
        if report.losses:
            job.losses.append({name: float(value) for name, value in report.losses.items()})
        if report.stage != "trajectories":
            shared.state.sampling_steps, shared.state.sampling_step = max(1, report.total), report.step
        shared.state.textinfo = f"{report.stage} {report.step}/{report.total}"
        if report.preview is not None:
            self._show(report.preview)
        if job.seconds - self._noted >= NOTE_EVERY:
            self._noted = job.seconds
            JOBS.note()

    def _show(self, latents: Tensor) -> None:
        shared.state.assign_current_image(as_pictures(WebuiModel(shared.sd_model).decode(latents[:1]))[0])

    def cancelled(self) -> bool:
        return bool(shared.state.interrupted or getattr(shared.state, "stopping_generation", False))


def as_pictures(pixels: Tensor) -> list[Image.Image]:
    """Pictures of uint8 [B, 3, H, W]."""
    return [Image.fromarray(one.permute(1, 2, 0).numpy()) for one in pixels]


def loaded_model(latent_side: int | None = None) -> WebuiModel:
    """The loaded model, without anything on it.

    Raises:
        ModelError: there is none, or it is of an unsupported kind.
    """
    reload_forge = getattr(sd_models, "forge_model_reload", None)
    if reload_forge is not None:
        reload_forge()  # Forge loads its checkpoint only when it generates
    SESSION.take_off()
    model = WebuiModel(shared.sd_model, latent_side)
    model.host.clean()
    return model


def run_erase(request: Request) -> Job:
    """Erase a concept from the loaded model; never raises for what a user can cause. Call it under the host's queue."""
    job = JOBS.last = Job(f"Erasing {request.concept.name!r} with {request.method.title}")
    JOBS.request = request
    progress = HostProgress(job, getattr(request.settings, "steps", 1))
    try:
        model = loaded_model(request.latent_side)
        library = places.library()
        stem = f"{safe_stem(request.concept.name)[:60]}-{request.method.name}"
        job.output = str(library.new_path(f"{stem}-{request_key(model, *_parts(request))}"))
        made = make_erasure(library, model, *_parts(request), progress)
        job.losses = made.history.losses
        job.file, job.status = made.path.name, "done"
        again = " It was there already: the same request was made before." if made.reused else ""
        job.message = f"Wrote {made.path.name}.{again} Use it with <erase:{made.path.stem}:1>, or in the panel."
    except Cancelled as stopped:
        job.status = "stopped"
        kept = checkpoint_path(Path(job.output)).exists()
        advice = " The same request goes on with it; or save it as it is, or discard it." if kept else ""
        job.message = f"{stopped}{advice}"
    except ErasureError as error:
        job.status, job.message = "failed", places.told(error)
    finally:
        if job.status == "running":
            job.status, job.message = "failed", "An unexpected error ended the work; see the console."
        job.seconds = time.monotonic() - progress.started
        JOBS.note()
    return job


def _parts(request: Request) -> tuple[Concept, Method, SolverSettings]:
    return request.concept, request.method, request.settings


def _stopped() -> tuple[Job, Request, Path]:
    """Raises:
    InvalidSettings: there is no interrupted training.
    """
    job, request = JOBS.last, JOBS.request
    if job is None or request is None or job.status != "stopped" or not checkpoint_path(Path(job.output)).exists():
        raise InvalidSettings("There is no interrupted training to save or discard.")
    return job, request, Path(job.output)


def save_stopped() -> Job:
    """Make a file of an interrupted training as it is; raises as ``save_unfinished``, or InvalidSettings."""
    job, request, output = _stopped()
    target = places.library().free_path(f"{output.stem}-unfinished")
    model = loaded_model(request.latent_side)
    steps = save_unfinished(model, *_parts(request), checkpoint_path(output), target)
    job.file = target.name
    job.message = f"Wrote {target.name} after {steps} steps. The state is kept; the same request goes on with it."
    JOBS.note()
    return job


def discard_stopped() -> Job:
    """Throw the state of an interrupted training away.

    Raises:
        InvalidSettings: there is none.
    """
    job, _, output = _stopped()
    checkpoint_path(output).unlink(missing_ok=True)
    job.message = "The interrupted training was discarded."
    JOBS.note()
    return job


@torch.no_grad()
def run_purify(
    picture: Image.Image, caption: str, wishes: Sequence[Wish], steps: int, guidance: float, share: float
) -> list[Image.Image]:
    """Paint a picture again without what the erasures take away; raises as ``purify``."""
    job = Job("Purifying a picture")
    model = loaded_model()
    bound = [(read_erasure(places.library().find(wish.file)).bind(model), wish.unet) for wish in wishes]
    if not bound:
        raise InvalidSettings("Choose an erasure.")
    with model.trainable(), torch.no_grad():
        latents = model.latents_of(_pixels(picture))
        made = purify(model, latents, [caption], bound, steps, guidance, share, HostProgress(job, steps))
        return as_pictures(model.decode(made))


def _pixels(picture: Any) -> Tensor:
    """uint8 [1, 3, H, W] with sides that are multiples of 64, as every UNet wants."""
    if picture is None:
        raise InvalidSettings("Give a picture.")
    width, height = (max(64, side // 64 * 64) for side in picture.size)
    small = picture.convert("RGB").resize((width, height))
    return torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8).view(1, height, width, 3).permute(0, 3, 1, 2)
